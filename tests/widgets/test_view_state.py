"""Numbers, durations and shares as a page words them."""

import math

import pytest

from ot_notebook.widgets.view_state import NO_VALUE, count, duration, number, percent, speed


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (None, NO_VALUE),
        (math.nan, NO_VALUE),
        (0.0, "0"),
        (0.123456, "0.1235"),
        (1e-4, "1e-4"),
        (3.2e-5, "3.2e-5"),
        (250000.0, "2.5e5"),
    ],
)
def test_numbers(given, text):
    assert number(given) == text


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (None, NO_VALUE),
        (-1, NO_VALUE),
        (59.4, "59 s"),
        (61, "1 min 01 s"),
        (1234, "20 min"),
        (3660, "1 h 01 min"),
        (200000, "2 d 7 h"),
    ],
)
def test_durations(given, text):
    assert duration(given) == text


def test_counts_speeds_and_shares():
    assert count(1234567) == "1\u202f234\u202f567"
    assert (speed(5.2), speed(0.25), speed(0)) == ("5.2 step/s", "4 s/step", NO_VALUE)
    assert (percent(1, 3), percent(5, 0), percent(7, 5)) == (33.3, 0.0, 100.0)
