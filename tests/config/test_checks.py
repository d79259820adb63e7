"""Every rule, by what it says: the value, the rule and the fix."""

# ruff: noqa: E501 - a message is read whole, on one line

from pathlib import Path

import pytest
from PIL import Image

from modules.config import (
    MODELS,
    ModelType,
    TrainConfig,
    TrainingMethod,
    checks,
    settings,
    validate,
)
from modules.config import rules_files as files
from modules.config.case import Case, DataFacts
from modules.config.hardware import Hardware, detect
from modules.config.supported import HONOURED

H100 = Hardware("cuda", "NVIDIA H100", memory_gib=80)
T4 = Hardware("cuda", "Tesla T4", bfloat16=False, memory_gib=15)
CPU = Hardware("cpu", "cpu")


@pytest.fixture
def good(tmp_path, monkeypatch):
    """A config that can run: a LoRA for a model in a folder, one image to learn from."""
    monkeypatch.chdir(tmp_path)
    Path("model").mkdir()
    Path("images/below").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save("images/a.png")
    return TrainConfig().update(
        training_method="LORA",
        base_model_name=str(tmp_path / "model"),
        output_model_format="KOHYA_LORA",
        output_model_destination=str(tmp_path / "out" / "lora.safetensors"),
        concepts=[{"name": "cats", "path": str(tmp_path / "images")}],
        samples=[{"prompt": "a cat"}],
        learning_rate=3e-4,
        train_device="cuda",
        **{"text_encoder.train": False},
    )


def said(config, hardware=H100, data=None):
    return "\n".join(f"{p.severity} {p}" for p in validate(config, hardware, data))


def test_a_config_that_can_run_has_no_problems(good):
    assert said(good) == ""


FLUX = {
    "model_type": "FLUX_DEV_1",
    "output_model_format": "DIFFUSERS_LORA",
    "train_dtype": "BFLOAT_16",
}
LOHA = {"peft_type": "LOHA", "output_model_format": "KOHYA_LORA"}
FULL = {"training_method": "FINE_TUNE", "output_model_format": "DIFFUSERS"}
EMBEDDING = {"training_method": "EMBEDDING", "output_model_format": "SAFETENSORS"}
INPAINTING = {
    "model_type": "STABLE_DIFFUSION_15_INPAINTING",
    "samples.0.sample_inpainting": True,
}
FILE = "output_model_destination"
CUSTOM = {
    "learning_rate_scheduler": "CUSTOM",
    "custom_learning_rate_scheduler": "torch.optim.lr_scheduler.ExponentialLR",
}
TAGS = "concepts.0.text.tag_dropout_special_tags"

