"""What a kubelet asks of containerd: a few calls of the Kubernetes CRI, in the encoding of protobuf.

A message is a mapping of field numbers to values: a number, a text, another message, or a list of these.

Source: Kubernetes, `staging/src/k8s.io/cri-api/pkg/apis/runtime/v1/api.proto`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, Self, TypeAlias

from tests.containerd.grpc_client import GrpcClient

Message: TypeAlias = Mapping[int, Any]
_HOST_NETWORK: Final = {1: 2}  # NamespaceOption.network: NODE
_EXEC_SECONDS: Final = 30


class ImageFilesystem(NamedTuple):
    """Where images are, and the bytes that snapshots use there."""

    mount_point: str
    used_bytes: int


class Pod(NamedTuple):
    id: str
    config: Message


class Kubelet:
    """A connection to containerd's CRI, as a context manager. Calls raise CallFailed."""

    def __init__(self, socket: Path) -> None:
        self._client = GrpcClient(socket)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.__exit__()

    def pull(self, image: str) -> str:
        """The reference of a pulled image."""
        return _text(self._call("ImageService/PullImage", {1: {1: image}}), 1)

    def remove_image(self, image: str) -> None:
        self._call("ImageService/RemoveImage", {1: {1: image}})

    def image_filesystems(self) -> list[ImageFilesystem]:
        rows = [_decoded(row) for row in self._call("ImageService/ImageFsInfo", {}).get(1, [])]
        return [
            ImageFilesystem(_text(_decoded(row[2][0]), 1), _number(_decoded(row.get(3, [b""])[0]), 1)) for row in rows
        ]

    @contextmanager
    def pod(self, name: str, logs: Path) -> Iterator[Pod]:
        """A pod in the host's network, which is stopped and removed at the end, with its containers."""
        security = {2: {1: _HOST_NETWORK}}
        config: Message = {1: {1: name, 2: f"uid-{name}", 3: "default"}, 3: str(logs), 8: security}
        pod = Pod(_text(self._call("RuntimeService/RunPodSandbox", {1: config}), 1), config)
        try:
            yield pod
        finally:
            for method in ("StopPodSandbox", "RemovePodSandbox"):
                self._call(f"RuntimeService/{method}", {1: pod.id})

    def run_container(self, pod: Pod, image: str, command: Sequence[str]) -> str:
        """The id of a container that runs."""
        config = {1: {1: "one"}, 2: {1: image}, 3: list(command), 11: "one.log", 15: {2: {3: _HOST_NETWORK}}}
        made = self._call("RuntimeService/CreateContainer", {1: pod.id, 2: config, 3: pod.config})
        self._call("RuntimeService/StartContainer", {1: _text(made, 1)})
        return _text(made, 1)

    def exec(self, container: str, *command: str) -> str:
        """What a command says in a container."""
        done = self._call("RuntimeService/ExecSync", {1: container, 2: list(command), 3: _EXEC_SECONDS})
        assert _number(done, 3) == 0, done
        return _text(done, 1)

    def writable_bytes(self, container: str) -> int:
        """What the files of a container take, as its statistics say."""
        stats = _decoded(self._call("RuntimeService/ContainerStats", {1: container})[1][0])
        return _number(_decoded(_decoded(stats[4][0])[3][0]), 1) if 4 in stats else 0

    def _call(self, method: str, request: Message) -> dict[int, list[Any]]:
        (answer,) = self._client.raw(f"/runtime.v1.{method}", b"".join(_encoded(request)))
        return _decoded(answer)


def _encoded(message: Message) -> Iterator[bytes]:
    for number, value in message.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, int):
                yield _varint(number << 3) + _varint(one)
            else:
                data = one.encode() if isinstance(one, str) else b"".join(_encoded(one))
                yield _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    data = bytearray()
    while value > 127:
        data.append(value & 127 | 128)
        value >>= 7
    data.append(value)
    return bytes(data)


def _decoded(data: bytes) -> dict[int, list[Any]]:
    """By field, its values: numbers, and the bytes of texts and messages."""
    fields: dict[int, list[Any]] = {}
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = data[position]
            position += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while position < len(data):
        key = varint()
        value: int | bytes = varint()
        if key & 7 == 2:
            length = int(value)
            value = data[position : position + length]
            position += length
        else:
            assert key & 7 == 0, "no other kinds are in these messages"
        fields.setdefault(key >> 3, []).append(value)
    return fields


def _text(fields: Mapping[int, list[Any]], number: int) -> str:
    return bytes(fields.get(number, [b""])[-1]).decode()


def _number(fields: Mapping[int, list[Any]], number: int) -> int:
    return int(fields.get(number, [0])[-1])
