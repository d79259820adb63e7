"""Safetensors files read and written tensor by tensor, so that no model need fit the memory."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
from torch import Tensor

from modules.atomic import atomic_file

NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What the format calls the types. Source: https://huggingface.co/docs/safetensors."""
TYPES = {name: dtype for dtype, name in NAMES.items()}
DATE, HASH = "modelspec.date", "modelspec.hash_sha256"
EMPTY = f"0x{'0' * 64}"
"""A hash that is not known yet."""
MODEL_SPEC = {
    "modelspec.sai_model_spec": "1.0.0",
    "modelspec.implementation": "https://github.com/huggingface/diffusers",
    DATE: "",
    HASH: EMPTY,
}
"""What a file of ours says of itself; date and hash are filled in as it is written.

Source: https://github.com/Stability-AI/ModelSpec.
"""


Progress = Callable[[int, int], None]
"""Is told how much is done, and of how much."""


def silent(_done: int, _total: int) -> None:
    """A progress that nobody watches."""


@dataclass(frozen=True)
class Shape:
    """What a file's header says of a tensor."""

    dtype: torch.dtype
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor, dtype: torch.dtype | None = None) -> Shape:
        """Of a tensor that is written in `dtype`, or as it is; whole numbers stay as they are."""
        kept = dtype if dtype and tensor.is_floating_point() else tensor.dtype
        return cls(kept, tuple(tensor.shape))

    @property
    def nbytes(self) -> int:
        """Its bytes in the file."""
        count = 1
        for size in self.sizes:
            count *= size
        return count * self.dtype.itemsize


class TensorFile:
    """An open safetensors file, or several, whose tensors are read when asked for."""

    def __init__(self, stack: ExitStack, paths: list[Path]) -> None:
        from safetensors import safe_open

        self.metadata: dict[str, str] = {}
        self.shapes: dict[str, Shape] = {}
        self._homes = {}
        for path in paths:
            opened = stack.enter_context(safe_open(path, "pt"))
            self.metadata |= opened.metadata() or {}
            for key in opened.keys():  # noqa: SIM118
                self._homes[key] = opened
                held = opened.get_slice(key)
                self.shapes[key] = Shape(TYPES[held.get_dtype()], tuple(held.get_shape()))

    def read(self, key: str) -> Tensor:
        """One tensor, on the CPU."""
        tensor: Tensor = self._homes[key].get_tensor(key)
        return tensor


@contextmanager
def open_tensors(*paths: Path) -> Iterator[TensorFile]:
    """The tensors of safetensors files, for the length of the block.

    Raises:
        OSError: if a file is missing.
        ValueError: if it is something else, or damaged; names it.
    """
    from safetensors import SafetensorError

    with ExitStack() as stack:
        for path in paths:
            if not path.is_file():
                raise FileNotFoundError(f"{path} does not exist. Check the path.")
        try:
            opened = TensorFile(stack, list(paths))
        except (SafetensorError, KeyError) as error:
            names = " or ".join(str(path) for path in paths)
            raise ValueError(f"{names} is no whole safetensors file ({error}).") from error
        yield opened


def write_tensors(
    path: Path,
    shapes: Mapping[str, Shape],
    read: Callable[[str], Tensor],
    metadata: Mapping[str, str],
    progress: Progress = silent,
) -> None:
    """Write a safetensors file atomically, holding one tensor in memory at a time.

    The metadata's date and hash, where it has them, become those of the new file.

    Args:
        path: the file.
        shapes: of what is written, by key.
        read: gives the tensor of a key.
        metadata: what the file says of itself.
        progress: is told how many tensors are written.
    """
    notes = dict(metadata)
    if HASH in notes:
        notes |= {DATE: date.today().isoformat(), HASH: EMPTY}
    # By falling width of the type, as the library has them, so that all are aligned.
    order = sorted(shapes, key=lambda key: (-shapes[key].dtype.itemsize, key))
    starts, end = {}, 0
    for key in order:
        starts[key] = end
        end += shapes[key].nbytes
    header = {"__metadata__": notes} | {
        key: {
            "dtype": NAMES[shapes[key].dtype],
            "shape": list(shapes[key].sizes),
            "data_offsets": [starts[key], starts[key] + shapes[key].nbytes],
        }
        for key in order
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with atomic_file(path) as temporary, temporary.open("r+b") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for done, key in enumerate(
            sorted(shapes), 1
        ):  # the hash is over the tensors in the order of their names
            data = _bytes(read(key), shapes[key], key)
            digest.update(data)
            file.seek(8 + len(text) + starts[key])
            file.write(data)
            progress(done, len(shapes))
        if HASH in notes:
            file.seek(8)
            file.write(text.replace(EMPTY.encode(), f"0x{digest.hexdigest()}".encode(), 1))


def finite(
    tensor: Tensor,
    dtype: torch.dtype,
    key: str,
    *,
    if_lost: str = "Lower the learning rate, and go on from a backup.",
    if_large: str = "Choose BFLOAT_16 or FLOAT_32 as their type (output_dtype of a run).",
) -> Tensor:
    """A tensor in the type that it is written in.

    Args:
        tensor: what is written.
        dtype: the type.
        key: its name in the file.
        if_lost: what to do about numbers that are not finite.
        if_large: what to do about those that are too large for the type.

    Raises:
        ValueError: if a number is not finite, or too large for the type; names it.
    """
    ready = tensor.detach().to(dtype)
    if ready.is_floating_point() and not _held(tensor, ready):
        if not tensor.isfinite().all():
            raise ValueError(
                f"{key} holds numbers that are not finite; nothing was written. {if_lost}"
            )
        word = str(dtype).removeprefix("torch.")
        raise ValueError(
            f"{key} holds numbers up to {float(tensor.abs().max()):.0f}, too large for {word}; "
            f"nothing was written. {if_large}"
        )
    return ready


def _held(tensor: Tensor, ready: Tensor) -> bool:
    """Whether a type holds all numbers: those of one byte are clipped to it without a sign."""
    if ready.dtype.itemsize > 1:
        return bool(ready.isfinite().all())
    whole = tensor.detach().float()
    return bool((whole.abs() <= torch.finfo(ready.dtype).max).all())


def _bytes(tensor: Tensor, shape: Shape, key: str) -> bytes:
    if tuple(tensor.shape) != shape.sizes:
        raise ValueError(f"{key} is {tuple(tensor.shape)}, announced as {shape.sizes}")
    ready = tensor.detach().to("cpu", shape.dtype).contiguous()
    return ready.reshape(-1).view(torch.uint8).numpy().tobytes()
