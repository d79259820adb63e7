"""Frozen weights in 8 or 4 bits: small in memory, and unpacked layer by layer as they are used.

An adapter trains on top of them; they themselves cannot. Everything runs on any device, with
nothing but torch.

Shapes: N out features, M in features, b weights of a block.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.config import DataType

Kind = Literal["float8", "int8", "nf4"]
KINDS: dict[DataType, Kind] = {
    DataType.FLOAT_8: "float8",
    DataType.INT_8: "int8",
    DataType.NFLOAT_4: "nf4",
    DataType.FLOAT_W8A8: "float8",
    DataType.INT_W8A8: "int8",
}
"""The kinds of small weights, by their name in a config."""
ROUNDS_INPUTS = frozenset({DataType.FLOAT_W8A8, DataType.INT_W8A8})
"""Those whose layers also take their inputs in 8 bits."""

BLOCK = 64
"""Weights of nf4 that share a scale. Float8 and int8 have one for each output."""
LARGEST = {"float8": 448.0, "int8": 127.0, "nf4": 1.0}
"""The largest number that a code stands for, before its scale."""
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""What the 16 codes stand for. Source: Dettmers et al. 2023, arXiv:2305.14314, appendix E."""


class SmallLinear(nn.Linear):
    """A linear layer whose frozen weight is kept as codes of 8 or 4 bits and their scales."""

    codes: Tensor
    """uint8: [N, M], or pairs of 4 bits, [N * M / 2 rounded up]."""
    scales: Tensor
    """float32: [N, 1], or [blocks, 1]."""
    plain_state = False
    """Whether state_dict gives the weight unpacked, as files of whole models hold it."""

    def __init__(self, layer: nn.Linear, kind: Kind, rounds_inputs: bool = False) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.kind, self.rounds_inputs = kind, rounds_inputs
        codes, scales = pack(layer.weight.detach(), kind)
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        self.bias = layer.bias
        self._dtype = layer.weight.dtype

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight [N, M], unpacked anew at each use."""
        return self.unpacked(self._dtype)

    def computes_in(self, dtype: torch.dtype) -> None:
        """Change the type that the weight says it has."""
        self._dtype = dtype

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        """The weight [N, M] in a type to compute with."""
        shape = (self.out_features, self.in_features)
        return unpack(self.codes, self.scales, self.kind, shape, dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., M] -> [..., N]; keeps no unpacked weight for the backward pass."""
        if torch.is_autocast_enabled(inputs.device.type):
            inputs = inputs.to(torch.get_autocast_dtype(inputs.device.type))
        outputs = cast(Tensor, _Linear.apply(inputs, self))  # type: ignore[no-untyped-call]
        return outputs if self.bias is None else outputs + self.bias.to(outputs)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        if not self.plain_state:
            super()._save_to_state_dict(destination, prefix, keep_vars)
            return
        destination[f"{prefix}weight"] = self.weight
        if self.bias is not None:
            destination[f"{prefix}bias"] = self.bias if keep_vars else self.bias.detach()


