"""The explorer: records what happens to a device of a mounted home, and opens what a crash would have left of it.

    with Explorer.started(home, mount_point, model="ext4", seed=1) as explorer:
        with explorer.record() as path:
            store = Store(path); store.put("k", 1); explorer.mark("k=1")
        for state in explorer.states(500):
            with state.opened() as path:
                check(Store(path), promised=state.marks)

A check fails by an exception, which the `with` block catches; the loop then goes on with states that lost less,
and at its end the exception of the smallest failing state is raised, with a note that says what was lost. So the
loop ends with a small example, without a separate line for that.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from cowfs.crashes.disk import DiskHistory
from cowfs.crashes.files import FileHistory
from cowfs.crashes.history import History, State
from cowfs.crashes.making import DiskMaker, FileMaker, Maker
from cowfs.crashes.naming import Namer, explain
from cowfs.crashes.planning import plan
from cowfs.crashes.shrinking import smallest
from cowfs.errors import DeviceBusy, UsageError
from cowfs.home.api.home import Home
from cowfs.recording.recorder import Model, Recording

_INODE_MASK: Final = (1 << 32) - 1  # of a number in the mount of a home, the inode of the device


@dataclass(eq=False)
class CrashState:
    """What a crash at one moment would have left.

    Attributes:
        number: in the order in which states are opened, from 1.
        marks: what had been promised by then, in order.
        failure: why its check failed; None before, and where it passed.
    """

    number: int
    state: State
    marks: list[str]
    _explorer: Explorer = field(repr=False)
    failure: Exception | None = None

    @property
    def description(self) -> str:
        """What was lost, in files and offsets."""
        return explain(self._explorer.history, self.state)

    @contextmanager
    def opened(self) -> Iterator[Path]:
        """The state's files, in a separate device, which is removed at the end. Keeps an `Exception` to itself."""
        with self._explorer.shown(self) as path:
            try:
                yield path
            except Exception as error:
                self.failure = error