CASES = [
    # what the engine can do
    ({"multi_gpu": True}, "error multi_gpu: multi_gpu is true, which this engine cannot honour. Set it to false."),
    ({"debug_mode": True}, "warning debug_mode: debug_mode is true, but nothing is dumped. Set it to false to silence this."),
    ({"samples.0.frames": 9}, "error samples.0.frames: samples.0.frames is 9, which this engine cannot do. Use 1."),
    ({"only_cache": True, "latent_caching": False}, "error only_cache: only_cache is true, but latent_caching is false, so nothing would be done. Set latent_caching to true, or only_cache to false."),
    ({"unet.stop_training_after_unit": "ALWAYS", "text_encoder.train": False}, "error unet.train: No part of the model trains. Set unet.train or text_encoder.train to true."),
    ({"optimizer": {"optimizer": "CAME_8BIT"}}, "error optimizer.optimizer: optimizer is CAME_8BIT, which no package offers. Use CAME or ADAFACTOR, which keep little, or ADAMW_8BIT."),
    ({"cloud.enabled": True}, "error cloud.enabled: cloud.enabled is true, but this engine trains on the machine where it is started. Start it there, and set cloud.enabled to false."),
    # model, method, format
    ({"model_type": "Z_IMAGE", "training_method": "EMBEDDING"}, "error training_method: training_method is EMBEDDING, which Z-Image does not have. Use one of FINE_TUNE, LORA."),
    ({"output_model_format": "DIFFUSERS"}, "error output_model_format: output_model_format is DIFFUSERS, but LORA of Stable Diffusion 1.5 cannot be written so. Use one of DIFFUSERS_LORA, KOHYA_LORA, ORIGINAL_LORA, COMFY_LORA, LEGACY_LORA."),
    ({**FULL, "output_model_format": "ORIGINAL_TRANSFORMER"}, "cannot be written so. Use one of LEGACY_SAFETENSORS, DIFFUSERS, ORIGINAL_SINGLE_FILE."),
    ({**FULL, FILE: "models/a.safetensors"}, f"error {FILE}: {FILE} is models/a.safetensors, but DIFFUSERS is a folder. Use models/a, or another output_model_format."),
    ({FILE: "models/a.ckpt"}, f"error {FILE}: {FILE} ends in .ckpt, but models are safetensors. Use models/a.safetensors."),
    ({"lora_decompose": True, "output_model_format": "DIFFUSERS_LORA"}, "error lora_decompose_output_axis: lora_decompose_output_axis is false, but diffusers reads DoRA along the outputs alone. Set it to true, or use KOHYA_LORA or COMFY_LORA."),
    ({**FLUX, **LOHA}, "error output_model_format: output_model_format is KOHYA_LORA, which joins transformer_blocks.0.attn.to_q with others: LOHA cannot be written so. Use DIFFUSERS_LORA or LEGACY_LORA, or plain LoRA."),
    ({**FLUX, **LOHA, "model_type": "AURA_FLOW"}, "output_model_format is KOHYA_LORA, which swaps the halves of norm_out.linear: LOHA cannot be written so. Use DIFFUSERS_LORA, or plain LoRA."),
    ({**FLUX, "loss_weight_fn": "MIN_SNR_GAMMA"}, "error loss_weight_fn: loss_weight_fn is MIN_SNR_GAMMA, but Flux.1 is a flow model. Use one of CONSTANT, SIGMA."),
    ({"loss_weight_fn": "SIGMA"}, "loss_weight_fn is SIGMA, but Stable Diffusion 1.5 is not a flow model. Use one of CONSTANT, P2, MIN_SNR_GAMMA, DEBIASED_ESTIMATION."),
    ({**FLUX, "model_type": "QWEN", "text_encoder.dropout_probability": 0.1}, "error text_encoder.dropout_probability: text_encoder.dropout_probability is 0.1, but Qwen-Image cannot drop captions. Set it to 0."),
    ({**FLUX, "model_type": "Z_IMAGE", "text_encoder.train": True}, "error text_encoder.train: text_encoder.train is true, but Z-Image's stays as it is. Set it to false."),
    ({"layer_filter_preset": "blockz"}, "error layer_filter_preset: layer_filter_preset is 'blockz', which Stable Diffusion 1.5 does not have. Use one of full, attn-mlp, attn-only, custom."),
    ({"quantization.layer_filter_preset": "attn-mpl"}, "Did you mean attn-mlp? Use one of full, attn-mlp, attn-only, custom."),
    ({"layer_filter": "attn1,"}, "warning layer_filter: layer_filter is 'attn1,', with an empty item, which selects every layer. Remove the comma too many."),
    ({"layer_filter": "a(", "layer_filter_regex": True}, "error layer_filter: layer_filter item 'a(' is no regular expression: missing ), unterminated subpattern at position 1. Mend it (a comma ends an item), or turn layer_filter_regex off."),
    ({"learning_rate": 0}, "error learning_rate: learning_rate is 0, so nothing would be learned. Use 3e-4 for a LoRA, 1e-5 for a whole model."),
    ({"unet.train": False}, "error unet.train: No part of the model trains. Set unet.train or text_encoder.train to true."),
    ({"lora_alpha": 0}, "error lora_alpha: lora_alpha is 0, which scales the adapter to nothing. Use the rank, or 1."),
    ({"train_dtype": "INT_8"}, "error train_dtype: train_dtype is INT_8, in which nothing can be computed. Use FLOAT_32, FLOAT_16, BFLOAT_16 or TFLOAT_32."),
    ({**FULL, "unet.weight_dtype": "FLOAT_8"}, "error unet.weight_dtype: unet.weight_dtype is FLOAT_8, which cannot be trained itself. Use BFLOAT_16 or FLOAT_32, train a LoRA, or set unet.train to false."),
    ({**FULL, "unet.weight_dtype": "FLOAT_16"}, "error unet.weight_dtype: unet.weight_dtype is FLOAT_16 and so is train_dtype, whose gradients are scaled. Set unet.weight_dtype to FLOAT_32, or train_dtype to BFLOAT_16."),
    ({"training_method": "FINE_TUNE_VAE", "output_model_format": "DIFFUSERS", "vae.weight_dtype": "FLOAT_16", "train_dtype": "FLOAT_32"}, "warning vae.weight_dtype: vae.weight_dtype is FLOAT_16, in which small updates of the weights get lost."),
    ({**FULL, "unet.weight_dtype": "FLOAT_16", "train_dtype": "FLOAT_32"}, "warning unet.weight_dtype: unet.weight_dtype is FLOAT_16, in which small updates of the weights get lost. Use FLOAT_32, or BFLOAT_16 with stochastic rounding."),
    ({**FLUX, "generalized_offset_noise": True}, "warning generalized_offset_noise: generalized_offset_noise is true, which has no effect on Flux.1. Set it to false."),
    # training
    ({"optimizer": {"optimizer": "SGD", "fused_back_pass": True}}, "error optimizer.fused_back_pass: optimizer.fused_back_pass is true, which SGD cannot do. Set it to false, or use ADAFACTOR."),
    ({"optimizer.fused_back_pass": True}, "optimizer.fused_back_pass is true, but so is optimizer.fused, which updates all at once. Set optimizer.fused to false."),
    ({"optimizer": {"optimizer": "ADAFACTOR", "fused_back_pass": True}, "gradient_accumulation_steps": 2}, "warning optimizer.fused_back_pass: optimizer.fused_back_pass is true, but gradients are accumulated, so no memory is saved. Set gradient_accumulation_steps to 1, or it to false."),
    ({"optimizer": {"optimizer": "ADAFACTOR", "fused_back_pass": True}, "multi_gpu": True, "fused_gradient_reduce": False}, "optimizer.fused_back_pass is true, but fused_gradient_reduce is false. Set fused_gradient_reduce to true."),
    ({"optimizer": {"optimizer": "ADAFACTOR", "fused_back_pass": True}}, "error optimizer.fused_back_pass: optimizer.fused_back_pass is true, but train_dtype is FLOAT_16, whose gradients are scaled and looked at as a whole before any of them counts. Set train_dtype to BFLOAT_16, or it to false."),
    ({"optimizer": {"optimizer": "ADAFACTOR", "fused_back_pass": True}}, "warning clip_grad_norm: optimizer.fused_back_pass is true, so clip_grad_norm 1 limits each tensor's gradient by itself, not that of all. Set it to empty to clip nothing."),
    ({"optimizer": {"optimizer": "PRODIGY_ADV", "fused_back_pass": True}}, "optimizer.fused_back_pass is true, which PRODIGY_ADV cannot do. Set it to false, or use ADAFACTOR."),
    ({**FULL, "unet.weight_dtype": "BFLOAT_16"}, "warning optimizer.stochastic_rounding: unet.weight_dtype is BFLOAT_16 and optimizer.stochastic_rounding is false, so updates below a five-hundredth of a weight get lost. Set optimizer.stochastic_rounding to true, or unet.weight_dtype to FLOAT_32."),
    ({"optimizer.optimizer": "PRODIGY"}, "warning learning_rate: learning_rate is 0.0003, but PRODIGY finds its step size itself and multiplies it by that. Use 1.0."),
    ({"learning_rate": 1}, "warning learning_rate: learning_rate is 1, at which ADAMW diverges. Use 3e-4 for a LoRA, 1e-5 for a whole model."),
    ({"optimizer.optimizer": "SCHEDULE_FREE_ADAMW", "learning_rate_scheduler": "COSINE"}, "error learning_rate_scheduler: learning_rate_scheduler is COSINE, but SCHEDULE_FREE_ADAMW needs none. Use CONSTANT."),
    ({"learning_rate_scheduler": "ADAFACTOR"}, "learning_rate_scheduler is ADAFACTOR, but the optimizer is ADAMW. Use CONSTANT, or that optimizer."),
    ({"learning_rate_scheduler": "CUSTOM", "custom_learning_rate_scheduler": "Cosine"}, "error custom_learning_rate_scheduler: custom_learning_rate_scheduler is Cosine, but must name a class as module.Class. Give one, or use another learning_rate_scheduler."),
    ({**CUSTOM, "scheduler_params": [{"key": "gamma", "value": "half"}]}, "error scheduler_params: scheduler_params: gamma is half, which is no Python literal. Write a number, True, None, a list, or text in quotes."),
    ({**CUSTOM, "scheduler_params": [{"key": "gamma", "value": "%STEPS%"}]}, "scheduler_params: gamma is %STEPS%. Use one of %LR%, %EPOCHS%, %STEPS_PER_EPOCH%, %TOTAL_STEPS%, %SCHEDULER_STEPS%."),
    ({**CUSTOM, "scheduler_params": [{"key": "last_epoch", "value": "3"}]}, "scheduler_params: last_epoch is set by the run. Take it out."),
    ({**CUSTOM, "learning_rate_min_factor": 0.1}, "warning learning_rate_min_factor: learning_rate_min_factor is 0.1, but a CUSTOM scheduler has its own lowest rate. Set it to 0."),
    ({"learning_rate_warmup_steps": 1}, "warning learning_rate_warmup_steps: learning_rate_warmup_steps is 1, a share of the run: its whole length. Use a smaller share, such as 0.1, or more than 1 for steps."),
    ({"ot.early_stop_patience": 3}, "error ot.early_stop_patience: ot.early_stop_patience is 3, but no validation loss is measured. Set validation to true and validate_after to 1 EPOCH, or it to 0."),
    ({"ot.keep_best": 2, "validation": True, "validate_after_unit": "NEVER"}, "error ot.keep_best: ot.keep_best is 2, but no validation loss is measured."),
    ({"ot.resume_from": "old"}, "warning ot.resume_from: ot.resume_from is old, but continue_last_backup is false: the run begins anew. Set continue_last_backup to true, or it to empty."),
    ({"ot.resume_from": "old", "continue_last_backup": True}, "is not there. Check the name, or leave it empty for the newest."),
    ({"noising_weight": 1.0}, "warning noising_weight: noising_weight is 1, but the distribution UNIFORM does not have it. Set it to 0, or choose another timestep_distribution."),
    ({"timestep_distribution": "HEAVY_TAIL", "noising_bias": 0.5}, "noising_bias is 0.5, but the distribution HEAVY_TAIL does not have it."),
    ({"model_type": "FLUX_DEV_1", "dynamic_timestep_shifting": True, "timestep_shift": 3.0}, "warning timestep_shift: timestep_shift is 3, but dynamic_timestep_shifting replaces it. Set one of them to its default."),
    ({"min_noising_strength": 0.8, "max_noising_strength": 0.5}, "error min_noising_strength: min_noising_strength is 0.8, but max_noising_strength is 0.5. Let the first be below the second."),
    ({**FULL, "force_v_prediction": True, "force_epsilon_prediction": True}, "error force_v_prediction: force_v_prediction and force_epsilon_prediction are both true. Set one of them to false."),
    ({"rescale_noise_scheduler_to_zero_terminal_snr": True, "force_epsilon_prediction": True}, "rescale_noise_scheduler_to_zero_terminal_snr is true, which needs a model that predicts velocity, but force_epsilon_prediction is true. Set it to false."),
    ({"mse_strength": 0}, "error mse_strength: mse_strength, mae_strength, log_cosh_strength, huber_strength are all 0. Set mse_strength to 1."),
    ({"resolution": "big"}, "error resolution: resolution is 'big', but must be a size in pixels. Write 512, or 512,768 for several, or 768x512."),
    ({"resolution": "768x512,512"}, "resolution is '768x512,512', but must be a size in pixels."),
    ({"resolution": "768x512", "aspect_ratio_bucketing": False}, "resolution is '768x512', but without aspect_ratio_bucketing images are square. Write one number, or turn aspect_ratio_bucketing on."),
    ({**FLUX, "resolution": "512,32"}, "resolution is '512,32', but Flux.1 works in steps of 64 px. Use at least 64."),
    ({"concepts.0.image.enable_resolution_override": True, "concepts.0.image.resolution_override": ""}, "error concepts.0.image.resolution_override: concepts.0.image.resolution_override is '', but must be a size in pixels."),
    ({"validation": True}, "error validation: validation is true, but no enabled concept is of type VALIDATION. Add one, or set validation to false."),
    ({**FULL, "concepts.0.type": "PRIOR_PREDICTION"}, "error concepts.0.type: concepts.0.type is PRIOR_PREDICTION, which only training_method LORA can do. Use STANDARD, or train a LoRA."),
    ({"concepts.0.text.prompt_source": "concept"}, "error concepts.0.text.prompt_path: concepts.0.text.prompt_path is empty, but no file is there. Name a text file, or set prompt_source to sample."),
    ({"concepts.0.text.tag_dropout_enable": True, "concepts.0.text.tag_dropout_special_tags_mode": "WHITELIST", TAGS: "tags.txt"}, f"error {TAGS}: {TAGS} is tags.txt, but no file is there. Check the path, or write the tags themselves."),
    ({"concepts.0.text.caps_randomize_enable": True, "concepts.0.text.caps_randomize_mode": "title, shout"}, "concepts.0.text.caps_randomize_mode has 'shout', which is no way to write capitals. Use any of capslock, first, random, title."),
    ({"concepts.0.balancing": 0}, "warning concepts.0.balancing: concepts.0.balancing is 0, so no image of the concept is seen. Raise it, or disable the concept."),
    ({"samples.0.width": 500}, "error samples.0.width: samples.0.width is 500 px, but must be a multiple of 8 px. Use 496 or 504."),
    ({**EMBEDDING, "additional_embeddings": [{"placeholder": "<Embedding>"}]}, "error additional_embeddings.0.placeholder: additional_embeddings.0.placeholder is '<Embedding>', but so is embedding.placeholder. Give each a word of its own."),
    ({**EMBEDDING, "embedding.uuid": "a", "additional_embeddings": [{"placeholder": "b", "uuid": "a"}]}, "error additional_embeddings.0.uuid: additional_embeddings.0.uuid is a, but so is embedding.uuid: backups name files by it. Change one letter of it."),
    ({"additional_embeddings": [{"placeholder": " "}]}, "error additional_embeddings.0.placeholder: additional_embeddings.0.placeholder is empty. Give it a word of its own."),
    ({**EMBEDDING, "embedding.train": False}, "error embedding.train: No embedding trains. Set embedding.train to true."),
    ({**EMBEDDING, "embedding.stop_training_after_unit": "ALWAYS"}, "error embedding.stop_training_after_unit: embedding.stop_training_after_unit is ALWAYS, before the first step, so no embedding trains. Set it to NEVER."),
    ({**EMBEDDING, "text_encoder.train_embedding": False}, "error text_encoder.train_embedding: No text encoder's embeddings train. Set text_encoder.train_embedding to true."),
    ({**EMBEDDING, "embedding.is_output_embedding": True, "text_encoder_layer_skip": 1}, "error embedding.is_output_embedding: embedding.is_output_embedding is true, but with text_encoder_layer_skip the model norms what is behind the encoder. Set it to false, or text_encoder_layer_skip to 0."),
    ({"output_model_format": "ORIGINAL_LORA", "additional_embeddings": [{}]}, "error bundle_additional_embeddings: bundle_additional_embeddings is true, but ORIGINAL_LORA has no place for them. Set it to false, or use another output_model_format."),
    ({"output_model_format": "DIFFUSERS_LORA", "additional_embeddings": [{}]}, "warning bundle_additional_embeddings: bundle_additional_embeddings is true, but diffusers may refuse a LoRA with embeddings in its file. Set it to false for files of their own, or use KOHYA_LORA."),
    ({**EMBEDDING, "embedding_weight_dtype": "FLOAT_16"}, "error embedding_weight_dtype: embedding_weight_dtype is FLOAT_16 and so is train_dtype, whose gradients are scaled. Set embedding_weight_dtype to FLOAT_32, or train_dtype to BFLOAT_16."),
    ({"lora_weight_dtype": "BFLOAT_16"}, "warning optimizer.stochastic_rounding: lora_weight_dtype is BFLOAT_16 and optimizer.stochastic_rounding is false, so updates below a five-hundredth of a weight get lost. Set optimizer.stochastic_rounding to true, or lora_weight_dtype to FLOAT_32."),
    ({"peft_type": "OFT_2", "dropout_probability": 0.1}, "error dropout_probability: dropout_probability is 0.1, but OFT_2 has no dropout here. Set it to 0."),
    ({"output_model_format": "ORIGINAL_LORA", "text_encoder.train": True}, "error output_model_format: output_model_format is ORIGINAL_LORA, which has no place for text_encoder. Use one of DIFFUSERS_LORA, KOHYA_LORA, COMFY_LORA, LEGACY_LORA, or set text_encoder.train to false."),
    ({"peft_type": "OFT_2", "oft_block_size": 1}, "error oft_block_size: oft_block_size is 1, but a block of one number cannot be rotated. Use 32."),
    ({"unmasked_probability": 0.3}, "warning unmasked_probability: unmasked_probability is 0.3, but no mask is read. Turn masked_training on, or set it to 0.1."),
    ({"custom_conditioning_image": True}, "warning custom_conditioning_image: custom_conditioning_image is true, which has no effect on Stable Diffusion 1.5. Set it to false."),
    ({"samples.0.sample_inpainting": True}, "error samples.0.sample_inpainting: samples.0.sample_inpainting is true, but Stable Diffusion 1.5 does not draw into pictures. Set it to false, or use an inpainting model_type."),
    ({**INPAINTING, "samples.0.base_image_path": "images/a.png"}, "error samples.0.mask_image_path: samples.0.mask_image_path is empty, but no file is there. Name a picture, or set samples.0.sample_inpainting to false."),
    ({**INPAINTING, "samples.0.base_image_path": "images/b.png"}, "error samples.0.base_image_path: samples.0.base_image_path is images/b.png, but no file is there."),
    ({**INPAINTING, "model_type": "STABLE_DIFFUSION_20_DEPTH", "samples.0.mask_image_path": "images/a.png"}, "warning samples.0.mask_image_path: samples.0.mask_image_path is images/a.png, but Stable Diffusion 2.0 depth reads no mask. Set it to empty."),
    ({**FLUX, "model_type": "HUNYUAN_VIDEO", "frames": "9, 12"}, "error frames: frames is 9, 12, but 12 is not 1 above a multiple of 4. Use 9 or 13."),
    ({**FLUX, "model_type": "WAN_2", "frames": "all"}, "error frames: frames is 'all', of which 'all' is no number of them. Write 25, or 9,25 for several."),
    ({**FLUX, "model_type": "HUNYUAN_VIDEO", "samples.0.frames": 12}, "error samples.0.frames: samples.0.frames is 12, but must be 1 above a multiple of 4. Use 9 or 13."),
    # files
    ({"base_model_name": " "}, "error base_model_name: base_model_name is empty, but every run starts from a model. Give a hub id, a diffusers folder or a file."),
    ({"base_model_name": "./no/model"}, "error base_model_name: base_model_name is ./no/model, but nothing is there. Check the path, or give a hub id."),
    ({"base_model_name": "package://nobody/model"}, "base_model_name: package://nobody/model names the package 'nobody', which is not installed. Install nobody, or give the path of a folder or file."),
    ({"base_model_name": "package://modules/../../secret"}, "package://modules/../../secret leads outside the package 'modules'. Give a path below the package, without '..'."),
    ({"vae.model_name": "./no/vae"}, "error vae.model_name: vae.model_name is ./no/vae, but nothing is there. Check the path, or leave it empty."),
    ({"lora_model_name": "old.safetensors"}, "error lora_model_name: lora_model_name is old.safetensors, but nothing is there."),
    ({"base_model_name": "nobody/nothing", "offline_mode": True, "huggingface_cache_dir": "hub"}, "error base_model_name: base_model_name is nobody/nothing, which is not in hub, but offline_mode is true. Set offline_mode to false for the first run."),
    ({"base_model_name": "nobody/nothing@v1", "offline_mode": True, "huggingface_cache_dir": "hub"}, "error base_model_name: base_model_name is nobody/nothing@v1, which is not in hub, but offline_mode is true. Set offline_mode to false for the first run."),
    ({"base_model_name": "model", FILE: "model"}, ", the very model that the run starts from. Choose another name."),
    ({FILE: "images/a.png", "prevent_overwrites": True}, f"error {FILE}: {FILE} is images/a.png, which exists, but prevent_overwrites is true. Choose another name, or set prevent_overwrites to false."),
    ({"save_filename_prefix": "../up"}, "error save_filename_prefix: save_filename_prefix holds '/', which file names cannot. Use letters, digits, spaces, dots, - and _."),
    ({"save_filename_prefix": "a" * 101}, "save_filename_prefix is 101 characters long, but may be 100. Shorten it."),
    ({"concepts": None}, "error concept_file_name: concept_file_name is training_concepts/concepts.json, but there is no such file. Name a file of concepts, or put concepts into the config."),
    ({"concepts.0.enabled": False}, "error concepts: No enabled concept has images to train on. Add a concept with a folder of images, or enable one."),
    ({"concepts.0.path": ""}, "error concepts.0.path: Concept 'cats': the path is empty. Give the folder of its images."),
    ({"concepts.0.path": "/no/such/folder"}, "error concepts.0.path: Concept 'cats': the path is /no/such/folder, but there is no such folder. Check it."),
    ({"concepts.0.path": "images/dogs"}, "error concepts.0.path: Concept 'cats': the path is images/dogs, but there is no such folder."),
    ({"concepts.0.path": "someone/cats"}, "warning concepts.0.path: Concept 'cats': the path is someone/cats, which is no folder here; it is taken for a hub data set."),
    ({"concepts.0.path": "model"}, "error concepts.0.path: Concept 'cats': the path is model, where there are no images. Put images there (.avif, .bmp, .jpeg, .jpg, .png, .tif, .tiff, .webp), or turn include_subdirectories on."),
    ({"cache_dir": "a\0b"}, "error cache_dir: cache_dir holds a zero byte, which no path can. Remove it."),
    ({"workspace_dir": "a" * 300}, "which cannot be looked at: File name too long. Choose another path."),
    ({"base_model_name": "./" + "a" * 300}, "error base_model_name: base_model_name is ./aaa"),
    ({"concepts.0.path": "a" * 300}, "error concepts.0.path: concepts.0.path is aaa"),
    ({"workspace_dir": ""}, "error workspace_dir: workspace_dir is empty. Give a path."),
    ({"workspace_dir": "images/a.png/run"}, "error workspace_dir: workspace_dir is images/a.png/run, but "),
    # machine
    ({"train_device": "gpu"}, "error train_device: train_device is 'gpu', which is no device. Use cuda, cuda:1, mps or cpu."),
    ({"attention_mechanism": "FLEX"}, "error attention_mechanism: attention_mechanism is FLEX, which this engine cannot do. Use one of SDP, FLASH, CUDNN."),
    ({**FULL, "unet.offload_fraction": 0.5}, "warning unet.offload_fraction: unet.offload_fraction is 0.5 while the unet itself trains, so the optimizer works on temp_device, where it is slow. Turn optimizer.fused_back_pass on: it works on train_device."),
    ({**FULL, "unet.offload_fraction": 0.5, "unet.weight_dtype": "BFLOAT_16", "optimizer.stochastic_rounding": True}, "error unet.offload_fraction: unet.offload_fraction is 0.5 while the unet itself trains, and optimizer.stochastic_rounding rounds on train_device alone. Turn optimizer.fused_back_pass on. ADAFACTOR has it, for one."),
    ({"unet.offload_fraction": 0.5, "unet.gradient_checkpointing": False}, "error unet.offload_fraction: unet.offload_fraction is set, but without unet.gradient_checkpointing everything stays on the device until the backward pass. Turn unet.gradient_checkpointing on."),
    ({"unet.activation_offloading": True, "unet.gradient_checkpointing": False}, "error unet.activation_offloading: unet.activation_offloading is set, but without unet.gradient_checkpointing"),
    ({"unet.activation_offloading": True, "temp_device": "cuda:1"}, "error unet.activation_offloading: unet.activation_offloading is true, but temp_device is cuda:1. Set temp_device to cpu."),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "expected"), CASES)
