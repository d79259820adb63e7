"""Drawn pictures as a page holds them: large, small, beside one another, and in words."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

from ot_notebook.services.inference_axes import axis_label
from ot_notebook.services.inference_grid import Grid
from ot_notebook.services.inference_recipe import Recipe
from ot_notebook.services.inference_result import Preview, Result, film_bytes
from ot_notebook.services.inference_service import InferenceService
from ot_notebook.widgets import markup
from ot_notebook.widgets.texts import brief
from ot_notebook.widgets.thumbnails import data_uri, full, shrink

THUMB_PX = 128
LARGE_PX = 1024
"""Longest edge of the picture in a page's state; the file is fetched on request."""

SHEET_PX = 2048
"""Longest edge of a grid in a page's state; its file is whole."""

START_PX = 512
"""Longest edge of the picture to begin with, on the page."""

STARTS = 12
"""Pictures of the gallery, and samples, that a page offers to begin with."""

GAIN = 4
"""How much stronger differences are shown than they are: small ones matter, too."""


def large(result: Result, number: int) -> dict[str, Any]:
    """A picture with its words, as large as a page's state may hold."""
    whole = max(result.image.size) <= LARGE_PX
    try:
        image, mime = full(result.path) if whole else shrink(result.image, LARGE_PX)
    except OSError:  # the file was removed; the picture is still here
        image, mime = shrink(result.image, LARGE_PX)
    return {
        "id": number,
        "image": image,
        "mime": mime,
        "width": result.image.width,
        "height": result.image.height,
        "prompt": brief(result.recipe.prompt),
        "words": describe(result),
        "path": str(result.path),
        "film": film_bytes(result.film),
    }


def on_the_way(preview: Preview | None) -> dict[str, Any]:
    """What there is of a picture that is being drawn; empty where none is."""
    if preview is None:
        return {}
    buffer = io.BytesIO()
    preview.image.save(buffer, "PNG")
    return {"image": buffer.getvalue(), "step": preview.step, "total": preview.total}


def as_text(service: InferenceService, recipe: Recipe, kind: str) -> str:
    """A recipe for another program: "web", "comfy", "sample", or else Python."""
    match kind:
        case "web":
            return recipe.as_web_ui()
        case "comfy":
            return service.as_comfy(recipe)
        case "sample":
            return json.dumps(recipe.as_sample().to_dict(), indent=2)
        case _:
            return service.as_python(recipe)


def starts(service: InferenceService) -> list[dict[str, Any]]:
    """The last pictures of the gallery and the last samples of the run, to begin with."""
    drawn = [(path, path.stem[:19]) for path in service.gallery.newest(STARTS)]
    taken = [(one.path, f"step {one.step}: {one.prompt}") for one in service.samples(STARTS)]
    found = []
    for path, words in [*drawn, *taken]:
        try:
            with Image.open(path) as picture:
                image, mime = shrink(picture, THUMB_PX)
        except (OSError, ValueError, Image.DecompressionBombError):
            continue  # it is gone, or was never whole
        found.append({"path": str(path), "image": image, "mime": mime, "words": words})
    return found


def small(result: Result, number: int) -> dict[str, Any]:
    """A picture among those before it."""
    image, mime = shrink(result.image, THUMB_PX)
    return {
        "id": number,
        "image": image,
        "mime": mime,
        "small": max(result.image.size) <= THUMB_PX,
        "words": f"{brief(result.recipe.prompt, 200)}, {describe(result)}",
    }


def beside(result: Result, shown: Result, number: int, to: int) -> dict[str, Any]:
    """A picture to lay beside the one shown, and a map of where they differ."""
    other = result.image.convert("RGB").resize(shown.image.size)
    difference = ImageChops.difference(shown.image.convert("RGB"), other)
    red, green, blue = difference.split()
    most = ImageChops.lighter(ImageChops.lighter(red, green), blue)
    values = most.histogram()
    mean = sum(value * count for value, count in enumerate(values)) / max(1, sum(values))
    image, mime = shrink(most.point(lambda value: min(255, GAIN * value)), LARGE_PX)
    return {
        **large(result, number),
        "to": to,
        "shown": large(shown, to)["image"],
        "difference": image,
        "difference_mime": mime,
        "distance": f"differs by {mean:.1f} of 255 on average (shown {GAIN} times as strong)",
    }


def series(grid: Grid, numbers: Sequence[int]) -> list[dict[str, Any]]:
    """The pictures of a grid, of these numbers, each with what sets it apart."""
    return [
        {"id": number, "label": ", ".join(axis_label(name, row[name]) for name in grid.axes)}
        for number, row in zip(numbers, grid.rows, strict=True)
    ]


def sheet(grid: Grid) -> dict[str, Any]:
    """A grid as one image."""
    image, mime = shrink(grid.image, SHEET_PX)
    whole = "" if grid.complete else " It was stopped before it was whole."
    words = f"{len(grid.results)} pictures. Kept as {grid.path}, with a table.{whole}"
    return {"image": image, "mime": mime, "words": words, "path": str(grid.path)}


def begun(path: str, mask: str) -> dict[str, Any]:
    """The picture to begin with, as the page shows it; empty where there is none."""
    if not path:
        return {}
    with Image.open(path) as picture:
        width, height = picture.size
        image, mime = shrink(picture, START_PX)
    state: dict[str, Any] = {
        "key": f"{Path(path).stem}",
        "image": image,
        "mime": mime,
        "width": width,
        "height": height,
        "masked": bool(mask),
    }
    if mask:
        with Image.open(mask) as painted:
            buffer = io.BytesIO()
            painted.convert("L").save(buffer, "PNG")
        state |= {"mask": buffer.getvalue(), "key": f"{state['key']}-{Path(mask).stem}"}
    return state


def describe(result: Result) -> str:
    """What decided a picture, in words."""
    recipe = result.recipe
    parts = [
        f"seed {recipe.seed}",
        f"{recipe.width} x {recipe.height} px",
        f"{recipe.steps} steps",
        f"guidance {recipe.cfg_scale:g}",
        *([f"{recipe.frames} frames"] if recipe.frames > 1 else []),
        *([recipe.scheduler] if recipe.scheduler else []),
        *([f"clip skip {recipe.clip_skip}"] if recipe.clip_skip else []),
        *([f"from a picture, strength {recipe.strength:g}"] if recipe.image else []),
        *(f"{path.rpartition('/')[2]} {strength:g}" for path, strength in recipe.loras),
        *(word for word, _ in recipe.embeddings if word in recipe.prompt),
        *([f"{result.seconds:.1f} s"] if result.seconds else []),
        *([f"film: {result.film}"] if result.film else []),
    ]
    return " · ".join(parts)


def story(results: Sequence[Result]) -> str:
    """The last pictures as HTML that needs no kernel."""
    if not results:
        return markup.empty("No picture was drawn.", "Load a model and write a prompt.", 150)
    cells = []
    for result in results[-8:]:
        source = data_uri(*shrink(result.image, 2 * THUMB_PX), edge=2 * THUMB_PX)
        words = escape(describe(result))
        cells.append(
            f'<td style="text-align:center;vertical-align:top"><img width="160" '
            f'src="{source}" alt="{words}"><br>{escape(result.recipe.prompt[:80])}</td>'
        )
    return f'<h3 class="ot-title">Pictures</h3><table><tr>{"".join(cells)}</tr></table>'
