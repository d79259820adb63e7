"""What the engine honours today. THE place to extend when it learns something new.

A setting that stands in neither table must keep its default (or not count for the chosen model,
method and other settings); `validate` refuses anything else, so that nothing is ignored in silence.
Names are dotted; `{denoiser}` and `{encoder}` stand for the model's own parts, and below `concepts`
and `samples` a name stands for that setting of each of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from modules.config import enums as e
from modules.config.optimizer_config import TrainOptimizerConfig
from modules.config.part_config import TrainEmbeddingConfig

ANY: tuple[Any, ...] = ()
"""Every value that the setting can take."""

_WHOLE = (e.DataType.FLOAT_32, e.DataType.FLOAT_16, e.DataType.BFLOAT_16)
_STORED = (
    *_WHOLE,
    e.DataType.FLOAT_8,
    e.DataType.INT_8,
    e.DataType.NFLOAT_4,
    e.DataType.FLOAT_W8A8,
    e.DataType.INT_W8A8,
)

_FROZEN = ("vae", "effnet_encoder", "decoder", "decoder_text_encoder", "decoder_vqgan")

HONOURED: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        # what is trained
        "model_type": (
            e.ModelType.STABLE_DIFFUSION_15,
            e.ModelType.STABLE_DIFFUSION_15_INPAINTING,
            e.ModelType.STABLE_DIFFUSION_20,
            e.ModelType.STABLE_DIFFUSION_20_BASE,
            e.ModelType.STABLE_DIFFUSION_20_INPAINTING,
            e.ModelType.STABLE_DIFFUSION_20_DEPTH,
            e.ModelType.STABLE_DIFFUSION_21,
            e.ModelType.STABLE_DIFFUSION_21_BASE,
            e.ModelType.STABLE_DIFFUSION_3,
            e.ModelType.STABLE_DIFFUSION_35,
            e.ModelType.STABLE_DIFFUSION_XL_10_BASE,
            e.ModelType.STABLE_DIFFUSION_XL_10_BASE_INPAINTING,
            e.ModelType.WUERSTCHEN_2,
            e.ModelType.STABLE_CASCADE_1,
            e.ModelType.PIXART_ALPHA,
            e.ModelType.PIXART_SIGMA,
            e.ModelType.FLUX_DEV_1,
            e.ModelType.FLUX_FILL_DEV_1,
            e.ModelType.FLUX_2,
            e.ModelType.SANA,
            e.ModelType.HUNYUAN_VIDEO,
            e.ModelType.HI_DREAM_FULL,
            e.ModelType.CHROMA_1,
            e.ModelType.QWEN,
            e.ModelType.ANIMA,
            e.ModelType.KREA_2,
            e.ModelType.Z_IMAGE,
            e.ModelType.ERNIE,
            e.ModelType.IDEOGRAM_4,
            e.ModelType.LUMINA_2,
            e.ModelType.AURA_FLOW,
            e.ModelType.WAN_2,
        ),
        "training_method": (
            e.TrainingMethod.LORA,
            e.TrainingMethod.FINE_TUNE,
            e.TrainingMethod.EMBEDDING,
            e.TrainingMethod.FINE_TUNE_VAE,
        ),
        "base_model_name": ANY,
        "output_model_destination": ANY,
        "output_model_format": (
            e.ModelFormat.KOHYA_LORA,
            e.ModelFormat.DIFFUSERS_LORA,
            e.ModelFormat.ORIGINAL_LORA,
            e.ModelFormat.COMFY_LORA,
            e.ModelFormat.LEGACY_LORA,
            e.ModelFormat.DIFFUSERS,
            e.ModelFormat.ORIGINAL_SINGLE_FILE,
            e.ModelFormat.ORIGINAL_TRANSFORMER,
            e.ModelFormat.COMFY_TRANSFORMER,
            e.ModelFormat.LEGACY_SAFETENSORS,
            e.ModelFormat.SAFETENSORS,
        ),
        "output_dtype": _WHOLE,
        # run and files
        "workspace_dir": ANY,
        "cache_dir": ANY,
        "huggingface_cache_dir": ANY,
        "offline_mode": ANY,
        "continue_last_backup": ANY,
        "tensorboard": ANY,
        "validation": ANY,
        "validate_after": ANY,
        "validate_after_unit": ANY,
        "samples_to_tensorboard": ANY,
        "train_device": ANY,
        "temp_device": ANY,
        "async_offloading": ANY,
        "force_circular_padding": ANY,
        "ot.seed": ANY,
        "ot.resume_from": ANY,
        "ot.leftovers": ANY,
        "ot.early_stop_patience": ANY,
        "ot.early_stop_min_delta": ANY,
        "ot.keep_best": ANY,
        "ot.cache_limit": ANY,
        # data
        "concept_file_name": ANY,
        "concepts": ANY,
        "concepts.type": ANY,
        "resolution": ANY,
        "frames": ANY,
        "aspect_ratio_bucketing": ANY,
        "latent_caching": ANY,
        "dataloader_threads": ANY,
        "clear_cache_before_training": ANY,
        "only_cache": ANY,
        # optimisation
        "learning_rate": ANY,
        "learning_rate_scheduler": ANY,
        "custom_learning_rate_scheduler": ANY,
        "scheduler_params": ANY,
        "learning_rate_cycles": ANY,
        "learning_rate_scaler": ANY,
        "learning_rate_warmup_steps": ANY,
        "learning_rate_min_factor": ANY,
        "epochs": ANY,
        "batch_size": ANY,
        "gradient_accumulation_steps": ANY,
        "clip_grad_norm": ANY,
        "train_dtype": (
            e.DataType.FLOAT_32,
            e.DataType.FLOAT_16,
            e.DataType.BFLOAT_16,
            e.DataType.TFLOAT_32,
        ),
        "compile": ANY,
        "attention_mechanism": (
            e.AttentionMechanism.SDP,
            e.AttentionMechanism.FLASH,
            e.AttentionMechanism.CUDNN,
        ),
        "ema": ANY,
        "ema_decay": ANY,
        "ema_update_step_interval": ANY,
        "enable_autocast_cache": ANY,
        # which of these an optimizer takes, modules/training/optimizers.py says before a run
        **{f"optimizer.{name}": ANY for name in TrainOptimizerConfig.model_fields},
        # loss and noise
        "mse_strength": ANY,
        "mae_strength": ANY,
        "log_cosh_strength": ANY,
        "huber_strength": ANY,
        "huber_delta": ANY,
        "loss_scaler": ANY,
        "loss_weight_fn": ANY,
        "loss_weight_strength": ANY,
        "min_noising_strength": ANY,
        "max_noising_strength": ANY,
        "timestep_distribution": ANY,
        "masked_training": ANY,
        "custom_conditioning_image": ANY,
        "unmasked_probability": ANY,
        "unmasked_weight": ANY,
        "normalize_masked_area_loss": ANY,
        "masked_prior_preservation_weight": ANY,
        "noising_weight": ANY,
        "noising_bias": ANY,
        "timestep_shift": ANY,
        "dynamic_timestep_shifting": ANY,
        "offset_noise_weight": ANY,
        "generalized_offset_noise": ANY,
        "perturbation_noise_weight": ANY,
        "rescale_noise_scheduler_to_zero_terminal_snr": ANY,
        "force_v_prediction": ANY,
        "force_epsilon_prediction": ANY,
        # parts
        "{denoiser}.train": ANY,
        "{denoiser}.stop_training_after": ANY,
        "{denoiser}.stop_training_after_unit": ANY,
        "{encoder}.stop_training_after": ANY,
        "{encoder}.stop_training_after_unit": ANY,
        "text_encoder.dropout_probability": ANY,
        "{denoiser}.learning_rate": ANY,
        "{denoiser}.weight_dtype": _STORED,
        "{denoiser}.gradient_checkpointing": ANY,
        "{denoiser}.offload_fraction": ANY,
        "{denoiser}.activation_offloading": ANY,
        "{encoder}.offload_fraction": ANY,
        "{encoder}.activation_offloading": ANY,
        "{encoder}.train": ANY,
        "{encoder}.learning_rate": ANY,
        "{encoder}.weight_dtype": _STORED,
        "quantization.layer_filter": ANY,
        "quantization.layer_filter_preset": ANY,
        "quantization.layer_filter_regex": ANY,
        "{encoder}.gradient_checkpointing": ANY,
        "text_encoder_layer_skip": ANY,
        "text_encoder_2_layer_skip": ANY,
        "text_encoder_sequence_length": ANY,
        "text_encoder_2_sequence_length": ANY,
        "{denoiser}.model_name": ANY,
        "{denoiser}.guidance_scale": ANY,
        "{encoder}.model_name": ANY,
        **{f"{part}.model_name": ANY for part in _FROZEN},
        **{f"{part}.weight_dtype": _WHOLE for part in _FROZEN},
        "vae.learning_rate": ANY,
        "vae.stop_training_after": ANY,
        "vae.stop_training_after_unit": ANY,
        # adapter
        "peft_type": ANY,
        "lora_model_name": ANY,
        "include_train_config": ANY,
        "non_ema_sampling": ANY,
        "lora_decompose": ANY,
        "lora_decompose_output_axis": ANY,
        "lokr_dim": ANY,
        "lokr_decompose_both": ANY,
        "lokr_decompose_factor": ANY,
        "lokr_use_tucker": ANY,
        "lokr_full_matrix": ANY,
        "oft_block_size": ANY,
        "oft_block_share": ANY,
        "layer_filter": ANY,
        "layer_filter_preset": ANY,
        "layer_filter_regex": ANY,
        "lora_rank": ANY,
        "lora_alpha": ANY,
        "lora_weight_dtype": _WHOLE,
        "dropout_probability": ANY,
        # embeddings
        **{f"embedding.{name}": ANY for name in TrainEmbeddingConfig.model_fields},
        "additional_embeddings": ANY,
        "bundle_additional_embeddings": ANY,
        "embedding_learning_rate": ANY,
        "embedding_weight_dtype": _WHOLE,
        "preserve_embedding_norm": ANY,
        "{encoder}.train_embedding": ANY,
        # samples, backups, saves
        "sample_definition_file_name": ANY,
        "samples": ANY,
        "samples.frames": (1,),
        "sample_after": ANY,
        "sample_after_unit": ANY,
        "sample_skip_first": ANY,
        "sample_image_format": ANY,
        "sample_video_format": ANY,
        "backup_after": ANY,
        "backup_after_unit": ANY,
        "rolling_backup": ANY,
        "rolling_backup_count": ANY,
        "backup_before_save": ANY,
        "save_every": ANY,
        "save_every_unit": ANY,
        "save_skip_first": ANY,
        "save_filename_prefix": ANY,
    }
)
"""By setting: the values that the engine honours."""

HARMLESS: Mapping[str, str] = MappingProxyType(
    {
        "debug_mode": "nothing is dumped",
        "debug_dir": "nothing is dumped",
        "tensorboard_expose": "TensorBoard is not started",
        "tensorboard_always_on": "TensorBoard is not started",
        "tensorboard_port": "TensorBoard is not started",
        "fallback_train_dtype": "",  # of models that do not overflow in FLOAT_16
        "{part}.activation_offloading": "",  # of networks that do not train
        "optimizer_defaults": "",
        "lokr_vec_trick": "",  # how a product is computed, not what it is
        "lora_decompose_norm_epsilon": "",  # no weight that is adapted has the length zero
        "sample_audio_format": "",  # films have no sound
        "prevent_overwrites": "",
    }
)
"""Settings that change neither what is learned nor what is written where: what happens instead.

