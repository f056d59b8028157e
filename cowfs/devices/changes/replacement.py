"""New content for a device, or another size, all of it or nothing.

The content is made in a thin of its own, a snapshot of the device's; when it is done, the device's record is replaced
by one that names that thin and its size. The replacement of the record's file is the one step that decides.

    note      cowfs.replacing/<new thin> says: device, old thin, new thin
    message   create_snap new old
              the new thin is written by the caller, and flushed
    record    metadata/<name> names the new thin
    message   delete old            (new, when it was given up)
    note      removed

A snapshot that only lasts while it is read is such a thin, too, which no record ever names.

A crash leaves the note; at the next opening the thin that the record does not name is deleted. Both ids stay taken
until the note is gone, so neither can be given to another device meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

import msgspec

from cowfs.devices.changes.ids import ThinIds
from cowfs.devices.on_disk.records import DeviceFile, ReplacementFile
from cowfs.devices.on_disk.store import DamagedFile, DeviceStore
from cowfs.devices.reports import Finding
from cowfs.errors import CowfsError, DeviceBusy, NoSuchThin
from cowfs.pool import Pool, ThinDevice


class Replacements:
    """The protocol above, over one pool and one store.

    Args:
        activate: makes the thin of a record usable for its caller alone, under a name.
        quiesced: holds a device still, by name.
    """

    def __init__(
        self,
        pool: Pool,
        store: DeviceStore,
        ids: ThinIds,
        activate: Callable[[str, DeviceFile, bool], ThinDevice],
        quiesced: Callable[[str], AbstractContextManager[None]],
    ) -> None:
        self._pool = pool
        self._store = store
        self._ids = ids
        self._activate = activate
        self._quiesced = quiesced
        self._under_way: list[ReplacementFile] = []
        self._replaced: set[str] = set()
        self._left: set[int] = set()  # thins that wait until the home is open for writing

    def thin_ids(self) -> set[int]:
        """Thins that no record names, and that are not left over either."""
        return {note.new_id for note in self._under_way} | self._left

    def check_idle(self, name: str) -> None:
        """Raises DeviceBusy while the content of a device is being replaced."""
        if name in self._replaced:
            raise DeviceBusy(f"new content is being written to device {name!r}; try again when that is done")

    @contextmanager
    def replacing(self, name: str, size_bytes: int | None = None) -> Iterator[ThinDevice]:
        """A disk that holds what the device holds, and takes its place when the block ends without an error.

        Args:
            size_bytes: of the disk, where it is another than the device's.
        """
        self.check_idle(name)
        record = self._store.require(name)
        self._replaced.add(name)
        try:
            with self._snapshot(name, record) as thin_id:
                changes = {"device_id": thin_id, "size": size_bytes or record.size}
                thin = self._activate(name, msgspec.structs.replace(record, **changes), False)
                try:
                    yield thin
                    thin.flush()
                finally:
                    thin.close()
                # The record as it is by now: meanwhile it may have been marked for deletion.
                self._store.save(name, msgspec.structs.replace(self._store.require(name), **changes))
        finally:
            self._replaced.discard(name)

    @contextmanager
    def copied(self, name: str, *, read_only: bool) -> Iterator[ThinDevice]:
        """A disk for reading that holds what the device holds now, for the length of the block."""
        record = self._store.require(name)
        with self._snapshot(name, record) as thin_id:
            thin = self._activate(f"{name}+{thin_id}", msgspec.structs.replace(record, device_id=thin_id), read_only)
            try:
                yield thin
            finally:
                thin.close()

    @contextmanager
    def _snapshot(self, name: str, record: DeviceFile) -> Iterator[int]:
        """A thin that no record names; gone at the end, unless the device's record names it then."""
        note = ReplacementFile(name, record.device_id, self._ids.take())
        self._under_way.append(note)
        try:
            self._store.files.make_directory(self._store.files.replacements)
            self._store.files.write(self._path(note), msgspec.json.encode(note))
            with self._quiesced(name):
                self._pool.create_snap(note.new_id, note.old_id)
            yield note.new_id
        except BaseException:
            # What cannot be undone now is at the next opening: the note stays, and the ids with it.
            with suppress(CowfsError):
                self._finish(note)
            raise
        else:
            self._finish(note)
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
            except DamagedFile as error:
                self._store.report_damaged(path, f"the note {file_name!r} about new content of a device", error)
                continue
            if note is not None:
                found = f"new content of device {note.name!r} was being written, or its old one was being removed"
                self._store.findings.append(Finding("unfinished_change", found, "finished", note.name))
                self._finish(note)

    def _path(self, note: ReplacementFile) -> str:
        return self._store.files.replacement(str(note.new_id))

    def _finish(self, note: ReplacementFile) -> None:
        """Delete the thin that lost, and forget about it."""
        record = self._store.get(note.name)
        loser = note.old_id if record is not None and record.device_id == note.new_id else note.new_id
        if self._store.read_only:
            self._left.add(loser)
            return
        if not self._store.claims(loser):
            with suppress(NoSuchThin):
                self._pool.delete(loser)
        self._store.files.remove(self._path(note))
        if not self._store.claims(loser):
            self._ids.release(loser)