class _Linear(torch.autograd.Function):
    """`inputs @ weight.T`, unpacking once in each direction; rounding lets gradients through."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, layer: SmallLinear) -> Tensor:
        ctx.layer = layer
        if layer.rounds_inputs:
            inputs = _rounded(inputs, layer.kind)
        return F.linear(inputs, layer.unpacked(inputs.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient @ ctx.layer.unpacked(gradient.dtype), None


def shrink(
    network: nn.Module,
    kind: Kind,
    layer_filter: str = "",
    *,
    regex: bool = False,
    rounds_inputs: bool = False,
) -> int:
    """Keep the linear layers of a network as codes, in place; returns how many.

    Args:
        network: whose weights do not train.
        kind: the type of the codes.
        layer_filter: comma-separated parts of the paths of these layers; empty for all.
        regex: read the items as regular expressions.
        rounds_inputs: whether these layers also take their inputs in 8 bits.
    """
    items = [item.strip() for item in layer_filter.split(",")]
    small = 0
    for path, module in list(network.named_modules()):
        for name, layer in module.named_children():
            whole = f"{path}.{name}" if path else name
            fits = any(re.search(i, whole) if regex else i in whole for i in items)
            if type(layer) is nn.Linear and fits:
                setattr(module, name, SmallLinear(layer, kind, rounds_inputs).train(layer.training))
                small += 1
    return small


def compute_in(network: nn.Module, dtype: torch.dtype) -> None:
    """Let a network with small weights compute in a type: others get it, small ones unpack to it.

    What the libraries keep in float32, they keep here: diffusers always, transformers in float16.
    """
    import diffusers

    keep = set(getattr(network, "_keep_in_fp32_modules_strict", None) or ())
    if dtype is torch.float16 or isinstance(network, diffusers.ModelMixin):
        keep |= set(getattr(network, "_keep_in_fp32_modules", None) or ())
    for path, module in network.named_modules():
        steps = set(path.split("."))
        if isinstance(module, SmallLinear):
            module.computes_in(torch.float32 if steps & keep else dtype)
        own = [*module.named_parameters(recurse=False)]
        own += [each for each in module.named_buffers(recurse=False) if _stored_in(module, each[0])]
        for name, weight in own:
            if weight.is_floating_point():
                weight.data = weight.data.to(torch.float32 if (steps | {name}) & keep else dtype)


def _stored_in(module: nn.Module, buffer: str) -> bool:
    """Whether files hold a buffer; the scales of small weights have a type of their own."""
    derived = buffer in module._non_persistent_buffers_set
    return not derived and not isinstance(module, SmallLinear)


@contextmanager
def unpacked_state(network: nn.Module) -> Iterator[None]:
    """Inside the block, the network's state_dict is that of a network of plain layers."""
    layers = [layer for layer in network.modules() if isinstance(layer, SmallLinear)]
    for layer in layers:
        layer.plain_state = True
    try:
        yield
    finally:
        for layer in layers:
            layer.plain_state = False


def pack(weight: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """A weight [N, M] as codes and scales; the largest number of each group stays exact."""
    values = weight.float()
    if kind == "nf4":
        flat = F.pad(values.flatten(), (0, -values.numel() % BLOCK))
        values = flat.view(-1, BLOCK)
    scales = values.abs().amax(1, keepdim=True) / LARGEST[kind]
    values = values / scales.clamp(min=torch.finfo(torch.float32).tiny)
    if kind == "float8":
        return values.to(torch.float8_e4m3fn).view(torch.uint8), scales
    if kind == "int8":
        return values.round().to(torch.int8).view(torch.uint8), scales
    table = torch.tensor(NF4, device=weight.device)
    codes = torch.bucketize(values, (table[1:] + table[:-1]) / 2).to(torch.uint8).flatten()
    return codes[0::2] << 4 | codes[1::2], scales


def _rounded(inputs: Tensor, kind: Kind) -> Tensor:
    """Inputs [..., M] as codes of 8 bits would give them back, a scale for each row."""
    rows = inputs.reshape(-1, inputs.shape[-1])
    codes, scales = pack(rows, kind)
    shape = (rows.shape[0], rows.shape[1])
    return unpack(codes, scales, kind, shape, inputs.dtype).view_as(inputs)


def unpack(
    codes: Tensor, scales: Tensor, kind: Kind, shape: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    """The weight [N, M] that codes and scales stand for."""
    scales = scales.to(dtype)
    if kind == "float8":
        return codes.view(torch.float8_e4m3fn).to(dtype) * scales
    if kind == "int8":
        return codes.view(torch.int8).to(dtype) * scales
    table = torch.tensor(NF4, device=codes.device, dtype=dtype)
    values = table[torch.stack([codes >> 4, codes & 15], -1).flatten().int()]
    values = (values.view(-1, BLOCK) * scales).flatten()
    return values[: shape[0] * shape[1]].view(shape)
