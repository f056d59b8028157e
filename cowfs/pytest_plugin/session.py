"""What the tests of a session share.

    golden homes    made once for each kind that tests ask for; all others are clones of them
    mounted homes   one for each kind: a process that shows all its devices. A test gets a new device in it

All of it is in one directory, which the session removes at its end, and the janitor when the session is killed.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

import pytest

from cowfs.devices.on_disk.options import HomeOptions
from cowfs.errors import UsageError
from cowfs.forking import origin
from cowfs.home.api import Home, open_home
from cowfs.pytest_plugin.janitor import Janitor
from cowfs.pytest_plugin.mounted import MountedDevice
from cowfs.pytest_plugin.needs import required
from cowfs.pytest_plugin.options import LEFT
from cowfs.units import parse_size

_METADATA_BYTES: Final = 16 << 20
_NAME_CHARACTERS: Final = 100


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a test wants of its home, device or mount; all but `raw` are a matter of the home."""

    data_size_bytes: int = 1 << 30
    base_size_bytes: int = 256 << 20
    no_space: Literal["queue", "error"] = "queue"
    backend: str = "emulated"
    raw: bool = False

    def home_options(self) -> HomeOptions:
        return HomeOptions(
            data_size_bytes=self.data_size_bytes,
            metadata_size_bytes=_METADATA_BYTES,
            base_size_bytes=self.base_size_bytes,
            error_if_no_space=self.no_space == "error",
            min_free_percent=0,
            durable=False,
        )


def wishes_of(request: pytest.FixtureRequest) -> Wishes:
    """Of a test, by its marks, the nearest first.

    Raises:
        UsageError: a mark says what cannot be.
    """
    wanted: dict[str, object] = {"backend": request.config.option.cow_backend}
    for mark in reversed(list(request.node.iter_markers("cow"))):
        if mark.args:
            raise UsageError(f"@pytest.mark.cow takes its values by name; {mark.args[0]!r} has none")
        wanted |= mark.kwargs
    for name in ("data_size", "base_size"):
        if name in wanted:
            size = wanted.pop(name)
            wanted[f"{name}_bytes"] = parse_size(size) if isinstance(size, str) else size
    known = [field.name for field in fields(Wishes)]
    for name in wanted.keys() - known:
        raise UsageError(
            f"@pytest.mark.cow knows no {name!r}; it takes {', '.join(k.removesuffix('_bytes') for k in known)}"
        )
    if wanted.get("no_space", "queue") not in ("queue", "error"):
        raise UsageError(f"@pytest.mark.cow(no_space={wanted['no_space']!r}): it has to be 'queue' or 'error'")
    return Wishes(**wanted)  # type: ignore[arg-type]  # checked above


@dataclass(frozen=True, slots=True)
class _MountedHome:
    home: Home
    tree: Path
    closing: ExitStack


class CowSession:
    """Made by the fixture `cow_session`.

    Args:
        directory: new and empty, for this session alone.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._is_same_process = origin()
        self._golden: dict[Wishes, Path] = {}
        self._mounted: dict[Wishes, _MountedHome] = {}
        self._count = 0
        self._janitor = Janitor(directory)

    @contextmanager
    def own_home(self, wishes: Wishes) -> Iterator[Home]:
        """A home for one test."""
        path = self._new_home(wishes)
        try:
            with open_home(path, backend=wishes.backend, durable=False) as home:
                yield home
        finally:
            if self._is_same_process():
                shutil.rmtree(path)

    @contextmanager
    def mounted_device(self, request: pytest.FixtureRequest, wishes: Wishes) -> Iterator[MountedDevice]:
        """A new device for one test, mounted."""
        with required(request.config, "fuse"):
            mounted = self._mounted_home(wishes)
        name = self._name_for(request)
        mounted.home.create(name)
        device = MountedDevice(mounted.home, name, mounted.tree)
        request.node.stash.setdefault(LEFT, []).append(f"device {name} of the home {mounted.home.path}")
        try:
            yield device
        finally:
            if self._is_same_process():
                device.remove()

    def close(self) -> None:
        if not self._is_same_process():
            return
        with ExitStack() as last:
            last.callback(self._janitor.close)
            last.callback(shutil.rmtree, self._directory, ignore_errors=True)
            for mounted in self._mounted.values():
                last.push(mounted.closing)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _mounted_home(self, wishes: Wishes) -> _MountedHome:
        if wishes not in self._mounted:
            with ExitStack() as stack:
                home = stack.enter_context(open_home(self._new_home(wishes), backend=wishes.backend, durable=False))
                target = self._new_path("tree")
                target.mkdir(mode=0o700)
                tree = stack.enter_context(home.mount(target=target))
                self._mounted[wishes] = _MountedHome(home, tree, stack.pop_all())
        return self._mounted[wishes]

    def _new_home(self, wishes: Wishes) -> Path:
        """A clone of the golden home of this kind."""
        if wishes not in self._golden:
            path = self._new_path("golden")
            open_home(path, backend=wishes.backend, create=True, options=wishes.home_options(), durable=False).close()
            self._golden[wishes] = path
        path = self._new_path("home")
        with open_home(self._golden[wishes], backend=wishes.backend, read_only=True) as golden:
            golden.clone(path)
        return path

    def _new_path(self, kind: str) -> Path:
        self._count += 1
        return self._directory / f"{kind}-{self._count}"

    def _name_for(self, request: pytest.FixtureRequest) -> str:
        """A name for a device that shows whose it is."""
        self._count += 1
        return f"{re.sub(r'[^A-Za-z0-9_]+', '-', request.node.name)[:_NAME_CHARACTERS]}-{self._count}"
