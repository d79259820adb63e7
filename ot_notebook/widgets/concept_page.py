"""What a page is told about a training set: plain values, made anew from the store each time."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from modules.config import ConfigError
from ot_notebook.services.annotate import Annotation
from ot_notebook.services.caption_tokens import Tokens
from ot_notebook.services.concept_items import Filter, Row
from ot_notebook.services.concept_report import LatestReport
from ot_notebook.services.concept_store import ConceptStore, Where
from ot_notebook.widgets import concept_findings, markup
from ot_notebook.widgets import item_pictures as pictures
from ot_notebook.widgets.thumbnails import data_uri

SHOWN_CHANGES = 200
"""Changes that the preview of a bulk edit lists; it counts all."""

SHOWN_TEXT = 2000
"""Characters of each of them."""

CLIP = 300
"""Characters of a caption in the grid."""

ROWS_AT_ONCE = 400
"""Images that one answer to the page describes."""

THUMBS_AT_ONCE = 32
"""Thumbnails in one answer: few enough that the grid fills while one scrolls."""

COUNTED_AT_ONCE = 20_000
"""Images up to which figures are counted anew with each caption; else when the item view closes."""

VARIATIONS = 6
"""Variations that the item view shows."""

STORY_TILES = 12
"""Images in a saved notebook."""


@dataclass(frozen=True)
class Shown:
    """What a page that asks something looks at.

    Attributes:
        ids: the images that it lists, in their order.
        version: changes with what is said of images.
        epoch: changes with what ids stand for.
    """

    store: ConceptStore
    thumbs: pictures.Thumbnails
    tokens: Tokens
    report: LatestReport
    ids: Sequence[int]
    version: int
    epoch: int


def answer(
    content: Mapping[str, Any], shown: Shown
) -> tuple[dict[str, Any]] | tuple[dict[str, Any], list[bytes]] | None:
    """The reply to a question that changes nothing; None if it is none."""
    store = shown.store
    match content:
        case {"op": "rows", "from": first, "to": last}:
            ids = shown.ids[first : min(last, first + ROWS_AT_ONCE)]
            told = [describe(store, store.rows[number]) for number in ids]
            return ({"op": "rows", "version": shown.version, "from": first, "rows": told},)
        case {"op": "thumbs", "ids": ids, "epoch": epoch}:
            known = epoch == shown.epoch and store.scanned
            rows = [store.rows[number] for number in ids[:THUMBS_AT_ONCE] if known]
            return thumbs(shown.thumbs, rows, ids[:THUMBS_AT_ONCE], epoch)
        case {"op": "open", "id": number}:
            found, buffers = item(store, store.rows[number])
            return {**found, **shown.tokens.told(found["caption"])}, buffers
        case {"op": "tokens", "id": number, "text": text}:
            return ({"op": "tokens", "id": number, **shown.tokens.told(text)},)
        case {"op": "variations", "id": number}:
            return variations(store, store.rows[number])
        case {"op": "buckets"}:
            return (buckets(store),)
        case {"op": "report"}:
            return (report(shown.report, shown.version),)
        case {"op": "preview", "action": action, "options": options, "where": where}:
            meant = where if isinstance(where, list) else list(shown.ids)
            return (preview(store, action, meant, options),)
        case {"op": "export"}:
            concepts = [concept.to_dict() for concept in store.concepts]
            return ({"op": "export", "name": "concepts.json", "value": concepts},)
    return None


def task(run: Annotation | None) -> dict[str, Any] | None:
    """What runs in the background, and how far it is."""
    return {"what": run.what, "done": run.done, "total": run.total} if run else None


def cache_stamp(cache_dir: Path | None) -> tuple[int, ...]:
    """Differs wherever something was encoded into a cache since; empty where there is none.

    Raises:
        OSError: if its drive does not answer.
    """
    times = []
    with suppress(FileNotFoundError):  # all of it is being removed
        for folder in sorted(cache_dir.glob("*/")) if cache_dir else ():
            with suppress(FileNotFoundError):  # this one is
                times += [folder.stat().st_mtime_ns] if folder.name != "files" else []
    return tuple(times)


def buckets(store: ConceptStore) -> dict[str, Any]:
    """Each size and what trains when, or why nothing does."""
    if not store.scanned:
        return {"op": "buckets", "rows": [], "why": ""}
    try:
        return {"op": "buckets", "rows": store.buckets(), "why": ""}
    except ConfigError as error:
        return {"op": "buckets", "rows": [], "why": str(error)}


def report(latest: LatestReport, version: int, links: bool = True) -> dict[str, Any]:
    """The report as HTML, or that it is being made."""
    found = latest.get(version)
    if found is None:
        return {"op": "report", "ready": False}
    made, why = found
    html = concept_findings.page(made, links) if made else ""
    return {"op": "report", "ready": True, "version": version, "html": html, "why": why}


def variations(store: ConceptStore, row: Row) -> tuple[dict[str, Any], list[bytes]]:
    """An image as training may see it."""
    concept = store.concepts[row.concept]
    size = store.run.resolution.size(row, concept)
    made = pictures.variations(row, concept, size, VARIATIONS) if size else []
    told = {"op": "variations", "id": row.id, "mimes": [mime for _, mime in made]}
    return told, [image for image, _ in made]


def summaries(store: ConceptStore) -> list[dict[str, Any]]:
    """Each concept: its main settings, and how many images it has."""
    rows: list[list[Row]] = [[] for _ in store.concepts]
    for row in store.rows if store.scanned else ():
        rows[row.concept].append(row)
    return [
        {
            "name": concept.name,
            "path": concept.path,
            "enabled": concept.enabled,
            "type": concept.type.value,
            "balancing": concept.balancing,
            "balancing_strategy": concept.balancing_strategy.value,
            "include_subdirectories": concept.include_subdirectories,
            "images": len(found),
            "captioned": sum(bool(row.caption) for row in found),
            "wrong": sum(bool(row.problems) for row in found),
            "cover": next((row.id for row in found if row.item), None),
        }
        for concept, found in zip(store.concepts, rows, strict=True)
    ]


def figures(store: ConceptStore, concept: int | None) -> dict[str, Any]:
    """Statistics about a concept, or all; nothing before the folders are read."""
    if not store.scanned:
        return {}
    stats = store.stats(Filter(concept=concept))
    stats["problems"] = list(stats["problems"].items())
    stats["tags"] = list(stats["tags"].items())
    stats["missing"] = [
        f"{problem.paths[0]} {problem.message} {problem.fix}"
        for problem in store.problems
        if problem.kind in ("missing folder", "empty folder")
    ]
    return stats


def describe(store: ConceptStore, row: Row) -> dict[str, Any]:
    """An image as the grid shows it."""
    return {
        "id": row.id,
        "name": row.name,
        "caption": row.caption[:CLIP],
        "width": row.width,
        "height": row.height,
        "masked": row.masked,
        "problems": list(row.problems),
        "cache": store.cache_state(row),
        "twins": row.twins,
        "seconds": row.item.film.seconds if row.item and row.item.film else 0,
    }


def thumbs(
    kept: pictures.Thumbnails, rows: Sequence[Row], asked: Sequence[int], epoch: int
) -> tuple[dict[str, Any], list[bytes]]:
    """Thumbnails of `rows`; who asked learns which there are none of."""
    found = [(row.id, one) for row in rows if (one := kept.get(row))]
    answer = {
        "op": "thumbs",
        "epoch": epoch,
        "asked": list(asked),
        "ids": [number for number, _ in found],
        "mimes": [mime for _, (_, mime) in found],
    }
    return answer, [image for _, (image, _) in found]


def item(store: ConceptStore, row: Row) -> tuple[dict[str, Any], list[bytes]]:
    """An image as the item view shows it; its picture and its mask, where there are any."""
    concept = store.concepts[row.concept]
    try:
        caption, why = store.caption(row.id), ""
        store.check(row.id)
    except ValueError as error:
        caption, why = row.caption, str(error)
    picture, mask = pictures.large(row), store.mask(row.id)
    size = store.run.resolution.size(row, concept)
    said = {str(problem.kind): f"{problem.message} {problem.fix}" for problem in store.problems}
    remarks = [f"{kind.capitalize()}: {said.get(kind, '')}".rstrip(": ") for kind in row.problems]
    answer = {
        "op": "item",
        **describe(store, row),
        "caption": caption,
        "why": why,
        "path": str(row.path).encode("utf-8", "replace").decode(),
        "concept": concept.name,
        "delimiter": concept.text.tag_delimiter or ",",
        "remarks": remarks,
        "crop": pictures.crop(row, concept, size) if size else None,
        "jitter": concept.image.enable_crop_jitter,
        "picture": picture[1] if picture else "",
        "mask": mask is not None,
    }
    return answer, [image for image in (picture and picture[0], mask) if image]


def preview(
    store: ConceptStore, action: str, where: Where, options: Mapping[str, Any]
) -> dict[str, Any]:
    """What a bulk edit would change, or why it cannot be made."""
    try:
        found = store.preview(action, where, **options)
    except ValueError as error:
        return {"op": "preview", "total": 0, "changes": [], "why": str(error)}
    changes = [
        {"name": one.name, "before": one.before[:SHOWN_TEXT], "after": one.after[:SHOWN_TEXT]}
        for one in found[:SHOWN_CHANGES]
    ]
    return {"op": "preview", "total": len(found), "changes": changes, "why": ""}


def change_concepts(
    store: ConceptStore, content: Mapping[str, Any], chosen: int | None
) -> tuple[int | None, str, list[str]]:
    """Do what a page asks of the list of concepts.

    Returns:
        The concept that is to be shown, what to say of it, and remarks on a file.

    Raises:
        ValueError, ConfigError, OSError: as the store does.
    """
    said, remarks = "", []
    match content:
        case {"action": "add", "path": path}:
            chosen = store.add(path)
        case {"action": "change", "index": index, "settings": settings}:
            store.change(index, **settings)
        case {"action": "remove", "index": index}:
            name, chosen = store.concepts[index].name, None
            store.remove(index)
            said = f"{name} is off the list; its files stay. Undo brings it back."
        case {"action": "duplicate", "index": index}:
            chosen = store.duplicate(index)
        case {"action": "move", "index": index, "to": to}:
            store.move(index, to)
            chosen = None if chosen is None else to
        case {"action": "import", "name": name, "text": text}:
            remarks = _import(store, name, text)
        case {"action": "load", "path": path}:
            remarks = store.load(path)
        case {"action": "save", "path": path}:
            said = f"Saved to {store.save(path)}."
    return chosen, said, remarks


def _import(store: ConceptStore, name: str, text: str) -> list[str]:
    """Take the concepts of a file that the page has read."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "concepts.json"
        path.write_text(text, encoding="utf-8")
        try:
            return store.load(path)
        except ConfigError as error:
            raise ValueError(str(error).replace(str(path), name)) from None


