"""Models that say what is on pictures: BLIP and its kin, Florence-2, chat models, WD14 taggers."""

from __future__ import annotations

import csv
import importlib
import inspect
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

DESCRIBE = "Describe this picture in one sentence."
"""What a chat model is asked for."""

GENERAL, CHARACTER = 0, 4
"""Kinds of tags in a tagger's list; the others say how daring a picture is."""


def best_device() -> str:
    """The GPU where there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def needed(package: str, what: str) -> ModuleType:
    """An optional package.

    Raises:
        ImportError: if it is not installed; says how to install it.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"{what} needs the package {package}, which is not installed ({error}). "
            f"Install it with: pip install 'ot-notebook[annotate]'"
        ) from None


class TransformersCaptioner:
    """BLIP, BLIP-2, GIT and other models of `transformers` that turn a picture into a text.

    Args:
        model: folder or hub id.
        prompt: the beginning of each caption, for models that go on from one.
        max_tokens: length of a caption at most.
        device: where it runs; by default the GPU where there is one.

    Raises:
        ValueError: for a chat model, which needs a conversation and not a picture alone.
    """

    def __init__(
        self, model: str, prompt: str = "", max_tokens: int = 60, device: str | None = None
    ) -> None:
        from transformers import AutoModelForImageTextToText

        self._device = device or best_device()
        self._processor = _processor(model)
        if getattr(self._processor, "chat_template", None):
            raise ValueError(
                f"{model} is a chat model. Use ChatCaptioner, or name a captioning model."
            )
        self._model = AutoModelForImageTextToText.from_pretrained(model).eval().to(self._device)
        self._prompt, self._max_tokens = prompt, max_tokens

    def __call__(self, images: Sequence[Image.Image]) -> list[str]:
        """RGB images -> a caption for each."""
        text = {"text": [self._prompt] * len(images)} if self._prompt else {}
        inputs = self._processor(images=list(images), return_tensors="pt", **text)
        tokens = _generate(self._model, inputs.to(self._device), self._max_tokens)
        return _lines(self._processor.batch_decode(tokens, skip_special_tokens=True))


class Florence2Captioner:
    """Florence-2, which is told what to do by a task token.

    Args:
        model: folder or hub id of a model that `transformers` knows itself, such as
            "florence-community/Florence-2-base".
        task: <CAPTION>, <DETAILED_CAPTION> or <MORE_DETAILED_CAPTION>.
        max_tokens: length of a caption at most.
        device: where it runs; by default the GPU where there is one.
    """

    def __init__(
        self,
        model: str,
        task: str = "<DETAILED_CAPTION>",
        max_tokens: int = 256,
        device: str | None = None,
    ) -> None:
        from transformers import AutoProcessor, Florence2ForConditionalGeneration

        self._device = device or best_device()
        self._processor = AutoProcessor.from_pretrained(model)
        made = Florence2ForConditionalGeneration.from_pretrained(model)
        self._model = made.eval().to(self._device)
        self._task, self._max_tokens = task, max_tokens

    def __call__(self, images: Sequence[Image.Image]) -> list[str]:
        """RGB images -> a caption for each."""
        text = [self._task] * len(images)
        inputs = self._processor(text=text, images=list(images), return_tensors="pt", padding=True)
        tokens = _generate(self._model, inputs.to(self._device), self._max_tokens)
        return _lines(self._processor.batch_decode(tokens, skip_special_tokens=True))


class ChatCaptioner:
    """Qwen-VL and other chat models of `transformers` that see pictures.

    Args:
        model: folder or hub id.
        prompt: what it is asked about each picture.
        max_tokens: length of an answer at most.
        device: where it runs; by default the GPU where there is one.
    """

    def __init__(
        self,
        model: str,
        prompt: str = DESCRIBE,
        max_tokens: int = 256,
        device: str | None = None,
    ) -> None:
        from transformers import AutoModelForImageTextToText

        self._device = device or best_device()
        self._processor = _processor(model)
        self._processor.tokenizer.padding_side = "left"  # answers begin where questions end
        made = AutoModelForImageTextToText.from_pretrained(model, dtype="auto")
        self._model = made.eval().to(self._device)
        self._prompt, self._max_tokens = prompt, max_tokens

    def __call__(self, images: Sequence[Image.Image]) -> list[str]:
        """RGB images -> an answer for each."""
        question = {"type": "text", "text": self._prompt}
        talks = [
            [{"role": "user", "content": [{"type": "image", "image": image}, question]}]
            for image in images
        ]
        inputs = self._processor.apply_chat_template(
            talks,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            padding=True,
        ).to(self._device, self._model.dtype)
        tokens = _generate(self._model, inputs, self._max_tokens)
        answers = tokens[:, inputs["input_ids"].shape[1] :]
        return _lines(self._processor.batch_decode(answers, skip_special_tokens=True))


