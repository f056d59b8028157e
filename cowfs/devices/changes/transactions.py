"""Making and removing devices, each wholly or not at all, across the pool and the records.

The pool keeps a transaction id T that only a compare-and-swap changes; the home keeps a file that says which device
the transaction after T is about.

    make                                   remove
      open     file says T+1, name, id       open     file says T+1, name, id
      message  create_thin, create_snap      message  delete
      record   metadata/<name> written       close    set_transaction_id T T+1
      close    set_transaction_id T T+1      record   metadata/<name> removed

A crash before `close` leaves the file at T+1 and the pool at T. Recovery then deletes that thin and that record: a
device that was being made disappears, one that was being removed is removed. A file at T belongs to a finished
transaction, of which at most the record of a removed device is left, without its thin: no step waits for the disk to
have forgotten it, since the next transaction's file makes that durable too. Every step of recovery may itself be cut
short and is then done again.

A pool that can commits the messages of one transaction at once. The order above holds for those that cannot. Where
nothing else commits before the end, the names of the file and of the record become durable together, and a crash may
leave a record of T+1 beside a file that does not say so: its thin is not in the pool, and it is removed.

A failure without a crash is followed by the same recovery, at once; when even that fails (the pool became read-only, or
the thin is busy in the kernel), the device is out of the map, its id stays taken, and every later change starts with
another attempt.

Many devices made at once have a separate protocol, in `cowfs.devices.changes.many`, and so has the completion of
several that were brought in together, in `cowfs.devices.changes.importing`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Final

import msgspec

from cowfs.devices.changes.ids import ThinIds
from cowfs.devices.changes.importing import Imports
from cowfs.devices.changes.many import ManyMakings
from cowfs.devices.on_disk.names import hash_to_name, is_plain_file_name, name_to_hash
from cowfs.devices.on_disk.records import DeviceFile, TransactionFile
from cowfs.devices.on_disk.store import DamagedFile, DeviceStore
from cowfs.devices.pools.health import require_status
from cowfs.devices.reports import HomeFinding
from cowfs.errors import CowfsError, HomeError, NoSuchThin, PoolModeError, ThinExists
from cowfs.pool import GroupingPool, Pool

_log = logging.getLogger(__name__)
_MAX_ID_ATTEMPTS: Final = 8


class Transactions:
    """The protocol above, over one pool and one store."""

    def __init__(self, pool: Pool, store: DeviceStore, ids: ThinIds) -> None:
        self._pool = pool
        self._grouping = pool if isinstance(pool, GroupingPool) else None
        self._store = store
        self._ids = ids
        self._foreign: set[int] = set()  # ids that another program uses
        self.left: set[int] = set()  # thins that wait until the home is open for writing
        self._many = ManyMakings(pool, store, ids, self.left)
        self._imports = Imports(store)
        self._is_finished = False

    def current_id(self) -> int:
        return require_status(self._pool, flush=False).transaction_id

    def finish_interrupted(self) -> None:
        """Finish what an earlier failure left. Called before every change."""
        if not self._is_finished:
            self.recover()

    def make(
        self,
        name: str,
        size_bytes: int,
        send: Callable[[Mapping[str, int]], None],
        after_record: Callable[[Mapping[str, DeviceFile]], None] = lambda _records: None,
        *,
        thin_id: int | None = None,
        incomplete: bool = False,
        is_one_commit: bool = False,
    ) -> DeviceFile:
        """Make a device: a thin through `send`, given its id by name, and its record.

        Args:
            thin_id: an id that its caller has taken; a fresh one when None.
            incomplete: have the record in the home be marked for deletion; the one that is returned is not.
            is_one_commit: `send` has nothing of the thin committed, where the pool can group messages.
        """
        self.finish_interrupted()
        durable = self._grouping is None or not is_one_commit
        try:
            with self._together():
                if thin_id is None:
                    thin_id, transaction_id = self._make_thin(name, send, durable=durable)
                else:
                    transaction_id = self._open(name, thin_id, durable=durable)
                    send({name: thin_id})
                record = DeviceFile(thin_id, size_bytes, transaction_id)
                self._store.save(name, msgspec.structs.replace(record, deleted=incomplete))
                after_record({name: record})
                self._close(transaction_id)
        except BaseException as error:
            self._recover_from(error, f"making the device {name!r} failed")
            raise
        return record

    def make_many(
        self,
        sizes_bytes: Mapping[str, int],
        send: Callable[[Mapping[str, int]], None],
        after_records: Callable[[Mapping[str, DeviceFile]], None],
    ) -> None:
        """Make devices of these sizes, all or none: thins through `send`, given their ids by name, and records."""
        self.finish_interrupted()
        self._is_finished = False
        try:
            with self._together():
                self._many.make(sizes_bytes, send, after_records)
        except BaseException as error:
            self._recover_from(error, f"making {len(sizes_bytes)} devices failed")
            raise
        try:
            self._many.finish()
            self._is_finished = True
        except HomeError as error:
            _log.warning("%d devices are made; the rest will be tried again: %s", len(sizes_bytes), error)

    def complete(self, records: Mapping[str, DeviceFile]) -> None:
        """Store the records of devices that were made incomplete, all or none; their content is durable.

        Raises:
            HomeError: none is stored.
        """
        self.finish_interrupted()
        self._is_finished = self._imports.complete(records)

    def remove(self, name: str, *, before_message: Callable[[DeviceFile], None] | None = None) -> None:
        """Remove a device: its thin, then its record. The thin may be absent from the pool.

        Args:
            before_message: called when a crash would already make the removal be finished.
        """
        self.finish_interrupted()
        record = self._store.require(name)
        others = [other for other in self._store.claims(record.device_id) if other != name]
        if others:
            raise HomeError(
                f"device {name!r} cannot be removed: its thin {record.device_id} is also that of {others[0]!r}; "
                "one of the two records is wrong; run 'recover' on the closed home"
            )
        with self._together():
            try:
                transaction_id = self._open(name, record.device_id)
                if before_message is not None:
                    before_message(record)
                self._delete_thin(record.device_id)
            except OSError:  # every CowfsError is one
                self._abandon(name)
                raise
            self._store.forget(name)
            self._close(transaction_id)
        self._is_finished = False
        self._store.delete(name, durable=False)
        self._is_finished = True
        self._ids.release(record.device_id)

    def _together(self) -> AbstractContextManager[None]:
        return nullcontext() if self._grouping is None else self._grouping.together()

    def recover(self) -> None:
        """Bring the home back to the state before or after the last transaction. Doing it again changes nothing."""
        self._is_finished = False
        self._many.recover()
        try:
            pending = self._store.load_transaction()
            if pending is not None:
                self._recover(pending)
            self._undo_without_file()
        except DamagedFile as error:
            self._recover_without_file(error)
        self._imports.recover()
        self._is_finished = True

    def _recover(self, pending: TransactionFile) -> None:
        name = hash_to_name(pending.device_hash)
        if not is_plain_file_name(name):
            raise DamagedFile(f"device_hash {name!r} is not a device name")
        current_id = self.current_id()
        if pending.open_transaction_id == current_id:
            self._finish_removal(name, pending)
            return
        stale = self._why_stale(pending, current_id)
        if stale:
            self._problem(f"{stale}; nothing was undone")
            return
        self._undo(name, pending.device_id)
        if not self._store.read_only:
            self._store.files.remove(self._store.files.transaction)

    def _undo_without_file(self) -> None:
        """Remove the record of a transaction that was not closed, and whose file a crash kept from the disk."""
        next_id = self.current_id() + 1
        for name, record in list(self._store.items()):
            if record.transaction_id == next_id and not self.is_in_pool(record.device_id):
                self._undo(name, record.device_id)

    def _finish_removal(self, name: str, removed: TransactionFile) -> None:
        """Remove the record that a finished transaction may have left."""
        try:
            record = self._store.load_file(self._store.files.record(name), DeviceFile)
        except DamagedFile:  # reported, or set aside, when the home was opened
            return
        is_left = (
            record is not None
            and record.device_id == removed.device_id
            and record.transaction_id != removed.open_transaction_id  # else the transaction made it
            and not self.is_in_pool(removed.device_id)
        )
        if is_left and self._store.read_only:
            self._store.forget(name)
        elif is_left:
            self._store.delete(name)
            self._ids.release(removed.device_id)

    def _why_stale(self, pending: TransactionFile, current_id: int) -> str:
        """Why an open transaction cannot be the pool's next one; empty when it is."""
        name = hash_to_name(pending.device_hash)
        if pending.open_transaction_id != current_id + 1:
            return (
                f"the last transaction was {pending.open_transaction_id} and the pool is at {current_id}: "
                "pool and records are out of sync"
            )
        record = self._store.get(name)
        claims = [other for other in self._store.claims(pending.device_id) if other != name]
        if claims or (record is not None and record.device_id != pending.device_id):
            return (
                f"the open transaction is about device {name!r} as thin {pending.device_id}, "
                "which the records contradict"
            )
        return ""

    def find_stale(self) -> str:
        """What is wrong with the transaction file, when it is of no use; empty when nothing is."""
        try:
            pending = self._store.load_transaction()
        except DamagedFile:  # reported when the home was opened
            return ""
        current_id = self.current_id()
        if pending is None or pending.open_transaction_id == current_id or pending.device_id in self.left:
            return ""
        return self._why_stale(pending, current_id)

    def _undo(self, name: str, thin_id: int) -> None:
        self._store.forget(name)
        found = f"device {name!r} was being made or removed when its process died"
        self._store.findings.append(HomeFinding("unfinished_change", found, "removed", name, thin_id))
        if self._store.read_only:
            self.left.add(thin_id)
            self._problem(f"{found}; it is not shown")
            return
        if thin_id not in self._foreign:
            self._delete_thin(thin_id)
        self._store.delete(name)
        if thin_id not in self._foreign:
            self._ids.release(thin_id)

    def _recover_without_file(self, damage: DamagedFile) -> None:
        """The transaction file is damaged: find what it was about by comparing the pool with the records.

        Undone is what can only come from the open transaction: a record that it wrote, one record whose thin is
        gone, one thin that it made without a record and that has nothing of its own. Anything more is kept.
        """
        current_id = self.current_id()
        for name, record in list(self._store.items()):
            if record.transaction_id == current_id + 1 and self._store.claims(record.device_id) == [name]:
                self._undo(name, record.device_id)
        in_pool = set(self._pool.thin_ids())
        missing = [name for name, record in self._store.items() if record.device_id not in in_pool]
        if len(missing) == 1:
            self._undo(missing[0], self._store.require(missing[0]).device_id)
        if not self._store.damaged_names and not self._store.read_only:
            from cowfs.devices.pools.figures import is_fresh

            known = {record.device_id for _, record in self._store.items()}
            made = [thin for thin in in_pool - known if is_fresh(self._pool, thin, current_id)]
            if len(made) == 1:
                self._delete_thin(made[0])
                self._ids.release(made[0])
                found = f"thin {made[0]} was being made when its process died"
                self._store.findings.append(HomeFinding("unfinished_change", found, "removed", None, made[0]))
        self._store.report_damaged(self._store.files.transaction, "the transaction file", damage)

    def _make_thin(self, name: str, send: Callable[[Mapping[str, int]], None], *, durable: bool) -> tuple[int, int]:
        """(id, transaction id) of a new thin, whose transaction is open."""
        for _ in range(_MAX_ID_ATTEMPTS):
            thin_id = self._ids.take()
            try:
                if self.is_in_pool(thin_id):
                    raise ThinExists(f"thin {thin_id} is in pool {self._pool.name} and should not be")
                transaction_id = self._open(name, thin_id, durable=durable)
                send({name: thin_id})
            except ThinExists as error:
                _log.warning("%s", error)
                self._foreign.add(thin_id)
                for other in self._pool.thin_ids():
                    self._ids.reserve(other)
            except BaseException:
                self._ids.release(thin_id)
                raise
            else:
                self._foreign.discard(thin_id)
                return thin_id, transaction_id
        raise HomeError(
            f"no id for device {name!r}: {_MAX_ID_ATTEMPTS} ids in a row that should be free are taken in pool "
            f"{self._pool.name}; something else makes thins there"
        )

    def is_in_pool(self, thin_id: int) -> bool:
        try:
            self._pool.thin_status(thin_id)
        except NoSuchThin:
            return False
        return True

    def _open(self, name: str, thin_id: int, *, durable: bool = True) -> int:
        transaction_id = self.current_id() + 1
        self._is_finished = False
        record = TransactionFile(transaction_id, name_to_hash(name), thin_id)
        self._store.save_transaction(record, durable=durable)
        return transaction_id

    def _close(self, transaction_id: int) -> None:
        self._pool.set_transaction_id(transaction_id - 1, transaction_id)
        self._is_finished = True

    def _abandon(self, name: str) -> None:
        """Take back an open transaction that has changed nothing yet."""
        try:
            self._store.files.remove(self._store.files.transaction)
        except HomeError as error:
            raise HomeError(
                f"device {name!r} could not be removed and the transaction not taken back: {error}; "
                "the removal will be tried again at the next change",
                errno=error.errno,
            ) from error
        self._is_finished = True

    def _delete_thin(self, thin_id: int) -> None:
        try:
            self._pool.delete(thin_id)
        except NoSuchThin:
            self._undo_without_file()
        except PoolModeError:
            if self.is_in_pool(thin_id):
                raise

    def _recover_from(self, error: BaseException, what: str) -> None:
        try:
            self.recover()
        except CowfsError as second:
            if not isinstance(error, Exception):
                return
            both = ExceptionGroup(what, [error, second])
            raise HomeError(
                f"{what}: {error}; undoing it failed too: {second}; it will be tried again at the next change",
                errno=second.errno,
            ) from both

    def _problem(self, text: str) -> None:
        self._store.problems.append(text)
