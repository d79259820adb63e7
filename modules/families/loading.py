"""From what a config names to loaded networks, or an error that says what to do.

A source is a diffusers folder, a hub id, or a single `.safetensors`, `.ckpt` or `.gguf` file. A hub
id may end in `@` and a revision: a branch, a tag or a commit. diffusers reads pickled files with
`weights_only=True`, so that they cannot run code. The hub's token is the one of its own login or of
the HF_TOKEN environment variable.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from modules.config import ConfigError, DataType, Problem, TrainConfig, TrainingMethod
from modules.config.paths import hub_revision, resolve
from modules.families.folders import load_index, parts_of, read_index
from modules.families.sources import (
    FAILURES,
    cached_settings,
    cannot_load,
    check_file,
    check_filled,
    check_folder,
    check_found,
    follow_marks,
)
from modules.families.storage import KINDS, ROUNDS_INPUTS, compute_in, shrink
from modules.quiet import quiet_libraries
from modules.tensor_files import open_tensors

if TYPE_CHECKING:
    from modules.families.base import Family, Parts

DTYPES = {
    DataType.FLOAT_32: torch.float32,
    DataType.FLOAT_16: torch.float16,
    DataType.BFLOAT_16: torch.bfloat16,
}
"""Data types that weights are stored in, as torch names them."""


@quiet_libraries()
def load_parts(family: Family, config: TrainConfig) -> Parts:
    """The networks of a family that `config` names, each in its weight dtype.

    A part with a `model_name` of its own comes from there; a text encoder with `include` off is
    left out, where the pipeline can do without.

    Raises:
        ConfigError: if a source is missing, damaged, incomplete, or of another architecture.
    """
    from modules.families.base import Parts, TextOptions

    names = family.networks
    sections = {name: getattr(config, name) for name in names}
    skips = {name: getattr(config, f"{name}_layer_skip") for name in family.text_encoders}
    _check_skips(skips, family.skipping_encoders)
    _check_left_out(
        [name for name in family.text_encoders if not sections[name].include],
        family.optional_encoders,
    )
    components = dict(family.components(config))
    components |= {name: None for name in family.text_encoders if not sections[name].include}
    wanted = [name for name in names if components.get(name, name) is not None]
    dtypes = {name: _computed(name, sections[name].weight_dtype, config) for name in wanted}
    small = {name: s.weight_dtype for name, s in sections.items() if s.weight_dtype in KINDS}
    _check_frozen([name for name in small if sections[name].train], config)
    one_file = Path(resolve(config.base_model_name)).is_file()
    for name in wanted:
        # What shall be small comes first and alone, and as its file has it, which takes no memory
        # before it is used: whole, in the run's own type, it may fill the memory.
        if sections[name].model_name or (name in small and not one_file):
            dtype, as_stored = dtypes[name], name in small
            components[name] = load_part(family, name, config, dtype, as_stored=as_stored)
            if name in small:
                _shrink(family, name, components[name], small[name], config)
                compute_in(components[name], DTYPES[dtype])
    pipeline = load_pipeline(family, config, dtypes, **components)
    for name in small.keys() - components.keys():
        _shrink(family, name, getattr(pipeline, name), small[name], config)
    options = TextOptions(
        layer_skip={name: skip for name, skip in skips.items() if skip},
        length={
            "text_encoder": config.text_encoder_sequence_length,
            "text_encoder_2": config.text_encoder_2_sequence_length,
        },
    )
    return Parts(pipeline, family.denoiser, options, sections[family.denoiser].guidance_scale)


class PipelineKind(Protocol):
    """What is known of a pipeline before it is loaded: a family's, or a further stage's."""

    @property
    def pipeline(self) -> str:
        """Name of its class in diffusers."""

    def pipeline_class(self) -> Any:
        """Its class."""


def load_pipeline(
    kind: PipelineKind,
    config: TrainConfig,
    dtypes: Mapping[str, DataType],
    field: str = "base_model_name",
    **components: Any,
) -> Any:
    """The pipeline at a setting of `config`: a folder, a single file or a hub id.

    A single file holds no settings: they come from a diffusers folder of the file's name beside
    it, without its suffix, or else from the hub.

    Args:
        kind: the architecture.
        config: names the model, the hub cache folder and whether the hub may be asked.
        dtypes: storage type of each network, by its pipeline name.
        field: the setting.
        components: parts that replace what the source holds, such as `safety_checker=None`.

    Raises:
        ConfigError: if nothing is there, a part is missing, or it is another architecture.
    """
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    chosen = config.get(field)
    source, hub = named(chosen, config)
    types = {name: torch_dtype(name, dtype) for name, dtype in dtypes.items()}
    options = {**hub, **components}
    pipeline_class = kind.pipeline_class()
    try:
        if Path(source).is_file():
            check_file(Path(source))
            settings = Path(source).with_suffix("")
            if read_index(settings):
                options["config"] = str(settings)
            elif config.offline_mode:  # diffusers would ask the hub all the same
                options["config"] = cached_settings(Path(source), hub["cache_dir"])
            # One type for the whole file; the parts follow.
            whole = set(types.values())
            alike = whole.pop() if len(whole) == 1 else _stored(Path(source))
            options[_dtype_argument()] = alike or torch.float32
            pipeline = pipeline_class.from_single_file(source, **options)
            check_filled(source, pipeline.components)
            follow_marks(pipeline, Path(source))
            for name, dtype in types.items():
                network = None if name in components else getattr(pipeline, name, None)
                if network is not None and network.dtype != dtype:
                    network.to(dtype)
        else:
            check_folder(Path(source), kind.pipeline, replaced=components.keys())
            held = parts_of(load_index(source, **hub))
            for name in held.keys() & types.keys() - components.keys():
                of_part = {"subfolder": name, "torch_dtype": types[name], **hub}
                options[name] = _whole(source, _class(*held[name]), of_part)
            options[_dtype_argument()] = {"default": torch.float32, **types}
            pipeline = pipeline_class.from_pretrained(source, **options)
    except (*FAILURES, SingleFileComponentError) as error:
        raise cannot_load(field, chosen, kind.pipeline, error) from error
    missing = [part for part in dtypes if getattr(pipeline, part, None) is None]
    if missing:
        raise _problem(
            field,
            f"{chosen} loads as {type(pipeline).__name__} but has no {missing[0]}.",
            "Choose a complete model of the chosen model_type.",
        )
    return pipeline


def _class(library: str, name: str) -> Any:
    """The class of a part that an index names."""
    import diffusers
    import transformers

    homes = {"diffusers": diffusers, "transformers": transformers}
    return getattr(
        homes[library] if library in homes else getattr(diffusers.pipelines, library), name
    )


def _whole(source: str, network: Any, options: Mapping[str, Any]) -> Any:
    """A network from its folder, all of it.

    The libraries give what a file lacks random numbers, and say so in a log at most.
    """
    loaded, notes = network.from_pretrained(source, output_loading_info=True, **options)
    check_found(source, options.get("subfolder", ""), notes["missing_keys"])
    return loaded


def _stored(path: Path) -> torch.dtype | None:
    """The type of most of a file's numbers, in which it takes no more memory than on the disk.

    None where nothing computes in that, as in 8 bits, or where the file does not tell.
    """
    if path.suffix != ".safetensors":
        return None
    with open_tensors(path) as opened:
        sizes: Counter[torch.dtype] = Counter()
        for shape in opened.shapes.values():
            sizes[shape.dtype] += shape.nbytes
    dtype = sizes.most_common(1)[0][0]
    return dtype if dtype in DTYPES.values() else None


def _dtype_argument() -> str:
    """What diffusers calls the type of the weights: `torch_dtype` until 0.42 renamed it."""
    import diffusers
    from packaging.version import Version

    return "dtype" if Version(diffusers.__version__) >= Version("0.42") else "torch_dtype"


def load_part(
    kind: PipelineKind,
    name: str,
    config: TrainConfig,
    dtype: DataType,
    section: str = "",
    base_field: str = "base_model_name",
    as_stored: bool = False,
) -> Any:
    """One network: that at `config.<name>.model_name`, or else the base model's own.

    Args:
        kind: the architecture.
        name: of the network in its pipeline.
        config: names its source.
        dtype: its storage type.
        section: of the config, where that has another name.
        base_field: the setting that names the whole pipeline.
        as_stored: leave weights in the type of their file, where that can be told before.

    Raises:
        ConfigError: if nothing is there or it is another architecture.
    """
    import diffusers

    whole = config.get(base_field)
    own = getattr(config, section or name).model_name
    field, chosen = (f"{section or name}.model_name", own) if own else (base_field, whole)
    source, options = named(chosen, config)
    try:
        base, of_base = named(whole, config)
        if Path(base).is_file():
            base = str(Path(base).with_suffix(""))  # the settings beside a single file
        kind.pipeline_class()
        check_folder(Path(base), kind.pipeline, replaced=(name,) if own else ())
        network = _class(*parts_of(load_index(base, **of_base))[name])
        options["torch_dtype"] = torch_dtype(name, dtype)
        if as_stored and not source.startswith("https://"):
            options["torch_dtype"] = _type_of(source, name, options) or options["torch_dtype"]
        if source.endswith(".gguf"):
            options["quantization_config"] = diffusers.GGUFQuantizationConfig(
                compute_dtype=options["torch_dtype"]
            )
        if Path(source).is_file() or source.startswith("https://"):
            if Path(source).is_file():
                check_file(Path(source))
            # The file holds no settings; the base model's own fit it.
            options["config"] = _settings(base, name, of_base)
            loaded = network.from_single_file(source, subfolder=name, **options)
            check_filled(source, {name: loaded})
            return loaded
        if Path(source).is_dir() and not (Path(source) / name).is_dir():
            return _whole(source, network, options)
        try:
            return _whole(source, network, {"subfolder": name, **options})
        except OSError:
            if not own or Path(source).is_dir():
                raise
            return _whole(source, network, options)  # a hub id of this network alone
    except FAILURES as error:
        raise cannot_load(field, chosen, f"{kind.pipeline}'s {name}", error) from error


def _type_of(source: str, part: str, options: Mapping[str, Any]) -> torch.dtype | None:
    """The type of a part's weights in its files; None as `_stored` says it."""
    path = Path(source)
    if not path.exists():
        from huggingface_hub import snapshot_download

        hub = {name: held for name, held in options.items() if name != "torch_dtype"}
        wanted = [f"{part}/*.json", f"{part}/*.safetensors"]
        other = ["*.fp16.*", "*.non_ema.*"]  # further copies of the same
        path = Path(snapshot_download(source, allow_patterns=wanted, ignore_patterns=other, **hub))
    if path.is_dir():
        folder = path / part if (path / part).is_dir() else path
        path = next(iter(sorted(folder.glob("*.safetensors"))), folder)
    return _stored(path)


