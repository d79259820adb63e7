"""Stable Diffusion 1.x and 2.x: a UNet over VAE latents, conditioned on one CLIP encoder's tokens.

Inpainting weights read a mask and the masked picture beside the noisy latents, depth weights a
depth map.

Shapes: B batch, C latent channels, H W latent height and width, h w pixels, T text tokens, D text
width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from modules.adapters.key_map import lora_formats
from modules.config import ModelType, SampleConfig, TrainConfig
from modules.families.base import Condition, Family, Objective, Parts, WordTable
from modules.families.inpainting import inpainting_hints, pictures, with_hints
from modules.families.unet_names import unet_native


@dataclass
class StableDiffusion(Family):
    """Stable Diffusion 1.x or 2.x, whether its weights predict noise or velocity."""

    model_types: tuple[ModelType, ...]
    architecture: str
    comfy_encoder: Literal["clip_l", "clip_h"]
    pipeline: str = "StableDiffusionPipeline"

    denoiser = "unet"
    trainable_encoders = ("text_encoder",)
    skipping_encoders = ("text_encoder",)
    words = {"text_encoder": WordTable("emp_params", -1)}  # noqa: RUF012 - read only

    def __post_init__(self) -> None:
        self.lora_formats = lora_formats(
            "unet",
            unet_native(1, 2, 3),
            kohya_encoders={"text_encoder": "lora_te"},
            comfy_encoders={"text_encoder": self.comfy_encoder},
            legacy="lora_unet",
            kohya_native=False,
            encoders=self.trainable_encoders,
        )
        self.file_notes = {"ss_v2": "True"} if self.comfy_encoder == "clip_h" else {}
        encoder = (
            ("cond_stage_model.transformer.", "clip")
            if self.comfy_encoder == "clip_l"
            else ("cond_stage_model.model.", "open_clip")
        )
        self.single_file = {
            "unet": ("model.diffusion_model.", "denoiser"),
            "vae": ("first_stage_model.", "vae"),
            "text_encoder": encoder,
        }

    def components(self, config: TrainConfig) -> dict[str, Any]:  # noqa: ARG002
        """No safety checker: it needs a network of its own and blackens pictures without a word."""
        if self.hint == "depth":
            return {}  # the depth pipeline has none
        return {"safety_checker": None, "requires_safety_checker": False}

    def objective(self, parts: Parts) -> Objective:
        """Noise or velocity, as the model's scheduler says."""
        prediction = parts.scheduler.config.prediction_type
        if prediction not in ("epsilon", "v_prediction"):
            raise ValueError(
                f"The model's scheduler predicts {prediction!r}; this engine knows epsilon and "
                f"v_prediction. Choose another model, or mend its scheduler_config.json."
            )
        return cast(Objective, prediction)

    def encode_hints(
        self, parts: Parts, pixels: Tensor, mask: Tensor, hide: bool = True
    ) -> Condition:
        """{"mask", "kept"} for inpainting, {"depth": [B, 1, H, W]} as estimated for depth."""
        if self.hint == "inpainting":
            return inpainting_hints(parts.vae, pixels, mask, hide)
        return {"depth": self._depth(parts, pixels)} if self.hint == "depth" else {}

    def encode_text(self, parts: Parts, captions: Sequence[str]) -> Condition:
        """{"text": [B, T, D]}; skipped layers are left out, the final norm is not."""
        tokenizer, encoder = parts.pipeline.tokenizer, parts.pipeline.text_encoder
        tokens = tokenizer(
            list(captions),
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).to(encoder.device)
        masked = getattr(encoder.config, "use_attention_mask", False)
        skip = parts.text.skip("text_encoder")
        output = encoder(
            tokens.input_ids,
            attention_mask=tokens.attention_mask if masked else None,
            output_hidden_states=skip > 0,
        )
        if not skip:
            return {"text": output.last_hidden_state}
        text_model = getattr(encoder, "text_model", encoder)  # gone since transformers 5.6
        return {"text": text_model.final_layer_norm(output.hidden_states[-1 - skip])}

    def predict(
        self,
        parts: Parts,
        noisy: Tensor,
        t: Tensor,
        condition: Condition,
        size: Tensor | None = None,  # noqa: ARG002
    ) -> Tensor:
        """The UNet's output [B, C, H, W] at timesteps [B] in 0..999."""
        noisy = with_hints(noisy, condition)
        return cast(Tensor, parts.denoiser(noisy, t, condition["text"]).sample)

    def sample_arguments(self, parts: Parts, definition: SampleConfig) -> dict[str, Any]:
        """Embeddings in place of texts: the pipeline's own clip_skip needs transformers < 5.6."""
        texts = {
            "prompt_embeds": definition.prompt,
            "negative_prompt_embeds": definition.negative_prompt,
        }
        encoded = {
            name: self.encode_text(parts, [text])["text"].to(parts.dtype)
            for name, text in texts.items()
        }
        picture, mask = pictures(definition)
        size: dict[str, Any] = {"height": definition.height, "width": definition.width}
        if self.hint == "inpainting":
            size |= {"image": picture, "mask_image": mask}
        if self.hint == "depth":
            size = {"image": picture, "strength": 1.0}
        return {**encoded, **size, "guidance_scale": definition.cfg_scale}

    def tiny(self) -> Parts:
        """Four UNet levels of 16 and 32 channels and a two-layer CLIP, random weights."""
        import diffusers

        from modules.families import tiny_networks as tiny
        from modules.families.tiny_tokenizers import clip_tokenizer

        torch.manual_seed(0)
        unet = diffusers.UNet2DConditionModel(
            in_channels=4 + {"none": 0, "inpainting": 5, "depth": 1}[self.hint],
            block_out_channels=(16, 32, 32, 32),
            layers_per_block=2,
            sample_size=8,
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            cross_attention_dim=32,
            norm_num_groups=8,
            attention_head_dim=2,
        )
        prediction = "v_prediction" if self.comfy_encoder == "clip_h" else "epsilon"
        own: dict[str, Any] = {
            "safety_checker": None,
            "feature_extractor": None,
            "requires_safety_checker": False,
        }
        if self.hint == "depth":
            own = _tiny_depth_estimator()
        pipeline = getattr(diffusers, self.pipeline)(
            vae=tiny.kl_vae(4, layers=2, scaling_factor=0.18215),
            text_encoder=tiny.clip(),
            tokenizer=clip_tokenizer(),
            unet=unet,
            scheduler=tiny.stable_diffusion_scheduler(
                clip_sample=False, set_alpha_to_one=False, prediction_type=prediction
            ),
            **own,
        )
        return Parts(pipeline, self.denoiser)

    def _depth(self, parts: Parts, pixels: Tensor) -> Tensor:
        """Depth of each picture in [-1, 1], near is 1, [B, 1, H, W], by the model's own network."""
        pipeline = parts.pipeline
        height, width = pixels.shape[-2:]
        pictures = pipeline.image_processor.postprocess(pixels.float().cpu(), output_type="pil")
        inputs = pipeline.feature_extractor(images=pictures, return_tensors="pt").pixel_values
        estimator = pipeline.depth_estimator
        depth = estimator(inputs.to(estimator.device, estimator.dtype)).predicted_depth
        size = (height // pipeline.vae_scale_factor, width // pipeline.vae_scale_factor)
        depth = F.interpolate(depth.unsqueeze(1), size, mode="bicubic", align_corners=False)
        low, high = depth.amin((1, 2, 3), keepdim=True), depth.amax((1, 2, 3), keepdim=True)
        flat = torch.finfo(depth.dtype).tiny  # a picture without depth must not divide by zero
        return 2 * (depth - low) / (high - low).clamp(min=flat) - 1


def _tiny_depth_estimator() -> dict[str, Any]:
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

    config = DPTConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=16,
        backbone_out_indices=[0, 1, 2, 3],
        is_hybrid=False,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
    )
    estimator = DPTForDepthEstimation(config).eval()
    for weight in estimator.parameters():  # the usual ones are so small that nothing is seen
        if weight.ndim > 1:
            torch.nn.init.kaiming_normal_(weight)
    torch.nn.init.ones_(estimator.head.head[-2].bias)  # its last step cuts off what is negative
    processor = DPTImageProcessor(size={"height": 32, "width": 32})
    return {"depth_estimator": estimator, "feature_extractor": processor}


VARIANTS = (
    StableDiffusion((ModelType.STABLE_DIFFUSION_15,), "stable-diffusion-v1", "clip_l"),
    StableDiffusion(
        (ModelType.STABLE_DIFFUSION_15_INPAINTING,),
        "stable-diffusion-v1-inpainting",
        "clip_l",
        "StableDiffusionInpaintPipeline",
    ),
    StableDiffusion(
        (
            ModelType.STABLE_DIFFUSION_20,
            ModelType.STABLE_DIFFUSION_20_BASE,
            ModelType.STABLE_DIFFUSION_21,
            ModelType.STABLE_DIFFUSION_21_BASE,
        ),
        "stable-diffusion-v2",
        "clip_h",
    ),
    StableDiffusion(
        (ModelType.STABLE_DIFFUSION_20_INPAINTING,),
        "stable-diffusion-v2-inpainting",
        "clip_h",
        "StableDiffusionInpaintPipeline",
    ),
    StableDiffusion(
        (ModelType.STABLE_DIFFUSION_20_DEPTH,),
        "stable-diffusion-v2-depth",
        "clip_h",
        "StableDiffusionDepth2ImgPipeline",
    ),
)
