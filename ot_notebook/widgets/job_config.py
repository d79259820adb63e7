"""The settings of a run: a form on the page and an object in the kernel, always in step."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as W
import traitlets as t

from modules.config import ConfigError, Problem, TrainConfig
from modules.training.events import Event
from ot_notebook import preset_files
from ot_notebook.widgets import markup
from ot_notebook.widgets.core_form import CoreForm
from ot_notebook.widgets.form import Form, Snapshot
from ot_notebook.widgets.live import AdaptiveView, Front, Mode, esm
from ot_notebook.widgets.texts import MAX_LINE, brief

DEFAULT_PRESET = "emoji LoRA"
"""What an empty `JobConfig()` holds: it runs anywhere, with nothing to download."""

STORY_ROWS = 40
"""Settings that a saved notebook lists."""


class FormFront(Front):
    """The form. Its state is a plain description; edits come back as messages."""

    _esm = esm("form_rows.js", "form.js")
    _css = markup.css("ot.css", "form.css")

    groups = t.List(help="`Group`s; fixed.").tag(sync=True)
    presets = t.List(help="[family, [name, ...]] of each family.").tag(sync=True)
    values = t.Dict(help="What each control holds, by the setting's path.").tag(sync=True)
    visible = t.List(help="Paths that count for the family and method chosen.").tag(sync=True)
    changed = t.Dict(help="Paths that differ from the preset, with its value.").tag(sync=True)
    problems = t.List(help="{path, severity, text} of each problem.").tag(sync=True)
    head = t.Dict(help="Preset, file, whether undo and redo work, a notice.").tag(sync=True)


class JobConfig(AdaptiveView):
    """Every setting of a run, edited by a form and by code alike.

    The form follows each change that code makes, from any cell or thread, and `config` is always
    the last valid value of what is on the form.

    Args:
        source: name of a preset, path of a config or preset file, a dict as in such a file, or a
            `TrainConfig`.
        mode: "auto", "rich" or "core"; see `AdaptiveView`.

    Raises:
        ConfigError: if the file or dict holds a value that a setting cannot take.
        ValueError: for a preset that does not exist; names those that come near.

    Example:
        >>> job = ot.JobConfig("emoji LoRA")
        >>> job.update(epochs=10, **{"unet.learning_rate": 2e-4})
        >>> job.observe(lambda change: print(change.new.epochs), "config")
    """

    config = t.Instance(TrainConfig, help="The current settings: frozen, always valid.")

    edits = ""
    """Id of the job of the queue that is being edited here; empty for none."""

    def __init__(
        self,
        source: str | Path | Mapping[str, Any] | TrainConfig = DEFAULT_PRESET,
        *,
        mode: Mode = "auto",
    ) -> None:
        snapshot, warnings = read(source)
        self._form = Form(snapshot)
        self._notices = 0
        self._notice: dict[str, Any] | None = None
        self._tell("", warnings)
        self._unseen = False
        super().__init__(mode)
        self.config = snapshot.config
        self.add_class("ot-card")
        self._use(self.mode)

    # from code ---------------------------------------------------------------------------------

    def update(self, **changes: Any) -> None:
        """Change settings by name; dotted names as in `update(**{"unet.train": False})`.

        Raises:
            ConfigError: for an unknown name, or a value that its setting cannot take; nothing is
                changed then.
        """
        with self._drawing:
            self.config = self.config.update(**changes)

    def __getitem__(self, path: str) -> Any:
        """The value of a setting by its dotted name."""
        return self.config.get(path)

    def __setitem__(self, path: str, value: Any) -> None:
        """Change one setting by its dotted name; see `update`."""
        self.update(**{path: value})

    @property
    def problems(self) -> list[Problem]:
        """What is wrong with the form as it is: drafts that are no value, then broken rules."""
        return self._form.problems()

    @property
    def preset(self) -> str:
        """The preset or file that the settings started from; empty where code gave them."""
        return self._form.now.preset

    def load(self, source: str | Path | Mapping[str, Any] | TrainConfig) -> list[str]:
        """Turn to another preset or file; `undo` brings the old settings back.

        Returns:
            What was kept but not understood, or changed to fit; a line each.

        Raises:
            ConfigError, ValueError: as the constructor does; nothing is changed then.
        """
        snapshot, warnings = read(source)
        self._apply(lambda: self._form.replace(snapshot))
        return warnings

    def save(self, path: str | Path | None = None) -> Path:
        """Write the settings as JSON that OneTrainer loads, too.

        Args:
            path: where to; by default the file they were loaded from or last saved to.

        Raises:
            ValueError: without a path if there is no such file yet.
            OSError: if the file cannot be written.
        """
        target = Path(path).expanduser() if path is not None else self._form.now.file
        if target is None:
            raise ValueError("These settings have no file yet. Give save() the path of one.")
        self.config.save(target)
        self._apply(lambda: self._form.saved(target))
        return target

    def reset(self, path: str | None = None) -> None:
        """Bring one setting, or all, back to what the preset or file says."""
        self._apply(lambda: self._form.reset(path))

    def undo(self) -> None:
        """Take back the last edit, whoever made it."""
        self._apply(self._form.undo)

    def redo(self) -> None:
        """Do again what `undo` took back."""
        self._apply(self._form.redo)

    def edit(self, path: str, shown: Any) -> None:
        """Take what a control of a page holds for a setting; what is no value is a problem."""
        self._apply(lambda: self._form.edit(path, shown))

    def change_items(self, path: str, action: str, index: int = 0) -> None:
        """Change a list of settings such as "samples": add, remove, copy, up or down.

        Raises:
            ValueError: for another action.
        """
        self._apply(lambda: self._form.change_items(path, action, index))

    @property
    def can_undo(self) -> bool:
        """Whether there is an edit to take back."""
        return self._form.can()[0]

    def on_page(self) -> dict[str, Any]:
        """What each control holds, by the setting's path: values, and drafts that are none."""
        return self._form.values()

    def diff(self, other: str | Path | TrainConfig | None = None) -> list[dict[str, str]]:
        """Settings that differ: name, value here, value there.

        Args:
            other: what to compare with: a preset, a file, a config, "" for the defaults; by default
                the preset or file that the settings started from.
        """
        return self._form.differences(self._other(other))

    def as_python(self) -> str:
        """A cell that makes these settings."""
        now = self._form.now
        if now.preset:
            base, lines = now.start, ["import ot_notebook as ot", ""]
            lines.append(f"job = ot.JobConfig({now.preset!r})")
        else:
            base = type(now.config)()
            lines = ["import ot_notebook as ot", "from modules import TrainConfig", ""]
            lines.append("job = ot.JobConfig(TrainConfig())")
        changes = self._form.changes(base)
        if changes:
            plain = [f"    {n}={v!r}," for n, v in changes.items() if n.isidentifier()]
            dotted = [f"        {n!r}: {v!r}," for n, v in changes.items() if not n.isidentifier()]
            lines += ["job.update(", *plain]
            lines += ["    **{", *dotted, "    }"] if dotted else []
            lines.append(")")
        return "\n".join(lines) + "\n"

    @t.observe("config")
    def _follow(self, change: t.Bunch) -> None:
        """Somebody set `config`; the form may have done so itself."""
        with self._drawing:
            if change.new is not self._form.now.config:
                self._form.set(change.new)
            self._draw_if_made()

    def _apply(self, action: Callable[[], Any]) -> None:
        """Change the form, then the trait, then the page: in this order on every thread."""
        with self._drawing:
            action()
            if self.config is not self._form.now.config:
                self.config = self._form.now.config  # observers run, `_follow` draws
            self._draw_if_made()

    def _other(self, other: str | Path | TrainConfig | None) -> TrainConfig:
        if other is None:
            return self._form.now.start
        return type(self.config)() if other == "" else read(other)[0].config

    # on the page -------------------------------------------------------------------------------

    def _make_rich(self) -> tuple[Front, Sequence[W.Widget]]:
        self._front = FormFront(layout=W.Layout(width="100%"))
        self._front.add_class("ot-form-host")
        self._front.groups = self._form.groups()
        self._front.presets = [[family, list(names)] for family, names in by_family().items()]
        return self._front, [self._front]

    def _make_core(self) -> Sequence[W.Widget]:
        self._core = CoreForm(self._form, by_family(), self._request)
        return self._core.children

    def _draw_if_made(self) -> None:
        if self._made and not self._asleep:
            self._draw(None)

    def _draw(self, events: Sequence[Event] | None) -> None:  # noqa: ARG002 - no run, no events
        form, problems = self._form, [_on_page(problem) for problem in self._form.problems()]
        if self.mode == "core":
            self._core.draw(problems, self._head())
            return
        with self._front.hold_sync():
            self._front.values, self._front.visible = form.values(), form.visible()
            self._front.changed, self._front.problems = form.changed(), problems
            self._front.head = self._head()
        self._unseen = True

    def _pull(self) -> None:
        """Repeat the state if it may have been lost: Colab drops what a thread sends unasked."""
        if self.mode == "rich" and self._unseen:
            self._unseen = False
            self._front.send_state(["values", "visible", "changed", "problems", "head"])

    def _head(self) -> dict[str, Any]:
        now, (undo, redo) = self._form.now, self._form.can()
        return {
            "preset": now.preset,
            "file": str(now.file or ""),
            "undo": undo,
            "redo": redo,
            "notice": self._notice,
            "offered": self._form.offered(),
        }

    def _say(self, tone: str, text: str) -> None:
        self._notices += 1
        self._notice = {"tone": tone, "text": brief(text, 4 * MAX_LINE), "number": self._notices}

    def _on_request(self, content: dict[str, Any]) -> None:
        self._request(content)

    def _request(self, content: Mapping[str, Any]) -> None:
        """An edit or a button of the page. What goes wrong is shown there, not raised."""
        with self._drawing:
            self._notice = None
            try:
                self._serve(content)
            except (ConfigError, ValueError, OSError) as error:
                self._say("bad", str(error))
            self._draw_if_made()
            self._unseen = False  # an answer passes where unasked messages are dropped

    def _serve(self, content: Mapping[str, Any]) -> None:
        match content:
            case {"op": "edit", "path": path, "value": value}:
                self.edit(path, value)
            case {"op": "reset", "path": path}:
                self.reset(path)
            case {"op": "items", "path": path, "action": action, "index": index}:
                self.change_items(path, action, index)
            case {"op": "undo"}:
                self.undo()
            case {"op": "redo"}:
                self.redo()
            case {"op": "load", "source": source}:
                self._tell("Loaded.", self.load(source))
            case {"op": "import", "name": name, "text": text}:
                self._tell(f"Imported {name}.", self._import(name, text))
            case {"op": "save", "path": path}:
                self._say("good", f"Saved to {self.save(path or None)}.")
            case {"op": "export"}:
                name = Path(self.preset or "config").stem
                text = json.dumps(self.config.to_dict(), indent=4)
                self._front.send({"op": "export", "name": f"{name}.json", "text": text})
            case {"op": "python"}:
                self._front.send({"op": "python", "text": self.as_python()})
            case {"op": "diff", "against": against}:
                self._front.send({"op": "diff", "rows": self.diff(against)})

    def _import(self, name: str, text: str) -> list[str]:
        try:
            values = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{name} is no JSON: {error}. Choose a config file.") from None
        return self.load(values)

    def _tell(self, done: str, warnings: Sequence[str]) -> None:
        if warnings:
            self._say("hold", "\n".join(["Loaded, with remarks:", *warnings]))
        elif done:
            self._say("good", done)

    # saved notebook ----------------------------------------------------------------------------

    def story(self) -> str:
        """What differs from the preset, as HTML that needs no kernel."""
        rows = self.diff()
        cells = "".join(
            f"<tr><td><code>{escape(row['path'])}</code></td>"
            f"<td>{escape(brief(row['there']))}</td><td>{escape(brief(row['here']))}</td></tr>"
            for row in rows[:STORY_ROWS]
        )
        start = escape(self.preset or "settings from code")
        if not rows:
            return f'<h3 class="ot-title">Settings</h3><p>{start}, unchanged.</p>'
        return (
            f'<h3 class="ot-title">Settings</h3><p>{start}, with {len(rows)} changed.</p>'
            f"<table><tr><th>setting</th><th>there</th><th>here</th></tr>{cells}</table>"
        )

    def plain(self) -> str:
        """What differs from the preset, as text."""
        lines = [f"JobConfig of {self.preset or 'settings from code'}"]
        lines += [
            f"{row['path']}: {brief(row['here'])} (there {brief(row['there'])})"
            for row in self.diff()
        ]
        lines += [brief(problem) for problem in self.problems]
        return "\n".join(lines)


