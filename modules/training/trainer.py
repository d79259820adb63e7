"""GenericTrainer: one fine-tuning run, from a config to a file that other tools load."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modules.config import ConceptType, ConfigError, SampleConfig, TrainConfig
from modules.config.checks import sample_problems
from modules.data import Batches, CachingStopped, Dataset
from modules.families import Family, Parts, family_for
from modules.training.advice import advice_for
from modules.training.attempts import attempt, patiently
from modules.training.backups import Backups
from modules.training.best import Best
from modules.training.callbacks import TrainCallbacks
from modules.training.change import change, record, still_meant
from modules.training.commands import (
    Backup,
    ChangeSetting,
    SampleCustom,
    SampleDefault,
    Save,
    TrainCommands,
    UseModel,
)
from modules.training.decoding import forward_for
from modules.training.due import Schedule, anything_learns, freeze_finished
from modules.training.encoder import fill_cache
from modules.training.events import (
    BackupCreated,
    ModelSaved,
    RunFailed,
    SettingChanged,
    StatusLine,
)
from modules.training.forward import Draw
from modules.training.memory import MemoryLadder
from modules.training.method import method_for
from modules.training.muon import group_rates, split_groups
from modules.training.noise import adapt_scheduler
from modules.training.parking import Parking, idle
from modules.training.placement import arrange
from modules.training.places import Place, Workspace, config_metadata
from modules.training.preflight import check, check_data
from modules.training.randomness import Randomness
from modules.training.reporter import Reporter
from modules.training.samples import Samples
from modules.training.schedules import LearningRates, base_rates
from modules.training.speed import compile_layers, kernels
from modules.training.tensorboard import tensorboard_installed
from modules.training.update import build_update
from modules.training.validation import Validation
from modules.training.voice import Voice


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
        """What the run does now: another object after each change while it runs."""
        self.step = 0
        """Optimizer steps done."""
        self.max_step = 0
        """Optimizer steps of the whole run."""
        self._voice = Voice(callbacks or TrainCallbacks())
        self._emit = self._voice.emit
        self._commands = commands or TrainCommands()
        self._family = family_for(config.model_type)
        self._workspace = Workspace(config)
        self._device = torch.device(config.train_device)
        self._given, self._changes = config, list[dict[str, Any]]()
        self._light = frozenset((*self.__dict__, "_light"))

    @property
    def _over(self) -> bool:
        learned = not anything_learns(self._method.trainable)
        early = self._best.over(self.config.ot.early_stop_patience)
        return self._commands.stop_requested or early or learned

    @property
    def model(self) -> Any:
        """The live diffusers pipeline: the very networks that train."""
        return self.parts.pipeline

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """The live optimizer; None before `start()` has made it and after `close()`."""
        return self._update.optimizer if "_update" in self.__dict__ else None

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
                self._voice.enter("stopped", f"Stopped at step {self.step}")
            else:
                caches = self.config.only_cache
                words = "The cache is filled" if caches else f"Finished after {self.step} steps"
                self._voice.enter("finished", words)
        except BaseException as error:
            known = isinstance(error, ConfigError)
            text = str(error) if known else f"{type(error).__name__}: {error}"
            self._emit(RunFailed(text, advice_for(error), traceback.format_exc()))
            self._voice.enter("failed", f"Failed at step {self.step}: {type(error).__name__}")
            raise
        finally:
            self.close()

    # ---------------------------------------------------------------- start

    def start(self) -> None:
        """Check the config, load the model, fill the cache, and take up a backup if told to.

        Returns early if a stop is asked for meanwhile, and after the cache with `only_cache`.

        Raises:
            ConfigError: if the run cannot work, before anything is loaded where that can be known.
        """
        check(self.config, self._voice.warn)
        self._voice.enter("loading", f"Loading {self.config.base_model_name}")
        self._load()
        if self._commands.stop_requested:
            return
        self._voice.enter("caching", "Reading the training set")
        try:
            self._dataset = self._cache(ConceptType.STANDARD, ConceptType.PRIOR_PREDICTION)
            self._method.check(self._dataset)
            self._measured = None
            if self.config.validation:
                self._measured = self._cache(ConceptType.VALIDATION)
        except CachingStopped:
            return
        if self.config.only_cache:
            return
        self._prepare()
        self._accompany()
        images = sum(plan.images for plan in self._batches.buckets())
        check_data(self.config, images, self._voice.warn)
        if self.config.continue_last_backup:
            self._resume()

    def _load(self) -> None:
        """Load the networks onto the device and make trainable what trains."""
        self.parts = self._family.load(self.config)
        adapt_scheduler(self.parts.pipeline, self.config)
        self._offloads = arrange(self.parts, self.config)
        self._method = method_for(self.config, self._family, self.parts)
        for remark in self._method.remarks:
            self._voice.warn(remark)
        if self.config.compile and (why := compile_layers(self.parts.denoiser, self._device)):
            self._voice.warn(
                f"The model runs uncompiled, which is slower and gives the same: {why}."
            )

    def _cache(self, *types: ConceptType) -> Dataset:
        def stop() -> bool:
            return self._commands.stop_requested

        made = (self._family, self.parts, self._method)
        fill = partial(fill_cache, self.config, *made, self._emit, stop, types)
        wait = self._commands.wait
        return patiently(fill, "The cache", self._emit, lambda seconds: stop() or wait(seconds))

    def _prepare(self) -> None:
        """Build what the loop needs: batches, forward pass, schedules, optimizer, generators."""
        config, trainable = self.config, self._method.trainable
        names = idle(self._family, self.parts, self._method, self._dataset)
        networks = {name: self._offloads[name] for name in names}
        self._parking = Parking(networks, self._device, torch.device(config.temp_device))
        self._batches = Batches(
            self._dataset,
            config.batch_size,
            config.ot.seed,
            config.ot.leftovers,
            pin=self._device.type == "cuda",
        )
        forwards = sum(self._batches.batches_in(epoch) for epoch in range(config.epochs))
        self.max_step = max(1, forwards // config.gradient_accumulation_steps)
        cached = self._dataset.texts is not None
        self._forward = forward_for(config, self._family, self.parts, self._device, cached)
        self._parking.park()
        self._forward.borrow = self._parking.fetched
        self._due = Schedule()
        self._groups = split_groups(config.optimizer, trainable, self.parts.modules().values())
        self._configure(config)
        self._randomness = Randomness(self._device, config.ot.seed)
        self._update = build_update(
            config,
            [parameter for part in trainable.values() for parameter in part],
            self._groups,
            self._rates.base,
            self._device,
            self._randomness.rounding,
            self._method.after_step,
        )
        home = None if self._device.type == "cpu" else torch.device(config.temp_device)
        self._memory = MemoryLadder(
            self._method.networks, config.batch_size, self._voice.warn, self._device, home
        )

    def _accompany(self) -> None:
        """Build what follows the loop: its reports, samples, validation and backups."""
        config = self.config
        self._reporter = Reporter(
            self._emit,
            self._device,
            self.max_step,
            config.epochs,
            config.batch_size * config.gradient_accumulation_steps,
            self._batches.batches_in,
        )
        stops = lambda: self._commands.stop_requested  # noqa: E731
        self._samples = Samples(self._family, self.parts, self._workspace, self._emit, stops)
        if self._measured is not None:
            self._validation = Validation(self._measured, self._forward, self.parts, self._device)
        self._best = Best(self._workspace, self._write_model, self._emit)
        self._backups = Backups(
            self._workspace,
            self._method,
            self._update,
            self._batches,
            {
                "random": self._randomness,
                "meter": self._reporter.meter,
                "due": self._due,
                "best": self._best,
            },
            self._voice.warn,
        )
        if config.tensorboard and tensorboard_installed():
            self._voice.log_to(self._workspace.tensorboard(), config.samples_to_tensorboard)

    def _configure(self, config: TrainConfig) -> None:
        """Take up everything that may also change while the run goes on."""
        self._forward.configure(config)
        rates = base_rates(config, self._method.trainable)
        self._rates = LearningRates(
            config,
            group_rates(config, rates, self._groups),
            self.max_step,
            self._batches.batches_in(0),
        )
        self._due.configure(config)
        self.config = config

    # ---------------------------------------------------------------- train

    def train(self) -> None:
        """Take optimizer steps until the last epoch ends or a stop is asked for."""
        if self._commands.stop_requested or self.config.only_cache:
            return
        accumulate = self.config.gradient_accumulation_steps
        self._voice.enter("training", "Training")
        self._stop_parts()
        self._serve(epoch_ended=False)
        with self._randomness.isolated(), kernels(self.config):
            while self.step < self.max_step and not self._over:
                epoch = self._batches.epoch
                rates = self._rates(self.step)
                self._update.set_rates(rates)

                generator = self._randomness.generator
                window = [
                    self._forward.draw(next(self._batches), generator) for _ in range(accumulate)
                ]
                backward = partial(self._backward, window)
                loss = self._memory.hold(backward, undo=self._update.undo)
                grad_norm = self._update(self.step)

                self.step += 1
                measured = (rates, loss, grad_norm, self._forward.share(window))
                self._reporter.push(self.step, epoch, self._epoch_step(), *measured)
                self._stop_parts()
                self._serve(epoch_ended=self._batches.epoch > epoch)
        self._reporter.report(wait=True)

    def _backward(self, window: list[Draw], pieces: int) -> Tensor:
        """Add up the gradient of a step's mean loss, and return that loss, a scalar.

        Args:
            window: the batches of the step.
            pieces: how many forward passes each batch takes.
        """
        total = torch.zeros((), device=self._device)
        for index, draw in enumerate(window):
            self._randomness.seed_layers(self.step, index)
            cut = list(draw.pieces(pieces))
            for number, (piece, share) in enumerate(cut):
                loss = self._forward.loss(piece).mean() * (share / len(window))
                last = index == len(window) - 1 and number == len(cut) - 1
                self._update.backward(loss, last)
                total += loss.detach()
        return total

    def _stop_parts(self) -> None:
        """Freeze the parts whose time is over; their weights stay as they are from then on."""
        for name in freeze_finished(
            self.config,
            self._method.trainable,
            self.step,
            self._batches.epoch,
            self._due.seconds,
        ):
            self._emit(StatusLine(f"{name} is trained: it stays as it is from here on"))

    def _epoch_step(self) -> int:
        """Batches of the current epoch that are done; a finished epoch counts whole."""
        return self._batches.position or self._batches.batches_in(self._batches.epoch - 1)

    # ------------------------------------------------- between steps: requests and what is due

    def _serve(self, epoch_ended: bool) -> None:
        """Do what is due and what was asked for; hold while paused."""
        now = (self.step, self._batches.epoch, epoch_ended)
        if self._due.sampling.fires(*now):
            self._take_samples()
        if self._due.validation.fires(*now):
            self._attempt(self._validate, "measure the validation loss")
        if self._due.saving.fires(*now) and not self._attempt(self._save, "save the model"):
            self._due.saving.again()
        if self._due.backup.fires(*now) and not self._attempt(self._backup, "back up"):
            self._due.backup.again()
        while not self._commands.stop_requested:
            match self._commands.take():
                case SampleDefault():
                    self._take_samples()
                case SampleCustom(definition):
                    self._attempt(partial(self._sample, definition, -1), "sample")
                case Backup():
                    self._attempt(self._backup, "back up")
                case Save():
                    self._attempt(self._save, "save the model")
                case ChangeSetting(setting, value):
                    self._attempt(partial(self._change, setting, value), f"change {setting}")
                case UseModel(use, failed):
                    if not self._attempt(partial(self._lend, use), "lend the model"):
                        failed()
                case None:
                    if not self._commands.pause_requested:
                        break
                    self._reporter.report(wait=True)
                    self._voice.enter("paused", f"Paused at step {self.step}")
                    with ExitStack() as stack:
                        fetch = partial(stack.enter_context, self._parking.fetched())
                        self._attempt(fetch, "bring the whole model to the device")
                        self._commands.wait_while_paused()
                    self._reporter.meter.restart_clock()
        if self._commands.stop_requested:
            self._voice.enter("stopping", "Stopping")
        else:
            self._voice.enter("training", "Training")

    def _attempt(self, action: Callable[[], None], words: str) -> bool:
        done = attempt(action, f"{words} at step {self.step}", self._emit)
        self._reporter.meter.restart_clock()
        return done

    def _lend(self, use: Callable[[Family, Parts], None]) -> None:
        with self._parking.fetched(), self._update.shown():
            use(self._family, self.parts)

    def _change(self, setting: str, value: Any, step: int | None = None) -> None:
        """Change one setting of the running config, as was done at `step` or is done now."""
        changed = change(self.config, setting, value)
        old = self.config.get(setting)
        self._configure(changed)
        self._update.clip = changed.clip_grad_norm
        if self._update.ema is not None:
            self._update.ema.decay = changed.ema_decay
        when = self.step if step is None else step
        self._changes.append(record(self._given, changed, setting, when))
        self._emit(SettingChanged(setting, old, changed.get(setting), self.step))

    def _take_samples(self) -> None:
        for index, definition in enumerate(self.config.samples or []):
            if definition.enabled and not self._commands.stop_requested:
                action = partial(self._sample, definition, index)
                self._attempt(action, f"sample {definition.prompt!r}")
                if self._update.ema is not None and self.config.non_ema_sampling:
                    self._attempt(partial(action, averaged=False), f"sample {definition.prompt!r}")

    def _validate(self) -> None:
        self._emit(StatusLine(f"Measuring the validation loss at step {self.step}"))
        found = self._validation.of_weights(
            self.step, self._update, lambda: self._commands.stop_requested
        )
        if found is not None:
            self._emit(found)
            self._best.judge(found.loss, self._place(), self.config)
        elif self._commands.stop_requested:
            self._due.validation.again(0)

    def _sample(self, definition: SampleConfig, index: int, averaged: bool = True) -> None:
        if index < 0 and (problems := sample_problems(self.config, definition)):
            raise ConfigError(problems)
        self._voice.enter("sampling", f"Sampling {definition.prompt!r}")
        with self._parking.fetched(), self._update.shown(averaged):
            taken = self._samples.take(definition, index, self.config, self._place(), averaged)
        if taken is not None:
            self._emit(taken)

    # ---------------------------------------------------------------- files

    def end(self) -> None:
        """Write the last backup and the final model, if any step was taken."""
        if self.step == 0 or not hasattr(self, "_update"):
            return
        if self.config.backup_before_save:
            self._attempt(self._backup, "back up")
        save = partial(self._save, final=True)
        patiently(save, "The final model", self._emit, self._commands.wait)

    def _backup(self) -> None:
        self._reporter.report(wait=True)
        self._voice.enter("saving", "Writing a backup")
        folder = self._backups.write(self._place(), self.config, self._changes)
        self._emit(BackupCreated(folder, self.step))

    def _save(self, final: bool = False) -> None:
        self._reporter.report(wait=True)
        self._voice.enter("saving", "Saving the model")
        path = self._workspace.final() if final else self._workspace.save(self._place())
        self._write_model(path)
        self._emit(ModelSaved(path, self.config.output_model_format.value, self.step, final))

    def _write_model(self, path: Path) -> None:
        with self._update.shown():
            self._method.write(path, self.config, config_metadata(self.config))

    def _resume(self) -> None:
        """Take up the newest backup that can be read; begin anew if there is none."""
        found = self._backups.take_up(self.config)
        if found is None:
            return
        folder, place, changes = found
        self.step = place.step
        for past in still_meant(self.config, changes, self._voice.warn):
            again = partial(self._change, past["setting"], past["value"], past["step"])
            self._attempt(again, f"change {past['setting']} again")
        self._emit(StatusLine(f"Goes on from {folder.name}, step {self.step}"))

    def _place(self) -> Place:
        config, batches = self.config, self._batches
        forwards = self.step * config.gradient_accumulation_steps
        images = batches.position * config.batch_size
        return Place(self.step, forwards, batches.epoch, batches.position, images)

    def close(self) -> None:
        """Let go of networks, optimizer and data, and give the device's memory back."""
        self._voice.close()
        for name in self.__dict__.keys() - self._light:  # what start() made
            del self.__dict__[name]
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
