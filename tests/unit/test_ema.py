import pytest
import torch
from diffusers.training_utils import EMAModel
from torch import nn

from modules.training.ema import Ema


def test_average_equals_diffusers():
    parameters = [nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(5))]
    ours = Ema(parameters, 0.9, interval=1)
    theirs = EMAModel(parameters, decay=0.9)
    for step in range(1, 30):  # diffusers' first update keeps nothing of the start
        with torch.no_grad():
            for parameter in parameters:
                parameter += torch.randn_like(parameter)
        ours.update(step)
        theirs.optimization_step = step
        theirs.step(parameters)
    with ours.in_place():
        for parameter, expected in zip(parameters, theirs.shadow_params, strict=True):
            torch.testing.assert_close(parameter.data, expected)


def test_decay_rises_to_its_setting():
    ema = Ema([nn.Parameter(torch.zeros(1))], 0.99, interval=1)
    assert [ema.decay_at(step) for step in (0, 8, 10_000)] == [0.1, 0.5, 0.99]


def test_updates_come_at_their_interval():
    parameter = nn.Parameter(torch.zeros(1))
    ema = Ema([parameter], 0.5, interval=3)
    parameter.data += 1.0
    for step in (0, 1):
        ema.update(step)
        assert ema.state_dict()["average"][0].item() == 0.0
    ema.update(2)
    assert ema.state_dict()["average"][0].item() > 0.0


def test_standing_in_leaves_every_bit_of_the_weights():
    parameter = nn.Parameter(torch.randn(4, dtype=torch.bfloat16))
    before = parameter.data.clone()
    ema = Ema([parameter], 0.9, interval=1)
    ema.load_state_dict({"average": [torch.full((4,), 2.0)]})
    with ema.in_place():
        assert torch.equal(parameter.data, torch.full((4,), 2.0, dtype=torch.bfloat16))
    assert torch.equal(parameter.data, before)


def test_a_backup_of_other_parameters_is_refused():
    ema = Ema([nn.Parameter(torch.zeros(3))], 0.9, interval=1)
    with pytest.raises(ValueError, match="other parameters"):
        ema.load_state_dict({"average": [torch.zeros(4)]})
