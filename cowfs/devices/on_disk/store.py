"""The records of a home in memory and on disk, and what is known about parents.

Memory never says more than the disk: a record enters the map after its file is durable and leaves it before its file
goes. Everything is read once, when the home opens; a record that cannot be understood is set aside and reported, and
never keeps a home from opening.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, TypeVar

import msgspec

from cowfs.devices.on_disk.files import HomeFiles
from cowfs.devices.on_disk.names import (
    BASE,
    MIGRATED_SUFFIX,
    check_name,
    hash_to_name,
    is_plain_file_name,
    is_record_file,
)
from cowfs.devices.on_disk.records import (
    DeviceFile,
    DeviceRecord,
    OldRecordsFile,
    ParentLine,
    SetFile,
    TransactionFile,
)
from cowfs.devices.reports import HomeFinding
from cowfs.errors import DeviceExists, HomeError, UnknownDevice

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_MIN_SURPLUS_LINES: Final = 64


class DamagedFile(Exception):
    """A file of the home that cannot be understood."""


def _decoded(decoder: msgspec.json.Decoder[_T], data: bytes) -> _T:
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DamagedFile(str(error)) from error


_decode_record: Final = partial(_decoded, msgspec.json.Decoder(DeviceFile))


class DeviceStore:
    """Records by name, `base` included.

    `problems` collects, in words, what was wrong on disk, and `findings` what opening the home did about it, or would.
    `damaged_names` are those of the records that could not be understood.
    """

    def __init__(self, files: HomeFiles, *, read_only: bool) -> None:
        self.files = files
        self.read_only = read_only
        self.problems: list[str] = []
        self.findings: list[HomeFinding] = []
        self.damaged_names: list[str] = []
        self._records: dict[str, DeviceFile] = {}
        self._parents: dict[str, ParentLine] | None = None
        self._unread: HomeError | None = None  # why parents are not known
        self._is_saved = True  # whether the file of parents says what memory does

    def load(self) -> None:
        """Read every record."""
        for name, data in self.files.read_records():
            if not is_record_file(name):
                continue
            if not _is_text(name):  # a transaction could not name it
                self.damaged_names.append(name)
                self.problems.append(f"the record {name!r} has a name that is not UTF-8; it is left where it is")
                continue
            try:
                record = self.load_file(self.files.record(name), DeviceFile) if data is None else _decode_record(data)
            except DamagedFile as error:
                self.damaged_names.append(name)
                self.report_damaged(self.files.record(name), f"the record of device '{name}'", error)
                continue
            if record is not None:
                self._records[name] = record
        self._take_over_old_records()

    def _take_over_old_records(self) -> None:
        path = self.files.old_records
        try:
            old = self.load_file(path, OldRecordsFile)
        except DamagedFile as error:
            self.damaged_names.append("")
            self.report_damaged(path, "the old file of all records", error)
            return
        if old is None:
            return
        records = {hash_to_name(device_hash): record for device_hash, record in old.devices.items()}
        for name, record in records.items():
            if name in self._records or not is_plain_file_name(name):
                continue
            if self.read_only:
                self._records[name] = record
            else:
                self.save(name, record)
        if not self.read_only:
            self.files.rename(path, path + MIGRATED_SUFFIX)

    def load_set(self) -> SetFile:
        try:
            return self.load_file(self.files.set_file, SetFile) or SetFile()
        except DamagedFile as error:
            self.report_damaged(self.files.set_file, "the set's own record", error)
            return SetFile()

    def load_transaction(self) -> TransactionFile | None:
        """Raises DamagedFile when it cannot be understood."""
        return self.load_file(self.files.transaction, TransactionFile)

    def load_file(self, path: str, kind: type[_T]) -> _T | None:
        """What a file says; None when there is none. Raises DamagedFile when it cannot be understood."""
        try:
            data = self.files.read(path)
        except HomeError as error:
            # What is a directory, a link or a device is damage; what this user may not read, or the disk, is not.
            if error.errno not in (errno.EINVAL, errno.ELOOP, errno.ENXIO, errno.EISDIR):
                raise
            raise DamagedFile(error.message) from error
        if data is None:
            return None
        return _decoded(msgspec.json.Decoder(kind), data)

    def report_damaged(self, path: str, what: str, error: DamagedFile) -> None:
        """Set a file aside, or only say so when nothing may be changed."""
        found, where, action = f"{what} is damaged ({error})", "left where it is", "set aside"
        if not self.read_only:
            try:
                where = action = f"set aside as {self.files.set_aside(path)}"
                _log.warning("%s; %s", found, where)  # the next opening does not find it again
            except HomeError as failure:
                where, action = f"left where it is ({failure})", ""
        self.problems.append(f"{found}; {where}")
        self.findings.append(HomeFinding("damaged_file", found, action))

    def names(self) -> Iterator[str]:
        return iter(self._records)

    def items(self) -> Iterator[tuple[str, DeviceFile]]:
        return iter(self._records.items())

    def device_ids(self) -> list[int]:
        return [record.device_id for record in self._records.values()]

    def get(self, name: str) -> DeviceFile | None:
        return self._records.get(name)

    def require(self, name: str) -> DeviceFile:
        record = self._records.get(name)
        if record is None:
            raise UnknownDevice(f"there is no device {name!r} in the home {self.files.home}")
        return record

    def check_free(self, name: str) -> None:
        """Raises UsageError for what cannot be the name of a new device, DeviceExists for one that is taken."""
        check_name(name)
        record = self._records.get(name)
        if record is not None:
            note = ", marked for deletion" if record.deleted else ""
            raise DeviceExists(f"device {name!r} exists already (thin {record.device_id}{note}); choose another name")

    def __len__(self) -> int:
        return len(self._records)

    def claims(self, thin_id: int) -> list[str]:
        """Names of the devices that say they are this thin; more than one only in a damaged home."""
        return [name for name, record in self._records.items() if record.device_id == thin_id]

    def contradictions(self, in_pool: Collection[int]) -> Iterator[str]:
        """Where records contradict the pool or each other, in words; the rest of the home works without them.

        Args:
            in_pool: the thins of the pool.
        """
        claims: dict[int, list[str]] = {}
        for name, record in self._records.items():
            claims.setdefault(record.device_id, []).append(name)
            if record.device_id not in in_pool:
                yield f"the thin {record.device_id} of device {name!r} is not in the pool; its data is lost, remove it"
        for thin_id, names in claims.items():
            if len(names) > 1:
                yield (
                    f"thin {thin_id} is that of {' and '.join(map(repr, sorted(names)))}, so all but one of the "
                    "records are wrong; run 'recover' on the closed home"
                )

    def save(self, name: str, record: DeviceFile) -> None:
        """Write a record.

        Raises HomeError: it is as before, or as it should be and it is not known whether that is so after a crash.
        """
        data = msgspec.json.encode(record)
        try:
            self.files.write(self.files.record(name), data)
        except HomeError:
            if self.files.read(self.files.record(name)) == data:
                self._records[name] = record
            raise
        self._records[name] = record

    def save_many(self, records: Mapping[str, DeviceFile]) -> None:
        """Write records, of which a crash may leave only some."""
        self.files.write_many({self.files.record(name): msgspec.json.encode(it) for name, it in records.items()})
        self._records.update(records)

    def save_set(self, record: SetFile, *, durable: bool = True) -> None:
        self.files.write(self.files.set_file, msgspec.json.encode(record), durable=durable)

    def save_transaction(self, record: TransactionFile, *, durable: bool = True) -> None:
        """Write the transaction file; not `durable`, its name is so with that of the next record."""
        self.files.write(self.files.transaction, msgspec.json.encode(record), durable=durable)

    def remove_transaction(self, transaction_id: int) -> None:
        """Remove the transaction file where it is about this one; the absence of records is durable then."""
        with suppress(DamagedFile):  # reported, or set aside, where it is needed
            pending = self.load_transaction()
            if pending is not None and pending.open_transaction_id == transaction_id:
                self.files.remove(self.files.transaction, durable=False)
        self.files.sync_records()

    def remember(self, records: Mapping[str, DeviceFile]) -> None:
        """Take records into memory only."""
        self._records.update(records)

    def forget(self, name: str) -> None:
        """Drop a record from memory only."""
        self._records.pop(name, None)

    def rename(self, name: str, new_name: str) -> None:
        """Give the record of a device another name; `new_name` has none.

        Raises HomeError: the record has the old name, or it has the new one and it is not known whether that is so
        after a crash.
        """
        try:
            self.files.rename(self.files.record(name), self.files.record(new_name))
        except HomeError:
            if self.files.read(self.files.record(new_name)) is not None:
                self._records[new_name] = self._records.pop(name)
            raise
        self._records[new_name] = self._records.pop(name)

    def delete(self, name: str, *, durable: bool = True) -> None:
        self.forget(name)
        self.files.remove(self.files.record(name), durable=durable)

    def set_record_aside(self, name: str) -> str:
        """Move the file of a wrong record aside; returns its new path."""
        self.forget(name)
        return self.files.set_aside(self.files.record(name))

    def line_of_transaction(self, transaction_id: int) -> ParentLine | None:
        """What is remembered of the device that a transaction made."""
        lines = (line for line in self._parent_lines().values() if line.transaction_id == transaction_id)
        return next(lines, None)

    def note_parents(self, lines: Sequence[ParentLine]) -> None:
        """Remember what devices are snapshots of."""
        # The newline comes first, so that a line cut short by a crash does not take the next one with it.
        self.files.append(self.files.parents, b"".join(b"\n" + msgspec.json.encode(line) for line in lines))
        self._parent_lines().update({line.name: line for line in lines})

    def change_lines(self, change: Callable[[ParentLine], ParentLine | None]) -> None:
        """Replace every line about parents by what `change` makes of it, all of them or none; None drops a line.

        Raises HomeError: they cannot be read, or not be written. In the second case memory has them changed, and the
        next call writes them.
        """
        lines = self._parent_lines()
        if self._unread is not None:
            raise self._unread
        changed = {line.name: line for line in map(change, lines.values()) if line is not None}
        if changed != lines:
            self._parents, self._is_saved = changed, False
        if not self._is_saved and not self.read_only:
            self._save_parents(changed)

    def parent(self, name: str) -> str | None:
        """The parent, unless it is unknown or no longer the device it was."""
        record = self._records.get(name)
        line = self._line(name)
        if record is None or line is None:
            return None
        parent = self._records.get(line.parent)
        if parent is None or (parent.transaction_id >= record.transaction_id and line.parent != BASE):
            return None
        return line.parent

    def is_layer(self, name: str) -> bool | None:
        """Whether a device was made as a layer, or from one; None where that is not known."""
        line = self._line(name)
        return line.is_layer if line is not None else None

    def _line(self, name: str) -> ParentLine | None:
        """What is remembered of the device that has a name now."""
        record = self._records.get(name)
        line = self._parent_lines().get(name)
        return (
            line if record is not None and line is not None and line.transaction_id == record.transaction_id else None
        )

    def view(self, name: str) -> DeviceRecord:
        record = self.require(name)
        return DeviceRecord(
            name=name,
            device_id=record.device_id,
            size_bytes=record.size,
            transaction_id=record.transaction_id,
            parent=self.parent(name),
            initialized=record.initialized,
            deleted=record.deleted,
            is_layer=self.is_layer(name),
        )

    def _parent_lines(self) -> dict[str, ParentLine]:
        if self._parents is None:
            self._parents, count = self._load_parents()
            is_long = count > 2 * len(self._records) + _MIN_SURPLUS_LINES
            if is_long and not self.read_only and self.files.read(self.files.renaming) is None:
                self._compact_parents(self._parents)
        return self._parents

    def _load_parents(self) -> tuple[dict[str, ParentLine], int]:
        try:
            lines = (self.files.read(self.files.parents) or b"").split(b"\n")
        except HomeError as error:
            self._unread = error
            self.problems.append(f"parents are unknown: {error}")
            return {}, 0
        decode: Callable[[bytes], ParentLine] = msgspec.json.Decoder(ParentLine).decode
        parents = {}
        for line in lines:
            try:
                entry = decode(line)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                continue
            parents[entry.name] = entry
        return parents, len(lines)

    def _compact_parents(self, parents: dict[str, ParentLine]) -> None:
        for name in [name for name in parents if name not in self._records]:
            del parents[name]
        self._save_parents(parents)

    def _save_parents(self, parents: dict[str, ParentLine]) -> None:
        data = b"".join(b"\n" + msgspec.json.encode(line) for line in parents.values())
        self.files.write(self.files.parents, data)
        self._is_saved = True


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
