"""The loss without what the timesteps of a step make of it."""

from __future__ import annotations

BINS = 20
"""Equal spans of the timesteps, in each of which the loss has its own usual size."""

MEMORY = 200
"""Steps that a span's mean remembers."""

ENOUGH = 3
"""Steps of a span before its mean corrects anything."""


class ByTimestep:
    """Divides each loss by how large it usually is at its timesteps, compared with all.

    A loss depends on the noise in an image more than on what was learned: steps that drew much
    noise lie far from those that drew little. The size of a span is the mean of loss over smooth
    loss, so that the run's own trend is no part of it and stays in what comes out.
    """

    def __init__(self) -> None:
        self._sizes = [1.0] * BINS
        self._counts = [0] * BINS
        self._usual, self._count = 1.0, 0  # of all spans: a smooth loss lags behind one that falls

    def correct(self, loss: float, smooth: float, timestep: float) -> float:
        """The loss as it would be at the mean of all timesteps.

        Args:
            loss: of a step.
            smooth: its moving average.
            timestep: mean of the step's timesteps as a share of all, 0 to 1.
        """
        span = min(BINS - 1, max(0, int(timestep * BINS)))
        if smooth > 0:
            self._counts[span] = min(MEMORY, self._counts[span] + 1)
            self._sizes[span] += (loss / smooth - self._sizes[span]) / self._counts[span]
            self._count = min(MEMORY * BINS, self._count + 1)
            self._usual += (loss / smooth - self._usual) / self._count
        size = self._sizes[span]
        return loss * self._usual / size if self._counts[span] >= ENOUGH and size > 0 else loss

    def state_dict(self) -> dict[str, float]:
        """Size and count of each span."""
        sizes = {f"size {span}": size for span, size in enumerate(self._sizes)}
        counts = {f"count {span}": count for span, count in enumerate(self._counts)}
        return sizes | counts | {"usual": self._usual, "steps": self._count}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take up a backup's; one of an older version has none."""
        self._sizes = [state.get(f"size {span}", 1.0) for span in range(BINS)]
        self._counts = [int(state.get(f"count {span}", 0)) for span in range(BINS)]
        self._usual, self._count = state.get("usual", 1.0), int(state.get("steps", 0))