class Explorer:
    """Records one device of a home and opens its crash states, each as a directory of the home's mount.

    Args:
        home: mounted as a whole, for writing.
        mount_point: of the home.
        device: the device to record.
        seed: chooses states where not all are tried.

    Attributes:
        failing: the smallest state that failed, once `states` has ended with its exception.
    """

    def __init__(self, home: Home, mount_point: Path, device: str, *, model: Model = "ext4", seed: int = 0) -> None:
        if model not in ("ext4", "posix"):
            raise UsageError(f"there is no model '{model}'; take 'ext4' or 'posix'")
        self.home = home
        self.device = device
        self.model: Model = model
        self.seed = seed
        self.path = mount_point / device
        self.recording: Recording | None = None
        self.failing: CrashState | None = None
        self._mount_point = mount_point
        self._origin = f"{device}.before"
        self._numbers = itertools.count(1)
        self._history: History | None = None
        self._maker: Maker | None = None

    @classmethod
    @contextmanager
    def started(
        cls,
        home: Home,
        mount_point: Path,
        device: str = "crash-test",
        *,
        parent: str | None = None,
        model: Model = "ext4",
        seed: int = 0,
    ) -> Iterator[Explorer]:
        """An explorer of a new device, which is removed at the end.

        Args:
            parent: the device that it begins as a snapshot of; an empty one when None.
        """
        explorer = cls(home, mount_point, device, model=model, seed=seed)
        home.create(device, parent=parent)
        try:
            with explorer:
                yield explorer
        finally:
            _remove(home, device)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove what the explorer made. The device stays."""
        if self._maker is not None:
            self._maker.close()
            self._maker = None
        if self.recording is not None:
            self.recording = None
            _remove(self.home, self._origin)

    @contextmanager
    def record(self) -> Iterator[Path]:
        """Record what happens in the block: the path of the device's files. Once.

        Raises:
            UsageError: something was recorded already.
            DeviceBusy: a file without a name is open in it.
        """
        if self.recording is not None:
            raise UsageError("an explorer records once; take another one")
        recordings = self.home.recordings
        recordings.start(self.device, self._origin, model=self.model)
        try:
            yield self.path
        finally:
            self.recording = recordings.stop(self.device, self._origin)

    def mark(self, text: str) -> None:
        """What the program did so far is promised: every state from here on has this mark. It makes nothing durable."""
        self.home.recordings.mark(self.device, text)

    @property
    def history(self) -> History:
        """Raises UsageError before a recording."""
        if self._history is None:
            recording = self._require_recording()
            namer = Namer(recording.operations, self._paths_before)
            self._history = _HISTORIES[self.model](recording, namer)
        return self._history

    def _require_recording(self) -> Recording:
        if self.recording is None:
            raise UsageError("nothing was recorded yet; call 'record' first, in a 'with' statement")
        return self.recording

    def _paths_before(self, inodes: set[int]) -> Mapping[int, str]:
        """Where files were before the recording, by inode number; found by walking until all are known."""
        found: dict[int, str] = {}
        root = self._mount_point / self._origin
        for directory, _, files in os.walk(root):
            for path in (Path(directory), *(Path(directory, name) for name in files)):
                inode = path.lstat().st_ino & _INODE_MASK
                if inode in inodes:
                    found[inode] = str(path.relative_to(root))
            if len(found) == len(inodes):
                break
        return found

    def plan(self, states: int | None = None) -> list[State]:
        """The states to try: at most so many, all of them when None."""
        return plan(self.history, states=states, seed=self.seed)

    def crash_state(self, state: State) -> CrashState:
        return CrashState(next(self._numbers), state, self.history.marks_at(state.position), self)

    def states(self, states: int | None = None) -> Iterator[CrashState]:
        """The states one after the other, to be opened by the caller. At the first failure, smaller ones follow.

        Raises:
            Exception: that of the smallest state that failed, with a note of what was lost.
        """
        planned = self.plan(states)
        for state in planned:
            tried = self.crash_state(state)
            yield tried
            if tried.failure is not None:
                smallest_tried = yield from self._smaller(tried)
                assert smallest_tried.failure is not None
                self.failing = smallest_tried
                smallest_tried.failure.add_note(
                    f"crash state {tried.number} of {len(planned)}, model {self.model}, seed {self.seed}: "
                    f"{smallest_tried.description}; promised: {', '.join(smallest_tried.marks) or 'nothing'}"
                )
                raise smallest_tried.failure

    def _smaller(self, failed: CrashState) -> Generator[CrashState, None, CrashState]:
        shrinking = smallest(self.history, failed.state)
        best = failed
        verdict: bool | None = None
        while True:
            try:
                candidate = next(shrinking) if verdict is None else shrinking.send(verdict)
            except StopIteration as end:
                best.state = end.value
                return best
            tried = self.crash_state(candidate)
            yield tried
            verdict = tried.failure is not None
            if verdict:
                best = tried

    @contextmanager
    def shown(self, state: CrashState) -> Iterator[Path]:
        """The files of a state, as a directory of the mount."""
        name = f"{self.device}.state-{state.number}"
        self.make(state.state, name)
        try:
            yield self._mount_point / name
        finally:
            _remove(self.home, name)

    def make(self, state: State, name: str) -> None:
        """Make a state as a device, which is kept."""
        if self._maker is None:
            history = self.history
            if isinstance(history, DiskHistory):
                self._maker = DiskMaker(self.home, history, self._origin)
            else:
                assert isinstance(history, FileHistory)
                self._maker = FileMaker(self.home, history, self._origin)
        self._maker.make(state, name)


_HISTORIES: Final = {"ext4": DiskHistory, "posix": FileHistory}


def _remove(home: Home, device: str) -> None:
    """Remove a device; one that a check still uses goes when it is not in use any more."""
    try:
        home.remove(device)
    except DeviceBusy:
        home.remove(device, deferred=True)