def test_a_rule_says_value_rule_and_fix(good, changes, expected):
    assert expected in said(good.update(**changes))


def test_every_rule_is_among_the_cases(good, tmp_path):
    """A rule without a case here fails this test; so does one that never speaks."""
    silent = set(checks.RULES)
    situations = [(good.update(**changes), H100, None) for changes, _ in CASES]
    situations.append((good.update(batch_size=4), T4, DataFacts(2)))
    situations.append((good.update(train_dtype="BFLOAT_16"), T4, None))
    situations.append((good.update(attention_mechanism="FLASH"), CPU, None))
    halves = {"train_dtype": "BFLOAT_16", "unet.weight_dtype": "FLOAT_16"}
    situations.append((good.update(**halves), CPU, None))
    for config, hardware, data in situations:
        case = Case(config, MODELS[config.model_type], hardware, data)
        silent -= {rule for rule in silent if any(True for _ in rule(case))}
    silent = {rule.__name__ for rule in silent}
    # speaks only while the engine cannot stop a part, see the test below
    assert silent <= {"stops_a_part"}


def test_what_old_files_carry_for_every_part_is_no_cause_for_a_warning():
    """The guidance of a Chroma is a setting of its own part, though of other models' alone."""
    found = {}
    for file in Path(__file__).parent.glob("files/v*.json"):
        problems = validate(TrainConfig.load(file)[0], CPU)
        found[file.stem] = [p.field for p in problems if "has no effect on" in p.message]
    assert len(found) > 10
    assert {stem: fields for stem, fields in found.items() if fields} == {
        "v8": ["transformer.guidance_scale"]
    }


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({}, True),
        ({"layer_filter": "attn"}, True),
        ({"layer_filter": "ff.net, single_transformer_blocks"}, True),
        ({"layer_filter": "norm_out"}, True),
        ({"layer_filter": "norm_out", "peft_type": "OFT_2"}, False),
        ({"layer_filter": "ff.net"}, False),
        ({"layer_filter": "blocks.0.attn"}, False),  # only the loaded model knows its numbers
        ({"layer_filter": "attn", "layer_filter_regex": True}, False),
        ({"transformer.train": False, "text_encoder.train": True}, False),
        ({"peft_type": "LORA"}, False),
        ({"peft_type": "LORA", "lora_decompose": True}, True),
        ({"output_model_format": "LEGACY_LORA"}, False),
        ({"model_type": "STABLE_DIFFUSION_15"}, False),
    ],
)
def test_adapters_that_a_format_cannot_join_are_refused_where_that_is_sure(good, changes, refused):
    config = good.update(**{**FLUX, **LOHA, "layer_filter_preset": "custom", **changes})
    assert ("error output_model_format" in said(config)) is refused


