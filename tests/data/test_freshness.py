"""What is said of a cache counts what denoisers read of pictures: masks, what they leave, depth."""

import pytest
from pictures import PoolingEncoder, concept, picture, prepare

from modules.config import TrainConfig
from modules.data import scan
from modules.data.encoder_notes import Settings
from modules.data.freshness import Freshness
from modules.data.plan import Framing


def nothing(folder):
    pass


def change_a_caption(folder):
    (folder / "0.txt").write_text("another caption")


def change_a_mask(folder):
    picture(6, mode="L").save(folder / "1-masklabel.png")


def add_a_mask(folder):
    picture(5, mode="L").save(folder / "0-masklabel.png")


def remove_the_mask(folder):
    (folder / "1-masklabel.png").unlink()


def change_a_conditioning_image(folder):
    picture(79).save(folder / "0-condlabel.png")


def change_an_image(folder):
    picture(77).save(folder / "3.png")


CASES = [
    # what the denoiser reads, whether it is shown conditioning images, whether the loss reads masks
    ("inpainting", False, False, nothing, 0),
    ("inpainting", False, False, change_a_mask, 1),
    ("inpainting", False, False, add_a_mask, 1),
    ("inpainting", False, False, remove_the_mask, 0),  # it sees nothing, as of all others
    ("inpainting", False, False, change_a_conditioning_image, 0),
    ("inpainting", True, False, change_a_conditioning_image, 1),
    ("inpainting", True, False, change_a_mask, 1),
    ("depth", False, False, change_a_mask, 0),
    ("depth", False, False, change_an_image, 1),
    ("depth", False, True, change_a_mask, 1),
    ("none", False, True, add_a_mask, 1),
    ("none", False, False, add_a_mask, 0),
    ("none", False, True, change_a_caption, 1),
]


@pytest.mark.parametrize(("hint", "conditioning", "masks", "edit", "stale"), CASES)
def test_what_a_run_would_make_anew_is_stale(
    folder, tmp_path, hint, conditioning, masks, edit, stale
):
    picture(9, mode="L").save(folder / "1-masklabel.png")
    for index in range(6):
        picture(50 + index).save(folder / f"{index}-condlabel.png")
    given = {"masks": masks, "conditioning": conditioning}
    encoder, kept = PoolingEncoder(hint=hint), tmp_path / "cache"

    def look():
        framing = Framing.for_hint(hint, "64", 8, True, **given)
        told = Freshness([concept(folder)], framing, kept)
        states = [told.state(item) for item in scan([concept(folder)], kept).items]
        assert set(states) <= {"fresh", "stale"}
        return states.count("stale")

    def run():
        prepare(concept(folder), encoder, kept, **given)

    run()
    edit(folder)
    assert look() == stale
    before = encoder.images, len(encoder.texts), encoder.hints
    run()
    # masks for the loss are scaled without an encoder, which so counts nothing
    made = (encoder.images, len(encoder.texts), encoder.hints) != before
    assert made == (stale > 0 and not (hint in ("none", "depth") and "mask" in edit.__name__))
    assert look() == 0


@pytest.mark.parametrize(
    ("kind", "encoder"), [("FLUX_DEV_1", "vae"), ("STABLE_CASCADE_1", "effnet_encoder")]
)
def test_another_image_encoder_is_another_cache(kind, encoder):
    config = TrainConfig().update(model_type=kind)
    other = config.update(**{f"{encoder}.model_name": "somebody/encoder"})
    assert Settings.of(config).image != Settings.of(other).image
    assert Settings.of(config).text == Settings.of(other).text


def test_a_denoiser_file_that_may_hold_a_conditioner_is_another_cache_of_captions(tmp_path):
    file = tmp_path / "anima.safetensors"
    file.write_bytes(b"one")
    plain = TrainConfig().update(model_type="ANIMA")
    own = plain.update(**{"transformer.model_name": str(file)})
    said = {Settings.of(plain).text, Settings.of(own).text}
    file.write_bytes(b"other")
    assert len({*said, Settings.of(own).text}) == 3
    assert Settings.of(plain).image == Settings.of(own).image
    other = TrainConfig().update(model_type="Z_IMAGE")  # has no conditioner
    own = other.update(**{"transformer.model_name": str(file)})
    assert Settings.of(other).text == Settings.of(own).text


def test_a_base_model_whose_conditioner_changes_is_another_cache_of_captions(tmp_path):
    network = tmp_path / "text_conditioner" / "model.safetensors"
    network.parent.mkdir()
    network.write_bytes(b"one")
    config = TrainConfig().update(model_type="ANIMA", base_model_name=str(tmp_path))
    before = Settings.of(config)
    network.write_bytes(b"other")
    assert Settings.of(config).text != before.text
    assert Settings.of(config).image == before.image
