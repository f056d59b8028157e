"""Crash tests of programs: one that works on files and sets marks, one that checks what a crash left.

    work    ./writer {}             {} is the directory of its files
    check   ./checker {} {marks}    exit status 0 when the files in {} are sound and hold what was promised

A command line is split as a shell would and run without one. Within an argument, `{}` is replaced by the path, and
`{marks}` by the marks joined with commas; an argument that is `{marks}` alone becomes one argument for each mark.

Marks. The work finds the path of a Unix stream socket in its environment, in `COWFS_CRASH_MARKS`. It connects, writes
a line, and waits for the line `ok`: then the mark is in the recording, after everything that it had done before.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import msgspec

from cowfs.crashes.explorer import CrashState, Explorer
from cowfs.crashes.history import State
from cowfs.crashes.naming import describe_loss
from cowfs.crashes.running import Programs
from cowfs.crashes.shrinking import smallest, with_what_came_after
from cowfs.errors import CowfsError, UsageError
from cowfs.steps import Progress

MARKS_VARIABLE: Final = "COWFS_CRASH_MARKS"
_OUTPUT_BYTES: Final = 2000  # of the end of what a check prints
_SHRUNK_MAX: Final = 5
_LINE_BYTES: Final = 8192


@dataclass(frozen=True, slots=True)
class Command:
    """A command line with placeholders.

    Args:
        option: where it comes from, for messages.
    """

    words: tuple[str, ...]
    option: str

    @classmethod
    def parsed(cls, text: str, option: str) -> Command:
        """Raises UsageError for a line that cannot be split, that is empty, or that does not say where the files go."""
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise UsageError(f"{option} '{text}' cannot be split into words: {error}") from None
        if not words:
            raise UsageError(f"{option} is empty; give a program and its arguments")
        if not any("{}" in word for word in words):
            raise UsageError(f"{option} '{text}' has no {{}}: put {{}} where the directory of the files belongs")
        if shutil.which(words[0]) is None and "{}" not in words[0]:
            raise UsageError(f"{option}: there is no program '{words[0]}'")
        return cls(tuple(words), option)

    def arguments(self, path: Path, marks: Sequence[str] = ()) -> list[str]:
        """The arguments, the program's name first."""
        found: list[str] = []
        for word in self.words:
            if word == "{marks}":
                found += marks
            else:
                found.append(word.replace("{marks}", ",".join(marks)).replace("{}", str(path)))
        return found


class Failure(msgspec.Struct, frozen=True):
    """A state whose check failed, shrunk to the fewest lost writes.

    Attributes:
        number: the first state of those that were tried that failed so, from 1.
        description: what persisted before what, or what was lost.
        lost: each write that is lost.
        marks: what had been promised.
        position: of the crash, in events of the recording.
        status, output: the exit status of the check, below zero for a signal; the end of what it printed, then how it
            ended.
        device: the device that it is kept as; empty for none.
        files: what is in it: path, size, and for a small text its first line.
    """

    number: int
    description: str
    lost: list[str]
    marks: list[str]
    position: int
    status: int
    output: str
    device: str = ""
    files: list[tuple[str, int, str]] = []


def how_ended(status: int) -> str:
    """The status of a program that ended, in words: its exit status, or the signal that ended it."""
    if status >= 0:
        return f"exit status {status}"
    with suppress(ValueError):
        return f"signal {-status} ({signal.Signals(-status).name})"
    return f"signal {-status}"