def test_a_vae_that_trains_has_a_rate_and_an_end_of_its_own(good):
    vae = {"vae.learning_rate": 1e-6, "vae.stop_training_after": 5}
    training = {"training_method": "FINE_TUNE_VAE", "output_model_format": "DIFFUSERS"}
    assert "has no effect" not in said(good.update(**training, **vae))
    shown = {one.path: one for one in settings(TrainConfig)}
    assert shown["vae.learning_rate"].applies_to(good.update(**training))
    assert not shown["vae.learning_rate"].applies_to(good)


def test_a_backup_that_is_not_the_newest_is_said_to_lead_back(good, tmp_path):
    """Once the run has gone on from it and written newer ones, it still goes back to it."""
    names = [f"2026-01-0{day}_10-00-00-backup-{day}-0-0" for day in (1, 2, 3)]
    for name in (*names, "kept for later"):
        (tmp_path / "work" / "backup" / name).mkdir(parents=True)
    config = good.update(workspace_dir=str(tmp_path / "work"), continue_last_backup=True)

    def chosen(name):
        return said(config.update(**{"ot.resume_from": str(name)}))

    assert chosen(names[0]) == (
        f"warning ot.resume_from: ot.resume_from is {names[0]}, but there are 2 newer ones in "
        f"{tmp_path / 'work' / 'backup'}: the run goes back behind what it had reached. Leave it "
        f"empty to go on from the newest, {names[2]}."
    )
    assert "but there is a newer one in" in chosen(tmp_path / "work" / "backup" / names[1])
    assert [chosen(name) for name in (names[2], "kept for later", "")] == ["", "", ""]


