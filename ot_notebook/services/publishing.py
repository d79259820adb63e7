"""Publish what was trained: the file, a model card with samples, in a folder or on the hub."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modules.atomic import atomic_folder
from modules.config import ConfigError, Problem, TrainConfig, TrainingMethod
from modules.config.models import MODELS
from modules.config.paths import hub_revision
from modules.config.secrets import hub_token
from modules.training.events import ModelSaved, SampleImage
from ot_notebook.services.inference_result import Result
from ot_notebook.services.run import Run

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_SAMPLES = 6
REPOSITORY = re.compile(r"[\w][\w.-]{0,95}/[\w][\w.-]{0,95}")
"""The name of a repository on the hub: owner/name."""

TOKEN_LIKE = re.compile(r"\b(hf|api_org|sk|ghp|github_pat)_?[-A-Za-z0-9_]{20,}")
"""What tokens of the hub and its kin look like."""

TOLD = (
    "training_method",
    "lora_rank",
    "lora_alpha",
    "learning_rate",
    "learning_rate_scheduler",
    "batch_size",
    "epochs",
    "resolution",
    "seed",
)
"""Settings that a card tells. None of them can hold a path or a secret."""


@dataclass(frozen=True)
class Publication:
    """What is, or would be, published."""

    card: str
    """The model card: README.md."""
    files: dict[str, Path] = field(repr=False)
    """Weights, by their name in the publication."""
    pictures: dict[str, tuple[str, Image]] = field(repr=False)
    """Samples with their prompts, by their name in the publication."""
    target: str
    done: bool
    """Whether it was written or pushed."""

    @property
    def names(self) -> list[str]:
        """Every file of it."""
        return ["README.md", *self.files, *self.pictures]

    def _repr_markdown_(self) -> str:
        state = "Published to" if self.done else "Would be published to"
        lines = "\n".join(f"- `{name}`" for name in self.names)
        return f"{state} `{self.target}`:\n\n{lines}\n\n---\n\n````\n{self.card}\n````"

    def _repr_html_(self) -> str:
        state = "Published to" if self.done else "Would be published to"
        names = "".join(f"<li><code>{escape(name)}</code></li>" for name in self.names)
        card = f'<pre style="white-space:pre-wrap">{escape(self.card)}</pre>'
        return f"<p>{state} <code>{escape(self.target)}</code>:</p><ul>{names}</ul>{card}"


def publish(
    source: Run | str | Path,
    target: str | Path,
    *,
    title: str = "",
    about: str = "",
    trigger: str = "",
    licence: str = "",
    tags: Sequence[str] = (),
    base_model: str = "",
    samples: Sequence[Result | SampleImage] | None = None,
    hub: bool = False,
    private: bool = True,
    dry_run: bool = False,
) -> Publication:
    """Write a model with its card and samples to a folder, or push it to the Hugging Face hub.

    Args:
        source: a run, of which the last save is taken, or a .safetensors file, or the folder of a
            diffusers model.
        target: a new folder; with `hub`, the name of a repository, owner/name.
        title: name of the model; by default that of its file.
        about: a few words on it.
        trigger: the words that call forth what was learnt.
        licence: as the hub spells it, such as "apache-2.0"; a card without one says nothing of it.
        tags: words to find it by.
        base_model: the hub id of what it was trained on, where the run does not tell it.
        samples: pictures of `generate`, or samples of the run; by default its last ones.
        hub: push it, with the token that `huggingface-cli login` or HF_TOKEN holds.
        private: whether a repository that is new is seen by its owner alone.
        dry_run: give what would be published, and write nothing.

    Returns:
        The card and the names of all files; a notebook shows them.

    Raises:
        ConfigError: if there is nothing to publish, a text holds what looks like a token, the
            folder exists, or the hub refuses.
    """
    place = str(target)
    if hub and not REPOSITORY.fullmatch(place):
        raise _refused(
            "target", f"{place} is no repository of the hub.", "Write owner/name, or leave hub out."
        )
    if not hub and Path(place).expanduser().exists():
        raise _refused("target", f"{place} exists already.", "Choose another folder, or remove it.")
    weights, config = _weights(source)
    pictures = _pictures(source, samples)
    name = title or weights.stem
    for field_name, text in _texts(name, about, trigger, licence, base_model, *tags):
        if TOKEN_LIKE.search(text):
            raise _refused(
                field_name, "A text for the card holds what looks like a token.", "Take it out."
            )
    base = base_model or _hub_id(config)
    card = _card(name, about, trigger, licence, tags, base, config, weights, pictures)
    files = _files(weights)
    found = Publication(card, files, pictures, place, done=not dry_run)
    if dry_run:
        return found
    if hub:
        _push(found, private)
    else:
        with atomic_folder(Path(place).expanduser().absolute()) as folder:
            _write(found, folder)
    return found


def _weights(source: Run | str | Path) -> tuple[Path, TrainConfig | None]:
    """The file or folder with the weights, and the settings that made it, if they are known."""
    if isinstance(source, Run):
        saved = [one for one in source.events("save") if isinstance(one, ModelSaved)]
        there = [one.path for one in saved if one.path.exists()]
        if not there:
            raise _refused(
                "source",
                f"Run {source.id} has saved no model that is still there.",
                "Save it, or name the file.",
            )
        return there[-1], source.config
    from modules.families.folders import read_index

    path = Path(source).expanduser()
    single = path.is_file() and path.suffix == ".safetensors"
    if not single and not read_index(path):
        raise _refused(
            "source",
            f"{path} is neither a .safetensors file nor the folder of a diffusers model.",
            "Give what a run has saved, or the run itself.",
        )
    return path, None


def _files(weights: Path) -> dict[str, Path]:
    if weights.is_file():
        return {weights.name: weights}
    found = (path for path in sorted(weights.rglob("*")) if path.is_file())
    return {
        path.relative_to(weights).as_posix(): path
        for path in found
        if not any(part.startswith(".") for part in path.relative_to(weights).parts)
        and path.name != "README.md"
    }


def _pictures(
    source: Run | str | Path, samples: Sequence[Result | SampleImage] | None
) -> dict[str, tuple[str, Image]]:
    """Samples by name, each with its prompt; without metadata, which tells paths."""
    from PIL import Image as Pictures

    if samples is None:
        taken = source.events("sample") if isinstance(source, Run) else []
        images = [one for one in taken if isinstance(one, SampleImage) and one.path.is_file()]
        last = max((one.step for one in images), default=0)
        samples = [one for one in images if one.step == last]
    found = {}
    for number, sample in enumerate(samples[:MAX_SAMPLES], start=1):
        if isinstance(sample, Result):
            prompt, image = sample.recipe.prompt, sample.image.convert("RGB")
        else:
            with Pictures.open(sample.path) as opened:
                prompt, image = sample.prompt, opened.convert("RGB")
        bare = Pictures.new("RGB", image.size)
        bare.paste(image)
        found[f"images/{number}.png"] = (prompt, bare)
    return found


def _hub_id(config: TrainConfig | None) -> str:
    """What it was trained on, if the hub has it: a path of this machine is nobody's business."""
    name, _revision = hub_revision(config.base_model_name if config is not None else "")
    return name if REPOSITORY.fullmatch(name) and not Path(name).exists() else ""


