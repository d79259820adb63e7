"""A concept: one folder of training images, its captions and their augmentation."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field

from modules.config.enums import (
    BalancingStrategy,
    ConceptType,
    PromptSource,
    SpecialTagsMode,
    TagDropoutMode,
)
from modules.config.section import Count, Fraction, Int, NonNegative, Positive, Real, Section, Show

IMAGE_SUFFIXES = frozenset((".bmp", ".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".avif"))
FILM_SUFFIXES = frozenset(
    (".webm", ".mkv", ".flv", ".avi", ".mov", ".wmv", ".mp4", ".mpeg", ".m4v")
)
ARCHIVES = frozenset((".zip", ".tar", ".parquet", ".arrow"))
"""Endings of files that hold images; a folder of such files is read as one set."""

_Strength = Annotated[Real, Field(ge=0, le=1)]
_Angle = Annotated[Real, Field(ge=0, le=360)]


class ConceptImageConfig(Section):
    """How a concept's images are changed before they are encoded."""

    GROUP: ClassVar[str] = "Image"

    enable_crop_jitter: Annotated[bool, Show()] = True
    """Crop at a random place instead of the centre."""

    enable_random_flip: Annotated[bool, Show(level="basic")] = False
    """Mirror half of the images, left to right."""

    enable_fixed_flip: Annotated[bool, Show()] = False
    """Mirror every image."""

    enable_random_rotate: Annotated[bool, Show()] = False
    """Turn each image by a random angle up to the one below."""

    enable_fixed_rotate: Annotated[bool, Show()] = False
    """Turn every image by exactly the angle below."""

    random_rotate_max_angle: Annotated[_Angle, Show(unit="degrees")] = 0.0
    """Largest or fixed angle of rotation."""

    enable_random_brightness: Annotated[bool, Show()] = False
    """Change the brightness of each image at random."""

    enable_fixed_brightness: Annotated[bool, Show()] = False
    """Raise the brightness of every image."""

    random_brightness_max_strength: Annotated[_Strength, Show()] = 0.0
    """Largest or fixed change of brightness, as a share."""

    enable_random_contrast: Annotated[bool, Show()] = False
    """Change the contrast of each image at random."""

    enable_fixed_contrast: Annotated[bool, Show()] = False
    """Raise the contrast of every image."""

    random_contrast_max_strength: Annotated[_Strength, Show()] = 0.0
    """Largest or fixed change of contrast, as a share."""

    enable_random_saturation: Annotated[bool, Show()] = False
    """Change the saturation of each image at random."""

    enable_fixed_saturation: Annotated[bool, Show()] = False
    """Raise the saturation of every image."""

    random_saturation_max_strength: Annotated[_Strength, Show()] = 0.0
    """Largest or fixed change of saturation, as a share."""

    enable_random_hue: Annotated[bool, Show()] = False
    """Shift the hue of each image at random."""

    enable_fixed_hue: Annotated[bool, Show()] = False
    """Shift the hue of every image."""

    random_hue_max_strength: Annotated[_Strength, Show()] = 0.0
    """Largest or fixed shift of hue, as a share of the colour circle."""

    enable_resolution_override: Annotated[bool, Show()] = False
    """Train this concept at a resolution of its own."""

    resolution_override: Annotated[str, Show(unit="px")] = "512"
    """That resolution: `512`, several as `512,768`, or exactly `768x512`."""

    enable_random_circular_mask_shrink: Annotated[bool, Show()] = False
    """Keep a random circle of each mask."""

    enable_random_mask_rotate_crop: Annotated[bool, Show()] = False
    """Turn each image a little and crop it to its mask."""


