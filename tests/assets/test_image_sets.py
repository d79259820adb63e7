"""The embedded image sets are complete, licensed, and do not give the gallery's answers away."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from ot_notebook import assets, preset_files

STYLES = ("line art", "pixel art")


def names_in(folder):
    return {path.read_text("utf-8").split(",")[0] for path in folder.glob("*.txt")}


def emoji_presets():
    return sorted(path for path in preset_files.folder().glob("emoji/*.json"))


@pytest.mark.parametrize("style", STYLES)
def test_every_picture_has_its_caption(style):
    folder = assets.dataset(style)
    pictures = sorted(folder.glob("*.png"))
    assert len(pictures) == len(list(folder.glob("*.txt"))) == 96
    for path in pictures:
        with Image.open(path) as image:
            assert (image.size, image.mode) in {((64, 64), "RGB"), ((64, 64), "P")}
        assert re.fullmatch(rf"\S.*, {style}", path.with_suffix(".txt").read_text("utf-8"))


def test_styles_look_as_their_names_say():
    def pixels(style):
        return np.stack([np.asarray(Image.open(p)) for p in assets.dataset(style).glob("*.png")])

    lines, cells = (pixels(style).astype(int) for style in STYLES)
    assert (lines.max(-1) - lines.min(-1)).max() <= 2  # no colour at all
    corners = cells[:, ::4, ::4].repeat(4, axis=1).repeat(4, axis=2)
    assert (cells == corners).all()  # square cells
    assert len(np.unique(cells.reshape(-1, 3), axis=0)) <= 24


@pytest.mark.parametrize("preset", emoji_presets(), ids=lambda path: path.stem)
def test_gallery_shows_emoji_that_the_model_knows_and_the_set_lacks(preset):
    config = json.loads(preset.read_text("utf-8"))
    known = set(json.loads((assets.model() / "classes.json").read_text("utf-8")).values())
    style = config["concepts"][0]["path"].rpartition("/")[2].replace("_", " ")
    taught = names_in(assets.dataset(style))
    assert len(config["samples"]) >= 6
    for sample in config["samples"]:
        name, _, ending = sample["prompt"].partition(", ")
        shown = re.sub(r"^an? ", "", name)
        assert ending == style
        assert shown in known
        assert shown not in taught


def test_licences_ship_with_the_files():
    folder = assets.model().parent
    texts = {path.name: path.read_text("utf-8") for path in folder.glob("licenses/*")}
    assert "Copyright (c) Microsoft Corporation" in texts["fluent-emoji-MIT.txt"]
    assert "Apache License" in texts["noto-emoji-Apache-2.0.txt"]
    for document in (folder / "emoji/README.md", folder / "datasets/README.md"):
        assert "licenses/fluent-emoji-MIT.txt" in document.read_text("utf-8")
