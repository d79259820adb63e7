"""Networks at toy size that several families share: the real classes, random weights."""

from __future__ import annotations

from typing import Any

VOCABULARY = 400
"""Rows of a language model's word table; above every id of the toy tokenizers."""
LEVELS = (8, 16, 16, 16)
"""Channels of a toy VAE: four levels, so that it shrinks pictures 8 times as the real ones do."""


def clip(projection: bool = False, layers: int = 2, width: int = 32, max_length: int = 77) -> Any:
    """A CLIP text encoder, with the projection of its pooled output or without."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from modules.families.tiny_tokenizers import clip_tokenizer

    tokenizer = clip_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def t5(width: int = 32) -> Any:
    """A T5 encoder."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=width,
        d_ff=2 * width,
        d_kv=8,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
    )
    return T5EncoderModel(config).eval()


def umt5(width: int = 32) -> Any:
    """A UMT5 encoder: a T5 of many languages, whose every layer has a place table of its own."""
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(
        vocab_size=VOCABULARY,
        d_model=width,
        d_ff=2 * width,
        d_kv=8,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
    )
    return UMT5EncoderModel(config).eval()


def qwen3(layers: int = 2, width: int = 16) -> Any:
    """A Qwen 3 language model."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
    )
    return Qwen3ForCausalLM(config).eval()


def qwen3_vl(layers: int = 2, width: int = 16) -> Any:
    """A Qwen 3 model of pictures and text."""
    from transformers import Qwen3VLConfig, Qwen3VLModel

    config = Qwen3VLConfig(
        text_config={
            "hidden_size": width,
            "intermediate_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "vocab_size": VOCABULARY,
            "rope_scaling": {
                "mrope_section": [2, 1, 1],
                "rope_type": "default",
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": 2,
            "hidden_size": width,
            "intermediate_size": width,
            "num_heads": 2,
            "out_hidden_size": width,
            "deepstack_visual_indexes": [0, 1],
        },
    )
    return Qwen3VLModel(config).eval()


def gemma2(width: int = 8) -> Any:
    """A Gemma 2 language model."""
    from transformers import Gemma2Config, Gemma2Model

    config = Gemma2Config(
        vocab_size=VOCABULARY,
        head_dim=16,
        hidden_size=width,
        intermediate_size=64,
        num_attention_heads=2,
        num_hidden_layers=2,
        num_key_value_heads=2,
        attn_implementation="eager",
        sliding_window=64,
    )
    return Gemma2Model(config).eval()


def mistral3(layers: int = 2, causal: bool = True) -> Any:
    """A Mistral 3 model of pictures and text, 16 wide."""
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration, Mistral3Model

    config = Mistral3Config(
        text_config={
            "model_type": "mistral",
            "vocab_size": VOCABULARY,
            "hidden_size": 16,
            "intermediate_size": 32,
            "max_position_embeddings": 512,
            "num_attention_heads": 4,
            "num_hidden_layers": layers,
            "num_key_value_heads": 2,
            "head_dim": 4,
            "sliding_window": None,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 3,
        },
        vision_config={
            "model_type": "pixtral",
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "intermediate_size": 32,
            "image_size": 30,
            "patch_size": 6,
            "num_channels": 3,
        },
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        vision_feature_layer=-1,
        image_token_index=4,
    )
    return (Mistral3ForConditionalGeneration if causal else Mistral3Model)(config).eval()


def kl_vae(channels: int, layers: int = 1, **statistics: Any) -> Any:
    """The VAE of most image models, with latents of so many channels.

    Its posterior has next to no spread, as a trained one's, so that its mean is what a pipeline
    draws from it.
    """
    import torch
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        block_out_channels=LEVELS,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=channels,
        norm_num_groups=4,
        layers_per_block=layers,
        sample_size=64,
        **statistics,
    ).eval()
    last = vae.encoder.conv_out if vae.quant_conv is None else vae.quant_conv
    with torch.no_grad():
        last.weight[channels:] = 0
        last.bias[channels:] = -30
    return vae


def flux_vae() -> Any:
    """The VAE of Flux.1 and those that took it over: 16 channels, shifted and scaled."""
    return kl_vae(
        16,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.1159,
        scaling_factor=0.3611,
    )


def flux2_vae() -> Any:
    """The VAE of Flux.2: 32 channels, normalised by running statistics after patching."""
    import torch
    from diffusers import AutoencoderKLFlux2

    vae = AutoencoderKLFlux2(
        block_out_channels=LEVELS,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=32,
        norm_num_groups=8,
        sample_size=32,
    ).eval()
    with torch.no_grad():  # anything but 0 and 1, so that a forgotten statistic shows
        vae.bn.running_mean.uniform_(-0.2, 0.2)
        vae.bn.running_var.uniform_(0.5, 2)
    return vae


def qwen_image_vae() -> Any:
    """The VAE of Qwen-Image: made for video, 16 channels, normalised by mean and deviation."""
    from diffusers import AutoencoderKLQwenImage

    return AutoencoderKLQwenImage(
        base_dim=24,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    ).eval()


def efficient_net(channels: int) -> Any:
    """The image encoder of Würstchen and Cascade, with latents of so many channels.

    Its norms have statistics, as they have after training, so that pictures differ in latents.
    """
    import torch

    from modules.families.efficient_net import EfficientNetEncoder

    stages = (
        ("fused", 1, 1, 8, 1),
        ("fused", 2, 2, 8, 1),
        ("fused", 2, 2, 16, 1),
        ("inverted", 2, 2, 16, 2),
        ("inverted", 2, 2, 16, 1),
    )
    encoder = EfficientNetEncoder(channels, 32, stages=stages)
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the statistics of one batch, whole
    with torch.no_grad():
        encoder.train()(torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    return encoder.eval()


def paella_vqgan() -> Any:
    """The last stage of Würstchen and Cascade."""
    from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel

    return PaellaVQModel(bottleneck_blocks=1, embed_dim=16, num_vq_embeddings=4).eval()


def flow_scheduler(**settings: Any) -> Any:
    """The schedule of flow models."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**settings)


def stable_diffusion_scheduler(name: str = "DDIMScheduler", **settings: Any) -> Any:
    """The noise schedule of Stable Diffusion 1 to XL."""
    import diffusers

    return getattr(diffusers, name)(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        **settings,
    )
