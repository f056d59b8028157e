"""What is known without the engine: answers about snapshots from the store's memory, given in any thread.

The store has in memory what is durable and decided, so such an answer is true whatever happens to the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from cowfs.containerd.calls import Read
from cowfs.containerd.filters import lookup_in, parse_filters
from cowfs.containerd.grpc import Asked, CallError, Code
from cowfs.containerd.messages import ACTIVE, COMMITTED, SNAPSHOTS, VIEW, message_class
from cowfs.containerd.places import Places
from cowfs.containerd.refusals import as_call_errors, decoded
from cowfs.containerd.store import Snapshot, SnapshotStore
from cowfs.layers.interface import LayerUsage

KINDS: Final = {VIEW: "view", ACTIVE: "active", COMMITTED: "committed"}
_ROWS_PER_ANSWER: Final = 100


class Reads:
    """Answers about the snapshots of a store.

    Attributes:
        paths: of the files of devices that are shown.
    """

    def __init__(self, store: SnapshotStore, places: Places) -> None:
        self._store = store
        self._places = places
        self.paths: dict[str, str] = {}
        self._rows: dict[str, tuple[Snapshot, bytes]] = {}  # by key, encoded for List

    def methods(self) -> dict[str, Read]:
        """By path."""
        found: dict[str, Read] = {
            "Stat": self._stat,
            "List": self._list,
            "Mounts": self._mounts,
            "Usage": self._usage,
        }
        return {f"/{SNAPSHOTS}/{name}": read for name, read in found.items()}

    def require(self, key: str) -> Snapshot:
        """Raises CallError: there is none."""
        snapshot = self._store.find(key)
        if snapshot is None:
            raise CallError(Code.NOT_FOUND, f"snapshot {key} does not exist")
        return snapshot

    def takes_long(self, asked: Asked) -> bool:
        """Whether a Usage is of an active snapshot, whose files are looked through."""
        snapshot = self._store.find(decoded("UsageRequest", asked.message).key)
        return snapshot is not None and snapshot.kind == ACTIVE

    def _stat(self, asked: Asked) -> list[bytes]:
        info = info_of(self.require(decoded("StatSnapshotRequest", asked.message).key))
        return [message_class("StatSnapshotResponse")(info=info).SerializeToString()]

    def _list(self, asked: Asked) -> Iterator[bytes]:
        request = decoded("ListSnapshotsRequest", asked.message)
        with as_call_errors():
            matches = parse_filters(request.filters)
        found = self._store.all()
        if request.filters:
            found = [snapshot for snapshot in found if matches(_lookup(snapshot))]
        else:
            self._rows = {one.key: self._rows[one.key] for one in found if one.key in self._rows}
        for begin in range(0, len(found), _ROWS_PER_ANSWER):
            yield b"".join(map(self._row, found[begin : begin + _ROWS_PER_ANSWER]))

    def _mounts(self, asked: Asked) -> list[bytes] | None:
        snapshot = self.mountable(decoded("MountsRequest", asked.message).key)
        path = self.paths.get(snapshot.device)
        if path is None:
            return None
        return [message_class("MountsResponse")(mounts=self.mounts_at(path, snapshot)).SerializeToString()]

    def _usage(self, asked: Asked) -> list[bytes] | None:
        found = known_usage(self.require(decoded("UsageRequest", asked.message).key))
        if found is None:
            return None
        return [message_class("UsageResponse")(size=found.size_bytes, inodes=found.inodes).SerializeToString()]

    def mountable(self, key: str) -> Snapshot:
        """Raises CallError: there is none, or it is committed."""
        snapshot = self.require(key)
        if snapshot.kind == COMMITTED:
            raise CallError(Code.FAILED_PRECONDITION, f"snapshot {key} is committed; mount a view of it")
        return snapshot

    def mounts_at(self, path: str, snapshot: Snapshot) -> Sequence[Any]:
        return [self._places.mount(path, snapshot.kind)]

    def _row(self, snapshot: Snapshot) -> bytes:
        """A ListSnapshotsResponse of one snapshot, kept while that stays as it is; several joined are one of all."""
        kept = self._rows.get(snapshot.key)
        if kept is None or kept[0] is not snapshot:
            answer = message_class("ListSnapshotsResponse")(info=[info_of(snapshot)])
            kept = self._rows[snapshot.key] = snapshot, answer.SerializeToString()
        return kept[1]


def known_usage(snapshot: Snapshot) -> LayerUsage | None:
    """What a snapshot adds to its parent; None where its files have to be looked through."""
    if snapshot.kind == VIEW:
        return LayerUsage(0, 0)
    return LayerUsage(snapshot.size_bytes, snapshot.inodes) if snapshot.is_measured else None


def info_of(snapshot: Snapshot) -> Any:
    """The message Info."""
    info = message_class("Info")(
        name=snapshot.key, parent=snapshot.parent, kind=snapshot.kind, labels=dict(snapshot.labels)
    )
    info.created_at.FromNanoseconds(snapshot.created_ns)
    info.updated_at.FromNanoseconds(snapshot.updated_ns)
    return info


def _lookup(snapshot: Snapshot) -> Callable[[Any], str | None]:
    values = {"name": snapshot.key, "parent": snapshot.parent, "kind": KINDS[snapshot.kind]}
    return lookup_in(values, snapshot.labels)
