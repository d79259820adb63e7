"""Widgets without a front end: what they send is kept, and a test plays the page."""

import comm
import pytest
from comm.base_comm import BaseComm

from ot_notebook.services.trainer_service import TrainerService


class Wire:
    """Every message that widgets have sent, as (widget's model id, content, buffers)."""

    def __init__(self):
        self.messages = []

    def custom(self, widget):
        """Custom messages of a widget, oldest first."""
        return [
            data["content"]
            for sender, data, _ in self.messages
            if sender == widget.model_id and data.get("method") == "custom"
        ]

    def states(self, widget):
        """State updates of a widget, oldest first."""
        return [
            data["state"]
            for sender, data, _ in self.messages
            if sender == widget.model_id and data.get("method") == "update"
        ]

    def clear(self):
        self.messages.clear()


@pytest.fixture
def wire(monkeypatch):
    wire = Wire()

    class Recorder(BaseComm):
        def publish_msg(self, msg_type, data=None, metadata=None, buffers=None, **keys):
            if msg_type == "comm_msg":
                wire.messages.append((self.comm_id, data, buffers))

    monkeypatch.setattr(comm, "create_comm", Recorder)
    return wire


@pytest.fixture
def service():
    service = TrainerService()
    yield service
    service.close()


@pytest.fixture
def say(service):
    """Play a run: hand events to the service as a trainer does, and deliver them."""

    def say(*events):
        for event in events:
            service._say(None, event)
        service.flush()

    return say
