"""`Files` of directories in a separate process: a call that does not return ends the process, not the test.

cases ── requests, answers: length and msgpack ── the process: DirectoryFiles
"""

from __future__ import annotations

import errno
import os
import select
import struct
import subprocess
import sys
import time
from typing import Any, Final, TypeVar

import msgspec

from cowfs.testing.layers.files import DirectoryFiles, Entry

T = TypeVar("T")
_LENGTH: Final = struct.Struct("<I")
_PIECE_BYTES: Final = 1 << 20
_CALL_SECONDS: Final = 120.0
_PROGRAM: Final = "from cowfs.testing.layers import remote; remote.serve()"


class _Answer(msgspec.Struct, array_like=True):
    result: msgspec.Raw
    error: int = 0
    reason: str = ""


class FileProcess:
    """Works on files on request; `close` ends it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # signals of a terminal are for the one who asks
        )

    def close(self) -> None:
        if self._process.stdin is None or self._process.stdout is None or self._process.stdin.closed:
            return
        self._process.stdin.close()
        try:
            self._process.wait(_CALL_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def files(self, root: str) -> RemoteFiles:
        return RemoteFiles(self, root)

    def call(self, kind: type[T], root: str, method: str, arguments: tuple[object, ...]) -> T:
        """Call a method of `DirectoryFiles`. Raises OSError as it does, and AssertionError when there is no answer."""
        assert self._process.stdin is not None
        request = msgspec.msgpack.encode((root, method, arguments))
        self._process.stdin.write(_LENGTH.pack(len(request)) + request)
        self._process.stdin.flush()
        deadline = time.monotonic() + _CALL_SECONDS
        try:
            (length,) = _LENGTH.unpack(self._read(_LENGTH.size, deadline))
            answer = msgspec.msgpack.decode(self._read(length, deadline), type=_Answer)
        except (TimeoutError, EOFError) as error:
            self._process.kill()
            raise AssertionError(f"'{method}' below {root}: {error}") from None
        if answer.error:
            raise OSError(answer.error, answer.reason)
        return msgspec.msgpack.decode(answer.result, type=kind)

    def _read(self, length: int, deadline: float) -> bytes:
        assert self._process.stdout is not None
        fd, data = self._process.stdout.fileno(), bytearray()
        while len(data) < length:
            ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(f"it did not return within {_CALL_SECONDS:.0f} s")
            piece = os.read(fd, min(length - len(data), _PIECE_BYTES))
            if not piece:
                raise EOFError("the process ended")
            data += piece
        return bytes(data)


class RemoteFiles:
    """`Files` in a directory, through a process."""

    def __init__(self, process: FileProcess, root: str) -> None:
        self._process = process
        self._root = root

    def _call(self, kind: type[T], method: str, *arguments: object) -> T:
        return self._process.call(kind, self._root, method, arguments)

    def write(self, path: str, data: bytes, mode: int = 0o644) -> None:
        self._call(type(None), "write", path, data, mode)

    def write_many(self, contents: dict[str, bytes]) -> None:
        self._call(type(None), "write_many", contents)

    def write_at(self, path: str, offset: int, data: bytes) -> None:
        self._call(type(None), "write_at", path, offset, data)

    def read(self, path: str) -> bytes:
        return self._call(bytes, "read", path)

    def make_directory(self, path: str, mode: int = 0o755) -> None:
        self._call(type(None), "make_directory", path, mode)

    def make_symlink(self, path: str, target: str) -> None:
        self._call(type(None), "make_symlink", path, target)

    def make_link(self, path: str, existing: str) -> None:
        self._call(type(None), "make_link", path, existing)

    def make_node(self, path: str, mode: int, rdev: int = 0) -> None:
        self._call(type(None), "make_node", path, mode, rdev)

    def remove(self, path: str) -> None:
        self._call(type(None), "remove", path)

    def rename(self, path: str, new_path: str) -> None:
        self._call(type(None), "rename", path, new_path)

    def set_mode(self, path: str, mode: int) -> None:
        self._call(type(None), "set_mode", path, mode)

    def set_owner(self, path: str, uid: int, gid: int) -> None:
        self._call(type(None), "set_owner", path, uid, gid)

    def set_mtime(self, path: str, mtime_ns: int) -> None:
        self._call(type(None), "set_mtime", path, mtime_ns)

    def set_xattr(self, path: str, name: str, value: bytes) -> None:
        self._call(type(None), "set_xattr", path, name, value)

    def list(self, path: str = "") -> list[str]:
        return self._call(list[str], "list", path)

    def entry(self, path: str = "") -> Entry:
        return self._call(Entry, "entry", path)

    def tree(self) -> dict[str, Entry]:
        return self._call(dict[str, Entry], "tree")


# ---------------------------------------------------------------------------- the other side


def serve() -> None:
    """Answer on the standard streams until the input ends."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    while length := requests.read(_LENGTH.size):
        request = requests.read(*_LENGTH.unpack(length))
        root, method, arguments = msgspec.msgpack.decode(request, type=tuple[str, str, list[Any]])
        try:
            result = getattr(DirectoryFiles(root), method)(*arguments)
            answer = _Answer(msgspec.Raw(msgspec.msgpack.encode(result)))
        except OSError as error:
            nothing = msgspec.Raw(msgspec.msgpack.encode(None))
            answer = _Answer(nothing, error.errno or errno.EIO, f"{method}: {error}")
        data = msgspec.msgpack.encode(answer)
        answers.write(_LENGTH.pack(len(data)) + data)
        answers.flush()
