"""Completing devices that were brought in together, all of them or none.

Each is made by a separate transaction and marked for deletion, so that a crash leaves nothing of it. When what they
hold is committed, they lose the mark:

    note      cowfs.importing says: the name and thin of each device. This decides
    record    metadata/<name> written without the mark, for each
    note      removed

A crash leaves the note, and the next opening does the rest. So does the next change after a failure without a crash;
until then the devices are there in memory alone. A single device needs no note: its record decides.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress

import msgspec

from cowfs.devices.on_disk.records import DeviceFile, ImportingFile
from cowfs.devices.on_disk.store import DamagedFile, DeviceStore
from cowfs.devices.reports import HomeFinding
from cowfs.errors import HomeError

_log = logging.getLogger(__name__)


class Imports:
    """The protocol above, over one store."""

    def __init__(self, store: DeviceStore) -> None:
        self._store = store
        self._path = store.files.importing

    def complete(self, records: Mapping[str, DeviceFile]) -> bool:
        """Store the records of devices whose content is durable; whether nothing is left for `recover`.

        Raises:
            HomeError: the devices are marked as before.
        """
        if len(records) == 1:
            self._store.save(*next(iter(records.items())))
            return True
        note = ImportingFile({name: record.device_id for name, record in records.items()})
        try:
            self._store.files.write(self._path, msgspec.json.encode(note))
        except HomeError:
            with suppress(HomeError):
                self._store.files.remove(self._path)
            raise
        try:
            self._finish(records)
        except HomeError as error:
            self._store.remember(records)
            _log.warning("%d devices are brought in; the rest will be tried again: %s", len(records), error)
            return False
        return True

    def recover(self) -> None:
        """Do what a crash or a failure left to do. Doing it again changes nothing."""
        try:
            note = self._store.load_file(self._path, ImportingFile)
        except DamagedFile as error:
            self._store.report_damaged(self._path, "the note about devices that were brought in", error)
            return
        if note is None:
            return
        found = f"{len(note.thin_ids)} devices had been brought in when their process died"
        self._store.findings.append(HomeFinding("unfinished_change", found, "finished"))
        records = {
            name: msgspec.structs.replace(record, deleted=False)
            for name, thin_id in note.thin_ids.items()
            if (record := self._store.get(name)) is not None and record.device_id == thin_id
        }
        if self._store.read_only:
            self._store.remember(records)
        else:
            self._finish(records)

    def _finish(self, records: Mapping[str, DeviceFile]) -> None:
        self._store.save_many(records)
        self._store.files.remove(self._path)
