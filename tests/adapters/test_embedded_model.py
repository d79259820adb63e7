"""The tools on adapters of the embedded model, whose UNet has attention where its toy has none."""

import torch
from safetensors.torch import load_file, save_file

from modules.adapters.converting import convert
from modules.adapters.merging import merge
from ot_notebook import assets

LAYER = "up_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def test_an_adapter_of_its_attention_is_merged_and_converted(tmp_path):
    before = load_file(assets.model() / WEIGHTS)[f"{LAYER}.weight"]
    torch.manual_seed(0)
    down, up = torch.randn(2, before.shape[1]), torch.randn(before.shape[0], 2)
    key = f"lora_unet_{LAYER.replace('.', '_')}"
    adapter = tmp_path / "lora.safetensors"
    tensors = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(1.0)}
    metadata = {"modelspec.architecture": "stable-diffusion-v1/lora"}
    save_file({f"{key}.{name}": of for name, of in tensors.items()}, adapter, metadata)

    merge(assets.model(), tmp_path / "merged", {adapter: 0.5})
    after = load_file(tmp_path / "merged" / WEIGHTS)[f"{LAYER}.weight"]
    expected = before.float() + 0.5 * (1.0 / 2) * up @ down
    torch.testing.assert_close(after, expected.to(before.dtype))

    convert(adapter, tmp_path / "diffusers.safetensors", "DIFFUSERS_LORA")
    written = load_file(tmp_path / "diffusers.safetensors")
    assert set(written) == {f"unet.{LAYER}.lora_A.weight", f"unet.{LAYER}.lora_B.weight"}
    product = written[f"unet.{LAYER}.lora_B.weight"] @ written[f"unet.{LAYER}.lora_A.weight"]
    torch.testing.assert_close(product, 0.5 * up @ down)
