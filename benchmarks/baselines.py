"""What our steps are measured against: loops as one would write them, and as diffusers' script is.

Nothing here is imported by the package.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from modules import TrainConfig
from modules.adapters.lora import add_lora, matching_layers
from modules.data import Batch
from modules.families import family_for


class BareLoop:
    """The hand-written loop: cached tensors, forward, backward, clipping, fused AdamW, no more.

    It loads the whole pipeline as ours does, so that both hold the same networks in memory.
    """

    def __init__(self, config: TrainConfig, example: Batch) -> None:
        self.parts = family_for(config.model_type).load(config)
        self.unet, scheduler = self.parts.pipeline.unet, self.parts.scheduler
        for network in self.parts.modules().values():
            network.requires_grad_(False)
        layers = matching_layers(self.unet, config.layer_filter, config.layer_filter_regex)
        rank, alpha = config.lora_rank, config.lora_alpha
        self.parameters = add_lora(self.unet, layers, rank=rank, alpha=alpha, dropout=0, seed=0)
        self.unet.train()
        if config.unet.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, weight_decay=1e-2, fused=True)
        self.alphas = scheduler.alphas_cumprod
        self.batch = len(example.latents)
        self.latents = torch.randn(96, *example.latents.shape[1:])
        self.text = torch.randn(96, *example.condition["text"].shape[1:])  # type: ignore[index]

    def step(self) -> None:
        chosen = torch.randint(0, 96, (self.batch,))
        latents, text = self.latents[chosen], self.text[chosen]
        noise, timestep = torch.randn_like(latents), torch.randint(0, 1000, (self.batch,))
        alpha = self.alphas[timestep].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        v_prediction = self.parts.scheduler.config.prediction_type == "v_prediction"
        target = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents if v_prediction else noise
        prediction = self.unet(noisy, timestep, encoder_hidden_states=text).sample
        loss = F.mse_loss(prediction, target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class Pictures(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Captioned images, resized, cropped and flipped anew each time, as the script does."""

    def __init__(self, files: Sequence[Path], tokenizer: Any, size: int) -> None:
        self.size = size
        self.images = [Image.open(file).convert("RGB") for file in files]
        captions = [file.with_suffix(".txt").read_text() for file in files]
        self.tokens = tokenizer(
            captions,
            max_length=tokenizer.model_max_length,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        ).input_ids

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image = self.images[index]
        short = min(image.size)
        width, height = (round(edge * self.size / short) for edge in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        image = image.crop((left, top, left + self.size, top + self.size))
        if torch.rand(()) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1
        return {"pixel_values": pixels, "input_ids": self.tokens[index]}


class DiffusersScript:
    """The loop of diffusers' `examples/text_to_image/train_text_to_image_lora.py`, written anew.

    What it does in a step, in its order, at its defaults: VAE and text encoder run on every batch,
    AdamW of torch as it comes, Accelerate around it all, a progress bar. Everything is float32, as
    without `--mixed_precision`.
    """

    def __init__(self, config: TrainConfig, files: Sequence[Path]) -> None:
        from accelerate import Accelerator
        from diffusers.optimization import get_scheduler
        from peft import LoraConfig
        from tqdm.auto import tqdm

        pipeline = family_for(config.model_type).load(config).pipeline
        self.vae, self.text_encoder, unet = pipeline.vae, pipeline.text_encoder, pipeline.unet
        self.noise_scheduler = pipeline.scheduler
        for network in (self.vae, self.text_encoder, unet):
            network.requires_grad_(False)
        adapter = LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_alpha,
            init_lora_weights="gaussian",
            target_modules=config.layer_filter.split(","),
        )
        unet.add_adapter(adapter)
        self.lora_layers = [p for p in unet.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(self.lora_layers, lr=config.learning_rate, weight_decay=1e-2)
        data = Pictures(files, pipeline.tokenizer, int(config.resolution))
        loader = torch.utils.data.DataLoader(data, config.batch_size, shuffle=True)
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=1)
        self.unet, self.optimizer, self.loader, self.lr_scheduler = self.accelerator.prepare(
            unet.train(), optimizer, loader, get_scheduler("constant", optimizer=optimizer)
        )
        self.progress = tqdm(leave=False, file=io.StringIO())
        self.batches = self._endless()

    def step(self) -> None:
        batch, train_loss = next(self.batches), 0.0
        with self.accelerator.accumulate(self.unet):
            latents = self.vae.encode(batch["pixel_values"]).latent_dist.sample()
            latents = latents * self.vae.config.scaling_factor
            noise = torch.randn_like(latents)
            steps = self.noise_scheduler.config.num_train_timesteps
            timesteps = torch.randint(0, steps, (len(latents),), device=latents.device).long()
            noisy = self.noise_scheduler.add_noise(latents, noise, timesteps)
            hidden = self.text_encoder(batch["input_ids"], return_dict=False)[0]
            prediction = self.unet(noisy, timesteps, hidden, return_dict=False)[0]
            loss = F.mse_loss(prediction.float(), noise.float(), reduction="mean")
            mean = self.accelerator.gather(loss.repeat(len(latents))).mean()
            train_loss += mean.item()
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients:
                self.accelerator.clip_grad_norm_(self.lora_layers, 1.0)
            self.optimizer.step()
            self.lr_scheduler.step()
            self.optimizer.zero_grad()
        if self.accelerator.sync_gradients:
            self.progress.update(1)
            self.accelerator.log({"train_loss": train_loss}, step=self.progress.n)
        rate = self.lr_scheduler.get_last_lr()[0]
        self.progress.set_postfix(step_loss=loss.detach().item(), lr=rate)

    def _endless(self) -> Iterator[dict[str, Tensor]]:
        while True:
            yield from self.loader