class ConceptTextConfig(Section):
    """Where a concept's captions come from and how they vary."""

    GROUP: ClassVar[str] = "Text"

    prompt_source: Annotated[PromptSource, Show(level="basic")] = PromptSource.SAMPLE
    """`sample`: a .txt file beside each image; `concept`: one text file; `filename`: the name."""

    prompt_path: Annotated[
        str, Show(level="basic", when={"prompt_source": (PromptSource.CONCEPT,)})
    ] = ""
    """Text file with a caption on each line."""

    enable_tag_shuffling: Annotated[bool, Show(level="basic")] = False
    """Shuffle the tags of each caption."""

    tag_delimiter: Annotated[str, Show()] = ","
    """What stands between two tags."""

    keep_tags_count: Annotated[Count, Show(unit="tags")] = 1
    """Tags at the beginning that are neither moved nor dropped."""

    tag_dropout_enable: Annotated[bool, Show()] = False
    """Leave tags out at random."""

    tag_dropout_mode: Annotated[TagDropoutMode, Show(when={"tag_dropout_enable": (True,)})] = (
        TagDropoutMode.FULL
    )
    """All tags at once (FULL), each by itself, or later ones more often (RANDOM WEIGHTED)."""

    tag_dropout_probability: Annotated[Fraction, Show(when={"tag_dropout_enable": (True,)})] = 0.0
    """How often tags are left out."""

    tag_dropout_special_tags_mode: Annotated[
        SpecialTagsMode, Show(when={"tag_dropout_enable": (True,)})
    ] = SpecialTagsMode.NONE
    """Whether the special tags are the only ones dropped (BLACKLIST) or never dropped."""

    tag_dropout_special_tags: Annotated[str, Show(when={"tag_dropout_enable": (True,)})] = ""
    """Special tags between delimiters, or the path of a .txt or .csv file of them."""

    tag_dropout_special_tags_regex: Annotated[bool, Show(when={"tag_dropout_enable": (True,)})] = (
        False
    )
    """Read special tags as regular expressions."""

    caps_randomize_enable: Annotated[bool, Show()] = False
    """Change the capitals of tags at random."""

    caps_randomize_mode: Annotated[str, Show(when={"caps_randomize_enable": (True,)})] = (
        "capslock, title, first, random"
    )
    """Ways to write capitals: any of capslock, title, first, random."""

    caps_randomize_probability: Annotated[
        Fraction, Show(when={"caps_randomize_enable": (True,)})
    ] = 0.0
    """How often a tag is changed."""

    caps_randomize_lowercase: Annotated[bool, Show()] = False
    """Write captions in small letters first."""


class OwnConceptSettings(Section):
    """Settings of a concept that OneTrainer has no name for. It ignores the section."""

    GROUP: ClassVar[str] = "Text"

    caption_template: Annotated[str, Show(level="basic")] = ""
    """Text around each caption, which stands for `{caption}`, as in `a photo of sks, {caption}`."""

    wildcards: Annotated[bool, Show()] = False
    """Put one of its words, drawn at random, in the place of each `{red|green|blue}`."""


class ConceptConfig(Section):
    """One folder of images and how it takes part in training."""

    VERSION: ClassVar[int] = 2
    GROUP: ClassVar[str] = "Concept"

    image: ConceptImageConfig = ConceptImageConfig()
    """How images are augmented."""

    text: ConceptTextConfig = ConceptTextConfig()
    """How captions are read and varied."""

    name: Annotated[str, Show(level="basic")] = ""
    """Name in lists and reports."""

    path: Annotated[str, Show(level="basic")] = ""
    """Folder of the images."""

    seed: Annotated[Int, Show()] = 42
    """Decides crops, flips and the choice of captions; the same seed makes the same variations."""

    enabled: Annotated[bool, Show(level="basic", applies="restart")] = True
    """Whether the concept takes part."""

    type: Annotated[ConceptType, Show(level="basic")] = ConceptType.STANDARD
    """Train on the images, only measure the loss on them, or hold the model to what it knew."""

    include_subdirectories: Annotated[bool, Show(level="basic")] = False
    """Read folders below the folder too."""

    image_variations: Annotated[Positive, Show()] = 1
    """How many differently augmented versions of each image are cached."""

    text_variations: Annotated[Positive, Show()] = 1
    """How many differently varied captions of each image are cached."""

    balancing: Annotated[NonNegative, Show(level="basic")] = 1.0
    """How often an image is seen in an epoch, or how many images, as the strategy says."""

    balancing_strategy: Annotated[BalancingStrategy, Show(level="basic")] = (
        BalancingStrategy.REPEATS
    )
    """REPEATS: `balancing` multiplies the images; SAMPLES: it is their number."""

    loss_weight: Annotated[NonNegative, Show(level="basic")] = 1.0
    """Factor of the loss of these images."""

    ot: OwnConceptSettings = OwnConceptSettings()
    """Settings of ot_notebook."""

    concept_stats: dict[str, Any] = Field(default_factory=dict)
    """Counts and sizes that an earlier scan found; only for display."""
