"""The committed key lists against names that the formats' own tools have published."""

from pathlib import Path

import pytest

KEYS = Path(__file__).parent / "keys"
ATTENTION = "transformer_blocks_0_attn1_to_q"
PUBLISHED = {
    ("stable-diffusion-v1", "KOHYA_LORA"): [
        f"lora_unet_down_blocks_0_attentions_0_{ATTENTION}",
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
    ],
    ("stable-diffusion-v1", "DIFFUSERS_LORA"): [
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
    ],
    ("stable-diffusion-v1", "ORIGINAL_LORA"): [
        "input_blocks.1.1.transformer_blocks.0.attn1.to_q",
        "input_blocks.0.0",
        "input_blocks.3.0.op",
        "middle_block.1.transformer_blocks.0.attn2.to_k",
        "output_blocks.2.1.conv",
        "output_blocks.5.2.conv",
        "time_embed.0",
        "input_blocks.1.0.in_layers.2",
        "input_blocks.1.0.emb_layers.1",
        "out.2",
    ],
    ("stable-diffusion-v1", "COMFY_LORA"): [
        "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q",
        "text_encoders.clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj",
    ],
    ("stable-diffusion-v2", "COMFY_LORA"): [
        "text_encoders.clip_h.transformer.text_model.encoder.layers.0.self_attn.q_proj",
    ],
    ("stable-diffusion-xl-v1-base", "KOHYA_LORA"): [
        f"lora_unet_input_blocks_4_1_{ATTENTION}",
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
        "lora_te2_text_model_encoder_layers_0_self_attn_q_proj",
    ],
    ("stable-diffusion-xl-v1-base", "LEGACY_LORA"): [
        f"lora_unet_down_blocks_1_attentions_0_{ATTENTION}",
    ],
    ("stable-diffusion-xl-v1-base", "ORIGINAL_LORA"): [
        "input_blocks.4.1.transformer_blocks.0.attn1.to_q",
        "label_emb.0.0",
        "output_blocks.2.2.conv",
    ],
    ("stable-diffusion-xl-v1-base", "COMFY_LORA"): [
        "text_encoders.clip_g.transformer.text_model.encoder.layers.0.self_attn.q_proj",
    ],
    ("stable-diffusion-v3-medium", "KOHYA_LORA"): ["lora_unet_joint_blocks_0_x_block_attn_qkv"],
    ("stable-diffusion-v3-medium", "LEGACY_LORA"): [
        "lora_transformer_transformer_blocks_0_attn_to_q",
        "lora_te3_encoder_block_0_layer_0_SelfAttention_q",
    ],
    ("stable-diffusion-v3-medium", "DIFFUSERS_LORA"): [
        "transformer.transformer_blocks.0.attn.to_q"
    ],
    ("stable-diffusion-v3-medium", "ORIGINAL_LORA"): [
        "joint_blocks.0.x_block.attn.qkv",
        "joint_blocks.0.context_block.attn.qkv",
        "joint_blocks.0.x_block.mlp.fc1",
        "x_embedder.proj",
        "final_layer.linear",
        "y_embedder.mlp.2",
        "context_embedder",
    ],
    ("stable-diffusion-v3-medium", "COMFY_LORA"): [
        "diffusion_model.joint_blocks.0.x_block.attn.qkv",
        "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q",
    ],
    ("Flux.1-dev", "KOHYA_LORA"): [
        "lora_unet_double_blocks_0_img_attn_qkv",
        "lora_unet_single_blocks_0_linear1",
        "lora_unet_single_blocks_0_linear2",
    ],
    ("Flux.1-dev", "LEGACY_LORA"): [
        "lora_transformer_transformer_blocks_0_attn_to_q",
        "lora_transformer_single_transformer_blocks_0_proj_mlp",
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
        "lora_te2_encoder_block_0_layer_0_SelfAttention_q",
    ],
    ("Flux.1-dev", "DIFFUSERS_LORA"): ["transformer.single_transformer_blocks.0.proj_mlp"],
    ("Flux.1-dev", "ORIGINAL_LORA"): [
        "double_blocks.0.img_attn.qkv",
        "double_blocks.0.txt_mod.lin",
        "double_blocks.0.txt_attn.proj",
        "vector_in.out_layer",
        "guidance_in.in_layer",
        "txt_in",
        "final_layer.adaLN_modulation.1",
    ],
    ("Flux.1-dev", "COMFY_LORA"): ["diffusion_model.double_blocks.0.img_attn.qkv"],
    ("Chroma1", "KOHYA_LORA"): ["lora_te1_encoder_block_0_layer_0_SelfAttention_q"],
    ("Chroma1", "LEGACY_LORA"): ["lora_te_encoder_block_0_layer_0_SelfAttention_q"],
    ("pixart-alpha", "KOHYA_LORA"): [
        "lora_unet_blocks_0_attn_qkv",
        "lora_unet_blocks_0_cross_attn_kv_linear",
        "lora_te1_encoder_block_0_layer_0_SelfAttention_q",
    ],
    ("sana", "KOHYA_LORA"): ["lora_te_layers_0_self_attn_q_proj"],
    ("hunyuan-video", "KOHYA_LORA"): [
        "lora_te1_layers_0_self_attn_q_proj",
        "lora_te2_text_model_encoder_layers_0_self_attn_q_proj",
    ],
    ("hidream-i1", "COMFY_LORA"): [
        "text_encoders.llama.transformer.model.layers.0.self_attn.q_proj",
    ],
    ("Flux.2", "LEGACY_LORA"): ["transformer.transformer_blocks.0.attn.to_q"],
    ("Ideogram", "ORIGINAL_LORA"): ["layers.0.attention.qkv"],
    ("Anima", "KOHYA_LORA"): [
        "lora_unet_blocks_0_self_attn_q_proj",
        "lora_unet_blocks_0_mlp_layer1",
    ],
    ("Anima", "COMFY_LORA"): ["diffusion_model.blocks.0.cross_attn.output_proj"],
    ("Anima", "ORIGINAL_LORA"): ["net.blocks.0.self_attn.q_proj", "net.t_embedder.1.linear_1"],
    ("wan-2", "COMFY_LORA"): ["diffusion_model.blocks.0.self_attn.q"],
    ("wan-2", "KOHYA_LORA"): ["lora_unet_blocks_0_cross_attn_o", "lora_unet_blocks_0_ffn_2"],
    ("wuerstchen-v2-prior", "DIFFUSERS_LORA"): [
        "prior.blocks.2.attention.to_q",
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
    ],
    ("wuerstchen-v2-prior", "KOHYA_LORA"): ["lora_te_text_model_encoder_layers_0_self_attn_q_proj"],
    ("stable-cascade-v1-prior", "LEGACY_LORA"): [
        "lora_prior_unet_down_blocks_0_2_attention_attn_to_q",
        "lora_prior_unet_up_blocks_1_2_attention_attn_out_proj",
        "lora_prior_te_text_model_encoder_layers_0_self_attn_q_proj",
    ],
    ("stable-cascade-v1-prior", "COMFY_LORA"): [
        "diffusion_model.down_blocks.0.2.attention.attn.to_q",
        "diffusion_model.clip_txt_mapper",
    ],
    ("stable-cascade-v1-prior", "KOHYA_LORA"): [
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
    ],
}
"""Some names of each architecture and format, without what follows for each matrix."""


