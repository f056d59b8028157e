"""The host side: boot a guest for one command, carry its streams, bring back its exit status, leave nothing.

    caller ── stdin, stdout, stderr ── run() ══ socket, frames (init.py) ══ linux.uml ── init.py ── command

The guest's root is the host's root through hostfs, so the command works on the host's files with the rights of the
user who called. The guest has file locks of its own: a lock held by a process of the host is not seen inside.

How a guest ends: its command ends (init halts); or the socket closes, because this side is gone (init ends the command
and halts); or this side kills the process group (the last resort, after asking).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Final

from cowfs.errors import UmlError
from cowfs.uml import init
from cowfs.uml.kernel import UmlKernel, find_kernel
from cowfs.uml.processor import claimed_processor
from cowfs.uml.processor_state import has_large_registers, open_enlarged

DEFAULT_MEMORY_BYTES: Final = 512 << 20
BOOT_TIMEOUT_SECONDS: Final = 60.0
# How long a command that was asked to end may take, and then the guest to halt, before it is killed.
ENDING_SECONDS: Final = 10.0

_CHUNK_BYTES = 1 << 16
_CONSOLE_LINES: Final = 12
# A kernel measures for a second in which way it computes RAID 6 fastest, whether anything needs it or not.
_NO_RAID6: Final = "initcall_blacklist=raid6_select_algo"
# Directories that the guest's own mounts hide, given back as they are on the host.
_HIDDEN_DIRECTORIES = ("/dev/shm",)  # noqa: S108
_DEFAULT_ENVIRONMENT: Final[Mapping[str, str]] = {
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
}


def run(
    argv: Sequence[str],
    *,
    kernel: UmlKernel | None = None,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] = _DEFAULT_ENVIRONMENT,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    timeout_seconds: float | None = None,
    silence_seconds: float | None = None,
    stdin: int | None = None,
    stdout: Callable[[bytes], object] | None = None,
    stderr: Callable[[bytes], object] | None = None,
) -> int:
    """Run a command in User-Mode Linux with dm-thin loaded, as the guest's root and with the caller's rights on files.

    Args:
        argv: the command and its arguments; found along the `PATH` of `env`.
        cwd: where it starts; the current directory when None.
        env: its whole environment (DM_DISABLE_UDEV is added: no udev runs inside).
        memory_bytes: memory of the guest.
        timeout_seconds: for the command, counted from the start of the boot.
        silence_seconds: from one piece of the command's output to the next, for a command that tells of its steps.
        stdin: descriptor to read its standard input from; None for no input.
        stdout, stderr: what takes its output, piece by piece as it comes; this process's own streams when None.

    Returns:
        The exit status; 128 + n when signal n ended the command.

    Raises:
        MissingRequirement: no User-Mode Linux here.
        UmlError: the guest did not boot or broke off (EIO), the command could not be started (its errno's text), or it
            ran out of time or was silent for too long (ETIMEDOUT).
        KeyboardInterrupt: after the command was interrupted and the guest ended.
    """
    command = [str(argument) for argument in argv]
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    with _booted(kernel or find_kernel(), command, cwd, env, memory_bytes) as guest:
        streams = {
            init.OUTPUT: stdout or _writer(sys.stdout.buffer),
            init.ERRORS: stderr or _writer(sys.stderr.buffer),
        }
        try:
            status = guest.carry(stdin, streams, deadline, silence_seconds)
        except KeyboardInterrupt:
            guest.end_command(signal.SIGINT, streams)
            raise
        if status is None:
            if deadline is not None and time.monotonic() >= deadline:
                limit = f"{timeout_seconds:g} seconds"
            else:
                limit = f"{silence_seconds:g} seconds without output"
            guest.end_command(signal.SIGTERM, streams)
            raise UmlError(f"'{command[0]}' in User-Mode Linux was ended after {limit}", timed_out=True)
        guest.wait_until_halted()
        return status


def run_captured(
    argv: Sequence[str], *, text_input: str = "", check: bool = False, **options: object
) -> subprocess.CompletedProcess[str]:
    """`run` with input from a string and output into strings.

    Raises:
        subprocess.CalledProcessError: with `check`, when the exit status is not 0.
    """
    outputs: tuple[list[bytes], list[bytes]] = ([], [])
    with tempfile.TemporaryFile() as source:
        source.write(text_input.encode())
        source.seek(0)
        status = run(
            argv,
            stdin=source.fileno(),
            stdout=outputs[0].append,
            stderr=outputs[1].append,
            **options,  # type: ignore[arg-type]
        )
    stdout, stderr = (b"".join(pieces).decode(errors="replace") for pieces in outputs)
    if check and status != 0:
        raise subprocess.CalledProcessError(status, list(argv), stdout, stderr)
    return subprocess.CompletedProcess(list(argv), status, stdout, stderr)


class _Guest:
    """A running guest: its process, its socket, the log of its console."""

    def __init__(self, process: subprocess.Popen[bytes], link: socket.socket, console: IO[bytes]) -> None:
        self._process = process
        self._link = link
        self._console = console
        self._reader = init.FrameReader()
        self._unsent = bytearray()
        self._window = init.INPUT_WINDOW_BYTES
        self._ready = False
        self._heard = 0.0  # when output came last, or the command started
        self._exit: bytes | None = None
        link.setblocking(False)

    def carry(
        self,
        stdin: int | None,
        streams: Mapping[bytes, Callable[[bytes], object]],
        deadline: float | None,
        silence_seconds: float | None = None,
    ) -> int | None:
        """Carry bytes until the command ends and give its status; None when the deadline, or long silence, came first.

        Raises:
            UmlError: the guest broke off, or could not start the command.
        """
        boot_deadline = time.monotonic() + BOOT_TIMEOUT_SECONDS
        input_open = True
        if stdin is None:
            self._unsent += init.frame(init.INPUT)
            input_open = False
        while self._exit is None:
            limits = [] if deadline is None else [deadline]
            if not self._ready:
                limits.append(boot_deadline)
            elif silence_seconds is not None:
                limits.append(self._heard + silence_seconds)
            left = min(limits) - time.monotonic() if limits else None
            if left is not None and left <= 0:
                if self._ready or (deadline is not None and time.monotonic() >= deadline):
                    return None
                raise self._broken(f"did not boot within {BOOT_TIMEOUT_SECONDS:g} seconds")
            wants_input = self._ready and input_open and not self._unsent and self._window > 0
            ready = self._poll(stdin if wants_input else None, left)
            if stdin is not None and stdin in ready:
                data = os.read(stdin, self._window)
                self._window -= len(data)
                self._unsent += init.frame(init.INPUT, data)
                input_open = bool(data)
            self._exchange(streams)
        if self._exit.startswith(b"!"):
            raise UmlError(f"the command could not be started in User-Mode Linux: {self._exit[1:].decode()}")
        return int(self._exit)

    def end_command(self, number: signal.Signals, streams: Mapping[bytes, Callable[[bytes], object]]) -> None:
        """Ask the command to end, and give it and the guest a while for it."""
        self._unsent += init.frame(init.SIGNAL, b"%d" % number)
        with contextlib.suppress(UmlError):
            self.carry(None, streams, time.monotonic() + ENDING_SECONDS)
        self._link.close()
        self.wait_until_halted()

    def wait_until_halted(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(ENDING_SECONDS)

    def _poll(self, stdin: int | None, timeout_seconds: float | None) -> set[int]:
        poll = select.poll()
        poll.register(self._link, select.POLLIN | (select.POLLOUT if self._ready and self._unsent else 0))
        if stdin is not None:
            poll.register(stdin, select.POLLIN)
        return {fd for fd, _ in poll.poll(None if timeout_seconds is None else timeout_seconds * 1000)}

    def _exchange(self, streams: Mapping[bytes, Callable[[bytes], object]]) -> None:
        """Send and receive what can be without waiting."""
        try:
            if self._ready and self._unsent:
                del self._unsent[: self._link.send(self._unsent)]
            data = self._link.recv(_CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            raise self._broken("broke off")
        for kind, payload in self._reader.feed(data):
            if kind not in (init.TAKEN, init.EXIT):
                self._heard = time.monotonic()
            if kind == init.READY:
                self._ready = True
            elif kind == init.TAKEN:
                self._window += int(payload)
            elif kind == init.EXIT:
                self._exit = payload
            else:
                streams[kind](payload)

    def _broken(self, what: str) -> UmlError:
        self._console.seek(0)
        lines = self._console.read().decode(errors="replace").split("\n")
        said = " | ".join([line.strip() for line in lines if line.strip()][-_CONSOLE_LINES:])
        return UmlError(f"User-Mode Linux {what}; its console said: {said or 'nothing'}")


@contextlib.contextmanager
def _booted(
    kernel: UmlKernel,
    argv: Sequence[str],
    cwd: str | os.PathLike[str] | None,
    env: Mapping[str, str],
    memory_bytes: int,
) -> Iterator[_Guest]:
    """A guest on its way up, killed at the end if it is still there; its files are removed."""
    folder = Path(tempfile.mkdtemp(prefix="cowfs-uml-", dir=_plain_directory()))
    umid = f"{folder.name}-run"
    try:
        job: init.Job = {
            "directory": str(folder),
            "argv": list(argv),
            "cwd": os.path.abspath(cwd or os.getcwd()),
            "env": dict(env) | {"DM_DISABLE_UDEV": "1"},
            "modules": kernel.module_paths(),
            "host_mounts": [path for path in _HIDDEN_DIRECTORIES if os.path.isdir(path)],
        }
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        shutil.copyfile(init.__file__, folder / "init.py")
        # The kernel splits its command line at blanks, so the interpreter has a name without any.
        (folder / "python").symlink_to(os.path.realpath(sys.executable))
        ours, theirs = socket.socketpair()
        with ours, tempfile.TemporaryFile() as console, claimed_processor() as processor:
            with theirs:
                process = _start(kernel, folder, umid, theirs.fileno(), console, memory_bytes)
            if processor is not None:
                os.sched_setaffinity(process.pid, {processor})
            try:
                yield _Guest(process, ours, console)
            finally:
                _kill_group(process)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(folder.with_name(umid), ignore_errors=True)


def _start(
    kernel: UmlKernel, folder: Path, umid: str, line: int, console: IO[bytes], memory_bytes: int
) -> subprocess.Popen[bytes]:
    arguments = [
        f"mem={memory_bytes >> 20}M",
        *("rootfstype=hostfs", "rootflags=/", "rw", f"init={folder}/python", "quiet", _NO_RAID6),
        *("con=null", "con0=null,fd:1", "ssl=null", f"ssl0=fd:{line}"),
        *(f"uml_dir={folder.parent}/", f"umid={umid}"),
        *("--", "-I", "-S", f"{folder}/init.py", f"{folder}/job.json"),
    ]
    with contextlib.ExitStack() as stack:
        executable, passed = str(kernel.executable), [line]
        if has_large_registers():
            fd = open_enlarged(kernel.executable)
            stack.callback(os.close, fd)
            executable = f"/proc/self/fd/{fd}"
            passed.append(fd)
        return subprocess.Popen(
            [executable, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            env={"TMPDIR": _memory_directory(memory_bytes), "HOME": str(folder), "PATH": _DEFAULT_ENVIRONMENT["PATH"]},
            pass_fds=passed,
            start_new_session=True,
        )


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """End what is left of a guest: the kernel, and the processes that it traces."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _plain_directory() -> str:
    """The directory for temporary files, unless its name has blanks or the guest hides it."""
    path = os.path.realpath(tempfile.gettempdir())
    hidden = any(f"{path}/".startswith(f"{top}/") for top in ("/run", "/dev", "/proc", "/sys"))
    return "/tmp" if hidden or any(c.isspace() for c in path) else path  # noqa: S108


def _memory_directory(memory_bytes: int) -> str:
    """Where the file that is the guest's memory is made: in memory if it may be mapped executable there and fits."""
    with contextlib.suppress(OSError):
        found = os.statvfs("/dev/shm")  # noqa: S108
        if not found.f_flag & os.ST_NOEXEC and found.f_bavail * found.f_frsize >= memory_bytes:
            return "/dev/shm"  # noqa: S108
    return tempfile.gettempdir()


def _writer(stream: IO[bytes]) -> Callable[[bytes], object]:
    def write(data: bytes) -> None:
        stream.write(data)
        stream.flush()

    return write
