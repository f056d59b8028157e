"""A client of a graph-driver plugin, as Docker's daemon is one, and the plugin's process."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from cowfs.benchmarks import accounting
from cowfs.errors import CowfsError

_START_SECONDS = 600.0
_POLL_SECONDS = 0.005


class Plugin:
    """A plugin's process, of which this is the only client.

    After a start, `process_seconds` is what passed until it listened, and `home_seconds` from there until it was ready.

    Args:
        command: gets the path of the socket as its last argument.
    """

    def __init__(self, command: list[str], address: Path, home: Path, options: list[str], log: Path) -> None:
        self._command, self._address, self._home, self._options, self._log = command, address, home, options, log
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: http.client.HTTPConnection | None = None
        self.process_seconds = self.home_seconds = 0.0

    def start(self) -> None:
        """Start the process and wait until it has answered that it is ready for layers."""
        began = time.perf_counter()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([*self._command, str(self._address)], stdout=log, stderr=log)
        self._connection = self._connected()
        listened = time.perf_counter()
        self.call("Init", Home=str(self._home), Opts=self._options)
        self.process_seconds = listened - began
        self.home_seconds = time.perf_counter() - listened

    def _connected(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("plugin")
        deadline = time.monotonic() + _START_SECONDS
        while True:
            connection.sock = socket.socket(socket.AF_UNIX)
            try:
                connection.sock.connect(str(self._address))
            except OSError:
                connection.sock.close()
                assert self._process is not None
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise CowfsError(f"the plugin did not start: {self._log.read_text()[-2000:]}") from None
                time.sleep(_POLL_SECONDS)
            else:
                return connection

    def stop(self) -> None:
        if self._connection is not None:
            self.call("Cleanup")
            self._connection.close()
            self._connection = None
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None
            self._address.unlink(missing_ok=True)

    def call(self, method: str, **arguments: object) -> dict[str, Any]:
        """Raises CowfsError with the driver's words."""
        return self._request(f"/GraphDriver.{method}", json.dumps(arguments).encode())

    def apply(self, layer_id: str, parent: str, archive: bytes) -> None:
        self._request(f"/GraphDriver.ApplyDiff?id={layer_id}&parent={parent}", archive)

    def peak_memory_bytes(self) -> int:
        """The process's largest resident size so far."""
        assert self._process is not None
        return accounting.peak_memory_bytes([self._process.pid]) or 0

    def _request(self, path: str, body: bytes) -> dict[str, Any]:
        assert self._connection is not None
        self._connection.request("POST", path, body)
        answer: dict[str, Any] = json.loads(self._connection.getresponse().read())
        if answer.get("Err"):
            raise CowfsError(f"{path}: {answer['Err']}")
        return answer