def story(store: ConceptStore, thumbs: pictures.Thumbnails) -> str:
    """The concepts and some of their images as HTML that needs no kernel."""
    if not store.concepts:
        return markup.empty("No concept yet.", "Add a folder of images.", 120)
    lines = "".join(
        f"<tr><td><b>{escape(one['name'])}</b></td><td>{escape(one['path'])}</td>"
        f"<td>{one['images']:,} images, {one['captioned']:,} with a caption</td></tr>"
        for one in summaries(store)
    )
    rows = store.rows if store.scanned else []
    step = max(1, len(rows) // STORY_TILES)
    shown = [(row, thumbs.get(row)) for row in rows[::step][:STORY_TILES]]
    cells = "".join(
        f'<img width="96" style="margin:3px" src="{data_uri(*found)}" alt="{escape(row.name)}" '
        f'title="{escape(row.caption[:CLIP])}">'
        for row, found in shown
        if found
    )
    return f'<h3 class="ot-title">Training set</h3><table>{lines}</table><p>{cells}</p>'


def plain(store: ConceptStore) -> str:
    """The concepts as text."""
    lines = [f"ConceptEditor of {len(store.concepts)} concepts"]
    lines += [
        f"{one['name']}: {one['images']:,} images, {one['captioned']:,} with a caption"
        for one in summaries(store)
    ]
    return "\n".join(lines)
