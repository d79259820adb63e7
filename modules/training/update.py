"""One optimizer step: gradients in, changed weights out, or nothing where they are no numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from modules.config import DataType, EMAMode, TrainConfig
from modules.config.optimizer_defaults import ONE_BY_ONE
from modules.training.ema import Ema
from modules.training.optimizers import (
    build_optimizer,
    load_optimizer_state,
    saved_state,
    step_alone,
)
from modules.training.rounding import wide_types, widened
from modules.training.waiting import beside, waiting


class Update:
    """Clips and applies gradients.

    A step whose gradients hold NaN or infinity changes no weight and no moment. On a GPU that is
    decided there, without waiting for it, where the optimizer is fused.

    Args:
        optimizer: changes the weights.
        parameters: what it changes.
        clip: largest norm of the gradient; None for any.
        scaler: scales the loss of half precision; disabled otherwise.
        ema: follows the weights, if there is one.
        rounding: rounds weights of bfloat16 at random, on their device; None rounds to nearest.
        separable: whether the optimizer can update one parameter at a time, which then needs the
            least memory while weights are wide.
        then: called after each step, before the average takes in the weights.
        fused: change each parameter in the backward pass, as soon as its gradient is whole, and let
            go of that: all gradients are never there at once. Each is clipped by itself, and only
            its own NaN keeps a parameter as it is. Needs a separable optimizer and no scaler.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: Sequence[nn.Parameter],
        clip: float | None,
        scaler: torch.amp.GradScaler,
        ema: Ema | None = None,
        rounding: torch.Generator | None = None,
        separable: bool = False,
        then: Callable[[], None] = lambda: None,
        fused: bool = False,
    ) -> None:
        self.optimizer, self.scaler, self.ema = optimizer, scaler, ema
        self.clip = clip
        self._parameters = list(parameters)
        self._rounding = rounding
        present = {p.dtype for p in self._parameters}
        self._wide = present.intersection(wide_types(at_random=rounding is not None))
        self._separable = separable
        self._then = then
        self._on_device = any(p.is_cuda for p in self._parameters) and all(
            group.get("fused") for group in optimizer.param_groups
        )
        self._enter("train")
        self._fused, self._last_pass = fused, False
        self._norms: list[Tensor] = []
        self._guests = [guest for p in self._parameters if (guest := waiting(p))]
        # Python's garbage collector does not look into these hooks: one that held what holds its
        # parameter would keep both, and all other weights, for as long as the process lives.
        if fused:
            for number, index, parameter in self._places():
                apply = partial(_apply_one_of, ref(self), number, index)
                parameter.register_post_accumulate_grad_hook(apply)  # type: ignore[no-untyped-call]
        else:
            for guest in self._guests:
                guest.parameter.register_post_accumulate_grad_hook(_go_home)  # type: ignore[no-untyped-call]

    def set_rates(self, rates: Mapping[str, float]) -> None:
        """Set the learning rate of each part."""
        for group in self.optimizer.param_groups:
            group["lr"] = rates[group["name"]]

    def __call__(self, step: int) -> Tensor:
        """Apply the gradients and drop them; returns their norm before clipping, a scalar.

        Args:
            step: optimizer steps done before.
        """
        norm = self._apply_rest() if self._fused else self._apply_all()
        self.drop_gradients()
        self._then()
        if self.ema is not None:
            self.ema.update(step)
        return norm

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add a loss's gradient to those of the step.

        Args:
            loss: a scalar, with its graph.
            last: whether it is the step's last.
        """
        self._last_pass = last
        try:
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        finally:
            self._last_pass = False  # a gradient that someone else takes changes nothing
            for guest in self._guests:
                guest.sleep()

    def undo(self) -> None:
        """Take back what a backward pass that failed has added.

        Raises:
            RuntimeError: if it has changed weights already.
        """
        if self._norms:
            raise RuntimeError(
                f"A fused back pass failed when {len(self._norms)} of {len(self._parameters)} "
                f"tensors had changed already. Lower batch_size, turn gradient_checkpointing on, "
                f"or turn optimizer.fused_back_pass off."
            )
        self.drop_gradients()

    def _apply_all(self) -> Tensor:
        self.scaler.unscale_(self.optimizer)
        norm = self._clip(self._parameters)
        if self._on_device:
            self.optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
            self._step()
        elif norm.isfinite():
            self._step()
        self.scaler.update()
        return norm

    def _apply_one(self, group: int, index: int, parameter: nn.Parameter) -> None:
        """Change one parameter in the backward pass, if its gradient is whole."""
        guest = waiting(parameter)
        if not self._last_pass:
            if guest is not None:
                guest.sleep()
            return
        if guest is not None:
            guest.wake()
            guest.add_up()
            beside(self.optimizer.state[parameter], parameter)
        norm = self._clip([parameter])
        self._norms.append(norm.float())
        if norm.isfinite():
            self._step_one(self.optimizer.param_groups[group], index)
        parameter.grad = None
        if guest is not None:
            guest.learn()
            beside(self.optimizer.state[parameter], parameter)

    def _apply_rest(self) -> Tensor:
        """Change what had its gradient in an earlier pass than the last; the norm of all."""
        self._last_pass = True
        for number, index, parameter in self._places():
            if parameter.grad is not None:
                self._apply_one(number, index, parameter)
        self._last_pass = False
        norms, self._norms = self._norms, []
        return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())

    def _clip(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        # A limit nothing reaches would turn infinity into NaN, which counts as the same.
        return nn.utils.clip_grad_norm_(parameters, self.clip or float("inf"))

    def _step(self) -> None:
        if not self._wide:
            self.optimizer.step()
        elif not self._separable:
            with self._widened(self._parameters):
                self.optimizer.step()
        else:
            for group in self.optimizer.param_groups:
                for index, parameter in enumerate(group["params"]):
                    if parameter.grad is not None:
                        self._step_one(group, index)

    def _step_one(self, group: dict[str, Any], index: int) -> None:
        with self._widened([group["params"][index]]):
            step_alone(self.optimizer, group, index)

    def _places(self) -> Iterator[tuple[int, int, nn.Parameter]]:
        """Each parameter with the numbers of its group and of its place there."""
        for number, group in enumerate(self.optimizer.param_groups):
            for index, parameter in enumerate(group["params"]):
                yield number, index, parameter

    def _widened(self, parameters: Sequence[nn.Parameter]) -> AbstractContextManager[None]:
        return widened(parameters, self._rounding, self._wide) if self._wide else nullcontext()

    def drop_gradients(self) -> None:
        """Forget what was added up so far."""
        self.optimizer.zero_grad(set_to_none=True)

    @contextmanager
    def shown(self, averaged: bool = True) -> Iterator[None]:
        """The weights as they are sampled and saved; every bit as before when the block ends.

        That is the moving average where there is one, and the evaluation point of an optimizer
        that keeps one beside the weights (schedule-free methods).
        """
        if self.ema is not None and averaged:
            with self.ema.in_place():
                yield
        elif hasattr(self.optimizer, "eval"):
            own = [p.detach().clone() for p in self._parameters]
            self._enter("eval")
            try:
                yield
            finally:
                self._enter("train")
                with torch.no_grad():
                    for parameter, values in zip(self._parameters, own, strict=True):
                        parameter.copy_(values)
        else:
            yield

    def state_dict(self) -> dict[str, Any]:
        """Moments, loss scale and average."""
        return {
            "kind": type(self.optimizer).__name__,
            "optimizer": saved_state(self.optimizer, self._wide),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> list[str]:
        """Take up a backup's; returns what could not be, in words.

        Raises:
            ValueError: if the backup is of other parameters.
        """
        missing: list[str] = []
        kind = type(self.optimizer).__name__
        if state["kind"] == kind:
            self.load_moments(state["optimizer"])
        else:
            missing.append(
                f"the optimizer is {kind}, in the backup {state['kind']}: it starts anew"
            )
        self.scaler.load_state_dict(dict(state["scaler"])) if state["scaler"] else None
        if self.ema is not None and state["ema"] is not None:
            self.ema.load_state_dict(state["ema"])
        elif self.ema is not None:
            missing.append("the backup has no EMA: the average starts from its weights")
        return missing

    def load_moments(self, state: Mapping[str, Any]) -> None:
        """Take up the optimizer's part of a backup.

        Raises:
            ValueError: if it is of other parameters.
        """
        # torch gives moments the type of their parameters, so these have to be wide
        with widened(self._parameters, types=self._wide):
            load_optimizer_state(self.optimizer, state)

    def _enter(self, mode: str) -> None:
        """Tell an optimizer that keeps two points which of them the weights shall be."""
        if hasattr(self.optimizer, mode):
            with widened(self._parameters, types=self._wide):
                getattr(self.optimizer, mode)()


def build_update(
    config: TrainConfig,
    parameters: Sequence[nn.Parameter],
    groups: Mapping[str, Sequence[nn.Parameter]],
    rates: Mapping[str, float],
    device: torch.device,
    rounding: torch.Generator,
    then: Callable[[], None],
) -> Update:
    """The optimizer steps of a run, as its settings have them.

    Args:
        config: optimizer, clipping, average and precision.
        parameters: what trains.
        groups: the same by parameter group.
        rates: base learning rate of each group.
        device: where the loop runs.
        rounding: rounds weights at random, where the settings ask for it.
        then: called after each step, before the average takes in the weights.

    Raises:
        ConfigError: if there is no such optimizer here, or it refuses its numbers.
    """
    ema = None
    if config.ema is not EMAMode.OFF:
        place = torch.device("cpu") if config.ema is EMAMode.CPU else None
        ema = Ema(parameters, config.ema_decay, config.ema_update_step_interval, place)
    scaled = config.computed_dtype is DataType.FLOAT_16
    scaled &= all(p.dtype == torch.float32 for p in parameters)  # else gradients are not
    return Update(
        build_optimizer(config.optimizer, groups, rates),
        parameters,
        config.clip_grad_norm,
        torch.amp.GradScaler(device.type, enabled=scaled),
        ema,
        rounding if config.optimizer.stochastic_rounding else None,
        config.optimizer.optimizer in ONE_BY_ONE,
        then,
        config.optimizer.fused_back_pass,
    )


def _apply_one_of(update: ref[Update], group: int, index: int, parameter: nn.Parameter) -> None:
    if live := update():
        live._apply_one(group, index, parameter)


def _go_home(parameter: nn.Parameter) -> None:
    if guest := waiting(parameter):
        guest.sleep()