def test_a_film_needs_its_encoder(good, monkeypatch):
    config = good.update(**FLUX, **{"samples.0.frames": 9}).update(model_type="WAN_2")
    assert "samples.0.frames" not in said(config)
    monkeypatch.setattr("modules.config.rules_training.find_spec", lambda name: None)
    assert (
        "error samples.0.frames: samples.0.frames is 9, but imageio-ffmpeg, which writes it, is "
        "missing. Install ot-notebook[video], or set sample_video_format to PNG_IMAGE_SEQUENCE."
    ) in said(config)
    assert "samples.0.frames" not in said(config.update(sample_video_format="PNG_IMAGE_SEQUENCE"))


def test_bfloat16_on_a_gpu_without_it_points_to_the_presets_for_it(good):
    text = said(good.update(train_dtype="BFLOAT_16", **{"vae.weight_dtype": "BFLOAT_16"}), T4)
    assert (
        "error train_dtype: train_dtype is BFLOAT_16, which Tesla T4 has no units for. Use "
        "FLOAT_16, with FLOAT_32 as fallback_train_dtype; presets named T4 do." in text
    )
    assert "warning vae.weight_dtype: vae.weight_dtype is BFLOAT_16, which Tesla T4" in text
    counts = "fallback_train_dtype" in HONOURED
    assert ("warning fallback_train_dtype: fallback_train_dtype is BFLOAT_16" in text) is counts
    safe = good.update(train_dtype="FLOAT_16", fallback_train_dtype="FLOAT_32")
    assert said(safe, T4) == ""


