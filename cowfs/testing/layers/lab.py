"""Where cases are tried: a lab makes a home, drives its layers, and judges what is left.

A factory is given, which opens the home in a directory, or makes it when it is not there. What cases need beyond the
`Driver` is in `Home`; what a kind of home does not have, it refuses with NotApplicableError.
"""

from __future__ import annotations

import io
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Final, Protocol, TypeAlias

from cowfs.layers import Driver
from cowfs.steps import finish, pieces_of
from cowfs.testing.cases import NotApplicableError
from cowfs.testing.layers.files import Entry, Files

MIB: Final = 1 << 20
SMALL_OPTIONS: Final = ("dm.basesize=48M", "dm.loopdatasize=1G", "dm.loopmetadatasize=8M")
"""What homes are made with; a case adds its own."""


class Home(Protocol):
    """An open home for one case: its driver, and what else can be done to it."""

    @property
    def driver(self) -> Driver: ...

    @property
    def shows_paths(self) -> bool:
        """Whether `get` works: something shows the files of layers."""
        ...

    @property
    def root_owner(self) -> tuple[int, int]:
        """User and group of the root directories of layers."""
        ...

    def files(self, layer_id: str) -> AbstractContextManager[Files]:
        """A layer's files, for the length of a `with` block."""
        ...

    def message(self, text: str) -> None:
        """Send the pool a message behind the driver's back."""
        ...

    def retry_deletions(self) -> int:
        """Try again to delete what is marked; how many layers are left."""
        ...

    def mapped_bytes(self, layer_id: str) -> int:
        """What a layer maps in the pool, its own or shared."""
        ...

    def judge(self) -> None:
        """Have the pool's metadata and the file systems of layers looked at. Raises AssertionError."""
        ...

    def close(self) -> None:
        """Take everything down, as at the end of a process."""
        ...


HomeFactory: TypeAlias = Callable[[str, Sequence[str]], Home]
"""From a directory and storage options (`dm.KEY=VALUE`) to an open home."""


class LayerLab:
    """A home for one case, and short words for what cases do with it."""

    def __init__(self, factory: HomeFactory, directory: str) -> None:
        self._factory = factory
        self._path = os.path.join(directory, "home")
        self._options: tuple[str, ...] = SMALL_OPTIONS
        self._home: Home | None = None

    # ------------------------------------------------------------------ the home

    @property
    def home(self) -> Home:
        if self._home is None:
            self._home = self._factory(self._path, self._options)
        return self._home

    @property
    def driver(self) -> Driver:
        return self.home.driver

    def use_options(self, *options: str) -> None:
        """Storage options besides the usual ones, from the next start on."""
        self._options = SMALL_OPTIONS + options

    def restart(self, *options: str) -> None:
        """Close the home, and open it again, with storage options besides the usual ones."""
        self.close()
        self.use_options(*options)
        _ = self.home

    def judge(self) -> None:
        if self._home is not None:
            self._home.judge()

    def close(self) -> None:
        home, self._home = self._home, None
        if home is not None:
            home.close()

    def abandon(self) -> None:
        """Close after a failure, which is what is reported."""
        with suppress(OSError, AssertionError):
            self.close()

    # ------------------------------------------------------------------ layers

    def create(self, layer_id: str, parent: str | None = None, options: Mapping[str, str] | None = None) -> None:
        self.driver.create(layer_id, parent, options)

    def layer(self, layer_id: str, parent: str | None = None, contents: Mapping[str, bytes] | None = None) -> None:
        """A new layer with files in its root."""
        self.create(layer_id, parent)
        with self.files(layer_id) as files:
            files.write_many(dict(contents or {}))

    @contextmanager
    def files(self, layer_id: str) -> Iterator[Files]:
        with self.home.files(layer_id) as files:
            yield files

    def tree(self, layer_id: str) -> dict[str, Entry]:
        with self.files(layer_id) as files:
            return files.tree()

    def read(self, layer_id: str, path: str) -> bytes:
        with self.files(layer_id) as files:
            return files.read(path)

    def changes(self, layer_id: str, parent: str | None) -> list[str]:
        """Lines as of `docker diff`, in the driver's order."""
        found = finish(self.driver.changes(layer_id, parent))
        return [f"{change.kind.letter} {os.fsdecode(change.path)}" for change in found]

    def diff(self, layer_id: str, parent: str | None) -> bytes:
        return b"".join(pieces_of(self.driver.diff(layer_id, parent)))

    def diff_size(self, layer_id: str, parent: str | None) -> int:
        return finish(self.driver.diff_size(layer_id, parent))

    def apply(self, layer_id: str, parent: str | None, archive: bytes) -> int:
        return finish(self.driver.apply(layer_id, parent, io.BytesIO(archive)))

    def status(self) -> dict[str, str]:
        return dict(self.driver.status())

    def path(self, layer_id: str) -> str:
        """The path that `get` gives; as many `put` end it."""
        if not self.home.shows_paths:
            raise NotApplicableError("this home shows no files at a path")
        return self.driver.get(layer_id)


# ---------------------------------------------------------------------------- small things cases share


def content(seed: int, size_bytes: int) -> bytes:
    """The same bytes for the same seed."""
    return random.Random(seed).randbytes(size_bytes)  # noqa: S311


def give_away(files: Files, path: str, uid: int, gid: int) -> None:
    """Change an owner, which takes root where files are at a path."""
    try:
        files.set_owner(path, uid, gid)
    except PermissionError:
        if os.geteuid() == 0:
            raise
        raise NotApplicableError("giving files away needs root") from None
