"""Weights that learn, and wait in main memory but while their layer computes.

Autograd looks for a weight that learns, and for nothing in its place: so its data come and go, and
it stays the same parameter. Between the passes data and gradient are at home, where the optimizer,
the average and files find them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Waiting:
    """One parameter of a layer that waits, once it learns.

    Args:
        parameter: at home; it finds this again by `waiting`.
        device: where its layer computes.
    """

    def __init__(self, parameter: nn.Parameter, device: torch.device) -> None:
        self.parameter, self._device = parameter, device
        self._home: Tensor | None = None
        """Its data at home, while it is on the device."""
        self._gradient: Tensor | None = None
        """Of earlier passes of the step, meanwhile."""
        parameter.waits_elsewhere = self  # type: ignore[attr-defined]

    def wake(self, copy: Tensor | None = None) -> None:
        """Bring it to the device.

        Args:
            copy: its data, if they are there already.
        """
        if self._home is not None:
            return
        parameter = self.parameter
        self._home, self._gradient = parameter.data, parameter.grad
        parameter.grad = None
        parameter.data = self._home.to(self._device) if copy is None else copy.data

    def sleep(self) -> None:
        """Send it home as it was when it came, and its new gradient with it."""
        if self._home is None:
            return
        parameter, gradient = self.parameter, self.parameter.grad
        parameter.grad = None
        parameter.data, self._home = self._home, None
        if gradient is not None:
            gradient = gradient.to(parameter.device)
        if self._gradient is not None:
            gradient = self._gradient if gradient is None else gradient.add_(self._gradient)
        parameter.grad, self._gradient = gradient, None

    def add_up(self) -> None:
        """Let the gradient, on the device, be that of the whole step."""
        earlier, parameter = self._gradient, self.parameter
        if earlier is not None:
            earlier = earlier.to(parameter.device)
            parameter.grad = earlier if parameter.grad is None else parameter.grad.add_(earlier)
            self._gradient = None

    @torch.no_grad()
    def learn(self) -> None:
        """Send it home as it is now."""
        if self._home is not None:
            self.parameter.grad = None
            self._home.copy_(self.parameter.data)
            self.sleep()


def waiting(parameter: Tensor) -> Waiting | None:
    """What sends a parameter home and back; None for one that stays on the device."""
    return getattr(parameter, "waits_elsewhere", None)


def beside(state: dict[str, object], parameter: nn.Parameter) -> None:
    """Put the moments of an optimizer where their parameter is; counts may be anywhere."""
    for name, value in state.items():
        if isinstance(value, Tensor) and value.ndim and value.device != parameter.device:
            state[name] = value.to(parameter.device)