def _card(
    name: str,
    about: str,
    trigger: str,
    licence: str,
    tags: Sequence[str],
    base: str,
    config: TrainConfig | None,
    weights: Path,
    pictures: dict[str, tuple[str, Image]],
) -> str:
    from huggingface_hub import ModelCardData

    whole = config is not None and config.training_method is not TrainingMethod.LORA
    adapter = weights.is_file() and not whole
    kind = ["lora", "template:sd-lora"] if adapter else []
    words = ["text-to-image", "diffusers", *kind, *tags]
    facts: dict[str, Any] = {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": list(dict.fromkeys(words)),
    }
    facts |= {"license": licence} if licence else {}
    facts |= {"base_model": base} if base else {}
    facts |= {"instance_prompt": trigger} if trigger else {}
    if pictures:
        facts["widget"] = [
            {"text": prompt, "output": {"url": file}} for file, (prompt, _) in pictures.items()
        ]
    parts = [f"---\n{ModelCardData(**facts).to_yaml().strip()}\n---", f"# {_plain(name)}"]
    parts += [about.strip()] if about.strip() else []
    parts += ["<Gallery />"] if pictures else []
    if trigger:
        parts.append(f"## Trigger words\n\nUse `{_plain(trigger)}` in the prompt.")
    if adapter:
        parts.append(_use(base, weights.name))
    if config is not None:
        parts.append(_settings(config))
    return "\n\n".join(parts) + "\n"


