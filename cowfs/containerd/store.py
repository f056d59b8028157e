"""Which snapshots a home has: their keys, parents, labels and layers, durable before each answer.

`HOME/cowfs.snapshots`, SQLite with a write-ahead log, one row for each snapshot. A change is one transaction. A device
is made before its row and removed after it, so a crash leaves at most a device without a row, which `orphans` finds.

The thread that opened the store changes it. `find`, `all` and `has_children` answer any thread, from memory, which has
only what is durable.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cowfs.containerd.messages import COMMITTED
from cowfs.errors import HomeError
from cowfs.home.snapshot_keys import DEVICE_PREFIX, FILE_NAME

_log = logging.getLogger(__name__)
_VERSION: Final = 1
LAYER_REFERENCE: Final = "containerd.io/snapshot.ref"
_TABLE: Final = """
    create table if not exists snapshots (
        key text primary key,
        parent text not null,
        kind integer not null,
        device text not null,
        owns_device integer not null,
        labels text not null,
        created_ns integer not null,
        updated_ns integer not null,
        size_bytes integer not null,
        inodes integer not null
    ) strict
"""
_INDEXES: Final = (
    "create index if not exists parents on snapshots (parent)",
    "create unique index if not exists devices on snapshots (device) where owns_device",
)
_INSERT: Final = "insert or replace into snapshots values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot.

    Attributes:
        key: containerd's, with the prefix of its namespace; `parent` is one too, empty for none.
        kind: VIEW, ACTIVE or COMMITTED of `messages`.
        device: the layer with its files; a view of a committed snapshot shows that one's, which it does not own.
        size_bytes, inodes: of a committed one, what it adds to its parent; -1 while that is not known.
    """

    key: str
    parent: str
    kind: int
    device: str
    owns_device: bool
    labels: Mapping[str, str]
    created_ns: int
    updated_ns: int
    size_bytes: int = -1
    inodes: int = -1

    @property
    def is_measured(self) -> bool:
        return self.size_bytes >= 0


