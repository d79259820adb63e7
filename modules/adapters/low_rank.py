"""The best low-rank form of a weight change: extracting a LoRA from two models, and resizing one.

Cutting the singular values of a matrix gives the nearest matrix of a rank, in the spectral and the
Frobenius norm. Source: Eckart and Young 1936, Psychometrika 1, 211-218; Mirsky 1960.

Shapes: R rank, in and out the widths of a layer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from modules.adapters.files import ALPHA, DOWN, UP, AdapterError, read_tensors, save_tensors
from modules.adapters.key_map import Place
from modules.adapters.reading import spellings, split_key
from modules.adapters.recognise import numbers_in, possible_layers
from modules.adapters.writing import in_any_format, stored_dtype
from modules.config import ModelFormat, ModelType
from modules.families.stored import StoredModel, find_model, own_part
from modules.tensor_files import Progress, open_tensors, silent

SMALLEST = 1e-6
"""Singular values below this share of the largest are rounding errors of float32."""


def extract(
    base: str | Path,
    tuned: str | Path,
    target: str | Path,
    *,
    rank: int,
    model_format: ModelFormat | str = ModelFormat.DIFFUSERS_LORA,
    model_type: ModelType | str | None = None,
    clamp_quantile: float | None = None,
    exact: bool = True,
    dtype: torch.dtype = torch.float16,
    device: str | torch.device = "cpu",
    progress: Progress = silent,
) -> None:
    """Write the LoRA that brings one model as near to another as its rank allows.

    Linear layers and convolutions of the denoiser and the text encoders are compared; a LoRA has
    no place for biases, norms and embeddings.

    Args:
        base: a diffusers folder or a single file.
        tuned: a model of the same architecture and layout, trained from it.
        target: .safetensors file to write.
        rank: of every layer, or the layer's own where that is smaller.
        model_format: of the file.
        model_type: architecture, where the files do not tell it.
        clamp_quantile: cut off what is beyond this quantile of a layer's numbers, such as 0.99:
            outliers of a weight change are mostly noise.
        exact: False finds the singular values by random projection, which is much faster.
        dtype: of the file.
        device: to compute on.
        progress: is told how many of how many weights are compared.

    Raises:
        AdapterError: if the models do not have the same layers, or do not differ.
    """
    if rank < 1:
        raise AdapterError(f"rank is {rank}, but a rank is at least 1.")
    if clamp_quantile is not None and not 0 < clamp_quantile <= 1:
        raise AdapterError(f"clamp_quantile is {clamp_quantile:g}, but is in (0, 1].")
    first, second = _alike(Path(base), Path(tuned), ModelType(model_type) if model_type else None)
    family = first.family
    keys = [key for of_file in first.layers.values() for key in of_file]
    paths = possible_layers(family, numbers_in(keys))
    takers = {f"{p}.{family.adapter_name(p, path)}" for p, of in paths.items() for path in of}
    names = sorted(first.homes().keys() & takers)
    tensors: dict[str, Tensor] = {}
    for done, (name, old, new) in enumerate(_weights(first, second, names, device), 1):
        if takes_lora(old) and (factors := _factors(new - old, rank, exact)):
            down, up = _clamped(factors, clamp_quantile)
            tensors[f"{name}.{DOWN}"], tensors[f"{name}.{UP}"] = down.cpu(), up.cpu()
            tensors[f"{name}.{ALPHA}"] = torch.tensor(float(len(down)))
        progress(done, len(names))
    if not tensors:
        raise AdapterError(f"{base} and {tuned} do not differ in any layer that takes a LoRA.")
    written = in_any_format(tensors, family, spellings(family, paths), ModelFormat(model_format))
    notes = family.metadata("lora")
    save_tensors(written, Path(target), dtype, notes)


def _alike(base: Path, tuned: Path, kind: ModelType | None) -> tuple[StoredModel, StoredModel]:
    """Two models with the same layers."""
    first, second = find_model(base, kind), find_model(tuned, kind)
    if odd := sorted(first.homes().keys() ^ second.homes().keys()):
        raise AdapterError(
            f"{base} and {tuned} do not have the same layers: {odd[0]} is in one alone "
            f"({len(odd)} such). Give two models of one architecture and one layout."
        )
    return first, second


def _weights(
    first: StoredModel, second: StoredModel, names: Iterable[str], device: str | torch.device
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Each layer's weight in both models, in float32; none is in memory before its turn.

    Raises:
        AdapterError: if they are not of one shape.
    """
    homes, others = first.homes(), second.homes()
    with ExitStack() as stack:
        files = [*first.layers, *second.layers]
        opened = {file: stack.enter_context(open_tensors(file)) for file in files}

        def weight(home: tuple[Path, str, Place]) -> Tensor:
            file, key, place = home
            return own_part(opened[file].read(key).to(device, torch.float32), place)

        for name in names:
            old, new = weight(homes[name]), weight(others[name])
            if old.shape != new.shape:
                raise AdapterError(
                    f"{name} is {tuple(old.shape)} in {first.path}, {tuple(new.shape)} in "
                    f"{second.path}. Give two models of one architecture."
                )
            yield name, old, new


