"""`config show|diff|convert|schema|options|models`: configs for people and scripts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from modules.config import ConceptConfig, SampleConfig, TrainConfig, settings
from modules.config.files import write_json
from modules.config.reference import models_markdown, options_markdown, options_text, schema
from modules.config.section import Section, plain

DIFFERENT = 1
"""Exit code of `config diff` for configs that differ, as diff's own."""
INVALID = 2

Load = Callable[[Path | None, str | None, list[str] | None], TrainConfig]
File = Annotated[
    Path | None, typer.Argument(help="Config JSON: OneTrainer's or ours, any version.")
]
Preset = Annotated[str | None, typer.Option("--preset", help="Preset below the config.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="One setting, as name=value.")]


def build_config_app(load: Load) -> typer.Typer:
    """The commands; `load` reads a config, a preset below it and settings over both."""
    app = typer.Typer(no_args_is_help=True, help="Show, compare, convert and explain configs.")

    def named(text: str) -> TrainConfig:
        """A config by its path, or by a preset's name."""
        if Path(text).is_file():
            return load(Path(text), None, None)
        return load(None, text, None)

    @app.command()
    def show(
        config: File = None,
        preset: Preset = None,
        settings_: Set = None,
        everything: Annotated[bool, typer.Option("--all", help="Defaults too.")] = False,
        as_json: Annotated[bool, typer.Option("--json", help="The whole config as JSON.")] = False,
    ) -> None:
        """Print what a config changes, a `name=value` a line, as --set takes it."""
        loaded = load(config, preset, settings_)
        if as_json:
            typer.echo(json.dumps(loaded.to_dict(), indent=4))
            return
        usual = TrainConfig()
        for name in paths(loaded):
            value = loaded.get(name)
            if everything or value != usual.get(name):
                typer.echo(f"{name}={written(value)}")

    @app.command()
    def diff(
        first: Annotated[str, typer.Argument(help="Config file, or preset name.")],
        second: Annotated[str, typer.Argument(help="Config file, or preset name.")],
    ) -> None:
        """Print the settings in which two configs differ; exit code 1 if there are any."""
        one, two = named(first), named(second)
        lines = differences(one, two)
        for line in lines:
            typer.echo(line)
        raise typer.Exit(DIFFERENT if lines else 0)

    @app.command()
    def convert(
        source: Annotated[Path, typer.Argument(help="Config of any version, or a preset.")],
        target: Annotated[Path, typer.Argument(help="File to write.")],
        force: Annotated[bool, typer.Option("--force", help="Replace a file.")] = False,
        sparse: Annotated[
            bool, typer.Option("--preset", help="Write only what differs, as presets do.")
        ] = False,
    ) -> None:
        """Write a config of any version as one of today, which OneTrainer reads too."""
        if target.exists() and not force:
            typer.echo(f"{target} exists. Choose another name, or add --force.", err=True)
            raise typer.Exit(INVALID)
        loaded = load(source, None, None)
        try:
            if sparse:
                write_json(target, changed(loaded))
            else:
                loaded.save(target)
        except OSError as failure:
            typer.echo(f"{target} cannot be written: {failure.strerror}.", err=True)
            raise typer.Exit(INVALID) from None

    app.command("schema")(print_schema)
    app.command()(options)
    app.command()(models)
    return app


def print_schema() -> None:
    """Print the JSON schema of configs, for editors that complete and check."""
    typer.echo(json.dumps(schema(TrainConfig), indent=2, allow_nan=False))


def options(
    words: Annotated[
        list[str] | None, typer.Argument(help="Only settings about all of these.")
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="As the page docs/options.md.")
    ] = False,
) -> None:
    """Explain settings: what each does, its values, and when it counts."""
    text = options_page() if markdown else options_text(TrainConfig, words or ())
    if not text:
        typer.echo(f"No setting is about {' '.join(words or ())}.", err=True)
        raise typer.Exit(INVALID)
    typer.echo(text, nl=not markdown)


def models() -> None:
    """Print which architectures train how, and the files they are written as, as a table."""
    typer.echo(models_markdown())


def paths(config: TrainConfig) -> list[str]:
    """Every setting that can differ, optimizer parameters that none reads included."""
    shown = [setting.path for setting in settings(type(config), collections=True)]
    return shown + sorted(set(config.names()) - set(shown))


def differences(one: TrainConfig, two: TrainConfig) -> list[str]:
    """A line for each setting that differs: `name: first -> second`."""
    return [
        f"{name}: {written(one.get(name))} -> {written(two.get(name))}"
        for name in paths(one)
        if one.get(name) != two.get(name)
    ]


def written(value: Any) -> str:
    """A value as --set reads it back: JSON, but words without their quotes."""
    if isinstance(value, tuple) and all(isinstance(item, ConceptConfig) for item in value):
        value = [_changed(item, ConceptConfig()) for item in value]
    text = json.dumps(plain(value), ensure_ascii=False)
    word = value if isinstance(value, str) else ""
    try:
        json.loads(word)
    except json.JSONDecodeError:
        return str(plain(word)) if word and word == word.strip() else text
    return text


def changed(config: TrainConfig) -> dict[str, Any]:
    """Only what differs from the defaults, in OneTrainer's preset format."""
    return {"__version": config.VERSION, **_changed(config, TrainConfig())}


def _changed(section: Section, usual: Section) -> dict[str, Any]:
    found: dict[str, Any] = dict(section.model_extra or {})
    for name in type(section).model_fields:
        value, default = getattr(section, name), getattr(usual, name)
        if value == default:
            continue
        if name == "optimizer":
            default = type(value)(optimizer=value.optimizer)
            found[name] = {"optimizer": plain(value.optimizer), **_changed(value, default)}
        elif isinstance(value, Section):
            found[name] = _changed(value, default)
        else:
            found[name] = plain(value)
    return found


def options_page() -> str:
    """The page docs/options.md."""
    intro = (
        "# Options\n\nEvery setting of a config, made from the settings themselves by "
        "`ot-notebook config options --markdown`. Names, values and defaults are OneTrainer's; "
        "what it lacks stands under `ot`.\n"
    )
    pages = (
        options_markdown(TrainConfig, "Training config", 2),
        options_markdown(ConceptConfig, "Concepts", 2),
        options_markdown(SampleConfig, "Samples", 2),
    )
    return "\n".join([intro, *pages])
