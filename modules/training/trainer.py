"""GenericTrainer: one fine-tuning run, from a config to a file that other tools load."""

from __future__ import annotations

import gc
import random
import traceback
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modules.adapters.files import load_canonical, save_tensors, to_canonical, to_format
from modules.adapters.lora import add_lora, lora_layers, matching_layers
from modules.config import ConfigError, DataType, SampleConfig, TrainConfig, validate
from modules.config.paths import resolve
from modules.data import Batch, Batches, CachingStopped, Dataset, build, scan
from modules.families import Condition, Parts, family_for
from modules.families.loading import DTYPES
from modules.sampling.sampler import sample
from modules.training.advice import advice_for
from modules.training.callbacks import TrainCallbacks
from modules.training.checkpoint import (
    BackupError,
    Checkpoint,
    backup_name,
    prune,
    read_newest,
    write_backup,
)
from modules.training.commands import Backup, SampleCustom, SampleDefault, Save, TrainCommands
from modules.training.due import Due
from modules.training.encoder import LiveEncoder
from modules.training.events import (
    BackupCreated,
    LossUpdate,
    ModelSaved,
    Progress,
    RunFailed,
    SampleImage,
    State,
    StatusLine,
    TaskProgress,
    TrainingState,
    Warned,
)
from modules.training.meter import Meter
from modules.training.objective import Diffusion
from modules.training.optimizers import build_optimizer
from modules.training.samples import sample_folder, write_sample
from modules.training.schedules import learning_rate_factor, warmup_steps


