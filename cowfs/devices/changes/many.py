"""Making many devices at once, all of them or none, in one commit where the pool can group messages.

The pool's transaction id, T before, grows by as many as there are devices, in one step, which decides.

    note      cowfs.making says: T, and the name and thin of each device
    message   create_thin, create_snap, for each
    record    metadata/<name> written, for each
    file      the transaction file says T+n: so another program finds pool and records in step
    close     set_transaction_id T T+n
    note      removed

A crash leaves the note. Where the pool is still at T, the next opening removes the records and thins that the note
names; else all is done. A failure without a crash is undone the same way, at once or before the next change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress

import msgspec

from cowfs.devices.changes.ids import ThinIds
from cowfs.devices.on_disk.names import is_plain_file_name, name_to_hash
from cowfs.devices.on_disk.records import DeviceFile, MakingFile, TransactionFile
from cowfs.devices.on_disk.store import DamagedFile, DeviceStore
from cowfs.devices.pools.health import require_status
from cowfs.devices.reports import HomeFinding
from cowfs.errors import NoSuchThin
from cowfs.pool import Pool


class ManyMakings:
    """The protocol above, over one pool and one store.

    Args:
        left: gets the thins that wait until the home is open for writing.
    """

    def __init__(self, pool: Pool, store: DeviceStore, ids: ThinIds, left: set[int]) -> None:
        self._pool = pool
        self._store = store
        self._ids = ids
        self._path = store.files.making
        self._left = left

    def make(
        self,
        sizes_bytes: Mapping[str, int],
        send: Callable[[Mapping[str, int]], None],
        after_records: Callable[[Mapping[str, DeviceFile]], None],
    ) -> None:
        """Make devices of these sizes, whose thins `send` makes by name. Who calls it undoes by `recover`."""
        transaction_id = require_status(self._pool, flush=False).transaction_id
        for thin_id in self._pool.thin_ids():  # a message may have made some
            self._ids.reserve(thin_id)
        note = MakingFile(transaction_id, {name: self._ids.take() for name in sizes_bytes})
        self._store.files.write(self._path, msgspec.json.encode(note))
        send(note.thin_ids)
        records = {
            name: DeviceFile(thin_id, sizes_bytes[name], transaction_id + number)
            for number, (name, thin_id) in enumerate(note.thin_ids.items(), 1)
        }
        self._store.save_many(records)
        after_records(records)
        last, record = list(records.items())[-1]
        self._store.save_transaction(TransactionFile(record.transaction_id, name_to_hash(last), record.device_id))
        self._pool.set_transaction_id(transaction_id, record.transaction_id)

    def finish(self) -> None:
        """Forget the note of devices that are made, in a pool that has committed them."""
        self._store.files.remove(self._path)

    def recover(self) -> None:
        """Undo what a crash or a failure left, or finish it. Doing it again changes nothing."""
        try:
            note = self._store.load_file(self._path, MakingFile)
            if note is not None and not all(map(is_plain_file_name, note.thin_ids)):
                raise DamagedFile("it names what cannot be a device")
        except DamagedFile as error:
            self._store.report_damaged(self._path, "the note about devices that were being made", error)
            return
        if note is None:
            return
        if require_status(self._pool, flush=False).transaction_id == note.transaction_id:
            self._undo(note)
        if not self._store.read_only:
            self.finish()

    def _undo(self, note: MakingFile) -> None:
        found = f"{len(note.thin_ids)} devices were being made when their process died"
        self._store.findings.append(HomeFinding("unfinished_change", found, "removed"))
        for name, thin_id in note.thin_ids.items():
            record = self._store.get(name)
            is_another = record is not None and record.device_id != thin_id
            if self._store.read_only:
                self._left.add(thin_id)
                if not is_another:
                    self._store.forget(name)
                continue
            if not is_another:
                self._store.delete(name, durable=False)
            with suppress(NoSuchThin):
                self._pool.delete(thin_id)
        if not self._store.read_only:
            self._store.remove_transaction(note.transaction_id + len(note.thin_ids))
            for thin_id in note.thin_ids.values():
                self._ids.release(thin_id)
