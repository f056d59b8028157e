"""Processes of `cowfs` from an interpreter on standby: it has loaded every module, and forks for each command.

A command is a separate process as ever, with its own arguments, streams, directory and environment, and so is a
server that it puts in the background. What is saved is the start of Python and the loading of modules, which is most of
what a short command costs.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import io
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import types
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, Final, NamedTuple

STREAMS: Final = 3
REQUEST_BYTES: Final = 1 << 17
MOST_FDS: Final = 16
HIGH_FD: Final = 100  # above those of the process to be
COMMANDS: Final = ("cowfs", "cowfs_emulated", "cowfs_dmthin")  # the packages that they need
SERVERS: Final = ("cowfs.home.serving", "cowfs.fuse", "cowfs_dmthin")
NUMBER: Final = struct.Struct("<i")


class Request(NamedTuple):
    """What to run, and as what.

    Attributes:
        arguments: `cowfs ...`, or `python {-c CODE|-m MODULE} ...`.
        passed: numbers of its descriptors besides the three streams.
        mask: its umask, if that is not the interpreter's.
    """

    arguments: list[str]
    cwd: str
    env: dict[str, str]
    passed: Sequence[int] = ()
    new_session: bool = False
    mask: int | None = None


class Process:
    """A process that an interpreter on standby has forked; the part of subprocess.Popen that is needed of it."""

    stdin: IO[bytes] | None = None
    stdout: IO[bytes] | None = None
    stderr: IO[bytes] | None = None

    def __init__(self, line: socket.socket, request: Request, fds: Sequence[int]) -> None:
        self.returncode: int | None = None
        self._told, told = os.pipe()
        try:
            socket.send_fds(line, [json.dumps(request).encode()], [*fds, told])
        finally:
            os.close(told)
        (self.pid,) = NUMBER.unpack(os.read(self._told, NUMBER.size))

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._told], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            (self.returncode,) = NUMBER.unpack(os.read(self._told, NUMBER.size))
            os.close(self._told)
        return int(self.returncode)

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


class Standby:
    """The interpreter of one user, until it is closed.

    Args:
        env: its environment while it waits.
        commands: an empty directory, which gets a `cowfs` for shells that this interpreter forks, for its user alone.
        options: of subprocess.Popen: the user.
    """

    def __init__(self, env: Mapping[str, str], commands: str, uid: int, **options: Any) -> None:
        self.commands = commands
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._from_shells = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        with theirs:
            fds = [theirs.fileno(), self._from_shells.fileno()]
            self._interpreter = subprocess.Popen(
                [sys.executable, __file__, *map(str, fds)], stdin=subprocess.DEVNULL, env=env, pass_fds=fds, **options
            )
        self._make_command(uid)

    @property
    def line(self) -> socket.socket:
        """What takes requests."""
        return self._line

    def close(self) -> None:
        self._line.close()
        self._from_shells.close()
        self._interpreter.wait()

    def _make_command(self, uid: int) -> None:
        address, command = (os.path.join(self.commands, name) for name in ("standby", "cowfs"))
        self._from_shells.bind(address)
        os.chmod(address, 0o600)
        os.chown(address, uid, -1)
        with open(os.path.join(os.path.dirname(__file__), "standby_command.py"), encoding="utf-8") as source:
            text = f"#!{sys.executable} -IS\n{source.read()}"
        with open(command, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(command, 0o755)

    def run(self, request: Request, text_input: str, timeout_seconds: float) -> subprocess.CompletedProcess[str]:
        """As subprocess.run, with both outputs captured.

        Raises:
            subprocess.TimeoutExpired: the command was killed then.
        """
        deadline = time.monotonic() + timeout_seconds
        with contextlib.ExitStack() as ours:
            with contextlib.ExitStack() as theirs:
                source = theirs.enter_context(tempfile.TemporaryFile())
                source.write(text_input.encode())
                source.seek(0)
                pipes = [os.pipe() for _ in range(2)]
                for reader, writer in pipes:
                    ours.callback(os.close, reader)
                    theirs.callback(os.close, writer)
                process = Process(self._line, request, [source.fileno(), *(writer for _, writer in pipes)])
            try:
                out, err = read_all([reader for reader, _ in pipes], deadline)
                status = process.wait(deadline - time.monotonic())
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise subprocess.TimeoutExpired(request.arguments, timeout_seconds) from None
        return subprocess.CompletedProcess(request.arguments, status, out.decode(), err.decode())


def fork_servers(line_of: Callable[[], socket.socket], modules: Sequence[str] = ("cowfs.fuse.background",)) -> None:
    """Have the processes that these modules start forked from an interpreter on standby, if they run Python modules."""
    known: list[socket.socket] = []

    def start(argv: Sequence[str], **options: Any) -> Process | subprocess.Popen[bytes]:
        if argv[0] != sys.executable or argv[1].endswith(".py"):
            return subprocess.Popen(argv, **options)
        if not known:
            known.append(line_of())
        return popen(known[0], argv, **options)

    replaced = types.SimpleNamespace(**{**vars(subprocess), "Popen": start})
    for module in modules:
        vars(importlib.import_module(module))["subprocess"] = replaced


def popen(
    line: socket.socket,
    argv: Sequence[str],
    *,
    stdin: int | IO[bytes] | None = None,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
    pass_fds: Sequence[int] = (),
    start_new_session: bool = False,
) -> Process:
    """As subprocess.Popen."""
    ours: list[IO[bytes] | None] = [None] * STREAMS
    fds = []
    with contextlib.ExitStack() as theirs:
        for number, stream in enumerate((stdin, stdout, stderr)):
            if stream == subprocess.PIPE:
                reader, writer = os.pipe()
                fd, end = (reader, writer) if number == 0 else (writer, reader)
                theirs.callback(os.close, fd)
                ours[number] = os.fdopen(end, "wb" if number == 0 else "rb")
            elif stream == subprocess.DEVNULL:
                fd = theirs.enter_context(open(os.devnull, "r+b", 0)).fileno()
            elif stream is None:
                fd = number
            else:
                fd = stream if isinstance(stream, int) else stream.fileno()
            fds.append(fd)
        request = Request(list(argv), os.getcwd(), dict(os.environ), pass_fds, start_new_session)
        process = Process(line, request, [*fds, *pass_fds])
    process.stdin, process.stdout, process.stderr = ours
    return process


def fork_servers_from_here() -> None:
    """Have them forked from a process that this one, which should be young, forks now. It ends with this one."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        ours.close()
        main([theirs], SERVERS)
        os._exit(0)
    theirs.close()
    fork_servers(lambda: ours)


