"""The original (sgm) names of the layers of Stable Diffusion's UNets."""

from __future__ import annotations

import re
from functools import cache

from modules.adapters.key_map import Native

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
BLOCK = re.compile(
    r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\."
)
MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.")


@cache
def unet_native(*attention_levels: int) -> Native:
    """The names for a UNet whose up blocks with these numbers have attention.

    An up-sampler is the last module of its block, so its place depends on whether attention comes
    before it.
    """

    def rename(path: str) -> str:
        if path in OUTSIDE:
            return OUTSIDE[path]
        if found := MIDDLE.match(path):
            kind, index = found[1], int(found[2])
            place = 1 if kind == "attentions" else 2 * index
            return f"middle_block.{place}.{_leaf(kind, path[found.end() :])}"
        if found := BLOCK.match(path):
            side, block, kind, index = found[1], int(found[2]), found[3], int(found[4])
            leaf = _leaf(kind, path[found.end() :])
            if kind == "downsamplers":
                return f"input_blocks.{3 * block + 3}.0.op"
            if kind == "upsamplers":
                place = 2 if block in attention_levels else 1
                return f"output_blocks.{3 * block + 2}.{place}.conv"
            module = 0 if kind == "resnets" else 1
            if side == "down":
                return f"input_blocks.{3 * block + index + 1}.{module}.{leaf}"
            return f"output_blocks.{3 * block + index}.{module}.{leaf}"
        return path

    return Native(rename)


def _leaf(kind: str, leaf: str) -> str:
    return RESNET.get(leaf, leaf) if kind == "resnets" else leaf
