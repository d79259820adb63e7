"""Grids: every combination of the values of one or two settings, as one labelled image."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modules.atomic import atomic_file
from ot_notebook.services.inference_model import Stack
from ot_notebook.services.inference_request import SETTINGS, refused

if TYPE_CHECKING:
    import pandas as pd
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont, ImageFont

    from ot_notebook.services.inference_service import Result

Axis = Mapping[str, Sequence[Any]]
"""One setting's name and its values."""

MAX_CELLS = 400
"""Pictures of one grid; more is mostly a slip, and no screen shows it."""

GAP_PX, LINE_PX, FONT_PX, LABEL_CHARS = 6, 22, 14, 34


@dataclass(frozen=True)
class Cell:
    """One picture of a grid, before it is drawn."""

    column: int
    row: int
    axes: Mapping[str, Any]
    """The axes' settings, with this picture's values."""
    settings: Mapping[str, Any]
    """What `generate` is given."""
    loras: Stack


@dataclass(frozen=True)
class Grid:
    """A grid that was drawn."""

    image: Image = field(repr=False)
    """All pictures with their labels."""
    table: pd.DataFrame = field(repr=False)
    """A row for each picture: the axes' values, the picture's settings, its file and seconds."""
    results: tuple[Result, ...] = field(repr=False)
    """The pictures, row after row."""
    path: Path
    """Where the labelled image was kept."""
    complete: bool
    """Whether every picture was drawn; it is not after a cancel."""

    def _repr_png_(self) -> bytes | None:
        return self.image._repr_png_()


def plan(
    prompt: str, x: Axis, y: Axis | None, settings: Mapping[str, Any], loras: Stack
) -> list[Cell]:
    """The pictures of a grid, row after row.

    Raises:
        ConfigError: for an axis that is no setting or has no values, or too many pictures.
    """
    across, down = _axis("x", x, loras), _axis("y", y, loras) if y else ("", [None])
    if across[0] == down[0]:
        raise refused("y", f"x and y are both {across[0]}.", "Choose another setting for one.")
    count = len(across[1]) * len(down[1])
    if count > MAX_CELLS:
        raise refused("x", f"The grid has {count} pictures.", f"At most {MAX_CELLS} are drawn.")
    cells = []
    for (row, below), (column, beside) in itertools.product(
        enumerate(down[1]), enumerate(across[1])
    ):
        axes = {name: value for name, value in ((across[0], beside), (down[0], below)) if name}
        chosen = {name: value for name, value in axes.items() if not name.startswith("lora")}
        strengths = {name: value for name, value in axes.items() if name.startswith("lora")}
        cells.append(
            Cell(
                column=column,
                row=row,
                axes=axes,
                settings={"prompt": prompt, **settings, **chosen},
                loras=_with_strengths(loras, strengths),
            )
        )
    return cells


def sheet(
    drawn: Sequence[tuple[Cell, Result]], x: Axis, y: Axis | None, folder: Path, planned: int
) -> Grid:
    """The labelled image and the table of what was drawn."""
    import pandas as pd

    image = _labelled(drawn, x, y)
    rows = [
        {
            **result.metadata,
            **{name: value for name, value in cell.axes.items() if name.startswith("lora")},
            "path": result.path,
            "seconds": result.seconds,
        }
        for cell, result in drawn
    ]
    table = pd.DataFrame(rows)
    first = [*x, *(y or ())]
    table = table[[*first, *(name for name in table.columns if name not in first)]]
    path = folder / f"{datetime.now():%Y-%m-%d_%H-%M-%S}-grid-{secrets.token_hex(2)}.png"
    with atomic_file(path) as temporary:
        image.save(temporary, "PNG")
    results = tuple(result for _, result in drawn)
    return Grid(image, table, results, path, len(drawn) == planned)


def _axis(which: str, axis: Axis, loras: Stack) -> tuple[str, list[Any]]:
    if not isinstance(axis, Mapping) or len(axis) != 1:
        raise refused(which, f"{which} is {axis!r}.", f'Write {which}={{"cfg_scale": [1, 3, 7]}}.')
    ((name, values),) = axis.items()
    known = [
        "prompt",
        *SETTINGS,
        *(["lora"] if loras else []),
        *(f"lora:{p.stem}" for p, _ in loras),
    ]
    if name not in known:
        hint = "" if loras else " Load a LoRA for an axis of its strength."
        raise refused(which, f"{name!r} is no setting.", f"Use one of {', '.join(known)}.{hint}")
    listed = [values] if isinstance(values, str) else list(values)
    if not listed:
        raise refused(which, f"{name} has no values.", "Give at least one.")
    return name, listed


def _with_strengths(loras: Stack, strengths: Mapping[str, Any]) -> Stack:
    chosen = [(path, strength) for path, strength in loras]
    for name, strength in strengths.items():
        stems = [path.stem for path, _ in chosen]
        place = stems.index(name.removeprefix("lora:")) if ":" in name else 0
        chosen[place] = (chosen[place][0], strength)
    return tuple(chosen)


def _labelled(drawn: Sequence[tuple[Cell, Result]], x: Axis, y: Axis | None) -> Image:
    """The pictures side by side, the values of x above them, those of y at their left."""
    from PIL import Image as Pictures
    from PIL import ImageDraw, ImageFont

    font = ImageFont.load_default(FONT_PX)
    across, down = _labels(x), _labels(y) if y else [""]
    widths = [_largest(drawn, "column", at, 0) for at in range(len(across))]
    heights = [_largest(drawn, "row", at, 1) for at in range(len(down))]
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
        spare = widths[cell.column] - result.image.width
        canvas.paste(result.image, (lefts[cell.column] + spare // 2, tops[cell.row]))
    return canvas


def _labels(axis: Axis) -> list[str]:
    ((name, values),) = axis.items()
    listed = [values] if isinstance(values, str) else values
    texts = [str(getattr(value, "value", value)) for value in listed]
    if name != "prompt":
        texts = [f"{name} {text}" for text in texts]
    return [text if len(text) <= LABEL_CHARS else f"{text[: LABEL_CHARS - 1]}…" for text in texts]


def _largest(drawn: Sequence[tuple[Cell, Result]], name: str, at: int, edge: int) -> int:
    sizes = [result.image.size[edge] for cell, result in drawn if getattr(cell, name) == at]
    return max(sizes, default=0)


def _write(pen: Any, font: FreeTypeFont | ImageFont, text: str, x: float, y: float) -> None:
    pen.text((x, y), text, fill="black", font=font, anchor="mm")
