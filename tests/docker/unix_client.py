"""An HTTP client on a Unix socket, as dockerd is one of a plugin."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any


class UnixClient(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("plugin", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(str(self._path))

    def call(self, name: str, **arguments: Any) -> dict[str, Any]:
        self.request("POST", f"/{name}", json.dumps(arguments), {"Accept": "application/vnd.docker.plugins.v1.2+json"})
        answer: dict[str, Any] = json.loads(self.getresponse().read())
        return answer

    def diff(self, layer_id: str, parent: str = "") -> bytes:
        self.request("POST", "/GraphDriver.Diff", json.dumps({"ID": layer_id, "Parent": parent}))
        response = self.getresponse()
        assert response.status == 200
        return response.read()

    def apply(self, layer_id: str, archive: bytes) -> dict[str, Any]:
        """As Go sends it: chunked, of unknown length."""
        parts = iter([archive[:1000], archive[1000:]]) if len(archive) > 1000 else iter([archive])
        self.request("POST", f"/GraphDriver.ApplyDiff?id={layer_id}&parent=", parts, encode_chunked=True)
        answer: dict[str, Any] = json.loads(self.getresponse().read())
        return answer