class Wd14Tagger:
    """A WD14 tagger: an onnx network and its list of tags, as SmilingWolf publishes them.

    Args:
        model: folder with `model.onnx` and `selected_tags.csv`, or hub id of such.
        threshold: how sure it must be of a tag, 0 to 1.
        character_threshold: the same for names of characters.

    Raises:
        ImportError: if onnxruntime is not installed.
        FileNotFoundError: if one of the two files is not there.
    """

    def __init__(
        self, model: str, threshold: float = 0.35, character_threshold: float = 0.85
    ) -> None:
        runtime: Any = needed("onnxruntime", "The WD14 tagger")
        network, listed = (_file(model, name) for name in ("model.onnx", "selected_tags.csv"))
        self._session = runtime.InferenceSession(
            str(network), providers=runtime.get_available_providers()
        )
        (wanted,) = self._session.get_inputs()
        self._input = wanted.name
        self._many = not isinstance(wanted.shape[0], int)
        self._edge = int(wanted.shape[1])
        with listed.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        least = {GENERAL: threshold, CHARACTER: character_threshold}
        self._tags = [_spelled(row["name"]) for row in rows]
        self._least = np.array([least.get(int(row["category"]), 2.0) for row in rows])

    def __call__(self, images: Sequence[Image.Image]) -> list[str]:
        """RGB images -> tags for each, the surest first."""
        pixels = np.stack([self._seen(image) for image in images])
        chunks = [pixels] if self._many else np.split(pixels, len(pixels))
        sure = np.concatenate([self._session.run(None, {self._input: one})[0] for one in chunks])
        found = []
        for row in sure:
            order = np.argsort(-row, kind="stable")
            found.append(", ".join(self._tags[i] for i in order if row[i] >= self._least[i]))
        return found

    def _seen(self, image: Image.Image) -> NDArray[np.float32]:
        """What the network reads: the image on a white square, blue first, 0 to 255."""
        edge = max(image.size)
        square = Image.new("RGB", (edge, edge), "white")
        square.paste(image, ((edge - image.width) // 2, (edge - image.height) // 2))
        scaled = square.resize((self._edge, self._edge), Image.Resampling.BICUBIC)
        return np.asarray(scaled, np.float32)[:, :, ::-1]


def _processor(model: str) -> Any:
    """What prepares pictures and texts for a model.

    Qwen-VL's prepares films too, by torchvision; where that is missing, it does without films.

    Raises:
        ImportError: if the model needs a package for pictures; transformers' own words name it.
    """
    from transformers import AutoConfig, AutoProcessor
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    try:
        return AutoProcessor.from_pretrained(model)
    except ImportError as error:
        whole: Any = PROCESSOR_MAPPING.get(type(AutoConfig.from_pretrained(model)), None)
        if whole is None or "video_processor" not in inspect.signature(whole).parameters:
            raise
        try:
            return _without_films(whole).from_pretrained(model)
        except (ImportError, TypeError, ValueError):
            raise error from None


def _without_films(whole: Any) -> Any:
    class ForPictures(whole):
        # transformers reads the names of these arguments
        def __init__(
            self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None
        ) -> None:
            super().__init__(image_processor, tokenizer, chat_template=chat_template)

    return ForPictures


def _generate(model: Any, inputs: Any, most: int) -> Any:
    import torch

    with torch.inference_mode():
        return model.generate(**inputs, max_new_tokens=most)


def _lines(texts: Sequence[str]) -> list[str]:
    """One line each: a line break would begin another caption."""
    return [" ".join(text.split()) for text in texts]


def _spelled(tag: str) -> str:
    """A tag with blanks, unless its underscores are part of a face such as ^_^."""
    return tag if len(tag) <= 3 else tag.replace("_", " ")


def _file(model: str, name: str) -> Path:
    """A file of a model on this disk or the hub."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}. Name the folder of a WD14 tagger.")
        return folder / name
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(model, name))
