"""The ten methods of containerd's snapshotter, over the store and the home's layers.

Changes of the store are made one after the other; what takes long is done between them. What a commit adds to its
parent is found after the answer, and the device that it leaves is removed then, both in a pause between calls
(`pauses`). A change is decided when it is durable; one that its client does not wait for any more is undone then
(`calls`).
"""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from typing import IO, Any, Final, TypeVar

import trio

from cowfs.containerd.calls import UNCHANGED, UNDONE, Decide, EngineMethod, Method, Read, always
from cowfs.containerd.grpc import Asked, CallError, Code
from cowfs.containerd.messages import ACTIVE, COMMITTED, EMPTY, SNAPSHOTS, VIEW, message_class
from cowfs.containerd.pauses import Pauses
from cowfs.containerd.places import Directories, Places
from cowfs.containerd.reads import KINDS, Reads, info_of, known_usage
from cowfs.containerd.refusals import as_call_errors, decoded
from cowfs.containerd.store import LAYER_REFERENCE, Snapshot, SnapshotStore
from cowfs.devices.on_disk.names import BASE
from cowfs.errors import CowfsError, DeviceBusy
from cowfs.home.executor import Executor
from cowfs.home.requests.devices import Remove
from cowfs.home.requests.layers import LayerArchive, LayerOwnUsage, LimitLayer
from cowfs.home.requests.request import Attachment, Request
from cowfs.home.snapshot_keys import DEVICE_PREFIX
from cowfs.layers.interface import LayerUsage

_log = logging.getLogger(__name__)
R = TypeVar("R")

_WRITE_BACK_SECONDS: Final = 0.5  # of a Commit, for what programs changed in memory
_REMOVAL_SECONDS: Final = 0.4  # of a call, for the device of its snapshot
_REMOVED_LATER: Final = "it is removed as soon as that answers"
_FOUND_MEANWHILE: Final = "that of a committed snapshot is being found; ask again in a moment"
_STUCK_SECONDS: Final = 5.0  # until the removals of other devices go on
_BUSY_SECONDS: Final = 5.0  # until a device is tried again that others use
_LEFT_SECONDS: Final = 5.0  # until what a commit has left to do is done without a pause between calls
_NAME_MAX_CHARACTERS: Final = 4096
MAX_SIZE: Final = "containerd.io/snapshot/max-size"  # a label: how much the files of an active one may take, in bytes


@dataclass(slots=True)
class _Removal:
    """Of a device without a snapshot.

    Attributes:
        due: by trio's clock, when it begins at the latest; until then it waits for a pause between calls.
    """

    due: float
    has_ended: trio.Event = field(default_factory=trio.Event)


