"""Process 1 of the User-Mode Linux guest: loads modules, runs one command, carries its streams, and halts.

This file runs inside the guest on the standard library alone (`python3 -I -S init.py JOB`); the host side imports it
for the frames. JOB is a JSON file, see `Job`. Host and guest talk over one serial line, in both directions in frames:

    kind (1 byte)  length (4 bytes, little endian)  payload

    host to guest   INPUT   bytes of standard input; an empty one is its end
                    SIGNAL  number of a signal for the command's process group, decimal
    guest to host   READY   the line is in raw mode and the command is about to start
                    OUTPUT, ERRORS   bytes of standard output, standard error
                    TAKEN   how many bytes of input the command has taken, decimal: lets the host send more
                    EXIT    exit status, decimal (128 + n for a command ended by signal n), or the reason why it did
                            not start after `!`

When the line hangs up, the host side is gone: the guest ends the command and halts.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import struct
import subprocess
import termios
import time
import traceback
import tty
from collections.abc import Iterator
from typing import Final, TypedDict

READY: Final = b"R"
INPUT: Final = b"I"
SIGNAL: Final = b"S"
OUTPUT: Final = b"O"
ERRORS: Final = b"E"
TAKEN: Final = b"T"
EXIT: Final = b"X"

FRAME_HEADER: Final = struct.Struct("<cI")
# Input on its way that the command has not taken: what the serial line can hold without losing any.
INPUT_WINDOW_BYTES: Final = 2048

_LINE = "/dev/ttyS0"
_CHUNK_BYTES = 1 << 16
_ENDING_SECONDS = 2.0
_HALT = 0x4321FEDC  # linux/reboot.h: LINUX_REBOOT_CMD_POWER_OFF
_FINIT_MODULE = 313  # x86-64


class Job(TypedDict):
    """What the host side asks of the guest."""

    directory: str  # holds this file and the job; removed by the guest once it has them
    argv: list[str]
    cwd: str
    env: dict[str, str]
    modules: list[str]  # paths, in the order of loading
    host_mounts: list[str]  # directories of the host that the guest's own mounts would hide


def frame(kind: bytes, payload: bytes = b"") -> bytes:
    return FRAME_HEADER.pack(kind, len(payload)) + payload


class FrameReader:
    """Cuts a stream of bytes into frames."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        pending = self._pending
        pending += data
        while len(pending) >= FRAME_HEADER.size:
            kind, length = FRAME_HEADER.unpack_from(pending)
            end = FRAME_HEADER.size + length
            if len(pending) < end:
                return
            payload = bytes(pending[FRAME_HEADER.size : end])
            del pending[:end]
            yield kind, payload