def test_kernels_that_the_device_lacks_are_said_to_change_nothing(good):
    config = good.update(train_dtype="TFLOAT_32", attention_mechanism="CUDNN")
    tf32 = "warning train_dtype: train_dtype is TFLOAT_32, which {} has no units for: it computes"
    assert said(config, H100) == ""
    assert said(config, T4) == f"{tf32.format('Tesla T4')} in FLOAT_32. Use FLOAT_32."
    assert said(config, CPU) == (
        f"{tf32.format('cpu')} in FLOAT_32. Use FLOAT_32.\n"
        "warning attention_mechanism: attention_mechanism is CUDNN, but cpu has one kernel: "
        "same result. Use SDP to silence this."
    )


def test_offloading_from_main_memory_to_itself_is_said_to_save_nothing(good):
    config = good.update(train_device="cpu", train_dtype="FLOAT_32")
    assert said(config.update(**{"unet.offload_fraction": 0.5}), CPU) == (
        "warning unet.offload_fraction: unet.offload_fraction is 0.5, but train_device is cpu, "
        "where that saves nothing. Set it to 0."
    )


def test_a_gpu_that_is_not_there_is_refused(good):
    missing = Hardware("cuda", "cuda:9", present=False)
    assert (
        "train_device is cuda:9, but this machine has no such GPU. Use cpu, or a machine"
        in said(good.update(train_device="cuda:9"), missing)
    )
    assert not detect("cuda:123").present
    assert detect("cpu") == Hardware("cpu", "cpu")


