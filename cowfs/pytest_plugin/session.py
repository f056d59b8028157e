"""What the tests of a session share: golden homes, and for each kind of home that tests want one that is mounted.

A mounted home is a process that shows all its devices, and each test gets a new device in it. It takes as long as a
snapshot, where a mount takes as long as the start of a process.

Everything is in one directory, which the session removes at its end, or its janitor if the session is killed.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeAlias

import pytest

from cowfs.errors import CowfsError, command_line
from cowfs.forking import origin
from cowfs.home.api.home import Home, open_home
from cowfs.janitor import Janitor
from cowfs.pytest_plugin import left_behind
from cowfs.pytest_plugin.failures import Left, has_failed, note_left
from cowfs.pytest_plugin.golden import GoldenHomes
from cowfs.pytest_plugin.left_behind import keep, remove_but_kept
from cowfs.pytest_plugin.mounted import MountedDevice
from cowfs.pytest_plugin.needs import required
from cowfs.pytest_plugin.wishes import Wishes

Prepare: TypeAlias = Callable[[Path], object]

_MOST_MOUNTED: Final = 4
_NAME_CHARACTERS: Final = 100


@dataclass(frozen=True, slots=True)
class _MountedHome:
    home: Home
    tree: Path
    closing: ExitStack
    prepared: dict[Prepare, str] = field(default_factory=dict)

    def parent(self, prepare: Prepare | None) -> str | None:
        """The device that those of tests are snapshots of, which a function has put files into."""
        if prepare is None:
            return None
        if prepare not in self.prepared:
            name = f"prepared-{len(self.prepared) + 1}"
            self.home.create(name)
            try:
                prepare(self.tree / name)
            except BaseException:
                self.home.remove(name, deferred=True)
                raise
            self.prepared[prepare] = name
        return self.prepared[prepare]

    def is_sound(self) -> bool:
        """Whether another test can have a device in it, whatever one before has done to the pool or to the server."""
        try:
            report = self.home.status()
        except (CowfsError, OSError):
            return False
        return report.mode == "write" and not report.needs_check

    def discard(self) -> None:
        with suppress(CowfsError, OSError):
            self.closing.close()


class CowSession:
    """Made by the fixture `cow_session`.

    Args:
        directory: new and empty, for this session alone.
        cache: a directory that outlives the session; None for none.
        keeps_failed: what failed tests used stays.
    """

    def __init__(self, directory: Path, *, cache: Path | None, keeps_failed: bool) -> None:
        self._directory = directory
        self._keeps_failed = keeps_failed
        self._is_same_process = origin()
        self._golden = GoldenHomes(cache)
        self._mounted: dict[Wishes, _MountedHome] = {}
        self._count = 0
        self._janitor = Janitor(left_behind.__file__, directory)

    @contextmanager
    def own_home(self, request: pytest.FixtureRequest, wishes: Wishes) -> Iterator[Home]:
        """A home for one test."""
        with required(request.config, wishes):
            path = self._new_home(wishes)
            home = _open(path, wishes)
        note_left(
            request.node,
            Left(f"the home of the test, {path}", command_line("cowfs", "--home", str(path), "list"), path),
        )
        try:
            yield home
        finally:
            home.close()
            if self._is_same_process() and not self._is_kept(request, path):
                shutil.rmtree(path)

    @contextmanager
    def mounted_device(
        self, request: pytest.FixtureRequest, wishes: Wishes, prepare: Prepare | None
    ) -> Iterator[MountedDevice]:
        """A new device for one test, mounted."""
        name = self._name_for(request)
        if wishes.raw:
            with self.own_home(request, wishes) as home:
                home.create(name)
                with required(request.config, wishes, "fuse"), home.mount(name, raw=True) as tree:
                    yield MountedDevice(home, name, tree)
            return
        with required(request.config, wishes, "fuse"):
            mounted = self._shared(wishes)
        home = mounted.home
        home.create(name, parent=mounted.parent(prepare))
        look = command_line("cowfs", "--home", str(home.path), "mount", name, "DIRECTORY")
        note_left(request.node, Left(f"the device of the test, {name} in the home {home.path}", look, home.path))
        home.watch_unsynced(name)
        device = MountedDevice(home, name, mounted.tree)
        try:
            yield device
        finally:
            if self._is_same_process():
                self._end_use(wishes, device, is_kept=self._is_kept(request, home.path))

    def _end_use(self, wishes: Wishes, device: MountedDevice, *, is_kept: bool) -> None:
        """Remove a device, and a home that is of no use after what its test has done to it."""
        mounted = self._mounted[wishes]
        try:
            if not is_kept:
                device.remove()
        except (CowfsError, OSError):
            if mounted.is_sound():
                raise
        if not mounted.is_sound():
            del self._mounted[wishes]
            mounted.discard()

    def _shared(self, wishes: Wishes) -> _MountedHome:
        """The mounted home of a kind. Of those that were not used lately, the servers end."""
        mounted = self._mounted.pop(wishes, None) or self._mount(wishes)
        self._mounted[wishes] = mounted
        if len(self._mounted) > _MOST_MOUNTED:
            self._mounted.pop(next(iter(self._mounted))).discard()
        return mounted

    def _mount(self, wishes: Wishes) -> _MountedHome:
        with ExitStack() as stack:
            home = stack.enter_context(_open(self._new_home(wishes), wishes))
            target = self._new_path("tree")
            target.mkdir(mode=0o700)
            tree = stack.enter_context(home.mount(target=target))
            return _MountedHome(home, tree, stack.pop_all())

    def _new_home(self, wishes: Wishes) -> Path:
        path = self._new_path("home")
        self._golden.clone(wishes.home_options(), path)
        return path

    def _new_path(self, kind: str) -> Path:
        self._count += 1
        return self._directory / f"{kind}-{self._count}"

    def _name_for(self, request: pytest.FixtureRequest) -> str:
        """A name for a device that shows whose it is."""
        self._count += 1
        return f"{re.sub(r'[^A-Za-z0-9_]+', '-', request.node.name)[:_NAME_CHARACTERS].strip('-')}-{self._count}"

    def _is_kept(self, request: pytest.FixtureRequest, home: Path) -> bool:
        """Whether what a test has used is to be looked at; then it stays."""
        is_kept = self._keeps_failed and has_failed(request.node)
        if is_kept:
            keep(home)
        return is_kept

    def close(self) -> None:
        if not self._is_same_process():
            return
        with ExitStack() as last:
            last.callback(self._janitor.close)
            last.callback(remove_but_kept, self._directory)
            for mounted in self._mounted.values():
                last.callback(mounted.closing.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _open(path: Path, wishes: Wishes) -> Home:
    return open_home(path, backend=wishes.backend, durable=False, virtual_clock=wishes.virtual_clock)
