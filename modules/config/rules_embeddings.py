"""Rules about embeddings: words that can be told apart, and that something trains and can hold."""

from __future__ import annotations

from collections.abc import Iterator

from modules.config.case import Case, Rule, refuse, warn
from modules.config.enums import ModelFormat, TimeUnit, TrainingMethod
from modules.config.problems import Problem


def placeholders(case: Case) -> Iterator[Problem]:
    """Embeddings that cannot be told apart."""
    used = case.config.embeddings_in_use
    seen: dict[str, str] = {}
    ids: dict[str, str] = {}
    for path, each in used.items():
        field, word = f"{path}.placeholder", each.placeholder
        # some models write every prompt in small letters first
        twin = seen.setdefault(word.lower(), path)
        if not word.strip():
            yield refuse(field, f"{field} is empty.", "Give it a word of its own.")
        elif twin != path:
            message = f"{field} is {word!r}, but so is {twin}.placeholder."
            yield refuse(field, message, "Give each a word of its own.")
        other = ids.setdefault(each.uuid, path)
        if other != path and twin == path:
            message = (
                f"{path}.uuid is {each.uuid}, but so is {other}.uuid: backups name files by it."
            )
            yield refuse(f"{path}.uuid", message, "Change one letter of it.")


def something_learned(case: Case) -> Iterator[Problem]:
    """A run in which no embedding would change, though they are all that could."""
    config = case.config
    if config.training_method is not TrainingMethod.EMBEDDING or not config.embeddings_in_use:
        return
    trained = [each for each in config.embeddings_in_use.values() if each.train]
    if not trained:
        yield refuse("embedding.train", "No embedding trains.", "Set embedding.train to true.")
    elif all(each.stop_training_after_unit is TimeUnit.ALWAYS for each in trained):
        field = "embedding.stop_training_after_unit"
        message = f"{field} is ALWAYS, before the first step, so no embedding trains."
        yield refuse(field, message, "Set it to NEVER.")
    fields = [f"{part}.train_embedding" for part in case.facts.text_encoders]
    if not any(config.get(field) for field in fields):
        message = "No text encoder's embeddings train."
        yield refuse(fields[0], message, f"Set {' or '.join(fields)} to true.")


def output_embeddings(case: Case) -> Iterator[Problem]:
    """Vectors behind an encoder whose last norm the model adds itself."""
    config, skip = case.config, "text_encoder_layer_skip"
    if case.facts.parts != ("unet", "text_encoder", "vae") or not config.get(skip):
        return
    for path, each in config.embeddings_in_use.items():
        if each.is_output_embedding:
            field = f"{path}.is_output_embedding"
            message = (
                f"{field} is true, but with {skip} the model norms what is behind the encoder."
            )
            yield refuse(field, message, f"Set it to false, or {skip} to 0.")


def bundles(case: Case) -> Iterator[Problem]:
    """An adapter file that has no place for the embeddings that it should hold."""
    config, field = case.config, "bundle_additional_embeddings"
    lora = config.training_method is TrainingMethod.LORA
    if not lora or not config.embeddings_in_use or not config.get(field):
        return
    if config.output_model_format is ModelFormat.ORIGINAL_LORA:
        message = f"{field} is true, but ORIGINAL_LORA has no place for them."
        yield refuse(field, message, "Set it to false, or use another output_model_format.")
    elif config.output_model_format is ModelFormat.DIFFUSERS_LORA:
        message = f"{field} is true, but diffusers may refuse a LoRA with embeddings in its file."
        yield warn(field, message, "Set it to false for files of their own, or use KOHYA_LORA.")


RULES: tuple[Rule, ...] = (placeholders, something_learned, output_embeddings, bundles)