class SnapshotStore:
    """The snapshots of a home. Opened by the process that holds the home, and by no other.

    Raises:
        HomeError: the database cannot be opened, or is of a newer version.
    """

    def __init__(self, home: Path) -> None:
        path = self._path = home / FILE_NAME
        try:
            with contextlib.suppress(FileExistsError):
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            self._database = sqlite3.connect(path, isolation_level=None)
            self._database.execute("pragma journal_mode = wal")
            self._database.execute("pragma synchronous = full")
            (version,) = self._database.execute("pragma user_version").fetchone()
            if version > _VERSION:
                raise HomeError(f"{path} is of version {version}, and this program knows {_VERSION}; take a newer one")
            self._database.execute(_TABLE)
            for index in _INDEXES:
                self._database.execute(index)
            rows = self._database.execute("select * from snapshots").fetchall()
            self._database.execute(f"pragma user_version = {_VERSION}")
        except (sqlite3.Error, OSError) as error:
            if isinstance(error, HomeError):
                raise
            raise HomeError(f"cannot open {path}: {error}") from error

        self._memory = threading.Lock()  # of the two below; not held while a disk is waited for
        self._snapshots = {snapshot.key: snapshot for snapshot in map(_snapshot, rows)}  # as they are on the disk
        self._children = Counter(snapshot.parent for snapshot in self._snapshots.values())

    def close(self) -> None:
        self._database.close()

    def find(self, key: str) -> Snapshot | None:
        with self._memory:
            return self._snapshots.get(key)

    def owner_of(self, device: str) -> Snapshot | None:
        """The snapshot that a device was made for. Raises HomeError: the database cannot be read."""
        rows = self._read("select * from snapshots where device = ? and owns_device", device)
        return _snapshot(rows[0]) if rows else None

    def layer(self, reference: str, parent: str) -> Snapshot | None:
        """A committed snapshot with a layer, by its chain id: by its label, or by its key in any namespace.

        Raises HomeError: the database cannot be read.
        """
        query = (
            "select * from snapshots where parent = ? and kind = ? and (substr(key, -length(?)) = ? "
            "or json_extract(labels, ?) = ?) order by created_ns limit 1"
        )
        end = "/" + reference
        rows = self._read(query, parent, COMMITTED, end, end, f'$."{LAYER_REFERENCE}"', reference)
        return _snapshot(rows[0]) if rows else None

    def all(self) -> list[Snapshot]:
        """By key, as they are at one moment."""
        with self._memory:
            return [self._snapshots[key] for key in sorted(self._snapshots)]

    def has_children(self, key: str) -> bool:
        with self._memory:
            return self._children[key] > 0

    def put(
        self, snapshot: Snapshot, *, replacing: str | None = None, is_wanted: Callable[[], bool] = lambda: True
    ) -> bool:
        """Add a snapshot, or write it anew; in the same transaction, the one that it replaces is removed.

        Args:
            is_wanted: asked when all is durable, before any client can find it; where it is not, it is undone.

        Returns:
            Whether it is there.

        Raises:
            HomeError: the database cannot be written; all is as before.
        """
        keys = [key for key in (replacing, snapshot.key) if key is not None]
        before = [self._snapshots[key] for key in keys if key in self._snapshots]
        self._write(keys, [snapshot])
        if not is_wanted() and self._write_back(keys, before, snapshot):
            return False
        self._publish(keys, snapshot)
        return True

    def remove(self, key: str) -> None:
        """Raises HomeError: the database cannot be written; all is as before."""
        self._write([key], [])
        self._publish([key], None)

    def _write_back(self, keys: list[str], before: list[Snapshot], made: Snapshot) -> bool:
        """Undo what is durable already; whether that is possible. Otherwise it is there, and whole."""
        try:
            self._write(keys, before)
        except HomeError as error:
            _log.warning("snapshot %s stays, though its call was given up: %s", made.key, error)
            return False
        return True

    def _write(self, keys: list[str], snapshots: list[Snapshot]) -> None:
        """In one transaction, remove the rows of some keys, and insert others."""
        try:
            with self._transaction():
                for key in keys:
                    self._database.execute("delete from snapshots where key = ?", (key,))
                for snapshot in snapshots:
                    self._database.execute(_INSERT, _values(snapshot))
        except sqlite3.Error as error:
            number = errno.ENOSPC if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL else errno.EIO
            raise HomeError(f"{self._path} cannot be written: {error}", errno=number) from error

    def _publish(self, gone: list[str], made: Snapshot | None) -> None:
        with self._memory:
            for key in gone:
                snapshot = self._snapshots.pop(key, None)
                if snapshot is not None:
                    self._children[snapshot.parent] -= 1
                    if not self._children[snapshot.parent]:
                        del self._children[snapshot.parent]
            if made is not None:
                self._snapshots[made.key] = made
                self._children[made.parent] += 1

    def orphans(self, devices: Iterable[str]) -> list[str]:
        """Those of the home's devices that were made for a snapshot, and that no snapshot has.

        Raises HomeError: the database cannot be read.
        """
        owned = {device for (device,) in self._read("select device from snapshots where owns_device")}
        return [device for device in devices if device.startswith(DEVICE_PREFIX) and device not in owned]

    def _read(self, query: str, *arguments: str | int) -> list[Any]:
        """The rows of a query. Raises HomeError: the database cannot be read."""
        try:
            return self._database.execute(query, arguments).fetchall()
        except sqlite3.Error as error:
            raise HomeError(f"{self._path} cannot be read: {error}", errno=errno.EIO) from error

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("begin immediate")
        try:
            yield
            self._database.execute("commit")
        except BaseException:
            if self._database.in_transaction:  # some errors have ended it
                self._database.execute("rollback")
            raise


def _values(snapshot: Snapshot) -> tuple[str | int, ...]:
    return (
        *(snapshot.key, snapshot.parent, snapshot.kind, snapshot.device, int(snapshot.owns_device)),
        *(json.dumps(dict(snapshot.labels)), snapshot.created_ns, snapshot.updated_ns),
        *(snapshot.size_bytes, snapshot.inodes),
    )


def _snapshot(row: tuple[str, str, int, str, int, str, int, int, int, int]) -> Snapshot:
    key, parent, kind, device, owns_device, labels, *rest = row
    return Snapshot(key, parent, kind, device, bool(owns_device), json.loads(labels), *rest)