def read_all(fds: Sequence[int], deadline: float) -> list[bytes]:
    """What each gives until its end. Raises subprocess.TimeoutExpired."""
    found = {fd: bytearray() for fd in fds}
    left = set(fds)
    while left:
        ready, _, _ = select.select(left, [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise subprocess.TimeoutExpired("", 0)
        for fd in ready:
            data = os.read(fd, 1 << 16)
            found[fd] += data
            if not data:
                left.remove(fd)
    return [bytes(found[fd]) for fd in fds]


# --- the interpreter


def main(lines: Sequence[socket.socket], packages: Sequence[str]) -> None:
    load(packages)
    request = serve(lines)
    if request is None:
        return
    status: Any = 0
    try:
        run(request.arguments)
    except SystemExit as error:
        status = error.code
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    os._exit(status or 0)  # taking all modules apart would copy the memory that is shared


def load(packages: Sequence[str]) -> None:
    """Load their modules, and what these need, so that no process does it."""
    for package in packages:
        for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    gc.collect()
    gc.freeze()  # a collection in a child would copy all of it


def serve(asking: Sequence[socket.socket]) -> Request | None:
    """Fork for each request; returns in the children with their request, and without one when the first line ends.

    Processes that it has forked ask for others by a separate line, which does not keep this one from its end.
    """
    inner, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    children_line = fcntl.fcntl(theirs, fcntl.F_DUPFD_CLOEXEC, HIGH_FD)
    lines = {one.fileno(): one for one in (*asking, inner)}
    running: dict[int, tuple[int, int]] = {}  # by descriptor of a process: its number, and where its end is told
    poll = select.poll()
    for fd in lines:
        poll.register(fd, select.POLLIN)
    while True:
        for ready, _ in poll.poll():
            if ready in running:
                poll.unregister(ready)
                pid, told = running.pop(ready)
                _, status = os.waitpid(pid, 0)
                with contextlib.suppress(BrokenPipeError):  # nothing waits for it
                    os.write(told, NUMBER.pack(os.waitstatus_to_exitcode(status)))
                os.close(told)
                os.close(ready)
                continue
            data, fds, _, _ = socket.recv_fds(lines[ready], REQUEST_BYTES, MOST_FDS)
            if not data:
                return None
            pid = os.fork()
            if pid == 0:
                for one in (*lines.values(), theirs):
                    one.detach()
                request = Request(*json.loads(data))
                become(request, fds[:-1], children_line)
                return request
            os.write(fds[-1], NUMBER.pack(pid))
            for fd in fds[:-1]:
                os.close(fd)
            process = os.pidfd_open(pid)
            running[process] = pid, fds[-1]
            poll.register(process, select.POLLIN)


def become(request: Request, fds: list[int], children_line: int) -> None:
    """Be as a process that was started like this."""
    numbers = [0, 1, 2, *request.passed]
    assert max(numbers) < HIGH_FD
    for number, fd in zip(numbers, [fcntl.fcntl(fd, fcntl.F_DUPFD, HIGH_FD) for fd in fds], strict=True):
        os.dup2(fd, number)
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd not in (*numbers, children_line):
            with contextlib.suppress(OSError):  # of the directory itself
                os.close(fd)
    if request.new_session:
        os.setsid()
    if request.mask is not None:
        os.umask(request.mask)
    os.chdir(request.cwd)
    os.environ.clear()
    os.environ.update(request.env)
    tempfile.tempdir = None
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), "utf-8", "surrogateescape")
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, "w", closefd=False)), "utf-8", "surrogateescape")
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), "utf-8", "backslashreplace", line_buffering=True)
    fork_servers(lambda: socket.socket(fileno=children_line))


def run(arguments: list[str]) -> None:
    name, *words = arguments
    if name == "cowfs":
        words = ["-m", "cowfs", *words]
    if words[0] == "-P":
        del words[0]
    option, what, *words = words
    sys.argv = [option, *words]
    if option == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        assert option == "-c"
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    sys.path[0] = os.path.dirname(sys.executable)  # as for the command
    main([socket.socket(fileno=int(number)) for number in sys.argv[1:]], COMMANDS)
