"""A sample definition: one picture that the run draws again and again."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field

from modules.config.enums import ModelType, NoiseScheduler
from modules.config.models import MODELS
from modules.config.section import Count, Int, NonNegative, Positive, Section, Show

_Edge = Annotated[Int, Field(ge=8, le=16384)]


class SampleConfig(Section):
    """One picture to draw: prompt, size, seed and sampler."""

    GROUP: ClassVar[str] = "Sample"

    enabled: Annotated[bool, Show(level="basic", applies="now")] = True
    """Whether it is drawn."""

    prompt: Annotated[str, Show(level="basic", applies="now")] = ""
    """What to draw."""

    negative_prompt: Annotated[str, Show(level="basic", applies="now")] = ""
    """What to keep away from."""

    height: Annotated[_Edge, Show(level="basic", unit="px", applies="now")] = 512
    """Height of the picture."""

    width: Annotated[_Edge, Show(level="basic", unit="px", applies="now")] = 512
    """Width of the picture."""

    frames: Annotated[Positive, Show(unit="frames", applies="now")] = 1
    """Length of a video; 1 for a picture."""

    length: Annotated[NonNegative, Show(unit="seconds", applies="now")] = 10.0
    """Length of a sound."""

    seed: Annotated[Int, Show(level="basic", applies="now")] = 42
    """Start of the noise; the same seed draws the same picture."""

    random_seed: Annotated[bool, Show(applies="now")] = False
    """Draw with another seed each time."""

    diffusion_steps: Annotated[
        Annotated[Int, Field(ge=1, le=1000)], Show(level="basic", unit="steps", applies="now")
    ] = 30
    """Denoising steps."""

    cfg_scale: Annotated[NonNegative, Show(level="basic", applies="now")] = 7.0
    """How closely the picture follows the prompt."""

    noise_scheduler: Annotated[NoiseScheduler, Show(level="basic", applies="now")] = (
        NoiseScheduler.DDIM
    )
    """Sampler; flow models use their own."""

    text_encoder_1_layer_skip: Annotated[Count, Show()] = 0
    """Set from the training config in training samples."""

    text_encoder_1_sequence_length: Annotated[Positive | None, Show()] = None
    """Set from the training config in training samples."""

    text_encoder_2_layer_skip: Annotated[Count, Show()] = 0
    """Set from the training config in training samples."""

    text_encoder_2_sequence_length: Annotated[Positive | None, Show()] = None
    """Set from the training config in training samples."""

    text_encoder_3_layer_skip: Annotated[Count, Show()] = 0
    """Set from the training config in training samples."""

    text_encoder_4_layer_skip: Annotated[Count, Show()] = 0
    """Set from the training config in training samples."""

    transformer_attention_mask: Annotated[bool, Show()] = False
    """Set from the training config in training samples."""

    force_last_timestep: Annotated[bool, Show()] = False
    """Set from the training config in training samples."""

    sample_inpainting: Annotated[bool, Show()] = False
    """Draw inside a mask of a given picture."""

    base_image_path: Annotated[str, Show(when={"sample_inpainting": (True,)})] = ""
    """The picture to draw into."""

    mask_image_path: Annotated[str, Show(when={"sample_inpainting": (True,)})] = ""
    """The mask to draw inside: white is drawn."""

    @classmethod
    def for_model(cls, model_type: ModelType, **values: Any) -> SampleConfig:
        """A definition that takes what `values` leaves out from the model type's habits.

        Raises:
            ConfigError: for an unknown name or a bad value.
        """
        return cls.parse({**MODELS[model_type].sampling, **values})