class Command:
    """The command, its three pipes, and the line to the host."""

    def __init__(self, job: Job, line: int) -> None:
        self._line = line
        self._reader = FrameReader()
        self._input = bytearray()
        self._input_ended = False
        self._hung_up = False
        self._process = subprocess.Popen(
            job["argv"],
            cwd=job["cwd"],
            env=job["env"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            bufsize=0,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._stdin: int | None = os.dup(self._process.stdin.fileno())
        self._process.stdin.close()
        os.set_blocking(self._stdin, False)
        self._outputs = {self._process.stdout.fileno(): OUTPUT, self._process.stderr.fileno(): ERRORS}

    def run(self) -> int | None:
        """The exit status, or None when the host side ended."""
        exited = os.pidfd_open(self._process.pid)
        poll = select.poll()
        poll.register(self._line, select.POLLIN)
        poll.register(exited, select.POLLIN)
        for fd in self._outputs:
            poll.register(fd, select.POLLIN)
        while not self._hung_up:
            self._feed_stdin(poll)
            ready = dict(poll.poll())
            if self._line in ready:
                self._take_frames()
            for fd in [fd for fd in ready if fd in self._outputs]:
                if not self._forward(fd):
                    poll.unregister(fd)
                    del self._outputs[fd]
            if exited in ready:
                self._drain()
                status = self._process.wait()
                return status if status >= 0 else 128 - status
        self._process.kill()
        return None

    def _take_frames(self) -> None:
        try:
            data = os.read(self._line, _CHUNK_BYTES)
        except OSError:
            data = b""
        self._hung_up = not data
        for kind, payload in self._reader.feed(data):
            if kind == INPUT:
                self._input += payload
                self._input_ended |= not payload
            elif kind == SIGNAL:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, int(payload))

    def _feed_stdin(self, poll: select.poll) -> None:
        """Write what the pipe takes now; the poll asks for more room when something is left."""
        if self._stdin is None:
            return
        taken = 0
        closed = False
        try:
            while taken < len(self._input):
                taken += os.write(self._stdin, self._input[taken:])
        except BlockingIOError:
            pass
        except BrokenPipeError:
            taken, closed = len(self._input), True
        del self._input[:taken]
        if taken:
            self._send(TAKEN, b"%d" % taken)
        if self._input:
            poll.register(self._stdin, select.POLLOUT)
        else:
            with contextlib.suppress(KeyError):
                poll.unregister(self._stdin)
            if closed or self._input_ended:
                os.close(self._stdin)
                self._stdin = None

    def _forward(self, fd: int) -> bool:
        data = os.read(fd, _CHUNK_BYTES)
        if data:
            self._send(self._outputs[fd], data)
        return bool(data)

    def _drain(self) -> None:
        """Send what the command left in its pipes, without waiting for children of its that hold them open."""
        for fd in self._outputs:
            os.set_blocking(fd, False)
            with contextlib.suppress(BlockingIOError):
                while self._forward(fd):
                    pass

    def _send(self, kind: bytes, payload: bytes) -> None:
        try:
            send(self._line, kind, payload)
        except OSError:
            self._hung_up = True


def send(line: int, kind: bytes, payload: bytes = b"") -> None:
    view = memoryview(frame(kind, payload))
    while view:
        view = view[os.write(line, view) :]


class Kernel:
    """The few system calls of an init that Python has no function for."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)

    def mount(self, source: str, target: str, fstype: str, data: str = "") -> None:
        result = self._libc.mount(source.encode(), target.encode(), fstype.encode(), 0, data.encode())
        self._require(result, f"mount of {fstype} on {target}")

    def load_module(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        result = self._libc.syscall(_FINIT_MODULE, fd, b"", 0)
        os.close(fd)
        self._require(result, f"loading of {path}")

    def halt(self) -> None:
        self._libc.reboot(_HALT)

    @staticmethod
    def _require(result: int, what: str) -> None:
        if result != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{what} failed: {os.strerror(number).lower()}")


def prepare(kernel: Kernel, job: Job) -> None:
    kernel.mount("proc", "/proc", "proc")
    kernel.mount("sysfs", "/sys", "sysfs")
    kernel.mount("tmpfs", "/run", "tmpfs", "mode=755")
    for name, fstype in (("pts", "devpts"), ("shm", "tmpfs")):
        os.makedirs(f"/dev/{name}", exist_ok=True)
        kernel.mount(fstype, f"/dev/{name}", fstype)
    for path in job["host_mounts"]:
        os.makedirs(path, exist_ok=True)
        kernel.mount("host", path, "hostfs", path)
    for path in job["modules"]:
        kernel.load_module(path)
    # With udev's defaults these exist; without them tools cannot find their own descriptors.
    for name, target in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        with contextlib.suppress(FileExistsError):
            os.symlink(target, f"/dev/{name}")


def end_processes() -> None:
    """All other processes get SIGTERM, then SIGKILL; mounts of FUSE servers end with them."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, number)
        deadline = time.monotonic() + _ENDING_SECONDS
        while time.monotonic() < deadline:
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    time.sleep(0.01)
            except ChildProcessError:
                return


def _describe(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.filename else str(error)


def run_job(kernel: Kernel, job_path: str) -> None:
    line = os.open(_LINE, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    tty.setraw(line)
    with open(job_path, encoding="utf-8") as file:
        job: Job = json.load(file)
    shutil.rmtree(job["directory"], ignore_errors=True)
    try:
        prepare(kernel, job)
        send(line, READY)
        status = Command(job, line).run()
    except OSError as error:
        send(line, EXIT, b"!" + _describe(error).encode())
        drain(line)
        return
    end_processes()
    # The first pass writes file systems on loop devices, the second their files on the host.
    os.sync()
    os.sync()
    if status is not None:
        send(line, EXIT, b"%d" % status)
        drain(line)


def drain(line: int) -> None:
    """Wait until the host has taken everything, which a kernel that halts would forget."""
    with contextlib.suppress(OSError, termios.error):  # the line hung up: there is no reader any more
        termios.tcdrain(line)


def main(job_path: str) -> None:
    # It ends every process and halts the machine: on anything but the guest it was made for, that is the user's.
    if os.getpid() != 1:
        raise SystemExit("this is process 1 of a User-Mode Linux guest, and nothing else; run: cowfs uml -- COMMAND")
    kernel = Kernel()
    try:
        run_job(kernel, job_path)
    except BaseException:
        # An init that ends makes the kernel panic; the console reaches the host's log.
        traceback.print_exc()
    os.sync()
    kernel.halt()


if __name__ == "__main__":
    import sys

    main(sys.argv[1])