def _use(base: str, file: str) -> str:
    """How to load it, as plain diffusers code."""
    model = repr(base or "base model")
    return (
        "## Use\n\n```python\nimport diffusers\n\n"
        f"pipeline = diffusers.AutoPipelineForText2Image.from_pretrained({model})\n"
        f'pipeline.load_lora_weights("this repository", weight_name={file!r})\n```'
    )


def _settings(config: TrainConfig) -> str:
    rows: list[tuple[str, Any]] = [("model type", MODELS[config.model_type].title)]
    for name in TOLD:
        value = getattr(config, name, None)
        if name.startswith("lora") and config.training_method is not TrainingMethod.LORA:
            continue
        rows.append((name.replace("_", " "), getattr(value, "value", value)))
    lines = "\n".join(f"| {key} | {_plain(str(value))} |" for key, value in rows)
    return f"## Training\n\n| setting | value |\n|---|---|\n{lines}"


def _plain(text: str) -> str:
    """One line that no Markdown breaks out of."""
    return re.sub(r"[\r\n`|<>]+", " ", text).strip()


def _texts(name: str, about: str, trigger: str, licence: str, base: str, *tags: str) -> Any:
    return [
        ("title", name),
        ("about", about),
        ("trigger", trigger),
        ("licence", licence),
        ("base_model", base),
        *(("tags", tag) for tag in tags),
    ]


def _write(publication: Publication, folder: Path) -> None:
    (folder / "README.md").write_text(publication.card, encoding="utf-8")
    for name, path in publication.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)
    for name, (_, image) in publication.pictures.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(folder / name, "PNG")


def _placed(path: Path, repository: str) -> bytes | None:
    """An index of blocks that says where its parts are, which on this disk are beside it."""
    from modules.families.folders import INDEXES, parts_of

    if path.name != INDEXES[1]:
        return None
    index = json.loads(path.read_text(encoding="utf-8"))
    for part in parts_of(index):
        index[part][2]["pretrained_model_name_or_path"] = repository
    return json.dumps(index, indent=2).encode()


def _push(publication: Publication, private: bool) -> None:
    """Upload it as one commit, so that nobody finds half of it."""
    import io

    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    token = hub_token()
    if not token:
        raise _refused(
            "hub", "There is no token of the hub.", "Set HF_TOKEN, or run huggingface-cli login."
        )
    added: list[tuple[str, Any]] = [("README.md", publication.card.encode())]
    for name, path in publication.files.items():
        added.append((name, _placed(path, publication.target) or str(path)))
    for name, (_, image) in publication.pictures.items():
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        added.append((name, buffer.getvalue()))
    api = HfApi(token=token)
    try:
        api.create_repo(publication.target, private=private, exist_ok=True)
        api.create_commit(
            publication.target,
            [CommitOperationAdd(name, content) for name, content in added],
            commit_message="Add the model, its card and samples",
        )
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0].replace(token, "hf_...")
        raise _refused(
            "hub",
            f"The hub did not take {publication.target} ({reason}).",
            "Check the name, that the token may write, and that this machine reaches the hub.",
        ) from error


def _refused(name: str, message: str, fix: str) -> ConfigError:
    return ConfigError([Problem(name, "error", message, fix)])
