"""Films that a run samples: frame by frame what the plain pipeline draws, in a file that plays."""

import numpy as np
import pytest
import torch
from imageio_ffmpeg import read_frames
from PIL import Image
from toys import cards, config_for

from modules import GenericTrainer, TrainCallbacks
from modules.config import ModelType
from modules.families import family_for
from modules.training import events as e

torch.set_num_threads(1)
FRAMES = 5
KINDS = [pytest.param(ModelType.HUNYUAN_VIDEO, marks=pytest.mark.slow), ModelType.WAN_2]


def film(kind, tmp_path, video_format):
    """The still of a film that an untrained model draws, as a run writes it."""
    (tmp_path / "pictures").mkdir()
    definition = {
        "prompt": "a card", "width": 64, "height": 64, "frames": FRAMES, "diffusion_steps": 2,
        "seed": 3, "cfg_scale": 2.0,
    }  # fmt: skip
    config = config_for(
        kind,
        cards(tmp_path / "pictures"),
        tmp_path,
        epochs=1,
        samples=[definition],
        sample_after=1,
        sample_after_unit="EPOCH",
        sample_video_format=video_format,
    )
    seen = []
    GenericTrainer(config, TrainCallbacks(on_event=seen.append)).run()
    assert [event.message for event in seen if isinstance(event, e.Warned)] == []
    return next(event.path for event in seen if isinstance(event, e.SampleImage))


def plain(kind):
    """The frames that the library's own pipeline draws, [f, h, w, 3]."""
    pipeline = family_for(kind).tiny().pipeline
    pipeline.set_progress_bar_config(disable=True)
    frames = pipeline(
        "a card",
        height=64,
        width=64,
        num_frames=FRAMES,
        num_inference_steps=2,
        guidance_scale=2.0,
        generator=torch.Generator().manual_seed(3),
        output_type="pil",
    ).frames[0]
    return np.stack([np.asarray(frame) for frame in frames]).astype(int)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_frames_are_those_of_the_plain_pipeline(kind, tmp_path):
    still = film(kind, tmp_path, "PNG_IMAGE_SEQUENCE")
    files = sorted(still.with_suffix("").iterdir())
    assert [file.name for file in files] == [f"{number:05}.png" for number in range(FRAMES)]
    drawn = np.stack([np.asarray(Image.open(file)) for file in files]).astype(int)
    assert np.abs(drawn - plain(kind)).max() <= 1
    assert np.array_equal(np.asarray(Image.open(still)), drawn[0])


def test_a_film_plays(tmp_path):
    kind = ModelType.WAN_2
    still = film(kind, tmp_path, "MP4")
    facts, *frames = read_frames(str(still.with_suffix(".mp4")))
    assert (facts["codec"], facts["size"], facts["fps"]) == ("h264", (64, 64), 16.0)
    shown = np.stack([np.frombuffer(frame, np.uint8).reshape(64, 64, 3) for frame in frames])
    assert len(shown) == FRAMES
    assert np.abs(shown.astype(int) - plain(kind)).mean() < 12  # compressed, and no colour lost
    assert {file.suffix for file in still.parent.iterdir()} == {".mp4", ".png"}
