"""Grids: every combination of the values of up to three settings, as one labelled image."""

from __future__ import annotations

import csv
import io
import itertools
import math
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modules.atomic import atomic_file
from ot_notebook.services.inference_axes import axis_label
from ot_notebook.services.inference_drawing import Drawing
from ot_notebook.services.inference_gallery import FAST
from ot_notebook.services.inference_held import Held
from ot_notebook.services.inference_model import InferenceModel, Stack
from ot_notebook.services.inference_request import SETTINGS, Request, refused
from ot_notebook.services.inference_result import Cancelled, Result
from ot_notebook.services.inference_saves import Save

if TYPE_CHECKING:
    import pandas as pd
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont, ImageFont

Axis = Mapping[str, Sequence[Any]]
"""One setting's name and its values."""

TOGETHER = 4
"""Pictures of a grid that are drawn side by side, where they differ in nothing but their seed.

A wider matrix costs less than several narrow ones, on a GPU by far.
"""

MAX_CELLS = 400
"""Pictures of one grid; more is mostly a slip, and no screen shows it."""

GAP_PX, LINE_PX, FONT_PX, LABEL_CHARS = 6, 22, 14, 34


@dataclass(frozen=True)
class Cell:
    """One picture of a grid, before it is drawn."""

    place: tuple[int, int, int]
    """Column, row and sheet."""
    axes: Mapping[str, Any]
    """The axes' settings, with this picture's values."""
    settings: Mapping[str, Any]
    """What `generate` is given."""
    loras: Stack
    save: Save | None = None
    """The whole model that draws it, in place of the one that is loaded."""


@dataclass(frozen=True)
class Grid:
    """A grid that was drawn."""

    image: Image = field(repr=False)
    """All pictures with their labels."""
    rows: Sequence[Mapping[str, Any]] = field(repr=False)
    """A row for each picture: the axes' values, the picture's settings, its file and seconds.

    They stand beside the image, as a CSV file.
    """
    results: tuple[Result, ...] = field(repr=False)
    """The pictures, sheet after sheet, row after row."""
    path: Path
    """Where the labelled image was kept."""
    complete: bool
    """Whether every picture was drawn; it is not after a cancel."""
    axes: tuple[str, ...] = ()
    """Names of the settings that differ."""

    @cached_property
    def table(self) -> pd.DataFrame:
        """The rows as a table."""
        import pandas as pd

        table: pd.DataFrame = pd.DataFrame(self.rows)
        return table

    def _repr_png_(self) -> bytes | None:
        return self.image._repr_png_()


def plan(
    prompt: str, axes: Sequence[Axis], settings: Mapping[str, Any], loras: Stack
) -> list[Cell]:
    """The pictures of a grid, sheet after sheet, row after row.

    Args:
        prompt: where it is on no axis.
        axes: across, downwards, and from sheet to sheet.
        settings: all else.
        loras: adapters and strengths where no axis changes them.

    Raises:
        ConfigError: for an axis that is no setting or has no values, or too many pictures.
    """
    named = [_axis(which, axis, loras) for which, axis in zip("xyz", axes, strict=False)]
    names = [name for name, _ in named]
    for at, name in enumerate(names):
        if name in names[:at]:
            which, first = "xyz"[at], "xyz"[names.index(name)]
            raise refused(which, f"{first} and {which} are both {name}.", "Choose another setting.")
    values = [listed for _, listed in named] + [[None]] * (3 - len(named))
    count = math.prod(map(len, values))
    if count > MAX_CELLS:
        raise refused("x", f"The grid has {count} pictures.", f"At most {MAX_CELLS} are drawn.")
    across, down, sheets = (list(enumerate(each)) for each in values)
    cells = []
    for (sheet_at, third), (row, second), (column, first) in itertools.product(
        sheets, down, across
    ):
        chosen = dict(zip(names, (first, second, third), strict=False))
        plain = {name: value for name, value in chosen.items() if not _of_loras(name)}
        cells.append(
            Cell(
                place=(column, row, sheet_at),
                axes=chosen,
                settings={"prompt": prompt, **settings, **plain},
                loras=_stack(loras, chosen),
                save=_whole(chosen),
            )
        )
    return cells


