"""The ladder against an allocator with a limit: each rung is taken when it must be, in order."""

import pytest
import torch

from modules.adapters.lora import add_lora, matching_layers
from modules.config import ModelType
from modules.families import family_for
from modules.training.memory import MemoryLadder

CPU = torch.device("cpu")
IMAGES = 4


class Job:
    """A step of a real network, on a device that holds so many bytes.

    What counts is what autograd keeps for the backward pass and the weights that do not wait.
    """

    def __init__(self, limit=float("inf"), home=CPU):
        self.limit, self.kept, self.most = limit, 0, 0
        torch.manual_seed(0)
        self.network = family_for(ModelType.FLUX_DEV_1).tiny().denoiser
        layers = matching_layers(self.network, "attn.to_q", False)
        self.trained = add_lora(self.network, layers, rank=2, alpha=2.0, dropout=0, seed=0)
        for parameter in self.trained:
            torch.nn.init.constant_(parameter, 0.1)
        self.network.train()
        self.said = []
        networks = {"transformer": self.network}
        self.ladder = MemoryLadder(networks, IMAGES, self.said.append, CPU, home)

    def weights(self):
        waiting = {
            id(tensor)
            for layer in self.network.modules()
            if hasattr(layer, "waits_elsewhere")
            for tensor in layer.parameters()
            if not tensor.requires_grad
        }
        return sum(p.nbytes for p in self.network.parameters() if id(p) not in waiting)

    def keep(self, tensor):
        if not isinstance(tensor, torch.nn.Parameter):
            self.kept += tensor.nbytes
            self.most = max(self.most, self.kept + self.weights())
            if self.most > self.limit:
                raise torch.OutOfMemoryError(f"{self.most} of {self.limit} bytes")
        return tensor

    def passes(self, pieces):
        """Forward and backward passes over the batch."""
        generator = torch.Generator().manual_seed(1)
        packed = torch.randn(IMAGES, 16, 64, generator=generator)
        text = torch.randn(IMAGES, 6, 32, generator=generator)
        pooled = torch.randn(IMAGES, 32, generator=generator)
        for part in torch.arange(IMAGES).chunk(pieces):
            self.kept = self.most = 0
            with torch.autograd.graph.saved_tensors_hooks(self.keep, lambda tensor: tensor):
                output = self.network(
                    hidden_states=packed[part],
                    timestep=torch.full((len(part),), 0.5),
                    guidance=torch.ones(len(part)),
                    pooled_projections=pooled[part],
                    encoder_hidden_states=text[part],
                    txt_ids=torch.zeros(6, 3),
                    img_ids=torch.zeros(16, 3),
                ).sample
            (output.square().mean() * len(part) / IMAGES).backward()
        return self.most

    def undo(self):
        for parameter in self.trained:
            parameter.grad = None

    def hold(self):
        return self.ladder.hold(self.passes, self.undo)


RUNGS = (
    "a forward pass now takes 2 of 4 images at a time",
    "a forward pass now takes 1 of 4 images at a time",
    "turned gradient_checkpointing on for transformer",
    "turned activation_offloading on for transformer",
    "set offload_fraction to 1 for transformer",
)


@pytest.fixture(scope="module")
def needs():
    """Bytes that a step takes at the foot of the ladder and on each rung."""
    job = Job()
    found = [job.hold()]
    for _ in RUNGS:
        job.ladder._emptied = True
        assert job.ladder._climb()
        found.append(job.hold())
    assert job.ladder._climb() is None
    return found


def test_each_rung_takes_less_memory_than_the_one_below(needs):
    assert needs == sorted(set(needs), reverse=True)


@pytest.mark.parametrize("rung", range(1, 1 + len(RUNGS)))
def test_a_limit_is_met_by_the_first_rung_that_holds_and_teaches_the_same(needs, rung):
    plain = Job()
    plain.hold()
    job = Job(limit=needs[rung])
    job.hold()
    assert job.said[0].startswith("Out of memory: emptied the caches")
    rungs = [text.removeprefix("Out of memory: ").partition(". ")[0] for text in job.said[1:]]
    assert tuple(rungs) == RUNGS[:rung]
    assert all("The batch that a step learns from is the same." in text for text in job.said)
    for found, expected in zip(job.trained, plain.trained, strict=True):
        torch.testing.assert_close(found.grad, expected.grad)
        assert expected.grad.any()
    said = len(job.said)
    job.undo()
    job.hold()
    assert len(job.said) == said  # it stays on the rung that held


def test_with_no_rung_left_the_error_goes_on():
    with pytest.raises(torch.OutOfMemoryError):
        Job(limit=1).hold()


def test_a_device_that_is_main_memory_has_nowhere_else_to_put_things():
    job = Job(limit=1, home=None)
    with pytest.raises(torch.OutOfMemoryError):
        job.hold()
    assert not any("offload" in text for text in job.said)


def test_other_errors_climb_nothing():
    job = Job()
    with pytest.raises(ZeroDivisionError):
        job.ladder.hold(lambda _pieces: 1 / 0, job.undo)
    assert job.said == []