def _settings(base: str, part: str, hub: Mapping[str, Any]) -> str:
    """The folder of a model that has a part's settings; of the hub, nothing else is downloaded.

    diffusers would look for those of a single file in the usual cache folder alone.
    """
    if Path(base).is_dir():
        return base
    from huggingface_hub import hf_hub_download

    return str(Path(hf_hub_download(base, f"{part}/config.json", **hub)).parents[1])


def torch_dtype(part: str, dtype: DataType) -> torch.dtype:
    """The torch type in which a part's weights are stored.

    Raises:
        ConfigError: for a type that this engine does not store weights in.
    """
    if dtype in DTYPES:
        return DTYPES[dtype]
    names = ", ".join(known.value for known in (*DTYPES, *KINDS))
    raise _problem(
        f"{part}.weight_dtype",
        f"{part}.weight_dtype is {dtype.value}, in which this engine does not load weights.",
        f"Use one of {names}.",
    )


def _computed(name: str, dtype: DataType, config: TrainConfig) -> DataType:
    """The type of a part's weights as they are used; small weights unpack to the run's own type."""
    if dtype not in KINDS:
        torch_dtype(name, dtype)
        return dtype
    return config.train_dtype if config.train_dtype in DTYPES else DataType.FLOAT_32


def _shrink(family: Family, name: str, network: Any, dtype: DataType, config: TrainConfig) -> None:
    network.requires_grad_(False)
    chosen = config.quantization
    is_denoiser = name == family.denoiser
    layers = chosen.layer_filter if is_denoiser else ""
    regex = is_denoiser and chosen.layer_filter_regex
    rounds = dtype in ROUNDS_INPUTS
    if not shrink(network, KINDS[dtype], layers, regex=regex, rounds_inputs=rounds):
        raise _problem(
            "quantization.layer_filter",
            f"quantization.layer_filter {layers!r} matches no linear layer of the {name}.",
            "Use a part of a layer's path; leave it empty for all layers.",
        )