def resize(
    source: str | Path,
    target: str | Path,
    *,
    rank: int | None = None,
    ratio: float | None = None,
    share: float | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    progress: Progress = silent,
) -> dict[str, int]:
    """Write a LoRA of another rank whose weight change is as near as it can be: the ranks by layer.

    Keys keep their spelling, and each layer its scale alpha / R, so that further training goes on
    at the same rate. Where several limits are given, the smallest rank counts.

    Args:
        source: .safetensors file of any format.
        target: file to write.
        rank: the most of a layer.
        ratio: keep singular values from the largest down to this part of it: 50 keeps those above
            1/50.
        share: keep the largest of them until they make this share of the change's Frobenius norm.
        dtype: of the file; None keeps the stored type.
        device: to compute on.
        progress: is told how many of how many layers are done.

    Raises:
        AdapterError: if it is no LoRA, or no limit is given.
    """
    _check_limits(rank, ratio, share)
    tensors, metadata = read_tensors(Path(source))
    layers: dict[str, dict[str, str]] = defaultdict(dict)
    for key in tensors:
        stem, suffix = split_key(key)
        if suffix in (DOWN, UP, ALPHA):
            layers[stem][suffix] = key
    plain = {stem: keys for stem, keys in layers.items() if {DOWN, UP} <= keys.keys()}
    if not plain:
        example = next(iter(tensors), "none at all")
        raise AdapterError(f"{source} holds no LoRA: its keys are such as {example}.")
    written, ranks = dict(tensors), {}
    for done, (stem, keys) in enumerate(plain.items(), 1):
        down, up = (tensors[keys[name]].to(device, torch.float32) for name in (DOWN, UP))
        scale = float(tensors[keys[ALPHA]]) / len(down) if ALPHA in keys else 1.0
        new_down, new_up = _resized(down, up, rank, ratio, share)
        ranks[stem] = len(new_down)
        written[keys[DOWN]], written[keys[UP]] = new_down.cpu(), new_up.cpu()
        if ALPHA in keys:
            written[keys[ALPHA]] = torch.tensor(scale * ranks[stem])
        progress(done, len(plain))
    if "ss_network_dim" in metadata:  # what kohya's tools show
        fixed = len(set(ranks.values())) == 1
        metadata["ss_network_dim"] = str(next(iter(ranks.values()))) if fixed else "Dynamic"
        metadata.pop("ss_network_alpha", None)
    save_tensors(written, Path(target), dtype or stored_dtype(tensors), metadata)
    return ranks


def takes_lora(weight: Tensor) -> bool:
    """Whether a weight is that of a linear layer or of a convolution over all its channels."""
    return weight.ndim == 2 or (weight.ndim == 4 and weight.shape[1] > 1)


def _factors(change: Tensor, rank: int, exact: bool) -> tuple[Tensor, Tensor] | None:
    """The nearest down [R, in, ...] and up [out, R, ...] of a change; None if it is zero."""
    rows = change.flatten(1)
    if exact or min(rows.shape) <= 4 * rank:
        left, values, right = torch.linalg.svd(rows, full_matrices=False)
    else:
        # Halko et al. 2011, arXiv:0909.4061: nearly the same at a fraction of the time
        with torch.random.fork_rng([rows.device] if rows.is_cuda else []):
            torch.manual_seed(0)
            left, values, turned = torch.svd_lowrank(rows, q=rank + 16, niter=4)
        right = turned.T
    if not values[0] > 0:
        return None
    kept = min(rank, int((values > SMALLEST * values[0]).sum()))
    root = values[:kept].sqrt()
    down, up = root[:, None] * right[:kept], left[:, :kept] * root
    if change.ndim == 4:
        return down.reshape(kept, *change.shape[1:]), up[:, :, None, None]
    return down, up


def _clamped(factors: tuple[Tensor, Tensor], quantile: float | None) -> tuple[Tensor, Tensor]:
    down, up = factors
    if quantile is None:
        return down, up
    numbers = torch.cat([down.flatten(), up.flatten()]).abs().sort().values
    most = float(numbers[int(quantile * (len(numbers) - 1))])
    return down.clamp(-most, most), up.clamp(-most, most)


def _resized(
    down: Tensor, up: Tensor, rank: int | None, ratio: float | None, share: float | None
) -> tuple[Tensor, Tensor]:
    """The nearest pair of a smaller rank, found in the R dimensions that the change has.

    up @ down = Q1 (R1 R2^T) Q2^T with Q of orthonormal columns, so that the singular values are
    those of the small matrix in the middle.
    """
    left, tall = torch.linalg.qr(up.flatten(1))
    right, wide = torch.linalg.qr(down.flatten(1).T)
    one, values, two = torch.linalg.svd(tall @ wide.T)
    kept = int((values > SMALLEST * values[0]).sum())
    if ratio is not None:
        kept = min(kept, int((values >= values[0] / ratio).sum()))
    if share is not None:
        norms = values.square().cumsum(0).sqrt() / values.norm().clamp(min=1e-30)
        kept = min(kept, int((norms < share - SMALLEST).sum()) + 1)
    kept = max(1, min(kept, rank or kept))
    root = values[:kept].sqrt()
    new_down = (root[:, None] * two[:kept]) @ right.T
    new_up = left @ (one[:, :kept] * root)
    return new_down.reshape(kept, *down.shape[1:]), new_up.reshape(-1, kept, *up.shape[2:])


def _check_limits(rank: int | None, ratio: float | None, share: float | None) -> None:
    if rank is None and ratio is None and share is None:
        raise AdapterError("No new rank is given. Set rank, ratio or share.")
    if rank is not None and rank < 1:
        raise AdapterError(f"rank is {rank}, but a rank is at least 1.")
    if ratio is not None and ratio < 1:
        raise AdapterError(f"ratio is {ratio:g}, but is at least 1: it divides the largest value.")
    if share is not None and not 0 < share <= 1:
        raise AdapterError(f"share is {share:g}, but is in (0, 1].")