class Outcome(msgspec.Struct, frozen=True):
    """What a crash test found.

    Attributes:
        states: how many were opened, each of other content.
        failed: how many of them failed.
        failures: the smallest of each kind, at most five.
        events: how many writes or operations, flushes and marks were recorded.
    """

    model: str
    seed: int
    states: int
    failed: int
    failures: list[Failure]
    events: int
    flushes: int
    marks: list[str]
    failed_positions: list[int]


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a check ended: 0 is well, below zero a signal; one that took too long was killed, and its output says so."""

    status: int
    output: str

    @classmethod
    def of(cls, status: int, printed: str, how: str) -> Verdict:
        """Its output is what the check printed and, where it failed, a line that says how it ended."""
        if not status:
            return cls(status, printed)
        line = "" if not printed or printed.endswith("\n") else "\n"
        return cls(status, f"{printed}{line}{how}\n")


class MarkSocket:
    """Sets a mark for each line that comes over a Unix socket, and answers `ok`."""

    def __init__(self, path: Path, mark: Callable[[str], None]) -> None:
        self._mark = mark
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(str(path))
        self._socket.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, client.makefile("rb") as lines, suppress(OSError):
            while line := lines.readline(_LINE_BYTES):
                try:
                    self._mark(line.decode().rstrip("\n"))
                except (CowfsError, UnicodeDecodeError) as error:
                    client.sendall(f"error: {error}\n".encode())
                else:
                    client.sendall(b"ok\n")

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def send_mark(socket_path: str, text: str) -> None:
    """Set a mark from within the work. Raises UsageError when that is not possible."""
    if "\n" in text:
        raise UsageError("a mark is one line of text")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(socket_path)
            connection.sendall(text.encode() + b"\n")
            with connection.makefile("r") as lines:
                answer = lines.readline(_LINE_BYTES).strip()
    except OSError as error:
        raise UsageError(f"no crash test records at {socket_path}: {error.strerror or error}") from None
    if answer != "ok":
        raise UsageError(f"the mark '{text}' was not set: {answer.removeprefix('error: ') or 'no answer'}")


class CrashTest:
    """The crash test of a program.

    Args:
        environment: of the programs.
        limit_seconds: how long the work may take, and each check; a check that takes longer has failed.
        jobs: how many checks run at a time.
    """

    def __init__(
        self,
        explorer: Explorer,
        work: Command,
        check: Command,
        *,
        environment: Mapping[str, str],
        limit_seconds: float = 60.0,
        jobs: int = 2,
    ) -> None:
        self._explorer = explorer
        self._work = work
        self._check = check
        self._programs = Programs(environment, limit_seconds)
        self._jobs = jobs

    def record(self) -> None:
        """Run the work. Raises UsageError when it cannot be run, or fails."""
        with ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cowfs-marks-")))
            marks = MarkSocket(directory / "marks", self._explorer.mark)
            stack.callback(marks.close)
            with self._explorer.record() as path:
                arguments = self._work.arguments(path)
                try:
                    ended = self._programs.run(arguments, variables={MARKS_VARIABLE: str(directory / "marks")})
                except OSError as error:
                    raise UsageError(f"--work cannot run {arguments[0]}: {error.strerror}") from None
        if not ended.in_time:
            raise UsageError(
                f"--work {shlex.join(arguments)} took more than {self._programs.seconds:g} s and was killed; nothing "
                "was tested; give it more time with --timeout SECONDS"
            )
        if ended.status:
            how = how_ended(ended.status)
            raise UsageError(f"--work {shlex.join(arguments)} ended with {how}; nothing was tested")

    def run(self, states: int | None, *, keep_failing: str = "", progress: Progress | None = None) -> Outcome:
        """Try states: at most so many, all of them when None."""
        explorer, history = self._explorer, self._explorer.history
        planned = explorer.plan(states)
        failed: list[tuple[CrashState, Verdict]] = []
        for done, (state, verdict) in enumerate(self._verdicts(planned), 1):
            if verdict.status:
                failed.append((state, verdict))
            if progress is not None:
                progress(done, len(planned))
        return Outcome(
            model=explorer.model,
            seed=explorer.seed,
            states=len(planned),
            failed=len(failed),
            failures=self._smallest(failed, keep_failing),
            events=history.length,
            flushes=len(history.flushes),
            marks=[text for _, text in history.marks],
            failed_positions=[state.state.position for state, _ in failed],
        )

    def _verdicts(self, planned: Sequence[State]) -> Iterator[tuple[CrashState, Verdict]]:
        """How each state's check ended, in order. While checks run, the next states are made."""
        with ThreadPoolExecutor(self._jobs) as pool, ExitStack() as last:
            running: deque[tuple[CrashState, ExitStack, Future[Verdict]]] = deque()

            def ended() -> tuple[CrashState, Verdict]:
                state, shown, future = running.popleft()
                with shown:
                    return state, future.result()

            def abandon() -> None:
                if running:
                    pool.shutdown(wait=False, cancel_futures=True)
                    self._programs.end()
                while running:
                    _, shown, future = running.popleft()
                    with shown, suppress(CancelledError):
                        future.exception()

            last.callback(abandon)
            for one in planned:
                state = self._explorer.crash_state(one)
                shown = ExitStack()
                path = shown.enter_context(self._explorer.shown(state))
                running.append((state, shown, pool.submit(self._checked, path, state.marks)))
                if len(running) > self._jobs:
                    yield ended()
            while running:
                yield ended()

    def _checked(self, path: Path, marks: Sequence[str]) -> Verdict:
        arguments = self._check.arguments(path, marks)
        with tempfile.TemporaryFile() as output:  # no pipe: what the check has started may hold it open
            try:
                ended = self._programs.run(arguments, output)
            except OSError as error:
                raise UsageError(f"--check cannot run {arguments[0]}: {error.strerror}") from None
            printed = _end_of(output)
        if not ended.in_time:
            return Verdict.of(ended.status, printed, f"the check took more than {self._programs.seconds:g} s")
        return Verdict.of(ended.status, printed, f"the check ended with {how_ended(ended.status)}")

    def _smallest(self, failed: Sequence[tuple[CrashState, Verdict]], keep_failing: str) -> list[Failure]:
        """The first failing states shrunk, one for each thing that went wrong."""
        history = self._explorer.history
        found: dict[str, Failure] = {}
        explained: list[set[int]] = []
        for state, verdict in failed:
            lost = {loss.item for loss in with_what_came_after(history, state.state).lost}
            if any(fewer <= lost for fewer in explained):
                continue
            if len(explained) >= _SHRUNK_MAX:
                break
            failure, smallest_lost = self._shrunk(state, verdict, keep_failing if not found else "")
            explained.append(smallest_lost)
            found.setdefault(failure.description, failure)
        return list(found.values())

    def _shrunk(self, failed: CrashState, verdict: Verdict, keep: str) -> tuple[Failure, set[int]]:
        explorer, history = self._explorer, self._explorer.history
        shrinking = smallest(history, failed.state)
        answer: bool | None = None
        while True:
            try:
                candidate = next(shrinking) if answer is None else shrinking.send(answer)
            except StopIteration as end:
                best = explorer.crash_state(end.value)
                break
            tried = explorer.crash_state(candidate)
            with explorer.shown(tried) as path:
                latest = self._checked(path, tried.marks)
            answer = latest.status != 0
            if answer:
                verdict = latest
        if keep:
            explorer.make(best.state, keep)
        with explorer.shown(best) as path:
            files = list(_files_below(path))
        failure = Failure(
            number=failed.number,
            description=best.description,
            lost=[describe_loss(history, loss) for loss in best.state.lost],
            marks=best.marks,
            position=best.state.position,
            status=verdict.status,
            output=verdict.output,
            device=keep,
            files=files,
        )
        return failure, {loss.item for loss in best.state.lost}


def _end_of(output: IO[bytes]) -> str:
    output.seek(max(0, output.seek(0, os.SEEK_END) - _OUTPUT_BYTES))
    return output.read().decode(errors="replace")


def _files_below(root: Path) -> Iterator[tuple[str, int, str]]:
    """Path, size, and the beginning of what can be read, of each file."""
    for directory, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            path = Path(directory, name)
            with suppress(OSError):
                size = path.lstat().st_size
                head = path.open("rb").read(48) if path.is_file() and not path.is_symlink() else b""
                yield str(path.relative_to(root)), size, repr(head)[2:-1]