A value that differs from the default is a warning with these words, or nothing if they are empty.
`{part}` stands for any part of the model.
"""

_NO_SKIP = {f"text_encoder{number}_layer_skip": (0,) for number in ("", "_2", "_3", "_4")}

_SD3 = {"text_encoder_3_layer_skip": (0,), "{encoder}.include": ANY}

BY_MODEL: Mapping[e.ModelType, Mapping[str, tuple[Any, ...]]] = MappingProxyType(
    {
        e.ModelType.PIXART_ALPHA: {**_NO_SKIP, "vb_loss_strength": ANY},
        e.ModelType.PIXART_SIGMA: {**_NO_SKIP, "vb_loss_strength": ANY},
        e.ModelType.FLUX_DEV_1: _NO_SKIP,
        e.ModelType.FLUX_FILL_DEV_1: _NO_SKIP,
        e.ModelType.SANA: _NO_SKIP,
        e.ModelType.STABLE_CASCADE_1: {
            "fallback_train_dtype": (e.DataType.FLOAT_32, e.DataType.BFLOAT_16),
        },
        e.ModelType.HUNYUAN_VIDEO: {**_NO_SKIP, "samples.frames": ANY},
        e.ModelType.LUMINA_2: _NO_SKIP,
        e.ModelType.AURA_FLOW: _NO_SKIP,
        e.ModelType.WAN_2: {**_NO_SKIP, "samples.frames": ANY},
        e.ModelType.HI_DREAM_FULL: _NO_SKIP,
        e.ModelType.CHROMA_1: _NO_SKIP,
        e.ModelType.STABLE_DIFFUSION_3: _SD3,
        e.ModelType.STABLE_DIFFUSION_35: _SD3,
        e.ModelType.IDEOGRAM_4: {
            "unconditional_transformer.weight_dtype": _STORED,
            "unconditional_transformer.model_name": ANY,
            "unconditional_transformer.offload_fraction": ANY,
        },
    }
)
"""Where a model type differs from HONOURED: a setting's narrower values, or settings of its own."""
