"""New content for a device, or another size, all of it or nothing.

The content is made in a separate thin, a snapshot of the device's, or of the one that it is rolled back to; when it
is done, the device's record is replaced by one that names that thin and its size. The replacement of the record's file
is the one step that decides.

    note      cowfs.replacing/<new thin> says: device, old thin, new thin
    message   create_snap new old
              the new thin is written by the caller, and flushed; nothing is written for a rollback
    record    metadata/<name> names the new thin
    message   delete old            (new, when it was given up)
    note      removed

A snapshot that only lasts while it is read is such a thin, too, which no record ever names.

A rollback may keep the former content as a device: the note names it and its thin, and it is made, by a transaction of
its own, before the record is replaced. Where the record was not, that device is removed again.

A crash leaves the note; at the next opening the thin that the record does not name is deleted. All ids stay taken
until the note is removed, so none can be given to another device meanwhile.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import msgspec

from cowfs.devices.active import ActiveDevices
from cowfs.devices.changes.ids import ThinIds
from cowfs.devices.on_disk.names import BASE, is_plain_file_name
from cowfs.devices.on_disk.records import ReplacementFile
from cowfs.devices.on_disk.store import DamagedFile, DeviceStore
from cowfs.devices.reports import HomeFinding
from cowfs.errors import CowfsError, HomeError, NoSuchThin, UsageError
from cowfs.pool import ThinDevice

_log = logging.getLogger(__name__)


class Replacements:
    """The protocol above, over one pool and one store."""

    def __init__(self, active: ActiveDevices, store: DeviceStore, ids: ThinIds) -> None:
        self._active = active
        self._store = store
        self._ids = ids
        self._under_way: list[ReplacementFile] = []
        self._left: set[int] = set()  # thins that wait for the next opening for writing

    def thin_ids(self) -> set[int]:
        """Thins that no record names, and that are not left over either."""
        return {note.new_id for note in self._under_way} | self._left

    @contextmanager
    def replacing(self, name: str, size_bytes: int | None = None) -> Iterator[ThinDevice]:
        """A disk that holds what the device holds, and takes its place when the block ends without an error.

        Args:
            size_bytes: of the disk, where it is another than the device's.
        """
        record = self._active.usable(name)
        with self._active.rewriting(name), self.snapshot(name, name) as note:
            changes = {"device_id": note.new_id, "size": size_bytes or record.size}
            thin = self._active.open_thin(name, msgspec.structs.replace(record, **changes), False)
            try:
                yield thin
                thin.flush()
            finally:
                thin.close()
            # The record as it is by now: meanwhile it may have been marked for deletion.
            self._store.save(name, msgspec.structs.replace(self._store.require(name), **changes))

    def check_rollback(self, name: str, snapshot: str) -> None:
        """Raises UsageError, UnknownDevice, DeviceBusy, HomeError: a device cannot be rolled back to `snapshot`."""
        record, origin = self._active.usable(name), self._active.usable(snapshot)
        if name == BASE:
            raise UsageError("the base device cannot be rolled back: every later device begins as a copy of it")
        if name == snapshot:
            raise UsageError(f"device {name!r} cannot be rolled back to itself; name one of its snapshots")
        for device, thin_id in ((name, record.device_id), (snapshot, origin.device_id)):
            if len(self._store.claims(thin_id)) > 1:
                raise HomeError(
                    f"device {device!r} cannot take part in a rollback: its thin {thin_id} is also that of another "
                    "device; one of the two records is wrong; run 'recover' on the closed home"
                )
        if self._store.is_layer(name) and self._store.is_layer(snapshot) is False:
            raise UsageError(f"{name!r} is a layer and {snapshot!r} is not; a layer is rolled back to a layer")

    def roll_back(self, name: str, snapshot: str, kept: str, keep: Callable[[int], object]) -> None:
        """Have a device that is not in use hold what `snapshot` does, with the size of that.

        Args:
            kept: the device that gets the former content, made by `keep` with a thin of this id; none when empty.
        """
        size_bytes = self._store.require(snapshot).size
        with self.snapshot(name, snapshot, kept) as note:
            if note.kept_id is not None:
                keep(note.kept_id)
            changes = {"device_id": note.new_id, "size": size_bytes}
            try:
                self._store.save(name, msgspec.structs.replace(self._store.require(name), **changes))
            except HomeError as error:
                if self._store.require(name).device_id != note.new_id:
                    raise
                text = f"device {name!r} is rolled back, and it is not known whether a power cut would take that back"
                raise HomeError(f"{text}: {error}", errno=error.errno) from error

    @contextmanager
    def snapshot(self, name: str, origin: str, kept: str = "") -> Iterator[ReplacementFile]:
        """A thin that no record names, a snapshot of `origin`, for the length of a block.

        It is deleted at the end; where the record of `name` names it then, the former thin of `name` is instead.
        """
        origin_id = self._store.require(origin).device_id
        with self._noted(name, kept) as note:
            self._active.snapshot(origin, origin_id, note.new_id)
            yield note

    @contextmanager
    def snapshots_of_nodes(self, names: Iterable[str]) -> Iterator[list[ReplacementFile]]:
        """As `snapshot`, of one moment of several devices that are in use through their nodes only."""
        with ExitStack() as ends:
            notes = [ends.enter_context(self._noted(name)) for name in names]
            self._active.snapshot_nodes({note.new_id: note.old_id for note in notes})
            yield notes

    @contextmanager
    def _noted(self, name: str, kept: str = "") -> Iterator[ReplacementFile]:
        """A thin that its user makes, known to recovery from before until it is deleted."""
        kept_id = self._ids.take() if kept else None
        note = ReplacementFile(name, self._store.require(name).device_id, self._ids.take(), kept, kept_id)
        self._under_way.append(note)
        try:
            self._store.files.make_directory(self._store.files.replacements)
            self._store.files.write(self._path(note), msgspec.json.encode(note))
            yield note
        except BaseException:
            # What cannot be undone now is at the next opening: the note stays, and the ids with it.
            with suppress(CowfsError):
                self._store.files.sync_records()  # as it is on the disk, so it shall stay
                self._finish(note)
            raise
        else:
            try:
                self._finish(note)
            except CowfsError as error:  # what was asked is done
                self._left.add(note.old_id if note.new_id == self._store.require(name).device_id else note.new_id)
                _log.warning("a thin that device %r does without stays until the next opening: %s", name, error)
        finally:
            self._under_way.remove(note)

    def recover(self) -> None:
        """Finish or undo what a crash left. Doing it again changes nothing."""
        for file_name in self._store.files.list_names(self._store.files.replacements):
            path = self._store.files.replacement(file_name)
            try:
                note = self._store.load_file(path, ReplacementFile)
                if note is not None and path != self._path(note):
                    raise DamagedFile("its name is not that of its thin")
                if note is not None and note.kept and not is_plain_file_name(note.kept):
                    raise DamagedFile("it names what cannot be a device")
            except DamagedFile as error:
                self._store.report_damaged(path, f"the note {file_name!r} about new content of a device", error)
                continue
            if note is not None:
                for thin_id in note.thin_ids:
                    self._ids.reserve(thin_id)
                found = f"new content of device {note.name!r} was being written, or its old one was being removed"
                self._store.findings.append(HomeFinding("unfinished_change", found, "finished", note.name))
                if not self._store.read_only:
                    self._store.files.sync_records()
                self._finish(note)

    def _path(self, note: ReplacementFile) -> str:
        return self._store.files.replacement(str(note.new_id))

    def _finish(self, note: ReplacementFile) -> None:
        """Delete the thins that lost, and forget about them."""
        record = self._store.get(note.name)
        is_old = record is not None and record.device_id == note.old_id
        losers = {note.old_id if record is not None and record.device_id == note.new_id else note.new_id}
        if note.kept_id is not None and is_old:
            kept = self._store.get(note.kept)
            if kept is not None and kept.device_id == note.kept_id:
                self._give_up(note.kept)
            losers.add(note.kept_id)
        if self._store.read_only:
            self._left |= losers
            return
        losers = {loser for loser in losers if not self._store.claims(loser)}
        for loser in losers:
            with suppress(NoSuchThin):
                self._active.pool.delete(loser)
        self._store.files.remove(self._path(note))
        for loser in losers:
            self._ids.release(loser)

    def _give_up(self, name: str) -> None:
        if self._store.read_only:
            self._store.forget(name)
        else:
            self._store.delete(name)
