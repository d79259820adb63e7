"""The learning rates of a run that has not begun, as numbers and as a picture."""

from __future__ import annotations

from collections import defaultdict
from html import escape

from modules.config import TrainConfig
from ot_notebook.services import curve


class SchedulePreview(dict[str, list[float]]):
    """By part: the learning rate of each optimizer step. In a cell, it draws itself."""

    def _repr_html_(self) -> str:
        alike: dict[tuple[float, ...], list[str]] = defaultdict(list)
        for name, rates in self.items():
            alike[tuple(rates)].append(name)
        drawn = []
        for line, names in alike.items():
            points = curve.finite(range(1, len(line) + 1), line)
            words = f"Learning rate of {', '.join(names)}"
            ends = f"{line[0]:.3g} at first, {max(line):.3g} at most, {line[-1]:.3g} at last"
            picture = curve.svg(points, points, f"{words}: {ends}")
            caption = f"<figcaption>{escape(words)}: {ends}</figcaption>"
            drawn.append(f'<figure style="margin:0">{picture}{caption}</figure>')
        return "".join(drawn)


def preview_schedule(config: TrainConfig, total_steps: int = 1000) -> SchedulePreview:
    """Show the learning rate of each part that trains, step by step, before a run is started.

    Args:
        config: what would run; its schedule, warm-up, cycles and rates of parts count.
        total_steps: optimizer steps that the run would take.

    Returns:
        A dict from the part's name to its rates; as the last line of a cell, a plot of them.

    Raises:
        ConfigError: if a CUSTOM scheduler cannot be made, or not for so many steps.
        ValueError: if there are no steps.

    Example:
        >>> ot.preview_schedule(job.config, total_steps=2000)
    """
    from modules.training.schedules import preview

    if total_steps < 1:
        raise ValueError(f"total_steps is {total_steps}, but a run takes at least 1.")
    return SchedulePreview(preview(config, total_steps))