def draw(
    held: Held,
    drawing: Drawing,
    ask: Callable[[InferenceModel, Mapping[str, Any]], Request],
    cells: Sequence[Cell],
) -> list[tuple[Cell, Result]]:
    """Draw the pictures of a grid, as many as come before a cancel.

    All settings are checked before the first is drawn. Whole models are loaded one after the
    other, each once.

    Args:
        held: the model that is loaded.
        drawing: draws.
        ask: checks settings.
        cells: what is drawn.

    Raises:
        Cancelled: if it came before the first was done.
        OSError: if a picture cannot be written; none is drawn after that is known.
    """
    turns = list(dict.fromkeys(cell.save for cell in cells))
    requests: dict[tuple[int, int, int], Request] = {}
    found: dict[tuple[int, int, int], Future[Result]] = {}
    with ExitStack() as opened:
        begin = opened.enter_context(drawing.keeping())
        load = opened.enter_context(held.lent()) if any(turns) else None
        try:
            for save in turns:
                some = [cell for cell in cells if cell.save == save]
                if save is not None and load is not None:
                    drawing.say(f"Loading {save}")
                    model = load(save.whole)
                else:
                    model = held.need()
                    _refuse_twice(model, some)
                requests = requests or {cell.place: ask(model, cell.settings) for cell in cells}
                for left, stack in [(alike, model.fit(alike[0].loras)) for alike in _alike(some)]:
                    while left:
                        _refuse_lost(found.values())
                        size = model.together(requests[left[0].place], TOGETHER)
                        wanted = [requests[cell.place] for cell in left[:size]]
                        words = f"{_numbers(len(found) + 1, len(wanted))} of {len(cells)}"
                        begun = begin(model, wanted, stack, words)
                        found |= zip((cell.place for cell in left), begun, strict=False)
                        left = left[len(begun) :]
                del model  # its networks go before others come
        except Cancelled:
            if not found:
                raise
    return [(cell, found[cell.place].result()) for cell in cells if cell.place in found]


def _alike(cells: Iterable[Cell]) -> Iterable[list[Cell]]:
    """Those that differ in nothing but their seed."""
    alike: dict[tuple[int, ...], list[Cell]] = {}
    for cell in cells:
        places = zip(cell.axes, cell.place, strict=False)
        key = tuple(place for name, place in places if name != "seed")
        alike.setdefault(key, []).append(cell)
    return alike.values()


def _numbers(first: int, count: int) -> str:
    """Which pictures of a grid are drawn, for people."""
    return f"Picture {first}" if count == 1 else f"Pictures {first} to {first + count - 1}"


def _refuse_lost(begun: Iterable[Future[Result]]) -> None:
    """Raise what kept a picture from being written, as soon as it is known."""
    for one in begun:
        if one.done():
            one.result()


def _refuse_twice(model: InferenceModel, cells: Sequence[Cell]) -> None:
    if model.source == "live" and any("save" in cell.axes for cell in cells):
        raise refused(
            "save",
            "The live model holds what it has learnt; a save on top would count twice.",
            "Load the base model: load(run.config.base_model_name).",
        )


def sheet(
    drawn: Sequence[tuple[Cell, Result]], axes: Sequence[Axis], folder: Path, planned: int
) -> Grid:
    """The labelled image and the rows of what was drawn."""
    image = _sheets(drawn, axes)
    names = tuple(name for axis in axes for name in axis)
    rows = []
    for cell, result in drawn:
        chosen = {name: _plain(value) for name, value in cell.axes.items() if _of_loras(name)}
        told = {**result.metadata, **chosen, "path": result.path, "seconds": result.seconds}
        rows.append({**{name: told[name] for name in names}, **told})
    path = folder / f"{datetime.now():%Y-%m-%d_%H-%M-%S}-grid-{secrets.token_hex(2)}.png"
    with atomic_file(path) as temporary:
        image.save(temporary, "PNG", compress_level=FAST)
    listed = io.StringIO(newline="")
    writer = csv.DictWriter(listed, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
    with atomic_file(path.with_suffix(".csv")) as temporary:
        temporary.write_bytes(listed.getvalue().encode())
    results = tuple(result for _, result in drawn)
    return Grid(image, rows, results, path, len(drawn) == planned, names)


def _axis(which: str, axis: Axis, loras: Stack) -> tuple[str, list[Any]]:
    if not isinstance(axis, Mapping) or len(axis) != 1:
        raise refused(which, f"{which} is {axis!r}.", f'Write {which}={{"cfg_scale": [1, 3, 7]}}.')
    ((name, values),) = axis.items()
    known = axis_names(loras)
    if name not in known:
        hint = "" if loras else " Load a LoRA for an axis of its strength."
        raise refused(which, f"{name!r} is no setting.", f"Use one of {', '.join(known)}.{hint}")
    if not isinstance(values, Iterable):
        raise refused(which, f"{name} is {values!r}, which is no list.", f"Write [{values!r}].")
    listed = [values] if isinstance(values, str) else list(values)
    if not listed:
        raise refused(which, f"{name} has no values.", "Give at least one.")
    return name, listed


def axis_names(loras: Stack) -> list[str]:
    """What an axis can be: settings, the strength of a LoRA, or the save of a run."""
    strengths = ["lora"] if loras else []
    return ["prompt", *SETTINGS, *strengths, *(f"lora:{path.stem}" for path, _ in loras), "save"]


def _of_loras(name: str) -> bool:
    return name == "save" or name.startswith("lora")


def _whole(chosen: Mapping[str, Any]) -> Save | None:
    save = chosen.get("save")
    return save if isinstance(save, Save) and save.whole is not None else None


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Save | Path) else value


