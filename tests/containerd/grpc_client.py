"""A gRPC client of the snapshots service: one call at a time over h2, as containerd sends them."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import h2.config
import h2.connection
import h2.events

from cowfs.containerd.grpc import Code
from cowfs.containerd.messages import EMPTY, SNAPSHOTS, message_class

_ANSWERS = {
    "Prepare": ("PrepareSnapshotRequest", "PrepareSnapshotResponse"),
    "View": ("ViewSnapshotRequest", "ViewSnapshotResponse"),
    "Mounts": ("MountsRequest", "MountsResponse"),
    "Commit": ("CommitSnapshotRequest", ""),
    "Remove": ("RemoveSnapshotRequest", ""),
    "Stat": ("StatSnapshotRequest", "StatSnapshotResponse"),
    "Update": ("UpdateSnapshotRequest", "UpdateSnapshotResponse"),
    "List": ("ListSnapshotsRequest", "ListSnapshotsResponse"),
    "Usage": ("UsageRequest", "UsageResponse"),
    "Cleanup": ("CleanupRequest", ""),
}


class CallFailed(Exception):
    """A call that did not end well."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = Code(code)
        self.message = message


def connected(path: Path, require_alive: Callable[[], object]) -> GrpcClient:
    """A client of a server that has just been started. `require_alive` raises AssertionError when it has ended."""
    deadline = time.monotonic() + 120
    while True:
        try:
            return GrpcClient(path)
        except (FileNotFoundError, ConnectionRefusedError):
            require_alive()
            assert time.monotonic() < deadline, f"nothing listens on {path}"
            time.sleep(0.02)


class GrpcClient:
    """A connection, as a context manager."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(60)
        self._socket.connect(str(path))
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self._h2.initiate_connection()
        self._flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def call(self, method: str, **fields: Any) -> Any:
        """The answer of a method with one. Raises CallFailed."""
        (answer,) = self.answers(method, **fields)
        return answer

    def answers(self, method: str, **fields: Any) -> list[Any]:
        self.send(method, **fields)
        return self.received(method)

    def send(self, method: str, **fields: Any) -> None:
        """Ask, and do not wait; `received` follows."""
        request, _ = _ANSWERS[method]
        self.send_raw(f"/{SNAPSHOTS}/{method}", message_class(request)(**fields).SerializeToString())

    def received(self, method: str) -> list[Any]:
        """The answers to what was asked. Raises CallFailed."""
        _, answered_as = _ANSWERS[method]
        answer = message_class(answered_as) if answered_as else EMPTY
        return [answer.FromString(message) for message in self.received_raw()]

    def raw(self, path: str, message: bytes, headers: Sequence[tuple[str, str]] = ()) -> list[bytes]:
        """The messages of an answer. Raises CallFailed."""
        self.send_raw(path, message, headers)
        return self.received_raw()

    def send_raw(self, path: str, message: bytes, headers: Sequence[tuple[str, str]] = ()) -> None:
        number = self._h2.get_next_available_stream_id()
        first = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "localhost")]
        self._h2.send_headers(number, [*first, ("content-type", "application/grpc"), ("te", "trailers"), *headers])
        data = b"\0" + len(message).to_bytes(4, "big") + message
        for begin in range(0, len(data), 16384):
            self._h2.send_data(number, data[begin : begin + 16384])
        self._h2.end_stream(number)
        self._flush()

    def received_raw(self) -> list[bytes]:
        body = bytearray()
        end: dict[str, str] = {}
        while not end:
            received = self._socket.recv(1 << 16)
            assert received, "the server closed the connection"
            for event in self._h2.receive_data(received):
                if isinstance(event, h2.events.DataReceived):
                    body += event.data
                    self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, h2.events.TrailersReceived | h2.events.ResponseReceived):
                    headers = {str(name): str(value) for name, value in event.headers}
                    end = headers if "grpc-status" in headers else end  # an error may come without anything before it
                assert not isinstance(event, h2.events.StreamReset), "the call was reset"
            self._flush()
        if end["grpc-status"] != "0":
            raise CallFailed(int(end["grpc-status"]), end.get("grpc-message", ""))
        return list(_split(bytes(body)))

    def _flush(self) -> None:
        self._socket.sendall(self._h2.data_to_send())


def _split(body: bytes) -> list[bytes]:
    messages = []
    while body:
        length = int.from_bytes(body[1:5], "big")
        messages.append(body[5 : 5 + length])
        body = body[5 + length :]
    return messages
