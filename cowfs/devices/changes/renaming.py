"""Giving a device another name, wholly or not at all.

The name of a device is the name of its record's file, so renaming that file is the one step that decides. What
`cowfs.parents` says of the device and of its children follows.

    lines     what is remembered of an earlier device of the new name is dropped
    note      cowfs.renaming says: both names, the transaction that made the device
    record    metadata/<name> renamed to metadata/<new name>
    lines     those of the device and of its children have the new name
    note      removed

A crash leaves the note. At the next opening the lines follow the record, whichever name it has; when they and it are
durable, the note is removed.
A failure without a crash leaves the note too, where it cannot be finished or undone at once; no device is made or
renamed then before that is done.
"""

from __future__ import annotations

import logging
from contextlib import suppress

import msgspec

from cowfs.devices.on_disk.names import BASE, is_plain_file_name
from cowfs.devices.on_disk.records import ParentLine
from cowfs.devices.on_disk.store import DamagedFile, DeviceStore
from cowfs.devices.reports import HomeFinding
from cowfs.errors import HomeError, UsageError

_log = logging.getLogger(__name__)


class RenamingFile(msgspec.Struct, frozen=True):
    """The device `name`, made by the transaction `transaction_id`, gets the name `new_name`."""

    name: str
    new_name: str
    transaction_id: int

    def reversed(self) -> RenamingFile:
        return RenamingFile(self.new_name, self.name, self.transaction_id)

    def applied_to(self, line: ParentLine) -> ParentLine:
        """A line as it is with the new name; applied again, it changes nothing."""
        if line.name == self.name and line.transaction_id == self.transaction_id:
            return msgspec.structs.replace(line, name=self.new_name)
        if line.parent == self.name and line.transaction_id > self.transaction_id:
            return msgspec.structs.replace(line, parent=self.new_name)
        return line


class Renames:
    """The protocol above, over one store."""

    def __init__(self, store: DeviceStore) -> None:
        self._store = store
        self._path = store.files.renaming
        self._is_finished = False

    def finish_interrupted(self) -> None:
        """Finish or undo what an earlier failure left. Called before a device is made or renamed."""
        if not self._is_finished:
            self.recover()

    def check(self, name: str, new_name: str) -> None:
        """Raises UsageError, DeviceExists: the names cannot be those of a renaming."""
        if name == BASE:
            raise UsageError("the base device cannot be renamed: the home finds it by its name")
        if new_name == name:
            raise UsageError(f"device {name!r} has this name already; choose another one")
        self._store.check_free(new_name)

    def rename(self, name: str, new_name: str) -> None:
        """Rename a device that is not in use to a name that is free.

        Raises:
            HomeError: nothing has changed; or the device has its new name, and it is not known whether a power cut
                would take that back, as the message says then.
        """
        self.finish_interrupted()
        self._store.change_lines(lambda line: _without(line, new_name))
        note = RenamingFile(name, new_name, self._store.require(name).transaction_id)
        self._is_finished = False
        try:
            self._store.files.write(self._path, msgspec.json.encode(note))
            self._store.rename(name, new_name)
        except HomeError as error:
            with suppress(HomeError):
                self.recover()
            if new_name not in self._store.names():
                raise
            text = f"device {name!r} is {new_name!r} now, and it is not known whether a power cut would take that back"
            raise HomeError(f"{text}: {error}", errno=error.errno) from error
        try:
            self._finish(note)
        except HomeError as error:
            _log.warning("device %r is %r now; the rest will be tried again: %s", name, new_name, error)

    def recover(self) -> None:
        """Finish or undo what a crash or a failure left. Doing it again changes nothing."""
        try:
            note = self._store.load_file(self._path, RenamingFile)
            if note is not None and not (is_plain_file_name(note.name) and is_plain_file_name(note.new_name)):
                raise DamagedFile("it names what cannot be a device")
        except DamagedFile as error:
            self._store.report_damaged(self._path, "the note about a new name of a device", error)
            note = None
        if note is None:
            self._is_finished = True
            return
        is_renamed = self._is_made_by(note, note.new_name)
        found = f"device {note.name!r} was being renamed to {note.new_name!r}, and that was cut short"
        finding = HomeFinding("unfinished_change", found, "finished" if is_renamed else "undone", note.name)
        self._store.findings.append(finding)
        self._finish(note if is_renamed else note.reversed())

    def _finish(self, note: RenamingFile) -> None:
        """Have everything follow the record, which has the new name; nothing is changed where it has not."""
        if self._is_made_by(note, note.new_name):
            self._store.change_lines(note.applied_to)
            self._make_durable(note)
        if not self._store.read_only:
            self._store.files.remove(self._path)
            self._is_finished = True

    def _make_durable(self, note: RenamingFile) -> None:
        """See to it that the record has the new name after a power cut, and not the former one beside it."""
        is_free = self._store.get(note.name) is None
        if not self._store.read_only and (is_free or self._is_made_by(note, note.name)):
            self._store.delete(note.name)

    def _is_made_by(self, note: RenamingFile, name: str) -> bool:
        record = self._store.get(name)
        return record is not None and record.transaction_id == note.transaction_id


def _without(line: ParentLine, name: str) -> ParentLine | None:
    """A line that says nothing about a device of this name: there is none now, and there will be another."""
    if line.name == name:
        return None
    return msgspec.structs.replace(line, parent="") if line.parent == name else line