@pytest.mark.parametrize(
    ("changes", "reads"),
    [
        ({}, False),
        ({"text_encoder.train": True}, True),
        ({"text_encoder_2.train": True}, True),  # captions go through both
        ({"text_encoder_2.train": True, "text_encoder.include": False}, False),
        ({"additional_embeddings": [{"placeholder": "<card>", "train": False}]}, True),
        ({"latent_caching": False}, True),
    ],
)
def test_a_cpu_does_not_mix_two_types_of_16_bits(good, changes, reads):
    parts = {"transformer.weight_dtype": "FLOAT_16", "text_encoder.weight_dtype": "FLOAT_16"}
    parts["text_encoder_2.train"] = False
    config = good.update(**FLUX, **parts, train_device="cpu").update(**changes)
    words = "{}.weight_dtype is FLOAT_16 and the computation BFLOAT_16, which CPUs cannot mix."
    assert words.format("transformer") in said(config, CPU)
    assert (words.format("text_encoder") in said(config, CPU)) is reads
    assert "cannot mix" not in said(config, H100)
    assert "cannot mix" not in said(config.update(train_dtype="FLOAT_32"), CPU)


def test_half_precision_on_a_cpu_is_slow(good):
    text = said(good.update(train_device="cpu"), Hardware("cpu", "cpu"))
    assert text == (
        "warning train_dtype: train_dtype is FLOAT_16, at which CPUs are slow. "
        "Use FLOAT_32 or BFLOAT_16."
    )