class GenericTrainer:
    """One run. Call `run()`, or `start()`, `train()`, `end()` and `close()` in turn.

    It speaks only through its callbacks and listens only to its commands, so a notebook, a command
    line and a test drive it alike. A second trainer in the same process shares nothing with it.

    Args:
        config: what to train; nothing in it is changed.
        callbacks: receive the run's events, on the thread that trains.
        commands: requests to the run, from any thread.
    """

    parts: Parts
    """The live networks, from `start()` to `close()`."""

    def __init__(
        self,
        config: TrainConfig,
        callbacks: TrainCallbacks | None = None,
        commands: TrainCommands | None = None,
    ) -> None:
        self.config = config
        self.step = 0
        """Optimizer steps done."""
        self.max_step = 0
        """Optimizer steps of the whole run."""
        self._emit = (callbacks or TrainCallbacks()).emit
        self._commands = commands or TrainCommands()
        self._family = family_for(config.model_type)
        self._workspace = Path(resolve(config.workspace_dir))
        self._device = torch.device(config.train_device)
        self._weight_dtype = DTYPES[getattr(config, self._family.denoiser).weight_dtype]
        self._state: State = "idle"
        self._status = ""

    @property
    def model(self) -> Any:
        """The live diffusers pipeline: the very networks that train."""
        return self.parts.pipeline

    def run(self) -> None:
        """Do the whole run, and say how it ended.

        Raises:
            Exception: whatever ended the run, after it was reported as `RunFailed`.
        """
        try:
            self.start()
            self.train()
            self.end()
            if self._commands.stop_requested:
                self._enter("stopped", f"Stopped at step {self.step}")
            else:
                self._enter("finished", f"Finished after {self.step} steps")
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
            if isinstance(error, ConfigError):
                text = str(error)
            self._emit(RunFailed(text, advice_for(error), traceback.format_exc()))
            self._enter("failed", f"Failed at step {self.step}: {type(error).__name__}")
            raise
        finally:
            self.close()

    # ---------------------------------------------------------------- start

    def start(self) -> None:
        """Check the config, load the model, fill the cache, and take up a backup if told to.

        Returns early if a stop is asked for meanwhile.

        Raises:
            ConfigError: if the run cannot work, before anything is loaded where that can be known.
        """
        self._check()
        self._enter("loading", f"Loading {self.config.base_model_name}")
        self._load()
        if self._commands.stop_requested:
            return
        self._enter("caching", "Reading the training set")
        try:
            self._dataset = self._cache()
        except CachingStopped:
            return
        self._prepare()
        if self.config.continue_last_backup:
            self._resume()

    def _check(self) -> None:
        problems = validate(self.config)
        if blocking := [problem for problem in problems if problem.severity == "error"]:
            raise ConfigError(blocking)
        for problem in problems:
            self._emit(Warned(f"{problem.message} {problem.fix}"))

    def _load(self) -> None:
        """Load the networks, put adapters on those that train and everything on its device."""
        config = self.config
        self.parts = self._family.load(config)
        for network in self.parts.modules().values():
            network.requires_grad_(False).eval().to(self._device)
        self._trainable: dict[str, list[nn.Parameter]] = {}
        for name in (self._family.denoiser, *self._family.text_encoders):
            part = getattr(config, name)
            if not part.train:
                continue
            network = self.parts.module(name)
            is_denoiser = name == self._family.denoiser
            chosen = config.layer_filter if is_denoiser else ""
            layers = matching_layers(network, chosen, config.layer_filter_regex)
            self._trainable[name] = add_lora(
                network,
                layers,
                rank=config.lora_rank,
                alpha=config.lora_alpha,
                dropout=config.dropout_probability,
                seed=config.ot.seed,
            )
            network.train()
            if part.gradient_checkpointing:
                _checkpoint_gradients(network)

    def _cache(self) -> Dataset:
        config, family = self.config, self._family
        found = scan(config.concepts or [])
        for problem in found.problems:
            self._emit(Warned(str(problem)))
        trains_text = any(name in self._trainable for name in family.text_encoders)
        encoder = LiveEncoder(
            family, self.parts, config.text_encoder_layer_skip, cache_text=not trains_text
        )

        def report(done: int, total: int) -> None:
            self._emit(TaskProgress("caching", done, total))

        dataset = build(
            found,
            encoder,
            Path(resolve(config.cache_dir)),
            resolution=config.resolution,
            quantum=family.pixel_multiple,
            bucketing=config.aspect_ratio_bucketing,
            threads=config.dataloader_threads,
            report=report,
            should_stop=lambda: self._commands.stop_requested,
        )
        for problem in dataset.problems:
            self._emit(Warned(str(problem)))
        return dataset

    def _prepare(self) -> None:
        """Build what the loop needs: batches, objective, optimizer, generator, triggers."""
        config = self.config
        self._batches = Batches(self._dataset, config.batch_size, config.ot.seed)
        forwards = sum(self._batches.batches_in(epoch) for epoch in range(config.epochs))
        self.max_step = max(1, forwards // config.gradient_accumulation_steps)
        alphas = self.parts.scheduler.alphas_cumprod.to(self._device)
        self._objective = Diffusion(
            alphas,
            self._family.objective(self.parts),
            config.loss_weight_fn,
            config.loss_weight_strength,
            first_timestep=int(len(alphas) * config.min_noising_strength),
            last_timestep=max(1, int(len(alphas) * config.max_noising_strength)),
        )
        self._rates = {
            name: getattr(config, name).learning_rate or config.learning_rate
            for name in self._trainable
        }
        self._optimizer = build_optimizer(config.optimizer, self._trainable, self._rates)
        self._parameters = [p for part in self._trainable.values() for p in part]
        self._generator = torch.Generator(self._device).manual_seed(config.ot.seed)
        half = config.train_dtype is DataType.FLOAT_16
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=half)
        self._meter = Meter(self._device)
        self._sampling_due = Due(
            config.sample_after,
            config.sample_after_unit,
            at_start=True,
            skip=config.sample_skip_first,
        )
        self._backup_due = Due(config.backup_after, config.backup_after_unit)
        self._save_due = Due(config.save_every, config.save_every_unit, skip=config.save_skip_first)

    # ---------------------------------------------------------------- train

    def train(self) -> None:
        """Take optimizer steps until the last epoch ends or a stop is asked for."""
        if self._commands.stop_requested:
            return
        config, family, objective = self.config, self._family, self._objective
        accumulate = config.gradient_accumulation_steps
        self._enter("training", "Training")
        self._serve(epoch_ended=False)
        while self.step < self.max_step and not self._commands.stop_requested:
            rates = self._set_learning_rates()
            loss = torch.zeros((), device=self._device)
            epoch = self._batches.epoch
            for _ in range(accumulate):
                batch = next(self._batches)
                latents = batch.latents.to(self._device, torch.float32, non_blocking=True)
                noise = self._noise_like(latents)
                timestep = objective.draw_timesteps(len(latents), self._generator)
                noisy = objective.add_noise(latents, noise, timestep).to(self._weight_dtype)

                with self._autocast():
                    condition = self._condition(batch)
                    prediction = family.predict(self.parts, noisy, timestep, condition)
                losses = objective.loss(prediction, latents, noise, timestep)
                share = (losses * batch.loss_weight.to(losses)).mean() / accumulate
                self._scaler.scale(share).backward()
                loss += share.detach()

            self._scaler.unscale_(self._optimizer)
            limit = config.clip_grad_norm or float("inf")
            grad_norm = nn.utils.clip_grad_norm_(self._parameters, limit)
            self._scaler.step(self._optimizer)
            self._scaler.update()
            self._optimizer.zero_grad(set_to_none=True)

            self.step += 1
            self._meter.push(self.step, epoch, self._epoch_step(), rates, loss, grad_norm)
            self._report()
            self._serve(epoch_ended=self._batches.epoch > epoch)
        self._report(wait=True)

    def _set_learning_rates(self) -> dict[str, float]:
        config = self.config
        accumulate = config.gradient_accumulation_steps
        factor = learning_rate_factor(
            config.learning_rate_scheduler,
            self.step,
            self.max_step,
            warmup_steps(config.learning_rate_warmup_steps, self.max_step, accumulate),
            config.learning_rate_min_factor,
        )
        rates = {name: rate * factor for name, rate in self._rates.items()}
        for group in self._optimizer.param_groups:
            group["lr"] = rates[group["name"]]
        return rates

    def _noise_like(self, latents: Tensor) -> Tensor:
        return torch.randn(
            latents.shape, generator=self._generator, device=self._device, dtype=latents.dtype
        )

    def _condition(self, batch: Batch) -> Condition:
        """The batch's encoded captions: from the cache, or live while a text encoder trains."""
        if batch.condition is None:
            skip = self.config.text_encoder_layer_skip
            return self._family.encode_text(self.parts, batch.captions, skip)
        return {
            name: tensor.to(self._device, self._weight_dtype, non_blocking=True)
            for name, tensor in batch.condition.items()
        }

    def _autocast(self) -> AbstractContextManager[object]:
        dtype = self.config.train_dtype
        if dtype is DataType.FLOAT_32:
            return nullcontext()
        return torch.autocast(self._device.type, DTYPES[dtype])

    def _epoch_step(self) -> int:
        """Batches of the current epoch that are done; a finished epoch counts whole."""
        return self._batches.position or self._batches.batches_in(self._batches.epoch - 1)

    def _report(self, wait: bool = False) -> None:
        """Emit what the device has finished computing."""
        config = self.config
        cuda = self._device.type == "cuda"
        for done in self._meter.readings(wait):
            images = config.batch_size * config.gradient_accumulation_steps
            self._emit(
                LossUpdate(
                    done.step,
                    done.epoch + 1,
                    done.loss,
                    done.smooth_loss,
                    done.learning_rate,
                    done.grad_norm,
                    done.steps_per_second * images,
                    torch.cuda.max_memory_allocated(self._device) if cuda else 0,
                )
            )
            left = self.max_step - done.step
            self._emit(
                Progress(
                    done.step,
                    self.max_step,
                    done.epoch + 1,
                    config.epochs,
                    done.epoch_step,
                    self._batches.batches_in(done.epoch),
                    done.loss,
                    done.smooth_loss,
                    max(done.learning_rate.values()),
                    done.steps_per_second,
                    left / done.steps_per_second if done.steps_per_second else 0.0,
                )
            )

    # ------------------------------------------------- between steps: requests and what is due

    def _serve(self, epoch_ended: bool) -> None:
        """Do what is due and what was asked for; hold while paused."""
        now = (self.step, self._batches.epoch, epoch_ended)
        if self._sampling_due.fires(*now):
            self._take_samples()
        if self._backup_due.fires(*now):
            self._attempt(self._backup, "back up")
        if self._save_due.fires(*now):
            self._attempt(self._save, "save the model")
        while not self._commands.stop_requested:
            match self._commands.take():
                case SampleDefault():
                    self._take_samples()
                case SampleCustom(definition):
                    self._attempt(lambda: self._sample(definition, -1), "sample")
                case Backup():
                    self._attempt(self._backup, "back up")
                case Save():
                    self._attempt(self._save, "save the model")
                case None:
                    if not self._commands.pause_requested:
                        break
                    self._report(wait=True)
                    self._enter("paused", f"Paused at step {self.step}")
                    self._commands.wait_while_paused()
        if self._commands.stop_requested:
            self._enter("stopping", "Stopping")
        else:
            self._enter("training", "Training")

    def _attempt(self, action: Any, words: str) -> None:
        """Do something that may fail without ending the run; a failure is reported."""
        try:
            action()
        except (OSError, ValueError, RuntimeError) as error:
            self._emit(
                Warned(
                    f"Could not {words} at step {self.step}: {type(error).__name__}: {error}. "
                    f"{advice_for(error)} Training goes on."
                )
            )
        self._meter.restart_clock()

    def _take_samples(self) -> None:
        for index, definition in enumerate(self.config.samples or []):
            if definition.enabled and not self._commands.stop_requested:
                self._attempt(
                    lambda index=index, definition=definition: self._sample(definition, index),
                    f"sample {definition.prompt!r}",
                )

    def _sample(self, definition: SampleConfig, index: int) -> None:
        config = self.config
        self._enter("sampling", f"Sampling {definition.prompt!r}")
        if definition.random_seed:
            seed = random.SystemRandom().randrange(2**31)
            definition = definition.update(seed=seed)
        image = sample(
            self._family,
            self.parts,
            definition,
            layer_skip=config.text_encoder_layer_skip,
            report=lambda done, total: self._emit(TaskProgress("sampling", done, total)),
            should_stop=lambda: self._commands.stop_requested,
        )
        if image is None:
            return
        path = write_sample(
            image,
            sample_folder(self._workspace, index, definition.prompt),
            self._place(),
            config.save_filename_prefix,
            config.sample_image_format,
            datetime.now(),
        )
        kind = "custom" if index < 0 else "default"
        epoch = self._batches.epoch + 1
        self._emit(
            SampleImage(kind, path, definition.prompt, definition.seed, self.step, epoch, index)
        )

    # ---------------------------------------------------------------- files

    def end(self) -> None:
        """Write the last backup and the final model, if any step was taken."""
        if self.step == 0 or not hasattr(self, "_optimizer"):
            return
        if self.config.backup_before_save:
            self._backup()
        self._save(final=True)

    def _backup(self) -> None:
        self._enter("saving", "Writing a backup")
        batches = self._batches
        checkpoint = Checkpoint(
            step=self.step,
            global_step=self.step * self.config.gradient_accumulation_steps,
            epoch=batches.epoch,
            epoch_step=batches.position,
            epoch_sample=batches.position * self.config.batch_size,
            adapter=to_canonical(lora_layers(self._adapted()), self._family),
            optimizer=self._optimizer.state_dict(),
            state={
                "batches": batches.state_dict(),
                "generator": self._generator.get_state(),
                "meter": self._meter.state_dict(),
                "scaler": self._scaler.state_dict(),
            },
        )
        folder = self._workspace / "backup" / backup_name(checkpoint, datetime.now())
        if not folder.exists():  # a second one in the same second at the same step is the same
            write_backup(folder, checkpoint, self.config)
        if self.config.rolling_backup:
            prune(self._workspace, self.config.rolling_backup_count)
        self._emit(BackupCreated(folder, self.step))

    def _save(self, final: bool = False) -> None:
        config = self.config
        self._enter("saving", "Saving the model")
        if final:
            path = Path(resolve(config.output_model_destination))
            if path.is_dir() or not path.suffix:
                path = path / f"{self._stamp()}.safetensors"
        else:
            path = self._workspace / "save" / f"{self._stamp()}-save-{self._place()}.safetensors"
        tensors = to_format(lora_layers(self._adapted()), self._family, config.output_model_format)
        architecture = {"modelspec.architecture": f"{self._family.architecture}/lora"}
        save_tensors(tensors, path, DTYPES[config.output_dtype], architecture)
        self._emit(ModelSaved(path, config.output_model_format.value, self.step, final))

    def _resume(self) -> None:
        """Take up the newest backup that can be read; begin anew, and say so, if there is none."""
        for folder, found in read_newest(self._workspace):
            if isinstance(found, BackupError):
                self._emit(Warned(f"Passed over a damaged backup: {found}."))
                continue
            load_canonical(found.adapter, lora_layers(self._adapted()), self._family)
            self._optimizer.load_state_dict(dict(found.optimizer))
            self._batches.load_state_dict(found.state["batches"])
            self._generator.set_state(found.state["generator"])
            self._meter.load_state_dict(found.state["meter"])
            self._scaler.load_state_dict(found.state["scaler"])
            self.step = found.step
            self._emit(StatusLine(f"Goes on from {folder.name}, step {self.step}"))
            return
        self._emit(Warned(f"No backup in {self._workspace / 'backup'}; the run begins anew."))

    def _adapted(self) -> dict[str, nn.Module]:
        return {name: self.parts.module(name) for name in self._trainable}

    def _stamp(self) -> str:
        return f"{self.config.save_filename_prefix}{datetime.now():%Y-%m-%d_%H-%M-%S}"

    def _place(self) -> str:
        forwards = self.step * self.config.gradient_accumulation_steps
        return f"{forwards}-{self._batches.epoch}-{self._batches.position}"

    # ---------------------------------------------------------------- end

    def close(self) -> None:
        """Let go of networks, optimizer and data, and give the device's memory back."""
        for name in ("parts", "_trainable", "_parameters", "_optimizer", "_batches", "_dataset"):
            self.__dict__.pop(name, None)
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _enter(self, state: State, text: str) -> None:
        if state != self._state:
            self._state = state
            self._emit(TrainingState(state))
        if text != self._status:
            self._status = text
            self._emit(StatusLine(text))


def _checkpoint_gradients(network: nn.Module) -> None:
    """Recompute activations in the backward pass instead of keeping them: less memory, slower."""
    for name in ("enable_gradient_checkpointing", "gradient_checkpointing_enable"):
        if hasattr(network, name):
            getattr(network, name)()
            return