def read(source: str | Path | Mapping[str, Any] | TrainConfig) -> tuple[Snapshot, list[str]]:
    """Settings from a preset's name, a path, a dict or a config, and what there is to say of them.

    Raises:
        ConfigError, ValueError: for bad values; for a preset that does not exist.
    """
    if isinstance(source, TrainConfig):
        return Snapshot(source, source), []
    if isinstance(source, Mapping):
        config, warnings = TrainConfig.load(dict(source))
        return Snapshot(config, config), [str(warning) for warning in warnings]
    path = preset_files.find(source)
    config, warnings = TrainConfig.load(path)
    ours = preset_files.folder() in path.parents  # never written over
    name = path.stem if ours else str(source)
    return Snapshot(config, config, name, None if ours else path), [str(w) for w in warnings]


def by_family() -> dict[str, list[str]]:
    """Names of the presets that ship with the package, by family."""
    found: dict[str, list[str]] = {}
    for file in sorted(preset_files.folder().glob("*/*.json")):
        found.setdefault(file.parent.name, []).append(file.stem)
    return found


def _on_page(problem: Problem) -> dict[str, str]:
    text = brief(f"{problem.message} {problem.fix}".strip(), MAX_LINE)
    return {"path": problem.field, "severity": problem.severity, "text": text}
