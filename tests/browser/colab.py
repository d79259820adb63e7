"""Colab's habit, as its users report it: a page gets updates only in answer to a request in flight.

It sits between a page of JupyterLab and the kernel's socket, and drops every other update.
"""

from __future__ import annotations

import itertools
import json
import struct
from typing import Any

from playwright.sync_api import Page, WebSocketRoute


class ColabSim:
    """Installed on a page before it loads; counts what it dropped and passed."""

    def __init__(self) -> None:
        self.dropped = self.passed = 0
        self._in_flight: set[str] = set()

    def install(self, page: Page) -> None:
        """Stand between this page and its kernels."""
        page.route_web_socket(lambda url: "/channels" in url, self._connect)

    def _connect(self, socket: WebSocketRoute) -> None:
        server = socket.connect_to_server()

        def to_kernel(message: Any) -> None:
            if isinstance(message, bytes):
                channel, header, _, _ = _parts(message)
                if channel == "shell":
                    self._in_flight.add(header["msg_id"])
            server.send(message)

        def to_page(message: Any) -> None:
            if not (isinstance(message, bytes) and self._lost(message)):
                socket.send(message)

        socket.on_message(to_kernel)
        server.on_message(to_page)

    def _lost(self, message: bytes) -> bool:
        channel, header, parent, content = _parts(message)
        if channel != "iopub":
            return False
        if header["msg_type"] == "status" and content.get("execution_state") == "idle":
            self._in_flight.discard(parent.get("msg_id", ""))
        if header["msg_type"] != "comm_msg":
            return False
        lost = parent.get("msg_id") not in self._in_flight
        self.dropped += lost
        self.passed += not lost
        return lost


def _parts(message: bytes) -> tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Channel, header, parent header and content of a message in Jupyter's v1 binary framing."""
    (count,) = struct.unpack_from("<Q", message, 0)
    ends = struct.unpack_from(f"<{count}Q", message, 8)
    pieces = [message[start:end] for start, end in itertools.pairwise(ends)]
    header, parent, _, content = (json.loads(piece or b"{}") for piece in pieces[1:5])
    return pieces[0].decode(), header, parent, content