def named(name: str, config: TrainConfig) -> tuple[str, dict[str, Any]]:
    """The path or hub id that a config names, and how the hub is asked for it."""
    source, revision = hub_revision(resolve(name))
    options = {
        "cache_dir": resolve(config.huggingface_cache_dir) or None,
        "local_files_only": config.offline_mode,
    }
    return source, {**options, **({"revision": revision} if revision else {})}


def _check_left_out(names: Collection[str], possible: tuple[str, ...]) -> None:
    for name in names:
        if name not in possible:
            raise _problem(
                f"{name}.include",
                f"{name}.include is false, but this model cannot do without its {name}.",
                "Set it to true.",
            )


def _check_frozen(names: Collection[str], config: TrainConfig) -> None:
    if config.training_method is TrainingMethod.LORA:
        return
    for name in names:
        dtype = getattr(config, name).weight_dtype.value
        raise _problem(
            f"{name}.weight_dtype",
            f"{name}.weight_dtype is {dtype}, in which weights cannot train.",
            f"Use FLOAT_32 or BFLOAT_16, or turn {name}.train off.",
        )


def _check_skips(skips: Mapping[str, int], possible: tuple[str, ...]) -> None:
    for name, skip in skips.items():
        if skip and name not in possible:
            raise _problem(
                f"{name}_layer_skip",
                f"{name}_layer_skip is {skip}, but this model uses fixed layers of its {name}.",
                "Set it to 0.",
            )


def _problem(field: str, message: str, fix: str) -> ConfigError:
    return ConfigError([Problem(field, "error", message, fix)])