def test_what_is_known_of_the_data_is_used(good):
    data = DataFacts(images=3)
    config = good.update(batch_size=4, epochs=10)
    assert "batch_size is 4, but there are 3 images. Use at most 3." in said(config, data=data)
    assert (
        "learning_rate_warmup_steps is 200, but the run is only 10 steps, so the learning rate "
        "never reaches its peak. Use 1, or 0.1 for a tenth." in said(config, data=data)
    )


def test_a_part_that_the_engine_would_not_stop_is_refused(good, monkeypatch):
    from modules.config import rules_engine

    table = {k: v for k, v in rules_engine.HONOURED.items() if "stop_training_after" not in k}
    monkeypatch.setattr(rules_engine, "HONOURED", table)
    changes = {"unet.stop_training_after": 5, "unet.stop_training_after_unit": "EPOCH"}
    assert (
        "error unet.stop_training_after_unit: unet should stop training after 5 EPOCH, which this "
        "engine cannot do. Set unet.stop_training_after_unit to NEVER, or unet.train to false."
        in said(good.update(**changes))
    )
    assert "should stop" not in said(good.update(**{**changes, "epochs": 5}))


@pytest.mark.parametrize(("limit", "severity"), [("LITTLE_DISK", "warning"), ("NO_DISK", "error")])
def test_a_disk_with_little_space_is_named(good, monkeypatch, limit, severity):
    monkeypatch.setattr(files, "LITTLE_DISK", 2**60)
    monkeypatch.setattr(files, limit, 2**60)
    text = said(good)
    assert f"{severity} workspace_dir: workspace_dir is workspace/run, on a disk with " in text
    assert "GiB left. Free some space, or choose a folder on another disk." in text


def test_images_in_folders_below_count_only_if_they_are_read(good):
    Path("images/a.png").rename("images/below/a.png")
    assert "where there are no images" in said(good)
    assert said(good.update(**{"concepts.0.include_subdirectories": True})) == ""


def test_films_are_something_to_train_on_for_models_of_films(good):
    Path("images/a.png").rename("images/a.mp4")
    assert "where there are no images" in said(good)
    assert "where there are no images" not in said(good.update(**FLUX).update(model_type="WAN_2"))


def test_errors_come_before_warnings(good):
    found = validate(good.update(debug_mode=True, multi_gpu=True), H100)
    assert [problem.severity for problem in found] == ["error", "warning"]


def test_checking_writes_nothing(good, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    validate(good)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kind", ModelType)
def test_every_model_type_has_its_facts(kind):
    facts = MODELS[kind]
    assert facts.filters["full"].layer_filter == ""
    assert all(part in TrainConfig.model_fields for part in facts.parts)
    assert facts.denoiser in ("unet", "transformer", "prior")
    assert TrainingMethod.LORA in facts.methods