def _stack(loras: Stack, chosen: Mapping[str, Any]) -> Stack:
    """The adapters of one picture: another save, other strengths."""
    stack = list(loras)
    if "save" in chosen and _whole(chosen) is None:
        save = chosen["save"]
        path, kin = (save.path, save.kin) if isinstance(save, Save) else (Path(save), ())
        if known := [at for at, (one, _) in enumerate(stack) if one in kin]:
            stack[known[0]] = (path, stack[known[0]][1])
        else:
            stack.append((path, 1.0))
    return _with_strengths(tuple(stack), loras, chosen)


def _with_strengths(stack: Stack, loras: Stack, chosen: Mapping[str, Any]) -> Stack:
    changed = list(stack)
    for name, strength in chosen.items():
        if name.startswith("lora"):
            stems = [path.stem for path, _ in loras]
            place = stems.index(name.removeprefix("lora:")) if ":" in name else 0
            changed[place] = (changed[place][0], strength)
    return tuple(changed)


def _sheets(drawn: Sequence[tuple[Cell, Result]], axes: Sequence[Axis]) -> Image:
    """One sheet below the other, each with the value of z above it."""
    from PIL import Image as Pictures
    from PIL import ImageDraw, ImageFont

    x, (y, z) = axes[0], [*axes[1:], None, None][:2]
    if z is None:
        return _labelled(drawn, x, y)
    parts = []
    for at, label in enumerate(_labels(z)):
        of_sheet = [pair for pair in drawn if pair[0].place[2] == at]
        if of_sheet:
            parts.append((label, _labelled(of_sheet, x, y)))
    width = max(part.width for _, part in parts)
    height = sum(part.height + LINE_PX for _, part in parts)
    canvas = Pictures.new("RGB", (width, height), "white")
    pen, font, top = ImageDraw.Draw(canvas), ImageFont.load_default(FONT_PX), 0
    for label, part in parts:
        pen.text((GAP_PX, top + LINE_PX / 2), label, fill="#4453d6", font=font, anchor="lm")
        canvas.paste(part, (0, top + LINE_PX))
        top += part.height + LINE_PX
    return canvas


def _labelled(drawn: Sequence[tuple[Cell, Result]], x: Axis, y: Axis | None) -> Image:
    """The pictures side by side, the values of x above them, those of y at their left."""
    from PIL import Image as Pictures
    from PIL import ImageDraw, ImageFont

    font = ImageFont.load_default(FONT_PX)
    across, down = _labels(x), _labels(y) if y else [""]
    widths = [_largest(drawn, 0, at) for at in range(len(across))]
    heights = [_largest(drawn, 1, at) for at in range(len(down))]
    margin = max(int(font.getlength(label)) for label in down) + 2 * GAP_PX if y else 0
    widths = [
        max(width, int(font.getlength(label))) for width, label in zip(widths, across, strict=True)
    ]
    size = (
        margin + sum(widths) + GAP_PX * (len(widths) + 1),
        LINE_PX + GAP_PX + sum(heights) + GAP_PX * len(heights),
    )
    canvas = Pictures.new("RGB", size, "white")
    pen = ImageDraw.Draw(canvas)
    lefts = [margin + GAP_PX + sum(widths[:at]) + GAP_PX * at for at in range(len(widths))]
    tops = [LINE_PX + GAP_PX + sum(heights[:at]) + GAP_PX * at for at in range(len(heights))]
    for left, width, label in zip(lefts, widths, across, strict=True):
        _write(pen, font, label, left + width / 2, LINE_PX / 2 + 2)
    for top, height, label in zip(tops, heights, down, strict=True):
        _write(pen, font, label, margin / 2, top + height / 2)
    for cell, result in drawn:
        column, row, _ = cell.place
        spare = widths[column] - result.image.width
        canvas.paste(result.image, (lefts[column] + spare // 2, tops[row]))
    return canvas


def _labels(axis: Axis) -> list[str]:
    ((name, values),) = axis.items()
    listed = [values] if isinstance(values, str) else values
    texts = [axis_label(name, value) for value in listed]
    return [text if len(text) <= LABEL_CHARS else f"{text[: LABEL_CHARS - 1]}…" for text in texts]


def _largest(drawn: Sequence[tuple[Cell, Result]], edge: int, at: int) -> int:
    """The longest edge (0 width, 1 height) of the pictures in a column (0) or row (1)."""
    sizes = [result.image.size[edge] for cell, result in drawn if cell.place[edge] == at]
    return max(sizes, default=0)


def _write(pen: Any, font: FreeTypeFont | ImageFont, text: str, x: float, y: float) -> None:
    pen.text((x, y), text, fill="black", font=font, anchor="mm")
