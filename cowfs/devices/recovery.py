"""Bringing the records of a home and its pool together again, where they say different things.

What opening a home does alone (finishing or undoing what a crash left, setting aside files that cannot be
understood) comes first. Then, unless pool and records do not belong together at all:

    a record whose thin does not exist           is set aside
    several records of one thin                  the one that the thin was made for stays, the others are set aside
    a thin that no record names                  gets its record back, or one under a new name, or is deleted
    a transaction file of another time           is set aside
    no base device                               is made anew, by the caller

Each step is one replaced or renamed file, or one message, so it can be cut short anywhere and run again.

Whose a thin was: its file system may say (the file `id`, which the layer driver writes into a layer that is used; a
snapshot that never was has its parent's, and a renamed layer has its former name until it is changed), and so does
`cowfs.parents`, by the transaction that made the thin. A name whose record was damaged is believed first.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing

from cowfs.devices.active import ActiveDevices
from cowfs.devices.base.base_device import BaseDevice
from cowfs.devices.changes.ids import ThinIds
from cowfs.devices.changes.transactions import Transactions
from cowfs.devices.on_disk.names import BASE, check_name
from cowfs.devices.on_disk.records import MAX_DEVICE_BYTES, DeviceFile, Identity
from cowfs.devices.on_disk.store import DeviceStore
from cowfs.devices.pools import figures
from cowfs.devices.reports import FindingKind, HomeFinding
from cowfs.errors import CowfsError, FilesystemError, ThinBusy, UsageError
from cowfs.thinmeta.walk import ThinEntry
from cowfs.units import SECTOR_BYTES, format_size

_COPY_NUMBER = re.compile(r"\.\d+$")


class Recovery:
    """One run, over the parts of a device set; changes nothing when the store is read-only, and says what it would.

    Args:
        orphans: which of some thins belong to no record.
    """

    def __init__(
        self,
        active: ActiveDevices,
        store: DeviceStore,
        ids: ThinIds,
        transactions: Transactions,
        base: BaseDevice,
        orphans: Callable[[Iterable[int]], list[int]],
    ) -> None:
        self._active = active
        self._pool = active.pool
        self._store = store
        self._ids = ids
        self._transactions = transactions
        self._base = base
        self._orphans = orphans
        self._thins: dict[int, ThinEntry] = {}
        self._highest: dict[int, int] = {}
        self._names = set(store.names())
        self._findings: list[HomeFinding] = []

    def run(self, *, delete_orphans: bool) -> list[HomeFinding]:
        """What was found and done, also by opening. Raises what the pool or the home raises; it can be run again.

        Args:
            delete_orphans: delete what is not known to be a device whose record was damaged.
        """
        self._match(delete_orphans=delete_orphans)
        findings = [*self._store.findings, *self._findings]
        if all(finding.kind != "foreign_pool" for finding in findings):
            findings.extend(self._remake_base(findings))
        return findings

    def _match(self, *, delete_orphans: bool) -> None:
        orphans = self._orphans(self._pool.thin_ids())
        with figures.reading(self._pool) as reading:
            self._thins = reading.thins()
            for thin_id in orphans:
                self._highest[thin_id] = reading.highest_mapped_byte(self._thins[thin_id]) or 0
        if not self._belong_together():
            return
        self._set_missing_aside()
        self._settle_conflicts()
        self._take_in(orphans, delete=delete_orphans)
        self._set_stale_transaction_aside()

    def _remake_base(self, findings: list[HomeFinding]) -> Iterator[HomeFinding]:
        is_reported = any(finding.device == BASE for finding in findings)
        if self._base.is_present() or (is_reported and self._store.read_only):
            return
        found = "the home has no completely initialised base device"
        try:
            if not self._store.read_only:
                self._base.ensure()
        except CowfsError as error:
            yield HomeFinding("base", f"{found}, and none can be made: {error}", "", BASE)
        else:
            if not is_reported:
                yield HomeFinding("base", found, "made anew", BASE)

    # ------------------------------------------------------------------ pool and records as a whole

    def _belong_together(self) -> bool:
        """Whether they do, by the UUID of the base device, or else because every device fits its thin."""
        record = self._base.finished()
        if record is None or record.device_id not in self._thins:
            return True
        recorded, found = self._base.set_file.base_uuid, self._base_identity(record)
        if found is not None and recorded in ("", found.uuid):
            return True
        what = f"the UUID {found.uuid}, and the home says {recorded}" if found else "no file system that can be read"
        text = f"the base device (thin {record.device_id}) has {what}"
        if not self._do_devices_fit():
            self._note(
                "foreign_pool",
                f"{text}; the devices do not fit their thins either: pool and records do not belong together",
                "",
                BASE,
            )
            return False
        if found is None:
            self._note("base", text, "made anew", BASE, record.device_id)
            if not self._store.read_only:
                self._base.disown()
        else:
            self._note("base", f"{text}; every device fits its thin", "noted as it is", BASE, record.device_id)
            if not self._store.read_only:
                self._base.note_uuid(found.uuid)
        return True

    def _base_identity(self, record: DeviceFile) -> Identity | None:
        try:
            with closing(self._active.open_thin(BASE, record, True)) as thin:
                return self._base.identify(thin)
        except FilesystemError:
            return None

    def _do_devices_fit(self) -> bool:
        """Whether each thin was made in the transaction that its record says, or later (for new content)."""
        made = [
            (record.transaction_id, self._thins[record.device_id].details.transaction_id + 1)
            for name, record in self._store.items()
            if record.device_id in self._thins and name != BASE
        ]
        return any(recorded == found for recorded, found in made) and all(recorded <= found for recorded, found in made)

    # ------------------------------------------------------------------ records

    def _set_missing_aside(self) -> None:
        for name, record in sorted(self._store.items()):
            if record.device_id in self._thins:
                continue
            found = f"the thin {record.device_id} of device {name!r} is not in the pool: its data is lost"
            if name == BASE:
                self._note("missing_thin", found, "made anew", name, record.device_id)
            else:
                self._note("missing_thin", found, self._set_record_aside(name), name, record.device_id)

    def _settle_conflicts(self) -> None:
        claims: dict[int, list[str]] = defaultdict(list)
        for name, record in sorted(self._store.items()):
            if record.device_id in self._thins:
                claims[record.device_id].append(name)
        for thin_id, names in claims.items():
            if len(names) < 2:
                continue
            made = self._thins[thin_id].details.transaction_id + 1
            rightful = [name for name in names if self._store.require(name).transaction_id == made]
            found = f"thin {thin_id} is that of {' and '.join(map(repr, names))}"
            if len(rightful) != 1:
                self._note("conflict", f"{found}, and it is unknown which device it belongs to", "", None, thin_id)
                continue
            for name in names:
                if name != rightful[0]:
                    said = f"{found}, and was made for {rightful[0]!r}, so the record of {name!r} is wrong"
                    self._note("conflict", said, self._set_record_aside(name), name, thin_id)

    def _set_record_aside(self, name: str) -> str:
        self._names.discard(name)
        if self._store.read_only:
            return "set aside"
        return f"set aside as {self._store.set_record_aside(name)}"

    def _set_stale_transaction_aside(self) -> None:
        problem = self._transactions.find_stale()
        if problem:
            action = "set aside"
            if not self._store.read_only:
                action = f"set aside as {self._store.files.set_aside(self._store.files.transaction)}"
            self._note("stale_transaction", problem, action)

    # ------------------------------------------------------------------ thins without a record

    def _take_in(self, orphans: list[int], *, delete: bool) -> None:
        damaged = set(self._damaged_names())
        # The oldest first: an `id` file that a snapshot has from its parent is the parent's.
        for thin_id in sorted(orphans, key=lambda thin_id: (self._thins[thin_id].details.transaction_id, thin_id)):
            entry = self._thins[thin_id]
            identity = self._look_into(entry)
            name = self._name_of(entry, identity, damaged)
            size_bytes = self._size_of(entry, identity)
            found = f"thin {thin_id} ({format_size(size_bytes)}) belongs to no device"
            if delete and name not in damaged:
                self._delete(thin_id, found)
                continue
            action = "recorded" if name else "adopted"
            name = name or self._free_name(thin_id)
            self._note("orphan_thin", found, f"{action} as {name!r}", name, thin_id)
            self._names.add(name)
            if not self._store.read_only:
                made = min(entry.details.transaction_id + 1, self._transactions.current_id())
                self._store.save(name, DeviceFile(thin_id, size_bytes, made, initialized=name == BASE))

    def _damaged_names(self) -> Iterator[str]:
        """Names of the records that were set aside, by this run or before."""
        for file_name in self._store.files.list_names(self._store.files.damaged):
            yield file_name
            yield _COPY_NUMBER.sub("", file_name)
        yield from self._store.damaged_names

    def _look_into(self, entry: ThinEntry) -> Identity | None:
        """What is on a thin, which is made as long as it says it is."""
        size_bytes = self._round_up(self._highest[entry.thin_id] + 1)
        identity = None
        for _ in range(2):
            record = DeviceFile(entry.thin_id, size_bytes)
            try:
                with closing(self._active.open_thin(f"recover+{entry.thin_id}", record, True)) as thin:
                    identity = self._base.identify(thin)
            except CowfsError:  # whatever is in it, it is a device
                return identity
            if identity is None or not size_bytes < identity.size_bytes <= MAX_DEVICE_BYTES:
                break
            size_bytes = self._round_up(identity.size_bytes)
        return identity if identity is not None and identity.size_bytes <= MAX_DEVICE_BYTES else None

    def _round_up(self, size_bytes: int) -> int:
        return -(-size_bytes // self._pool.block_bytes) * self._pool.block_bytes

    def _size_of(self, entry: ThinEntry, identity: Identity | None) -> int:
        mapped_bytes = self._highest[entry.thin_id] + 1 if entry.details.mapped_blocks else self._pool.block_bytes
        size_bytes = max(mapped_bytes, identity.size_bytes if identity else 0)
        return -(-size_bytes // SECTOR_BYTES) * SECTOR_BYTES

    def _name_of(self, entry: ThinEntry, identity: Identity | None, damaged: set[str]) -> str | None:
        """The name that a thin had, when it is known and no device has it."""
        line = self._store.line_of_transaction(entry.details.transaction_id + 1)
        known = [name for name in (identity.name if identity else None, line.name if line else None) if name]
        for name in sorted(known, key=lambda name: name not in damaged):
            if name not in self._names and _is_name(name):
                return name
        is_empty = identity is not None and identity.is_empty and identity.uuid == self._base.set_file.base_uuid
        return BASE if is_empty and not known and BASE not in self._names else None

    def _free_name(self, thin_id: int) -> str:
        name, number = f"recovered-{thin_id}", 1
        while name in self._names:
            number += 1
            name = f"recovered-{thin_id}-{number}"
        return name

    def _delete(self, thin_id: int, found: str) -> None:
        try:
            if not self._store.read_only:
                self._pool.delete(thin_id)
                self._ids.release(thin_id)
        except ThinBusy as error:
            self._note("orphan_thin", f"{found}, and cannot be deleted: {error}", "", None, thin_id)
        else:
            self._note("orphan_thin", found, "deleted", None, thin_id)

    def _note(
        self, kind: FindingKind, found: str, action: str, device: str | None = None, thin_id: int | None = None
    ) -> None:
        self._findings.append(HomeFinding(kind, found, action, device, thin_id))


def _is_name(name: str) -> bool:
    try:
        check_name(name)
    except UsageError:
        return False
    return True