@pytest.mark.parametrize(("where", "names"), PUBLISHED.items(), ids="-".join)
def test_published_names_are_in_the_list(where, names):
    listed = (KEYS / where[0] / f"{where[1]}.txt").read_text().splitlines()
    assert set(names) <= set(listed)


@pytest.mark.parametrize("architecture", sorted(path.name for path in KEYS.iterdir()))
def test_every_format_has_the_shape_that_its_readers_look_for(architecture):
    def listed(name):
        return (KEYS / architecture / f"{name}.txt").read_text().splitlines()

    assert all(each.startswith("lora_") and "." not in each for each in listed("KOHYA_LORA"))
    heads = {each.split(".")[0] for each in listed("COMFY_LORA")}
    assert heads <= {"diffusion_model", "text_encoders"}
    comfy = {each for each in listed("COMFY_LORA") if each.startswith("diffusion_model.")}
    original = {each.removeprefix("net.") for each in listed("ORIGINAL_LORA")}  # Anima's wrapping
    assert {each.removeprefix("diffusion_model.") for each in comfy} == original
    parts = {each.split(".")[0] for each in listed("DIFFUSERS_LORA")}
    encoders = {f"text_encoder{number}" for number in ("", "_2", "_3", "_4")}
    assert parts <= {"unet", "transformer", "prior", *encoders}
