"""A training set on a page: its concepts, images, captions and masks, each change undoable."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import ipywidgets as W
import traitlets as t

from modules.config import ConceptConfig, ConfigError, TrainConfig
from modules.training.events import Event
from ot_notebook.services import annotate
from ot_notebook.services.annotate import Annotation, Captioner, CaptionMode, Masker, MaskMode
from ot_notebook.services.annotate_models import ANNOTATORS, make
from ot_notebook.services.caption_tokens import Tokens
from ot_notebook.services.concept_items import Filter
from ot_notebook.services.concept_report import LatestReport, report_on
from ot_notebook.services.concept_run import RunFacts
from ot_notebook.services.concept_store import ConceptStore, Where
from ot_notebook.widgets import concept_page as page
from ot_notebook.widgets import item_pictures as pictures
from ot_notebook.widgets.concept_front import ConceptFront, choices, make_chooser
from ot_notebook.widgets.concept_reading import Reading
from ot_notebook.widgets.core_concepts import CoreConcepts
from ot_notebook.widgets.live import AdaptiveView, Front, Mode

if TYPE_CHECKING:
    import pandas as pd

    from modules.data.report import DataReport
    from ot_notebook.widgets.job_config import JobConfig

Result = TypeVar("Result")


class ConceptEditor(AdaptiveView):
    """See and mend a training set: its concepts, their images, captions and masks.

    Everything on the page is also a call here, and every change of a file can be undone, even after
    a restart. With a `JobConfig`, the concepts are those of the job, both ways.

    Args:
        source: a `JobConfig`; a `TrainConfig`; concepts; a folder of images; the path of a
            concepts.json; None to start with no concept.
        mode: "auto", "rich" or "core"; see `AdaptiveView`.
        journal: file that keeps what captions and masks were; by default one for this user.

    Raises:
        ValueError, ConfigError: if `source` is a path at which there is no such thing.

    Example:
        >>> editor = ot.ConceptEditor("~/pictures/foxes")
        >>> editor.edit("add_tags", tags="line art", at="start")
        >>> editor.items("snow -night")
    """

    def __init__(
        self,
        source: JobConfig | TrainConfig | Sequence[ConceptConfig] | str | Path | None = None,
        *,
        mode: Mode = "auto",
        journal: Path | None = None,
    ) -> None:
        self.store = ConceptStore(journal=journal)
        self._job: JobConfig | None = None
        self._config: TrainConfig | None = None
        self._thumbs = pictures.Thumbnails()
        self._filter = Filter()
        self._ids: list[int] = []
        # by which the page knows what to fetch anew: what is said of images, the list, their ids
        self._version = self._list = self._epoch = self._notices = 0
        self._notice: dict[str, Any] | None = None
        self._unseen = False
        self._task: Annotation | None = None
        self._hasty = False  # figures wait until one has gone through the images
        self._tokens = Tokens()
        super().__init__(mode)
        said = lambda text: self._say("bad", text)  # noqa: E731
        self._report = LatestReport(self.store, self._on_report)
        self._sources = self.store, self._thumbs, self._tokens, self._report
        self._reading = Reading(self.store, self._drawing, self._on_read, self._redraw, said)
        self.add_class("ot-card")
        self._take(source)
        self._use(self.mode)

    # from code ---------------------------------------------------------------------------------

    @property
    def concepts(self) -> tuple[ConceptConfig, ...]:
        """The concepts, in their order; assign others to change them."""
        return self.store.concepts

    @concepts.setter
    def concepts(self, concepts: Sequence[ConceptConfig]) -> None:
        self._do(lambda: setattr(self.store, "concepts", concepts))

    @property
    def config(self) -> TrainConfig | None:
        """The run for which cache, sizes and tokens are told; None for none in particular.

        Assign one to ask about that run: the concepts stay, unless a job has both.
        """
        return self._config if self._job is None else self._job.config

    @config.setter
    def config(self, config: TrainConfig) -> None:
        if self._job is not None:
            self._job.config = config
            return
        with self._drawing:
            self._judge(config)
            self._redraw()

    def items(self, where: Where = None) -> pd.DataFrame:
        """Images as a table, by id, with how the cache has each; see `ConceptStore.items`."""
        self._reading.look_now()
        return self.store.items(where)

    def preview(self, action: str, where: Where = None, **options: Any) -> pd.DataFrame:
        """What `edit` would change: name, before and after of each caption, by id."""
        import pandas as pd

        found = self.store.preview(action, where, **options)
        index = pd.Index([one.id for one in found], name="id")
        table: pd.DataFrame = pd.DataFrame(map(asdict, found), index, ["name", "before", "after"])
        return table

    def edit(self, action: str, where: Where = None, **options: Any) -> int:
        """Change captions, and give how many changed; see `ConceptStore.edit`.

        Example:
            >>> editor.edit("caption", where=3, text="a red fox")
            >>> editor.edit("replace", find="colour", text="color")
        """
        return self._do(lambda: self.store.edit(action, where, **options))

    def caption(
        self, captioner: Captioner, where: Where = None, mode: CaptionMode = "fill"
    ) -> Annotation:
        """Caption images by a model in the background; see `annotate.caption`.

        Example:
            >>> from ot_notebook.services.annotate import TransformersCaptioner
            >>> editor.caption(TransformersCaptioner("blip folder")).wait()
        """
        return annotate.caption(self.store, captioner, where, mode, self._on_progress)

    def mask(self, masker: Masker, where: Where = None, mode: MaskMode = "fill") -> Annotation:
        """Mask images by a model in the background; see `annotate.mask`."""
        return annotate.mask(self.store, masker, where, mode, self._on_progress)

    def annotate(
        self,
        kind: str,
        model: str = "",
        where: Where = None,
        mode: MaskMode = "fill",
        **options: str | float,
    ) -> Annotation:
        """Caption or mask images by one of the models that the page offers.

        Args:
            kind: "blip", "florence2", "chat", "wd14", "clipseg" or "rembg"; see `ANNOTATORS`.
            model: folder or hub id; empty for the usual one.
            where: which images.
            mode: what becomes of what is there; see `caption` and `mask`.
            options: the kind's own, such as `prompt` or `threshold`.

        Raises:
            ValueError: for an unknown kind, option or mode; says what there is.
        """
        made = make(kind, model, **options)
        start: Any = self.caption if ANNOTATORS[kind].makes == "caption" else self.mask
        return cast(Annotation, start(made, where, mode))

    def buckets(self) -> pd.DataFrame:
        """Each size that images train at: how many, what crops keep, what trains when."""
        import pandas as pd

        return cast("pd.DataFrame", pd.DataFrame(self.store.buckets()))

    def duplicates(self) -> pd.DataFrame:
        """Images that look like another, group by group in the column `twins`; each is decoded."""
        annotate.duplicates(self.store, self._on_progress).wait()
        return self.store.items(Filter(twins=True))

    def report(self, duplicates: bool = False) -> DataReport:
        """What there is and all that is wrong with it, by name; print it, or take `to_dict()`.

        Args:
            duplicates: also look for images that look the same, for which each is decoded.
        """
        if duplicates:
            self.duplicates()
        return report_on(self.store)

    def _on_report(self) -> None:
        """The page asks again by itself; core widgets are told."""
        with self._drawing:
            if self._made and self.mode == "core":
                self._draw_if_made()

    def _on_progress(self, run: Annotation) -> None:
        with self._drawing:
            self._task = None if run.ended else run
            if run.error is not None:
                self._say("bad", f"{type(run.error).__name__}: {run.error}")
            elif run.ended:
                self._say("good", run.result or "There was nothing to do.")
            self._hasty = not run.ended
            self._refilter()
            self._draw_if_made()

    def _on_twins(self, run: Annotation) -> None:
        if run.ended and any(row.twins for row in self.store.rows):
            self._filter = Filter(concept=self._filter.concept, twins=True)
        self._on_progress(run)

    def undo(self, force: bool = False) -> str:
        """Take back the latest change, and say which; see `ConceptStore.undo`."""
        return self._do(lambda: self.store.undo(force))

    def redo(self, force: bool = False) -> str:
        """Do again what `undo` took back."""
        return self._do(lambda: self.store.redo(force))

    def refresh(self) -> None:
        """Read the folders anew, and return when all is up to date."""
        self.store.rescan()
        with self._drawing:
            self._reading.renewed()
            self._on_read()

    def _do(self, action: Callable[[], Result]) -> Result:
        """Change the store, then the job, then the page."""
        with self._drawing:
            try:
                return action()
            finally:
                self._give_to_job()
                self._refilter()
                self._draw_if_made()

    # the job -----------------------------------------------------------------------------------

    def _take(self, source: Any) -> None:
        if source is None:
            return
        if isinstance(source, (str, Path)):
            path, start = Path(source).expanduser(), ConceptStore()
            if path.suffix.lower() == ".json" and path.is_file():
                self._tell(start.load(path))
            else:
                start.add(source)
            self.store.follow(start.concepts)  # what one starts with is no change to undo
        elif isinstance(source, TrainConfig):
            self._take_config(source)
        elif hasattr(source, "config") and hasattr(source, "observe"):
            self._job = source
            self._take_config(source.config)
            source.observe(self._on_job, "config")
        else:
            self.store.follow(tuple(source))

    def _take_config(self, config: TrainConfig) -> None:
        self._judge(config)
        self.store.follow(config.concepts or ())

    def _judge(self, config: TrainConfig) -> None:
        self._config = config
        run = RunFacts.of(config)
        self.store.follow_run(run)
        self._tokens.follow(run.model, run.tokens)

    def _on_job(self, change: t.Bunch) -> None:
        with self._drawing:
            self._take_config(change.new)
            self._refilter()
            self._draw_if_made()

    def _give_to_job(self) -> None:
        job = self._job
        if job is not None and (job.config.concepts or ()) != self.store.concepts:
            job.update(concepts=self.store.concepts)

    # what the page shows -----------------------------------------------------------------------

    def _make_rich(self) -> tuple[Front, Sequence[W.Widget]]:
        self._front = ConceptFront(layout=W.Layout(width="100%"))
        self._front.choices = choices()
        self._chooser = make_chooser(self._add)
        self._chooser.layout.display = "none"
        return self._front, [self._front, self._chooser]

    def _make_core(self) -> Sequence[W.Widget]:
        told = lambda: page.report(self._report, self._version, links=False)  # noqa: E731
        chooser = make_chooser(self._add)
        self._core = CoreConcepts(self.store, self._thumbs, self._on_request, chooser, told)
        return self._core.children

    def _add(self, path: str) -> None:
        self._on_request({"op": "concept", "action": "add", "path": path})

    def _draw_if_made(self) -> None:
        if self._made and not self._asleep:
            self._draw(None)

    def _draw(self, events: Sequence[Event] | None) -> None:  # noqa: ARG002 - no run, no events
        self._reading.start()
        figures = page.figures(self.store, self._filter.concept) if not self._hasty else None
        if self.mode == "core":
            self._core.draw(self._ids, self._head(), self._filter, figures)
            return
        with self._front.hold_sync():
            self._front.concepts, self._front.head = page.summaries(self.store), self._head()
            if figures is not None:
                self._front.stats = figures
        self._unseen = True

    def _pull(self) -> None:
        """Repeat the state if it may have been lost: Colab drops what a thread sends unasked."""
        self._reading.ask_again()
        if self.mode == "rich" and self._unseen:
            self._unseen = False
            self._front.send_state(["concepts", "head", "stats"])

    def _on_read(self) -> None:
        self._renew_pictures()
        self._refilter()
        self._draw_if_made()

    def _redraw(self) -> None:
        self._refilter()
        self._draw_if_made()

    def _renew_pictures(self) -> None:
        self._epoch, self._list = self._epoch + 1, self._list + 1
        self._thumbs.forget()

    def _refilter(self) -> None:
        """List the images that the filter finds, and let the page fetch them anew."""
        concept = self._filter.concept
        if concept is not None and concept >= len(self.concepts):
            self._filter = replace(self._filter, concept=None)
        ids = self.store.find(self._filter) if self.store.scanned else []
        if ids != self._ids:
            self._ids, self._list = ids, self._list + 1
        self._version += 1

    def _head(self) -> dict[str, Any]:
        undo, redo = self.store.can()
        return {
            "version": self._version,
            "list": self._list,
            "epoch": self._epoch,
            "found": len(self._ids),
            "total": len(self.store.rows) if self.store.scanned else 0,
            "scanning": not self.store.scanned,
            "filter": asdict(self._filter),
            "undo": undo,
            "redo": redo,
            "notice": self._notice,
            "task": page.task(self._task),
            "job": self._job is not None,
        }

    def _say(self, tone: str, text: str) -> None:
        self._notices += 1
        self._notice = {"tone": tone, "text": text, "number": self._notices}

    def _tell(self, warnings: Sequence[str]) -> None:
        if warnings:
            self._say("hold", "\n".join(["Loaded, with remarks:", *warnings]))

    # what the page asks ------------------------------------------------------------------------

    def _on_message(self, front: Front, content: dict[str, Any], buffers: Any) -> None:
        if content.get("op") == "mask":
            content = {**content, "png": bytes(buffers[0]) if buffers else None}
        super()._on_message(front, content, buffers)

    def _on_request(self, content: Mapping[str, Any]) -> None:
        """A question or an edit of the page. What goes wrong is shown there, not raised."""
        with self._drawing:
            try:
                if self._answer(content):
                    return
                self._notice = None
                self._serve(content)
            except (ConfigError, ValueError, OSError) as error:
                self._say("bad", str(error))
                if "id" in content and self.mode == "rich":
                    self._front.send({"op": "refused", "id": content["id"], "why": str(error)})
            except Exception as error:
                self._say("bad", f"{type(error).__name__}: {error}")  # a fault of ours, in sight
                self._draw_if_made()
                raise
            self._give_to_job()
            self._draw_if_made()
            self._unseen = False  # an answer passes where unasked messages are dropped

    def _answer(self, content: Mapping[str, Any]) -> bool:
        """Reply to a question that changes nothing; False if it is none."""
        about = self._ids, self._version, self._epoch
        answer = page.answer(content, page.Shown(*self._sources, *about))
        if answer is not None:
            self._front.send(*answer)
        return answer is not None

    def _serve(self, content: Mapping[str, Any]) -> None:
        match content:
            case {"op": "caption", "id": number, "text": text, "was": was}:
                self._hasty = len(self.store.rows) > page.COUNTED_AT_ONCE
                if self.store.write_caption(number, text, was):
                    self._version += 1  # but the list stays as it is while one goes through it
                if self.mode == "rich":
                    row = page.describe(self.store, self.store.rows[number])
                    self._front.send({"op": "saved", "id": number, "text": text, "row": row})
            case {"op": "mask", "id": number, "png": png}:
                self.store.write_mask(number, png)
                self._version += 1
                if self.mode == "rich":
                    row = page.describe(self.store, self.store.rows[number])
                    self._front.send({"op": "masked", "id": number, "row": row})
            case {"op": "filter", "filter": given}:
                self._hasty = False
                self._filter = Filter(**given)
                self._refilter()
            case {"op": "closed"}:
                self._hasty = False
                self._refilter()
            case {"op": "apply", "action": action, "options": options, "where": where}:
                count = self.store.edit(action, self._meant(where), **options)
                self._say("good" if count else "hold", f"{count:,} captions changed.")
                self._refilter()
            case {"op": "undo"}:
                self._say("good", f"Undone: {self.store.undo(bool(content.get('force')))}.")
                self._refilter()
            case {"op": "redo"}:
                self._say("good", f"Done again: {self.store.redo()}.")
                self._refilter()
            case {"op": "rescan"}:
                self.store.forget()
                self._refilter()
            case {"op": "browse"}:
                hidden = self._chooser.layout.display == "none"
                self._chooser.layout.display = "" if hidden else "none"
            case {"op": "concept", **rest}:
                chosen, said, remarks = page.change_concepts(self.store, rest, self._filter.concept)
                self._filter = replace(self._filter, concept=chosen)
                self._tell(remarks)
                if said:
                    self._say("good", said)
                if rest["action"] == "add" and self.mode == "rich":
                    self._chooser.layout.display = "none"
                self._refilter()
            case {"op": "stop"} if self._task:
                self._task.stop()
            case {"op": "duplicates"} if self._free():
                self._task = annotate.duplicates(self.store, self._on_twins)
            case {"op": "annotate", "where": where, "options": options, **kind} if self._free():
                self._task = self.annotate(where=self._meant(where), **kind, **options)

    def _free(self) -> bool:
        """True; raises ValueError while something runs that a page could stop."""
        if self._task:
            raise ValueError(f"{self._task.what} already. Wait for it, or stop it first.")
        return True

    def _meant(self, where: Any) -> Where:
        """The images that a bulk edit of the page is about: its choice, or all that it shows."""
        return [int(number) for number in where] if isinstance(where, list) else list(self._ids)

    # saved notebook ----------------------------------------------------------------------------

    def story(self) -> str:
        """The concepts and some of their images as HTML that needs no kernel."""
        return page.story(self.store, self._thumbs)

    def plain(self) -> str:
        """The concepts as text."""
        return page.plain(self.store)

    def close(self) -> None:
        """Leave the job, and free everything on the page."""
        if self._job is not None:
            self._job.unobserve(self._on_job, "config")
            self._job = None
        super().close()
