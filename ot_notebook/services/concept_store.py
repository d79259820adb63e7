"""The editing core of a training set: concepts, their images, captions and masks.

Everything that the concept editor does is one call here, so it can be done without a page. Each
change of a file goes through an `EditJournal`: it is whole or has not happened, and can be undone.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from modules.config import ConceptConfig
from modules.config.enums import PromptSource
from modules.config.files import load_concepts, write_json
from modules.data.findings import DataProblem, printable
from ot_notebook.services import caption_edits, concept_list
from ot_notebook.services.caption_edits import CaptionEdit, Difference
from ot_notebook.services.concept_files import (
    as_mask,
    by_stem,
    check_file,
    check_length,
    clear_refusal,
    lossy_text,
    note_written,
    read_text,
)
from ot_notebook.services.concept_insight import CacheLook, bucket_outlook, told
from ot_notebook.services.concept_items import (
    Filter,
    Row,
    count,
    list_rows,
    roots_of,
    table,
)
from ot_notebook.services.concept_run import RunFacts
from ot_notebook.services.edit_journal import EditJournal, read, usual_place

if TYPE_CHECKING:
    import pandas as pd

Where = int | str | Filter | Iterable[int] | None
"""Images: one by its id, several, those that a text search or a `Filter` finds, or all (None)."""


class _Edited(NamedTuple):
    path: Path
    rows: list[Row]
    before: str
    after: str


class ConceptStore:
    """Concepts and their images, with every change undoable.

    Args:
        concepts: to begin with.
        journal: file of the journal; by default the one of this user.

    Attributes:
        run: what is told of sizes, batches and the cache is told for it.

    Methods may be called from any thread.
    """

    def __init__(
        self,
        concepts: Sequence[ConceptConfig] = (),
        *,
        journal: Path | None = None,
    ) -> None:
        self._lock = threading.RLock()
        self._journal = EditJournal(journal or usual_place())
        self.run = RunFacts()
        self._look: CacheLook | None = None
        self._concepts = tuple(concepts)
        self._rows: list[Row] | None = None
        self._stems: dict[str, list[Row]] | None = None
        self._problems: tuple[DataProblem, ...] = ()
        self._undo: list[tuple[ConceptConfig, ...] | None] = []  # None stands for the journal
        self._redo: list[tuple[ConceptConfig, ...] | None] = []

    # concepts ----------------------------------------------------------------------------------

    @property
    def concepts(self) -> tuple[ConceptConfig, ...]:
        """The concepts, in their order."""
        return self._concepts

    @concepts.setter
    def concepts(self, concepts: Sequence[ConceptConfig]) -> None:
        with self._lock:
            if tuple(concepts) != self._concepts:
                self._undo.append(self._concepts)
                self._redo.clear()
                self._take(tuple(concepts))

    def follow(self, concepts: Sequence[ConceptConfig]) -> None:
        """Take over concepts whose undo is somebody else's business."""
        with self._lock:
            if tuple(concepts) != self._concepts:
                self._take(tuple(concepts))

    def follow_run(self, run: RunFacts) -> None:
        """Tell of another run; films are listed for a model of films alone."""
        with self._lock:
            if run.listed[1] != self.run.listed[1]:
                self._rows = None
            self.run = run

    def add(self, path: str | Path, **settings: Any) -> int:
        """Add a folder as a concept, named like the folder.

        Returns:
            The index of the concept.

        Raises:
            ValueError: if it is no folder, or a concept already.
            ConfigError: for a bad setting.
        """
        with self._lock:
            self.concepts = concept_list.added(self._concepts, path, settings)
            return len(self._concepts) - 1

    def change(self, index: int, **settings: Any) -> None:
        """Change settings of a concept; names may be dotted, as in `ConceptConfig.update`.

        Raises:
            ConfigError: for an unknown name or bad value; nothing is changed then.
            ValueError: if there is no such concept.
        """
        with self._lock:
            self.concepts = concept_list.changed(self._concepts, index, settings)

    def remove(self, index: int) -> None:
        """Take a concept out of the list. Its files stay where they are."""
        with self._lock:
            self.concepts = concept_list.removed(self._concepts, index)

    def duplicate(self, index: int) -> int:
        """Put a copy of a concept behind it, and give the copy's index."""
        with self._lock:
            self.concepts = concept_list.duplicated(self._concepts, index)
            return index + 1

    def move(self, index: int, to: int) -> None:
        """Move a concept to another place in the list."""
        with self._lock:
            self.concepts = concept_list.moved(self._concepts, index, to)

    def load(self, path: str | Path) -> list[str]:
        """Take the concepts of a concepts.json of OneTrainer in place of the present ones.

        Returns:
            What the file holds and nothing here knows; a line each.

        Raises:
            ConfigError: if it is no such file.
        """
        concepts, warnings = load_concepts(Path(path).expanduser())
        self.concepts = concepts
        return [str(warning) for warning in warnings]

    def save(self, path: str | Path) -> Path:
        """Write the concepts as a concepts.json that OneTrainer reads.

        Raises:
            OSError: if it cannot be written.
        """
        target = Path(path).expanduser()
        write_json(target, [concept.to_dict() for concept in self._concepts])
        return target

    # images ------------------------------------------------------------------------------------

    @property
    def rows(self) -> list[Row]:
        """Every image, concept by concept and by name; the first call reads the folders."""
        with self._lock:
            if self._rows is None:
                self._rows, self._problems = list_rows(self._concepts, *self.run.listed)
                self._stems = None
            return self._rows

    @property
    def scanned(self) -> bool:
        """Whether the folders have been read."""
        return self._rows is not None

    @property
    def problems(self) -> tuple[DataProblem, ...]:
        """What the last reading of the folders found."""
        return self._problems

    def rescan(self) -> None:
        """Read the folders anew."""
        with self._lock:
            concepts, run = self._concepts, self.run
        rows, problems = list_rows(concepts, *run.listed)  # long: nobody waits for the lock
        with self._lock:
            if concepts == self._concepts and run.listed == self.run.listed:
                self._rows, self._problems, self._stems = rows, problems, None

    def forget(self) -> None:
        """Let the next question read the folders anew."""
        with self._lock:
            self._rows = None

    def find(self, where: Where = None) -> list[int]:
        """Ids of images, in their order.

        Raises:
            ValueError: for an id that no image has.
        """
        return [row.id for row in self._found(where)]

    def items(self, where: Where = None) -> pd.DataFrame:
        """Images as a table: file, concept, caption, size, mask, problems, bucket; by id.

        Its columns `cache` and `twins` are filled by `look_into_cache` and `mark_twins`.
        """
        return table(self._found(where), self._concepts, self.run.resolution, self.cache_state)

    def stats(self, where: Where = None) -> dict[str, Any]:
        """Figures about images; see `concept_items.count`."""
        return count(self._found(where), self._delimiters(), self.cache_state)

    def bucket(self, row: Row) -> str:
        """The size that an image trains at, such as "576x448"; empty where it does not train."""
        return self.run.resolution.bucket(row, self._concepts[row.concept])

    def look_into_cache(self) -> None:
        """Find out how the cache of the run has each image; without a run, there is none.

        Raises:
            ConfigError: if a resolution is none, or a caption rule cannot work.
        """
        with self._lock:
            rows, concepts, run = self.rows, self._concepts, self.run
        look = None
        if run.cached and run.cache_dir is not None and run.cache_dir.is_dir():
            look = CacheLook(concepts, run)
            look.go_through(rows)  # may read files: nobody waits for the lock meanwhile
        with self._lock:
            if (concepts, run) == (self._concepts, self.run):  # or somebody looks again
                self._look = None if look is None or look.empty else look

    def cache_state(self, row: Row) -> str:
        """How the cache has an image; empty where it was not looked into."""
        return self._look.state(row) if self._look else ""

    def buckets(self) -> list[dict[str, Any]]:
        """Each size: its images, what crops keep, when they train; see `concept_insight.told`."""
        with self._lock:
            rows, concepts, run = self.rows, self._concepts, self.run
        found = bucket_outlook(rows, concepts, run)
        return [told(one, run.batch_size) for one in found]

    # captions ----------------------------------------------------------------------------------

    def caption(self, number: int) -> str:
        """The caption file's text as it is on the disk now; empty where there is none.

        Raises:
            ValueError: if it is no UTF-8 text or too large to edit; names the file.
        """
        row = self._row(number)
        if self._concepts[row.concept].text.prompt_source is not PromptSource.SAMPLE:
            return row.caption
        return read_text(row.caption_path)

    def check(self, number: int) -> None:
        """Raise ValueError where an image's caption cannot be written; says why."""
        self._check_writable(self._row(number))

    def write_caption(self, number: int, text: str, was: str | None = None) -> bool:
        """Give an image a caption.

        Args:
            number: the image's id.
            text: the new content of its caption file.
            was: what the writer saw before; None not to compare.

        Returns:
            Whether anything changed.

        Raises:
            ValueError: if the file does not hold `was` any more, or captions of this concept lie
                elsewhere.
            OSError: if the file cannot be written; says why.
        """
        with self._lock:
            row = self._row(number)
            self._check_writable(row)
            there = lossy_text(row.caption_path)
            if was is not None and there != was:
                row.set_caption(there)
                raise ValueError(
                    f"{printable(row.caption_path.name)} was changed by another program meanwhile. "
                    f"What it holds now is shown; your text was not written."
                )
            if there == text:
                return False
            check_length(row, text)
            self.write({row.caption_path: text.encode()}, f"Caption of {row.name}")
            return True

    def preview(self, action: str, where: Where = None, **options: Any) -> list[Difference]:
        """Every caption that `edit` would change, and how; nothing is written.

        Raises:
            ValueError: for an unknown action or bad options, or captions that cannot be edited.
        """
        edit = caption_edits.make(action, **options)
        return [
            Difference(one.rows[0].id, one.rows[0].name, one.before, one.after)
            for one in self._edited(edit, where)
        ]

    def edit(self, action: str, where: Where = None, **options: Any) -> int:
        """Change captions.

        Args:
            action: one of `caption_edits.ACTIONS`: "caption", "replace", "add_tags", ...
            where: which images.
            options: what the action needs, such as `find` and `text`.

        Returns:
            How many captions changed.

        Raises:
            ValueError: for an unknown action or bad options, or captions that cannot be edited.
            OSError: if one of them cannot be written; nothing is changed then.

        Example:
            >>> store.edit("replace", find="colour", text="color")
            >>> store.edit("add_tags", where=Filter(concept=0), tags="line art", at="start")
        """
        edit = caption_edits.make(action, **options)
        with self._lock:
            edited = self._edited(edit, where)
            for one in edited:
                check_length(one.rows[0], one.after)
            if edited:
                plural = "" if len(edited) == 1 else "s"
                label = f"{action.replace('_', ' ').capitalize()}: {len(edited):,} caption{plural}"
                self.write({one.path: one.after.encode() for one in edited}, label)
            return len(edited)

    # masks -------------------------------------------------------------------------------------

    def mask(self, number: int) -> bytes | None:
        """The PNG of an image's mask; None where it has none."""
        return read(self._row(number).mask_path)

    def write_mask(self, number: int, png: bytes | None) -> None:
        """Give an image a mask: white where it is learnt, black where it is not.

        Args:
            number: the image's id.
            png: a picture of any size, scaled to that of the image; None takes the mask away.

        Raises:
            ValueError: if `png` is no picture.
            OSError: if the file cannot be written; says why.
        """
        with self._lock:
            row = self._row(number)
            check_file(row)
            content = None if png is None else as_mask(png, row)
            self.write({row.mask_path: content}, f"Mask of {row.name}")

    # undo --------------------------------------------------------------------------------------

    def can(self) -> tuple[str, str]:
        """What `undo` and `redo` would do, in words; empty where there is nothing."""
        undo, redo = self._journal.can(self._mine)
        if self._undo and self._undo[-1] is not None:
            undo = "Change of the list of concepts"
        if self._redo and self._redo[-1] is not None:
            redo = "Change of the list of concepts"
        return undo, redo

    def undo(self, force: bool = False) -> str:
        """Take back the latest change of a caption, a mask or the list of concepts.

        Changes of files are remembered over a restart.

        Args:
            force: also where a file was changed outside since.

        Returns:
            What was undone, in words.

        Raises:
            ValueError: if there is nothing to undo, or a file was changed outside since.
        """
        return self._turn(self._undo, self._redo, self._journal.undo, force)

    def redo(self, force: bool = False) -> str:
        """Do again what `undo` took back."""
        return self._turn(self._redo, self._undo, self._journal.redo, force)

    def _turn(self, here: list[Any], there: list[Any], journal: Any, force: bool) -> str:
        with self._lock:
            if here and here[-1] is not None:
                there.append(self._concepts)
                self._take(here.pop())
                return "Change of the list of concepts"
            change = journal(self._mine, force)
            if here:
                here.pop()
            there.append(None)
            self._refresh(change.paths)
            return str(change.label)

    # inside ------------------------------------------------------------------------------------

    def _take(self, concepts: tuple[ConceptConfig, ...]) -> None:
        before, self._concepts, self._look = self._concepts, concepts, None
        if concept_list.files_of(before) != concept_list.files_of(concepts):
            self._rows = None

    def _found(self, where: Where) -> list[Row]:
        with self._lock:
            rows = self.rows
            if where is None:
                return list(rows)
            if isinstance(where, int):
                return [self._row(where)]
            if isinstance(where, str):
                where = Filter(text=where)
            if isinstance(where, Filter):
                fits = where.test(self._delimiters(), self.bucket, self.cache_state)
                found = [row for row in rows if fits(row)]
                return sorted(found, key=lambda row: row.twins) if where.twins else found
            return [self._row(int(number)) for number in where]

    def _row(self, number: int) -> Row:
        rows = self.rows
        if not 0 <= number < len(rows):
            last = f"0 to {len(rows) - 1}" if rows else "none, as the set is empty"
            raise ValueError(f"There is no image {number}. Ids are {last}.")
        return rows[number]

    def _delimiters(self) -> list[str]:
        return [concept.text.tag_delimiter or "," for concept in self._concepts]

    def _mine(self, path: Path) -> bool:
        parents: list[Path | None] = [*path.parents]
        return any(root in parents for root in roots_of(self._concepts))

    def _edited(self, edit: CaptionEdit, where: Where) -> list[_Edited]:
        """Caption files that `edit` changes, each once, though images may share one."""
        with self._lock:
            delimiters = self._delimiters()
            by_path: dict[Path, list[Row]] = {}
            for row in self._found(where):
                self._check_writable(row)
                by_path.setdefault(row.caption_path, []).append(row)
            edited = []
            for path, rows in by_path.items():
                if "unreadable caption" in rows[0].problems:
                    continue  # a bulk edit leaves alone what nobody can read; the row says so
                before = read_text(path)
                after = caption_edits.apply(edit, before, delimiters[rows[0].concept])
                if after != before:
                    edited.append(_Edited(path, rows, before, after))
            return edited

    def _check_writable(self, row: Row) -> None:
        concept = self._concepts[row.concept]
        source = concept.text.prompt_source
        if source is not PromptSource.SAMPLE:
            where = "from one text file" if source is PromptSource.CONCEPT else "from file names"
            raise ValueError(
                f"Captions of {concept.name or 'this concept'} come {where}. "
                f"Set its prompt_source to sample to write a caption for each image."
            )
        check_file(row)

    def write(self, files: Mapping[Path, bytes | None], label: str) -> None:
        """Write or remove caption and mask files as one change that `undo` takes back."""
        with clear_refusal(next(iter(files))):
            self._journal.write(files, label)
        self._undo.append(None)
        self._redo.clear()
        self._refresh(list(files))

    def _refresh(self, paths: Sequence[Path]) -> None:
        """Bring rows up to date whose caption or mask was written."""
        if self._rows is None:
            return
        if self._stems is None:
            self._stems = by_stem(self._rows)
        note_written(self._stems, paths)
