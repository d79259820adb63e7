"""A model of each type, made once a session."""

import pytest
from toy_models import Model


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A model of each type, made when first asked for."""
    made = {}

    def get(kind):
        if kind not in made:
            made[kind] = Model(kind, tmp_path_factory.mktemp(kind.value))
        return made[kind]

    return get
