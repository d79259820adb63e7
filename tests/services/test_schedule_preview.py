"""The learning rates of a run, drawn before it starts."""

import re

import pytest

import ot_notebook as ot

CONFIG = ot.TrainConfig().update(
    training_method="LORA",
    learning_rate=1e-3,
    learning_rate_scheduler="COSINE",
    learning_rate_warmup_steps=0.1,
)


def test_one_call_gives_the_rates_and_draws_them():
    rates = ot.preview_schedule(CONFIG, total_steps=100)
    assert rates.keys() == {"unet", "text_encoder"}
    assert len(rates["unet"]) == 100
    assert rates["unet"][0] == pytest.approx(1e-3 / 11)
    assert rates["unet"].index(max(rates["unet"])) == 10
    html = rates._repr_html_()
    assert html.count("<svg") == 1  # both have the same
    assert "Learning rate of unet, text_encoder: 9.09e-05 at first, 0.001 at most" in html
    points = re.search(r'points="([^"]+)"', html)[1].split()
    heights = [float(point.split(",")[1]) for point in points]
    assert len(points) == 100
    assert heights.index(min(heights)) == 10  # up is down in SVG


def test_parts_with_rates_of_their_own_have_pictures_of_their_own():
    config = CONFIG.update(**{"text_encoder.learning_rate": 1e-4})
    assert ot.preview_schedule(config)._repr_html_().count("<svg") == 2


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="total_steps is 0, but a run takes at least 1"):
        ot.preview_schedule(CONFIG, 0)
