"""Sizes: OneTrainer's table, its tie rule, and what a resolution may say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.data.buckets import Size, targets

TABLE_512 = [
    # by hand: 512 / sqrt(aspect) and 512 * sqrt(aspect), each to the nearest multiple of 64
    (512, 512),
    (448, 576),  # 1.25: 457.9, 572.4
    (448, 640),  # 1.5: 418.0, 627.1
    (384, 704),  # 1.75: 387.0, 677.3
    (384, 704),  # 2: 362.0, 724.1
    (320, 832),  # 2.5: 323.8, 809.5
    (320, 896),  # 3: 295.6, 886.8
    (256, 960),  # 3.5: 273.7, 957.9
    (256, 1024),  # 4
]


def test_the_table_of_512_pixels():
    (target,) = targets("512", 64, True)
    expected = {Size(*size) for size in TABLE_512} | {Size(w, h) for h, w in TABLE_512}
    assert set(target.sizes) == expected
    assert len(target.sizes) == len(expected)


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (100, 100, (512, 512)),
        (4000, 3000, (448, 576)),  # 0.75 is 0.03 from 448/576 and 0.05 from 448/640
        (1920, 1080, (384, 704)),
        (10, 4000, (1024, 256)),
        (4000, 10, (256, 1024)),
    ],
)
def test_an_image_takes_the_size_of_the_nearest_shape(width, height, expected):
    (target,) = targets("512", 64, True)
    assert target.nearest(width, height) == expected


def test_of_two_equally_near_sizes_the_first_is_taken():
    (target,) = targets("64", 8, True)
    one, other = target.sizes[0], target.sizes[1]
    between = (one.height / one.width + other.height / other.width) / 2
    assert target.nearest(10**6, round(between * 10**6)) in (one, other)
    assert target.nearest(1, 1) == one


def test_without_bucketing_everything_is_square():
    assert targets("500", 64, False)[0].sizes == (Size(512, 512),)


def test_exact_sizes_say_width_first():
    assert targets("768x512", 64, True)[0].sizes == (Size(height=512, width=768),)
    assert targets(" 770 X 500 ", 64, False)[0].sizes == (Size(height=512, width=768),)


def test_a_list_allows_each_of_its_entries():
    first, second = targets("512, 768x320", 64, True)
    assert len(first.sizes) > 10
    assert second.sizes == (Size(320, 768),)


@pytest.mark.parametrize("text", ["", "abc", "512,", "512x", "-512", "0", "512x0", "3.5", "1e3"])
def test_what_is_no_resolution(text):
    with pytest.raises(ValueError, match="Write 512, several as 512,768") as caught:
        targets(text, 64, True)
    assert repr(text) in str(caught.value)


@given(st.integers(64, 2048), st.sampled_from([8, 16, 32, 64]))
def test_every_size_fits_the_network_and_the_budget(edge, quantum):
    if edge < 4 * quantum:
        return
    for size in targets(str(edge), quantum, True)[0].sizes:
        assert size.height % quantum == size.width % quantum == 0
        ideal = edge * edge
        slack = quantum * (size.height + size.width) / 2 + quantum * quantum
        assert abs(size.height * size.width - ideal) <= slack
