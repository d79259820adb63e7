"""Fine-tune diffusion models in a notebook. This page is the whole public interface.

Names load on first use: `import ot_notebook as ot` takes milliseconds and loads no torch.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modules.adapters.converting import convert as convert
    from modules.adapters.low_rank import extract as extract
    from modules.adapters.low_rank import resize as resize
    from modules.adapters.merging import merge as merge
    from modules.config import ConceptConfig as ConceptConfig
    from modules.config import ConfigError as ConfigError
    from modules.config import Problem as Problem
    from modules.config import SampleConfig as SampleConfig
    from modules.config import TrainConfig as TrainConfig
    from modules.training import events as events
    from ot_notebook import assets as assets
    from ot_notebook.checkup import doctor as doctor
    from ot_notebook.preset_files import presets as presets
    from ot_notebook.services.inference_service import Cancelled as Cancelled
    from ot_notebook.services.inference_service import inference as inference
    from ot_notebook.services.publishing import publish as publish
    from ot_notebook.services.queue_service import queue as queue
    from ot_notebook.services.refusals import CommandRefused as CommandRefused
    from ot_notebook.services.run import attach as attach
    from ot_notebook.services.run import run as run
    from ot_notebook.services.run import runs as runs
    from ot_notebook.services.schedule_preview import preview_schedule as preview_schedule
    from ot_notebook.services.system_monitor import SystemMonitor as SystemMonitor
    from ot_notebook.services.trainer_service import trainer as trainer
    from ot_notebook.widgets.concept_editor import ConceptEditor as ConceptEditor
    from ot_notebook.widgets.dashboard import Dashboard as Dashboard
    from ot_notebook.widgets.inference_panel import InferencePanel as InferencePanel
    from ot_notebook.widgets.job_config import JobConfig as JobConfig
    from ot_notebook.widgets.queue_panel import QueuePanel as QueuePanel
    from ot_notebook.widgets.run_compare import RunCompare as RunCompare
    from ot_notebook.widgets.sample_definitions import SampleDefinitions as SampleDefinitions
    from ot_notebook.widgets.sample_gallery import SampleGallery as SampleGallery
    from ot_notebook.widgets.studio import studio as studio
    from ot_notebook.widgets.weight_tools import WeightTools as WeightTools

_HOMES = {
    "Cancelled": "ot_notebook.services.inference_service",
    "CommandRefused": "ot_notebook.services.refusals",
    "ConceptConfig": "modules.config",
    "ConceptEditor": "ot_notebook.widgets.concept_editor",
    "ConfigError": "modules.config",
    "Dashboard": "ot_notebook.widgets.dashboard",
    "InferencePanel": "ot_notebook.widgets.inference_panel",
    "JobConfig": "ot_notebook.widgets.job_config",
    "Problem": "modules.config",
    "QueuePanel": "ot_notebook.widgets.queue_panel",
    "RunCompare": "ot_notebook.widgets.run_compare",
    "SampleConfig": "modules.config",
    "SampleDefinitions": "ot_notebook.widgets.sample_definitions",
    "SampleGallery": "ot_notebook.widgets.sample_gallery",
    "TrainConfig": "modules.config",
    "WeightTools": "ot_notebook.widgets.weight_tools",
    "SystemMonitor": "ot_notebook.services.system_monitor",
    "attach": "ot_notebook.services.run",
    "convert": "modules.adapters.converting",
    "doctor": "ot_notebook.checkup",
    "extract": "modules.adapters.low_rank",
    "inference": "ot_notebook.services.inference_service",
    "merge": "modules.adapters.merging",
    "publish": "ot_notebook.services.publishing",
    "queue": "ot_notebook.services.queue_service",
    "presets": "ot_notebook.preset_files",
    "preview_schedule": "ot_notebook.services.schedule_preview",
    "resize": "modules.adapters.low_rank",
    "run": "ot_notebook.services.run",
    "runs": "ot_notebook.services.run",
    "studio": "ot_notebook.widgets.studio",
    "trainer": "ot_notebook.services.trainer_service",
}
"""Each public function and class, and the module it comes from."""

_MODULES = {"assets": "ot_notebook.assets", "events": "modules.training.events"}
"""Modules that are public under a name of their own."""

__all__ = sorted([*_HOMES, *_MODULES])  # noqa: PLE0605 - a list by any other means


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return list(__all__)


def _refuse_foreign_engine() -> None:
    """Find out now whether `modules` is our engine; a checkout of OneTrainer has one, too.

    Raises:
        ImportError: if another package of that name comes first; says which, and what to do.
    """
    ours = Path(__file__).resolve().parent.parent / "modules"
    if "modules" in sys.modules:
        places, remedy = list(sys.modules["modules"].__path__), "Restart the kernel, and then: "
    else:
        spec = importlib.util.find_spec("modules")
        places, remedy = list(spec.submodule_search_locations or []) if spec else [], ""
    found = [Path(place).resolve() for place in places]
    if ours in found:
        return
    other = found[0] if found else "a package without a folder"
    raise ImportError(
        f"ot_notebook needs its own package `modules` ({ours}), but Python finds another "
        f"one first: {other}. {remedy}Start the notebook from another folder, or take "
        f"{found[0].parent if found else 'that folder'} out of sys.path and PYTHONPATH."
    )


_refuse_foreign_engine()