class Snapshotter:
    """containerd's snapshotter over a served home.

    Args:
        executor: of the home, which serves the files of its layers.
        places: how the files of snapshots are reached.
        now_ns: the time, in nanoseconds since 1970.
    """

    def __init__(
        self,
        executor: Executor,
        store: SnapshotStore,
        *,
        places: Places | None = None,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._executor = executor
        self._store = store
        self._places = places or Directories()
        self._now_ns = now_ns
        self._reads = Reads(store, self._places)
        self._changing = trio.Lock()
        self._pauses = Pauses()
        self._removals: dict[str, _Removal] = {}  # by device
        self._under_way: set[str] = set()  # devices that are being removed
        self._has_removals = trio.Event()
        self._removals_pause = trio.CancelScope()  # the wait for a pause of the next one
        self._unmeasured: dict[str, float] = {}  # committed snapshots by key, and when that is due
        self._has_unmeasured = trio.Event()
        self._measuring: dict[str, trio.Event] = {}  # by key, with what waits for the end
        self._measurers: trio.Nursery | None = None

    def reads(self) -> dict[str, Read]:
        """What is answered without the engine where it is known, by path."""
        return self._reads.methods()

    def methods(self) -> dict[str, Method]:
        """What the engine answers, by path."""
        found = {
            "Prepare": Method(self._answering("PrepareSnapshotRequest", self.prepare)),
            "View": Method(self._answering("ViewSnapshotRequest", self.view)),
            "Mounts": Method(self._answering("MountsRequest", self.mounts), outcome=UNCHANGED),
            "Commit": Method(self._answering("CommitSnapshotRequest", self.commit)),
            "Remove": Method(
                self._answering("RemoveSnapshotRequest", self.remove), outcome=_REMOVED_LATER, goes_on=True
            ),
            "Update": Method(self._answering("UpdateSnapshotRequest", self.update)),
            "Usage": Method(self._answering("UsageRequest", self.usage), self._reads.takes_long, _FOUND_MEANWHILE),
            "Cleanup": Method(self._answering("CleanupRequest", self.cleanup), outcome=UNCHANGED),
        }
        return {f"/{SNAPSHOTS}/{name}": method for name, method in found.items()}

    def _answering(self, name: str, method: Callable[[Any, Decide], Awaitable[Any]]) -> EngineMethod:
        async def run(asked: Asked, decide: Decide) -> bytes:
            request = decoded(name, asked.message)
            with self._pauses.call():
                answer = await method(request, lambda answer: decide(answer.SerializeToString()))
            encoded: bytes = answer.SerializeToString()
            return encoded

        return run

    async def begin(self) -> None:
        """Remove what a crash left: devices without a snapshot."""
        for device in self._store.orphans(record.name for record in self._executor.home.devices.records()):
            _log.warning("device %s is of no snapshot, as after a crash; it is removed", device)
            await self._remove_device(device)

    # ------------------------------------------------------------------ making

    async def prepare(self, request: Any, decide: Decide = always) -> Any:
        return await self._make(request, ACTIVE, "PrepareSnapshotResponse", decide)

    async def view(self, request: Any, decide: Decide = always) -> Any:
        return await self._make(request, VIEW, "ViewSnapshotResponse", decide)

    async def _make(self, request: Any, kind: int, answered_as: str, decide: Decide) -> Any:
        async with self._changing:
            self._require_new(request.key)
            parent = self._parent(request.parent)
            if kind == ACTIVE:
                self._require_no_such_layer(request)
            owns_device = kind == ACTIVE or parent is None or self._places.views_have_devices
            if owns_device:
                device = await self._make_device(parent, _max_size_bytes(request) if kind == ACTIVE else None)
            else:
                assert parent is not None
                device = parent.device
            now = self._now_ns()
            snapshot = Snapshot(request.key, request.parent, kind, device, owns_device, dict(request.labels), now, now)
            try:
                answer = message_class(answered_as)(mounts=await self._mounts(snapshot))
                self._put(snapshot, answer, decide)
            except BaseException:
                if owns_device:
                    await self._remove_device(device)
                raise
        return answer

    async def _make_device(self, parent: Snapshot | None, max_size_bytes: int | None) -> str:
        """A device for a new snapshot, larger than its parent's where its files may take more than fits there."""
        device = _new_device()
        origin = None if parent is None else parent.device
        size_bytes = self._size_bytes(parent)
        grows = max_size_bytes is not None and max_size_bytes > size_bytes
        try:
            await self._run(self._places.creation(device, origin, max_size_bytes if grows else None))
            if max_size_bytes is not None and not grows:
                await self._run(LimitLayer(device, max_size_bytes))
        except BaseException:
            await self._remove_device(device)
            raise
        return device

    def _size_bytes(self, parent: Snapshot | None) -> int:
        """Of the device that a new snapshot is made of. Raises CallError: it is not there."""
        devices = self._executor.home.devices
        if parent is not None and parent.device not in devices:
            lost = f"snapshot {parent.key} has lost its device {parent.device}"
            text = f"{lost}; remove the snapshot, and have its layer unpacked again"
            raise CallError(Code.FAILED_PRECONDITION, text)
        with as_call_errors():
            return devices.record(BASE if parent is None else parent.device).size_bytes

    async def commit(self, request: Any, decide: Decide = always) -> Any:
        """The files of an active snapshot as they are now, under a separate name.

        Other calls are answered while the kernel writes what programs have changed in memory. Where that takes long,
        since it is much or the pool is full, nothing is committed, and the kernel continues to write.
        """
        device = _new_device()
        self._require_new(request.name)
        active = self._active(request.key)
        try:
            with trio.move_on_after(_WRITE_BACK_SECONDS) as patience:
                await self._run(self._places.creation(device, active.device))
            if patience.cancelled_caught:
                text = f"snapshot {active.key} has much that programs changed in memory and the kernel still writes; "
                raise CallError(Code.UNAVAILABLE, f"{text}stop or pause them, and commit it again in a moment")
            if MAX_SIZE in active.labels:
                await self._run(LimitLayer(device))  # it is not of those that are made of the new one
            async with self._changing:
                self._require_new(request.name)
                if self._active(request.key).device != active.device:
                    text = f"snapshot {request.key} was removed and prepared again while it was committed"
                    raise CallError(Code.FAILED_PRECONDITION, text)
                now = self._now_ns()
                labels = dict(request.labels)
                committed = Snapshot(request.name, active.parent, COMMITTED, device, True, labels, now, now)
                self._put(committed, EMPTY(), decide, replacing=request.key)
        except BaseException:
            await self._remove_device(device)
            raise
        due = trio.current_time() + _LEFT_SECONDS
        self._note_unmeasured(request.name, due)
        self._begin_removal(active.device, due)
        return EMPTY()

    async def remove(self, request: Any, decide: Decide = always) -> Any:
        """One that its client does not wait for any more is removed all the same, as the client wants it to be."""
        async with self._changing:
            snapshot = self._reads.require(request.key)
            if self._store.has_children(request.key):
                raise CallError(Code.FAILED_PRECONDITION, f"snapshot {request.key} has children; remove them first")
            with as_call_errors():
                self._store.remove(request.key)
            decide(EMPTY())
        if snapshot.owns_device:
            await self._remove_device(snapshot.device)
        return EMPTY()

    async def cleanup(self, _request: Any, _decide: Decide = always) -> Any:
        """Have gone what was in use when it was removed, and is not any more."""
        with trio.move_on_after(_REMOVAL_SECONDS):
            removals = list(self._removals.values())
            for removal in removals:
                self._hurry(removal)
            for removal in removals:
                await removal.has_ended.wait()
        self._executor.home.devices.deletions.retry()
        return EMPTY()

    # ------------------------------------------------------------------ asking

    async def mounts(self, request: Any, _decide: Decide = always) -> Any:
        return message_class("MountsResponse")(mounts=await self._mounts(self._reads.mountable(request.key)))

    async def update(self, request: Any, decide: Decide = always) -> Any:
        async with self._changing:
            snapshot = self._reads.require(request.info.name)
            labels = _updated(snapshot.labels, dict(request.info.labels), list(request.update_mask.paths), snapshot.key)
            if snapshot.kind == ACTIVE and labels.get(MAX_SIZE) != snapshot.labels.get(MAX_SIZE):
                text = f"the label {MAX_SIZE} of snapshot {snapshot.key} cannot be changed; it is for Prepare"
                raise CallError(Code.INVALID_ARGUMENT, text)
            updated = replace(snapshot, labels=labels, updated_ns=self._now_ns())
            answer = message_class("UpdateSnapshotResponse")(info=info_of(updated))
            self._put(updated, answer, decide)
        return answer

    async def usage(self, request: Any, _decide: Decide = always) -> Any:
        snapshot = self._reads.require(request.key)
        found = known_usage(snapshot)
        if found is None:
            found = await (self._measured(snapshot) if snapshot.kind == COMMITTED else self._looked_through(snapshot))
        return message_class("UsageResponse")(size=found.size_bytes, inodes=found.inodes)

    async def _looked_through(self, snapshot: Snapshot) -> LayerUsage:
        parent = self._store.find(snapshot.parent) if snapshot.parent else None
        return await self._run(LayerOwnUsage(snapshot.device, None if parent is None else parent.device))

    async def _measured(self, snapshot: Snapshot) -> LayerUsage:
        """What a committed snapshot adds to its parent; it is found also when its client does not wait for it."""
        await self._begin_measuring(snapshot.key).wait()
        now = self._reads.require(snapshot.key)
        return known_usage(now) or await self._looked_through(now)  # the error, where it could not be kept

    def _begin_measuring(self, key: str) -> trio.Event:
        """Have the usage of a committed snapshot found and kept; the event is set at the end of that."""
        assert self._measurers is not None, "serve_usage is not served"
        has_ended = self._measuring.get(key)
        if has_ended is None:
            has_ended = self._measuring[key] = trio.Event()
            self._measurers.start_soon(self._measure, key, has_ended)
        return has_ended

    async def _measure(self, key: str, has_ended: trio.Event) -> None:
        try:
            snapshot = self._store.find(key)
            if snapshot is None or snapshot.kind != COMMITTED or snapshot.is_measured:
                return
            with suppress(CallError):  # it may be removed meanwhile
                found = await self._looked_through(snapshot)
                async with self._changing:
                    now = self._store.find(key)
                    if now is not None and now.device == snapshot.device:
                        with as_call_errors():
                            self._store.put(replace(now, size_bytes=found.size_bytes, inodes=found.inodes))
        finally:
            del self._measuring[key]
            has_ended.set()

    async def serve_usage(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """A service: finds the usage of committed snapshots before a client asks for it, one after the other."""
        for one in self._store.all():
            if one.kind == COMMITTED and not one.is_measured:
                self._note_unmeasured(one.key, trio.current_time() + _LEFT_SECONDS)
        async with trio.open_nursery() as nursery:
            self._measurers = nursery
            task_status.started()
            while True:
                while self._unmeasured:
                    key = next(iter(self._unmeasured))
                    with trio.move_on_at(self._unmeasured.pop(key)):
                        await self._pauses.wait()
                    await self._begin_measuring(key).wait()
                self._has_unmeasured = trio.Event()
                await self._has_unmeasured.wait()

    def _note_unmeasured(self, key: str, due: float) -> None:
        self._unmeasured[key] = due
        self._has_unmeasured.set()

    # ------------------------------------------------------------------ for the diff service

    async def mounted(self, mounts: Sequence[Any]) -> Snapshot | None:
        """The snapshot that mounts show, of several on one device its owner; None for mounts of anything else."""
        if len(mounts) != 1 or (device := self._places.device_of(mounts[0])) is None:
            return None
        with as_call_errors():
            snapshot = self._store.owner_of(device)
        if snapshot is None or (self._places.views_have_devices and snapshot.kind == COMMITTED):
            return None
        return snapshot if await self._path(snapshot) == mounts[0].source else None

    async def unpack(self, snapshot: Snapshot, archive: IO[bytes]) -> None:
        """Unpack an archive into an active snapshot: all of it or nothing.

        Raises:
            CallError: UNIMPLEMENTED where its files are in use, so that others write to them where they are mounted.
        """
        device = snapshot.device
        apply = self._places.unpacking(device, Attachment(archive))
        try:
            with as_call_errors({DeviceBusy: Code.UNIMPLEMENTED}):
                await self._executor.answer(self._places.hiding(device))
                await self._executor.answer(apply, between_steps=self._pauses.give_way)
        finally:
            with trio.CancelScope(shield=True):
                await self._run(self._places.showing(device, is_new=False))

    async def archive(self, snapshot: Snapshot, against: Snapshot | None) -> AsyncGenerator[bytes, None]:
        """What a snapshot has that another one has not, and whiteouts, in pieces; to be closed by `aclosing`."""
        with as_call_errors():
            request = LayerArchive(snapshot.device, None if against is None else against.device)
            async with aclosing(self._executor.pieces(request)) as pieces:
                async for piece in pieces:
                    yield piece

    # ------------------------------------------------------------------ parts

    def _require_new(self, key: str) -> None:
        if not key or len(key) > _NAME_MAX_CHARACTERS:
            text = "a snapshot needs a key" if not key else f"a key of {len(key)} characters is too long"
            raise CallError(Code.INVALID_ARGUMENT, text)
        if self._store.find(key) is not None:
            raise CallError(Code.ALREADY_EXISTS, f"snapshot {key} exists already")

    def _require_no_such_layer(self, request: Any) -> None:
        """A layer that is here already is neither fetched nor unpacked again, for whatever namespace it came.

        containerd then looks for the committed snapshot by that label, and by its parent.
        """
        reference = request.labels.get(LAYER_REFERENCE)
        with as_call_errors():
            found = self._store.layer(reference, request.parent) if reference else None
        if found is None:
            return
        if found.labels.get(LAYER_REFERENCE) != reference:
            with as_call_errors():
                self._store.put(replace(found, labels={**found.labels, LAYER_REFERENCE: reference}))
        raise CallError(Code.ALREADY_EXISTS, f"layer {reference} is here as snapshot {found.key}")

    def _active(self, key: str) -> Snapshot:
        snapshot = self._reads.require(key)
        if snapshot.kind != ACTIVE:
            raise CallError(Code.FAILED_PRECONDITION, f"snapshot {key} is {KINDS[snapshot.kind]}, not active")
        return snapshot

    def _parent(self, key: str) -> Snapshot | None:
        if not key:
            return None
        parent = self._reads.require(key)
        if parent.kind != COMMITTED:
            text = f"snapshot {key} is {KINDS[parent.kind]}; only a committed one can be a parent"
            raise CallError(Code.INVALID_ARGUMENT, text)
        return parent

    def _put(self, snapshot: Snapshot, answer: Any, decide: Decide, *, replacing: str | None = None) -> None:
        """Have a snapshot in the store, and its client the answer. Raises CallError: it is undone, or cannot be."""
        with as_call_errors():
            if not self._store.put(snapshot, replacing=replacing, is_wanted=lambda: decide(answer)):
                raise CallError(Code.UNAVAILABLE, f"the call for snapshot {snapshot.key} was given up; {UNDONE}")

    async def _mounts(self, snapshot: Snapshot) -> Sequence[Any]:
        return self._reads.mounts_at(await self._path(snapshot), snapshot)

    async def _path(self, snapshot: Snapshot) -> str:
        path = self._reads.paths.get(snapshot.device)
        if path is None:
            is_new = snapshot.owns_device and not snapshot.parent
            path = await self._run(self._places.showing(snapshot.device, is_new=is_new))
            self._reads.paths[snapshot.device] = path
        return path

    async def _remove_device(self, device: str) -> None:
        """Have a device removed as soon as nothing uses it.

        Waits for that a moment only, since the kernel may take long, and not at all where another device is before it.
        """
        is_next = all(removal.due > trio.current_time() for removal in self._removals.values())
        removal = self._begin_removal(device, trio.current_time())
        self._hurry(removal)
        if not is_next:
            return
        with trio.move_on_after(_REMOVAL_SECONDS):
            await removal.has_ended.wait()

    def _begin_removal(self, device: str, due: float) -> _Removal:
        """Have a device removed after those that are due before it."""
        removal = self._removals[device] = _Removal(due)
        self._has_removals.set()
        return removal

    def _hurry(self, removal: _Removal) -> None:
        removal.due = min(removal.due, trio.current_time())
        self._removals_pause.cancel()

    async def _next_removal(self) -> str | None:
        """The device that is removed next: the first that is due, or the first of all where there is a pause."""
        while self._removals:
            now = trio.current_time()
            for device, removal in self._removals.items():
                if removal.due <= now:
                    return device
            device, removal = next(iter(self._removals.items()))
            with trio.move_on_at(removal.due) as self._removals_pause:
                await self._pauses.wait()
                removal.due = now
                return device
        return None

    async def serve_removals(self) -> None:
        """A service: removes the devices of snapshots that are gone, one after the other.

        One that is used by others through its node is tried again. Where the kernel holds a removal up, as for writes
        that wait for space, the next ones go on beside it: they may be what makes room. What is not done when this is
        cancelled, `end` does.
        """
        busy: set[str] = set()
        async with trio.open_nursery() as nursery:
            while True:
                with trio.move_on_after(_BUSY_SECONDS if busy else math.inf):
                    await self._has_removals.wait()
                self._has_removals = trio.Event()
                for device in sorted(busy - self._removals.keys()):
                    await self._try_removal(nursery, device, busy)
                while (next_device := await self._next_removal()) is not None:
                    await self._try_removal(nursery, next_device, busy)
                    self._removals.pop(next_device).has_ended.set()

    async def _try_removal(self, nursery: trio.Nursery, device: str, busy: set[str]) -> None:
        """Remove a device; one that others use is of `busy` then."""
        if device in self._under_way:
            return
        has_ended = trio.Event()
        self._under_way.add(device)
        nursery.start_soon(self._remove_or_note, device, busy, has_ended)
        with trio.move_on_after(_STUCK_SECONDS) as patience:
            await has_ended.wait()
        if patience.cancelled_caught:
            _log.warning("device %s of no snapshot is not removed yet: the kernel holds it up", device)

    async def _remove_or_note(self, device: str, busy: set[str], has_ended: trio.Event) -> None:
        try:
            await self._remove_now(device)
        except CallError as error:
            if device not in busy:
                _log.warning("device %s of no snapshot is not removed yet: %s", device, error.message)
            busy.add(device)
        else:
            busy.discard(device)
        self._under_way.discard(device)  # not where it is cancelled: `end` removes it then
        has_ended.set()

    async def _remove_now(self, device: str) -> None:
        if device not in self._executor.home.devices:  # its making failed
            return
        self._executor.home.volumes.give_up(device)
        if device in self._reads.paths or self._places.views_have_devices:
            await self._run(self._places.hiding(device))
            self._reads.paths.pop(device, None)
        await self._run(Remove(device, deferred=True))

    def end(self) -> None:
        """Remove what is to be removed yet: when no call is answered any more, and nothing is shown."""
        home = self._executor.home
        for device in sorted({*self._removals, *self._under_way}):
            if device not in home.devices:
                continue
            home.volumes.give_up(device)
            try:
                home.devices.remove(device, deferred=True)
            except CowfsError as error:
                _log.warning("device %s of no snapshot stays until the next snapshotter begins: %s", device, error)
        self._removals.clear()
        self._under_way.clear()

    async def _run(self, request: Request[R]) -> R:
        with as_call_errors():
            return await self._executor.answer(request)


def _max_size_bytes(request: Any) -> int | None:
    """What the label of a new snapshot says; None without one. Raises CallError."""
    text = request.labels.get(MAX_SIZE)
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 1 << 63:
        reason = f"the label {MAX_SIZE} of snapshot {request.key} is {text!r}, and not a number of bytes above 0"
        raise CallError(Code.INVALID_ARGUMENT, reason)
    return int(text)


def _new_device() -> str:
    return DEVICE_PREFIX + secrets.token_hex(16)


def _updated(old: Mapping[str, str], new: dict[str, str], paths: list[str], key: str) -> dict[str, str]:
    """Labels after an update: all of them, or those that the mask names; an empty one is removed."""
    if not paths:
        return new
    labels = dict(old)
    for path in paths:
        if path == "labels":
            labels = dict(new)
        elif path.startswith("labels."):
            name = path.removeprefix("labels.")
            labels[name] = new.get(name, "")
        else:
            raise CallError(Code.INVALID_ARGUMENT, f"cannot update the field {path} of snapshot {key}")
    return {name: value for name, value in labels.items() if value}
