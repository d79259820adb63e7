"""The engine on the command line: the same configs, the same run, the same events."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from typing_extensions import assert_never

from modules import cli_cache
from modules.cli_config import build_config_app
from modules.cli_weights import add_weight_commands
from modules.config import ConfigError, Problem, TrainConfig, validate
from modules.config.secrets import Secrets
from modules.training import events as e

FAILED, INVALID = 1, 2
"""Exit codes: a run that ended on an error; a config that cannot run."""


ConfigArgument = Annotated[
    Path | None, typer.Argument(help="Config JSON: OneTrainer's or ours, any version.")
]
PresetOption = Annotated[
    str | None, typer.Option("--preset", help="Preset, by name or path; the config goes over it.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="One setting, as in --set unet.learning_rate=1e-4. Repeatable."),
]


def build_app(find_preset: Callable[[str], Path] = Path) -> typer.Typer:
    """The command line; `find_preset` turns a preset's name into its file."""
    app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
    console, errors = Console(soft_wrap=True), Console(stderr=True, soft_wrap=True)

    def load(config: Path | None, preset: str | None, settings: list[str] | None) -> TrainConfig:
        try:
            below = find_preset(preset) if preset else None
            source = config or below
            if source is None:
                raise ValueError("Nothing to load. Name a config file, or a preset with --preset.")
            loaded, warnings = TrainConfig.load(source, below if config else None)
            for warning in warnings:
                errors.print(f"[yellow]warning[/] {escape(str(warning))}", highlight=False)
            return loaded.update(**dict(_setting(text) for text in settings or []))
        except (ConfigError, ValueError, OSError) as error:
            errors.print(f"[red]error[/] {escape(str(error))}", highlight=False)
            raise typer.Exit(INVALID) from None

    @app.command()
    def train(
        config: ConfigArgument = None,
        preset: PresetOption = None,
        settings: SetOption = None,
        secrets: Annotated[
            Path | None,
            typer.Option("--secrets-path", help="Secrets file; else secrets.json here."),
        ] = None,
    ) -> None:
        """Train. Ctrl+C stops after the current step and saves; twice, at once."""
        loaded = load(config, preset, settings)
        try:
            found, warnings = Secrets.load(secrets)
        except ConfigError as error:
            errors.print(f"[red]error[/] {escape(str(error))}", highlight=False)
            raise typer.Exit(INVALID) from None
        for warning in warnings:
            errors.print(f"[yellow]warning[/] {escape(str(warning))}", highlight=False)
        if found.huggingface_token:  # how the hub's own library takes it, for this process alone
            os.environ["HF_TOKEN"] = found.huggingface_token
        raise typer.Exit(_train(loaded, console, errors))

    @app.command("validate")
    def validate_config(
        config: ConfigArgument = None,
        preset: PresetOption = None,
        settings: SetOption = None,
        as_json: Annotated[
            bool, typer.Option("--json", help="Print the problems as a JSON list.")
        ] = False,
    ) -> None:
        """Say what is wrong with a config; exit code 2 if it cannot run."""
        problems = validate(load(config, preset, settings))
        blocked = any(problem.severity == "error" for problem in problems)
        if as_json:
            typer.echo(json.dumps([asdict(problem) for problem in problems], indent=2))
        else:
            for problem in problems:
                _print_problem(problem, errors)
            if not blocked:
                console.print("This config can run.")
        raise typer.Exit(INVALID if blocked else 0)

    app.add_typer(build_config_app(load), name="config")
    add_weight_commands(app)
    app.add_typer(cli_cache.app, name="cache")
    return app


def _setting(text: str) -> tuple[str, Any]:
    """One `path=value`; the value is JSON where it reads as JSON, else a string."""
    path, separator, value = text.partition("=")
    if not separator:
        raise ValueError(f"--set {text} has no value. Write --set {text}=VALUE.")
    try:
        return path.strip(), json.loads(value)
    except (ValueError, RecursionError):
        return path.strip(), value


def _print_problem(problem: Problem, console: Console) -> None:
    colour = "red" if problem.severity == "error" else "yellow"
    console.print(f"[{colour}]{problem.severity}[/] {escape(str(problem))}", highlight=False)


def _train(config: TrainConfig, console: Console, errors: Console) -> int:
    from modules.training.callbacks import TrainCallbacks
    from modules.training.commands import TrainCommands
    from modules.training.trainer import GenericTrainer

    commands = TrainCommands()

    def interrupt(*_: object) -> None:
        if commands.stop_requested:
            raise KeyboardInterrupt
        commands.stop()

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[numbers]}"),
    )
    previous = signal.signal(signal.SIGINT, interrupt)
    try:
        with Progress(*columns, console=console) as progress:
            reader = _Reader(progress)
            GenericTrainer(config, TrainCallbacks(on_event=reader.read), commands).run()
    except (Exception, KeyboardInterrupt) as error:  # reported to the person below
        if reader.failure is None:
            raise
        errors.print(f"[red]{escape(reader.failure.error)}")
        errors.print(escape(reader.failure.advice))
        return INVALID if isinstance(error, ConfigError) else FAILED
    finally:
        signal.signal(signal.SIGINT, previous)
    return 0


class _Reader:
    """Shows a run's events as progress bars and lines."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bars: dict[str, Any] = {}
        self.failure: e.RunFailed | None = None

    def read(self, event: e.Event) -> None:
        match event:
            case e.Progress():
                numbers = (
                    f"loss {event.smooth_loss:.4f}  lr {event.learning_rate:.1e}  "
                    f"{event.steps_per_second:.2f} steps/s"
                )
                self._bar("training", event.step, event.max_step, numbers)
            case e.TaskProgress(task, done, total):
                self._bar(task, done, total, "")
            case e.StatusLine(text):
                self._line(text)
            case e.SampleImage():
                self._line(f"Sample: {event.path}")
            case e.BackupCreated(path):
                self._line(f"Backup: {path}")
            case e.ModelSaved(path):
                self._line(f"Model: {path}")
            case e.ValidationLoss(step, loss, _, raw):
                beside = "" if raw is None else f" ({raw:.4f} without EMA)"
                self._line(f"Validation loss at step {step}: {loss:.4f}{beside}")
            case e.SettingChanged(setting, old, new):
                self._line(f"{setting} is {new} instead of {old} from here on")
            case e.Warned(message):
                self._line(f"Warning: {message}")
            case e.RunFailed():
                self.failure = event
            case e.LossUpdate() | e.TrainingState():
                pass  # the progress bar shows them
            case _:
                assert_never(event)

    def _bar(self, name: str, done: int, total: int, numbers: str) -> None:
        if name not in self._bars:
            self._bars[name] = self._progress.add_task(name, total=total, numbers=numbers)
        self._progress.update(self._bars[name], completed=done, total=total, numbers=numbers)

    def _line(self, text: str) -> None:
        if text:
            self._progress.console.print(escape(text), highlight=False)


app = build_app()
