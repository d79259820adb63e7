"""Convert, merge, extract and resize files of weights on a page, in core widgets: any front end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as W

from modules.config import MODELS, ModelFormat
from ot_notebook.widgets import markup
from ot_notebook.widgets.story import StoryBox

PUSH_SECONDS = 0.25
"""Between two drawings of the bar."""

GAP = "5px"
"""Between two lines."""

FORMATS = (
    ModelFormat.DIFFUSERS_LORA,
    ModelFormat.KOHYA_LORA,
    ModelFormat.COMFY_LORA,
    ModelFormat.ORIGINAL_LORA,
    ModelFormat.DIFFUSERS,
    ModelFormat.ORIGINAL_SINGLE_FILE,
)
"""What a file can become; those of adapters first."""


@dataclass(frozen=True)
class Tool:
    """One thing to do with files: its lines, and a word on it."""

    title: str
    about: str
    lines: Mapping[str, tuple[str, str]]
    """By argument: its name for people, and a hint."""
    formats: bool = False
    """Whether the format of the result is chosen."""


SOURCE = ("Source", "A .safetensors file, or the folder of a model")
TARGET = ("Write to", "A file or folder; replaced if it exists")
TOOLS = {
    "convert": Tool(
        "Convert",
        "Write an adapter, or a whole model, in another format.",
        {"source": SOURCE, "target": TARGET},
        formats=True,
    ),
    "merge": Tool(
        "Merge",
        "Write a model with LoRAs in its weights.",
        {
            "model": ("Model", "A .safetensors file, or the folder of a model"),
            "adapters": ("LoRAs", "style.safetensors=0.8, other.safetensors"),
            "target": TARGET,
        },
    ),
    "extract": Tool(
        "Extract",
        "Write what one model learned over another as a LoRA.",
        {
            "base": ("Base", "The model that training began with"),
            "tuned": ("Trained", "The trained model"),
            "rank": ("Rank", "16"),
            "target": TARGET,
        },
        formats=True,
    ),
    "resize": Tool(
        "Resize",
        "Write a LoRA of another rank that changes a model as nearly as it can.",
        {"source": SOURCE, "rank": ("Rank", "8"), "target": TARGET},
    ),
}


class WeightTools(StoryBox):
    """Tools for the files of adapters and models.

    Example:
        >>> ot.WeightTools()
    """

    def __init__(self) -> None:
        super().__init__()
        self.add_class("ot-card")
        self.answer = ""
        """What came of the last tool, in words."""
        self._thread: threading.Thread | None = None
        self._pushed_at = 0.0
        self._lines: dict[str, dict[str, W.Text]] = {}
        self._formats: dict[str, W.Dropdown] = {}
        self._kinds: dict[str, W.Dropdown] = {}
        heading = f'{markup.style()}<div class="ot ot-title"><h3>Files of weights</h3></div>'
        self._choice = W.ToggleButtons(
            options=[(tool.title, name) for name, tool in TOOLS.items()],
            layout=W.Layout(width="100%", margin="4px 0 8px"),
        )
        self._choice.observe(lambda _change: self._turn(), "value")
        self._pages = {name: self._page(name, tool) for name, tool in TOOLS.items()}
        layout = W.Layout(margin="8px 2px")
        self._go = W.Button(description="Write", button_style="primary", layout=layout)
        self._go.on_click(lambda _pressed: self._start())
        self._bar, self._said = W.HTML(), W.HTML()
        for part in (self._bar, self._said):
            part.layout.width = "100%"
        self.children = [
            W.HTML(heading), self._choice, *self._pages.values(), self._go, self._bar, self._said,
        ]  # fmt: skip
        self._turn()

    def run(self, tool: str, **values: Any) -> str:
        """Do it and wait for it; gives what came of it, in words.

        Args:
            tool: convert, merge, extract or resize.
            values: as the functions `ot.convert`, `ot.merge`, `ot.extract` and `ot.resize` take.

        Raises:
            AdapterError: if a file cannot be what is asked of it.
            OSError: if a file is missing.
        """
        return ACTIONS[tool](progress=self._progress, **values)

    def wait(self, timeout: float | None = None) -> str:
        """Wait for what was started on the page, and give what came of it."""
        if self._thread is not None:
            self._thread.join(timeout)
        return self.answer

    def story(self) -> str:
        """What came of the last tool."""
        return f'<h3 class="ot-title">Files of weights</h3>{markup.caption(self.answer)}'

    def plain(self) -> str:
        """What came of the last tool, as text."""
        return self.answer or "Files of weights: nothing was written yet."

    def _page(self, name: str, tool: Tool) -> W.VBox:
        self._lines[name] = {
            key: W.Text(
                description=title,
                placeholder=hint,
                value=hint if key == "rank" else "",
                layout=W.Layout(width="100%"),
            )
            for key, (title, hint) in tool.lines.items()
        }
        parts: list[W.Widget] = [W.HTML(markup.caption(tool.about)), *self._lines[name].values()]
        if tool.formats:
            formats = FORMATS if name == "convert" else FORMATS[:4]
            self._formats[name] = W.Dropdown(
                description="Format",
                options=[each.value for each in formats],
                layout=W.Layout(width="100%", max_width="420px"),
            )
            parts.append(self._formats[name])
        if name != "resize":
            self._kinds[name] = W.Dropdown(
                description="For",
                options=[
                    ("what the keys say", ""),
                    *((facts.title, kind.value) for kind, facts in MODELS.items()),
                ],
                layout=W.Layout(width="100%", max_width="420px"),
            )
            parts.append(self._kinds[name])
        layout = W.Layout(width="100%", grid_gap=GAP, overflow="visible")
        return W.VBox(parts, layout=layout)

    def _turn(self) -> None:
        for name, page in self._pages.items():
            page.layout.display = "" if name == self._choice.value else "none"

    def _start(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            return
        name = self._choice.value
        try:
            values = self._values(name)
        except ValueError as error:
            self._say("bad", "Not done", str(error))
            return
        self._go.disabled = True
        self._say("run", "", "")
        self._thread = threading.Thread(
            target=self._work, args=(name, values), name="ot-weights", daemon=True
        )
        self._thread.start()

    def _values(self, name: str) -> dict[str, Any]:
        """What is written on the page.

        Raises:
            ValueError: for a line that is empty, or no number where one belongs.
        """
        values: dict[str, Any] = {}
        for key, line in self._lines[name].items():
            text = line.value.strip()
            if not text:
                raise ValueError(f"{line.description} is empty. {_wanted(key)}")
            values[key] = _whole(line.description, text) if key == "rank" else text
        if name == "merge":
            values["adapters"] = dict(_with_strength(part) for part in _parts(values["adapters"]))
        if name in self._formats:
            values["model_format"] = self._formats[name].value
        if name in self._kinds and self._kinds[name].value:
            values["model_type"] = self._kinds[name].value
        return values

    def _work(self, name: str, values: dict[str, Any]) -> None:
        try:
            said = self.run(name, **values)
            self._say("good", "Written", said)
        except Exception as error:  # noqa: BLE001 - shown to the person at the page
            self._say("bad", "Not done", str(error))
        self._bar.value = ""
        self._go.disabled = False
        self.renew()

    def _progress(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._pushed_at < PUSH_SECONDS and done < total:
            return
        self._pushed_at = now
        percent = round(100 * done / max(1, total))
        self._bar.value = (
            f'<div class="ot ot-tone-run"><div class="ot-bar-text"><span>Weight {done} of {total}'
            f'</span></div><div class="ot-track" role="progressbar" aria-label="Progress" '
            f'aria-valuemin="0" aria-valuemax="100" aria-valuenow="{percent}">'
            f'<div class="ot-fill" style="width:{percent}%"></div></div></div>'
        )

    def _say(self, tone: str, title: str, text: str) -> None:
        self.answer = text
        self._said.value = (
            f'<div class="ot"><div class="ot-alert ot-tone-{tone}" role="alert">'
            f"<b>{escape(title)}</b>\n{escape(text)}</div></div>"
            if title
            else ""
        )


def _convert(**values: Any) -> str:
    from modules.adapters.converting import convert

    left_out = convert(**values)
    odd = f" Left out: {', '.join(left_out)}." if left_out else ""
    return f"{values['target']}, as {values['model_format']}.{odd}"


def _merge(**values: Any) -> str:
    from modules.adapters.merging import merge

    merge(**values)
    names = ", ".join(Path(path).name for path in values["adapters"])
    return f"{values['target']}, with {names} in it."


def _extract(**values: Any) -> str:
    from modules.adapters.low_rank import extract

    extract(**values)
    return f"{values['target']}, of rank {values['rank']}."


def _resize(**values: Any) -> str:
    from modules.adapters.low_rank import resize

    ranks = resize(**values)
    mean = sum(ranks.values()) / len(ranks)
    return f"{values['target']}: {len(ranks)} layers, of rank {mean:.1f} on average."


ACTIONS: Mapping[str, Callable[..., str]] = {
    "convert": _convert,
    "merge": _merge,
    "extract": _extract,
    "resize": _resize,
}
"""What each tool does, and says when it is done."""


def _wanted(key: str) -> str:
    """What belongs on a line that is empty."""
    return {
        "adapters": "Write files, with strengths where they are not 1: style.safetensors=0.8.",
        "rank": "Write a whole number, such as 16.",
        "target": "Write where the result goes: a file, or a folder for a whole model.",
    }.get(key, "Write the path of a .safetensors file, or of the folder of a model.")


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _with_strength(text: str) -> tuple[str, float]:
    """FILE or FILE=STRENGTH."""
    path, found, strength = text.rpartition("=")
    if not found:
        return text, 1.0
    try:
        return path, float(strength)
    except ValueError as error:
        raise ValueError(f"The strength in {text!r} is no number. Write FILE=0.8.") from error


def _whole(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(f"{name} is {text!r}, but must be a whole number.") from error
