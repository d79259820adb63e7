"""What the config says of a model type, against the family that trains it."""

import pytest

from modules.config import MODELS, ModelFormat
from modules.config.rules_engine import honoured
from modules.families import all_families

KINDS = [(kind, family) for family in all_families() for kind in family.model_types]


@pytest.mark.parametrize(("kind", "family"), KINDS, ids=[kind.value for kind, _ in KINDS])
def test_the_facts_of_a_model_type_are_those_of_its_family(kind, family):
    facts = MODELS[kind]
    assert facts.denoiser == family.denoiser
    assert facts.text_encoders == family.text_encoders
    assert facts.conditioners == tuple(family.conditioners)
    assert facts.pixel_multiple == family.pixel_multiple
    adapters = {word for word in facts.formats if word.value.endswith("_LORA")}
    assert adapters == {word for word in family.lora_formats if word is not ModelFormat.INTERNAL}


@pytest.mark.parametrize(("kind", "family"), KINDS, ids=[kind.value for kind, _ in KINDS])
def test_no_more_is_promised_of_text_encoders_than_the_family_can_do(kind, family):
    table, facts = honoured(kind), MODELS[kind]
    for part in facts.text_encoders:
        trains = table.get(f"{part}.train", (False,))
        if facts.text_training and (trains == () or True in trains):
            assert part in family.trainable_encoders
        if facts.caption_dropout and table.get(f"{part}_layer_skip", (0,)) == ():
            assert part in family.skipping_encoders
