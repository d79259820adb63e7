"""The one model that the inference service holds, and how it was asked for."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from modules.config import DataType, ModelType
from ot_notebook.services.inference_model import (
    Embeddings,
    InferenceModel,
    Loras,
    Stack,
    find_model,
    listed,
    live_model,
)
from ot_notebook.services.inference_result import NoModelError
from ot_notebook.services.inference_source import Source
from ot_notebook.services.trainer_service import TrainerService, trainer


@dataclass(frozen=True)
class Wanted:
    """What `InferenceService.load` was given; see there."""

    model: object = "live"
    model_type: ModelType | str | None = None
    loras: Loras = ()
    embeddings: Embeddings = ()
    dtype: DataType | str | None = None
    device: str | None = None
    offload: bool = False


class Held:
    """At most one model with its adapters and words; its networks go before others come.

    Args:
        service: whose model "live" is; this kernel's trainer where it is None.
    """

    def __init__(self, service: TrainerService | None) -> None:
        self._service = service
        self._wanted: Wanted | None = None
        self.model: InferenceModel | None = None
        self.loras: Stack = ()
        """Adapter files and strengths in use."""

    @property
    def trainer(self) -> TrainerService:
        """Whose model "live" is."""
        return self._service or trainer()

    def need(self) -> InferenceModel:
        """The model.

        Raises:
            NoModelError: if there is none.
        """
        if self.model is None:
            raise NoModelError(
                "No model is loaded. Load one first: ot.inference().load(ot.assets.model()), a "
                'folder, a file, a hub id, a run, or "live" while a run trains.'
            )
        return self.model

    def take(self, wanted: Wanted) -> None:
        """Load a model in place of the one before.

        That stays where there is no such model; if loading itself fails, there is none.

        Raises:
            ConfigError: if there is no such model, or it cannot be loaded.
            AdapterError: if a LoRA or an embedding is gone, damaged or of another architecture.
            CommandRefused: for "live" while no run takes steps.
        """
        loras, embeddings = list(wanted.loras), listed(wanted.embeddings)
        load, source = self._find(wanted)
        self.drop()
        try:
            self.model = load()
            if source is not None:
                loras = [*([(source.adapter, 1.0)] if source.adapter else []), *loras]
                embeddings = [*source.embeddings, *embeddings]
            self.model.teach(embeddings)
            self.loras = self.model.fit(loras)
        except BaseException:
            self.drop()
            raise
        self._wanted = wanted

    def _find(self, wanted: Wanted) -> tuple[Callable[[], InferenceModel], Source | None]:
        """What loads a model that is there; and where it comes from, if it is not that of a run."""
        live = self.trainer if wanted.model == "live" else wanted.model
        if isinstance(live, TrainerService):
            model = live_model(live)
            return lambda: model, None
        return find_model(
            wanted.model, wanted.model_type, wanted.dtype, wanted.device, wanted.offload
        )

    def drop(self) -> None:
        """Let go of the model and give its memory back."""
        self.model, self.loras, self._wanted = None, (), None
        gc.collect()
        if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
            sys.modules["torch"].cuda.empty_cache()

    @contextmanager
    def lent(self) -> Iterator[Callable[[object], InferenceModel]]:
        """Inside the block others are loaded, one at a time; afterwards this one is, anew.

        Gives a function that loads what `Wanted.model` can be, in the same way otherwise. The
        model of a run in training has no networks of its own here, and stays.
        """
        wanted, loras, model = self._wanted or Wanted(), self.loras, self.model
        own = model is not None and model.source != "live"
        embeddings = model.embeddings if model is not None else ()
        del model  # its networks go before others come
        if own:
            self.drop()
        others = Held(self._service)

        def load(other: object) -> InferenceModel:
            others.take(replace(wanted, model=other, model_type=None, loras=(), embeddings=()))
            return others.need()

        try:
            yield load
        finally:
            others.drop()
            if own:
                self.take(replace(wanted, loras=(), embeddings=()))
                self.need().teach(embeddings)
                self.loras = self.need().fit(loras)
                self._wanted = wanted
