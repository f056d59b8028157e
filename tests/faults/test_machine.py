"""Random plans of faults and random operations on the disks of a home, in process, beside a model of what may be there.

Disks that say that they failed lose nothing that was synced, in whatever order things happen; those that lie are of a
device whose content is not checked. Afterwards the home's check finds nothing.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, get_args

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

import cowfs
from cowfs.errors import CowfsError
from cowfs.faults.plan import DISK_OPERATIONS, PoolModeName, Rule, convert_rule
from cowfs.home.maintenance import repair_home
from cowfs.pool import ThinDevice
from cowfs.units import SECTOR_BYTES
from tests.conftest import profile, remove_tree

BLOCK_SECTORS: Final = 128
SECTORS: Final = 4 * BLOCK_SECTORS
OPTIONS: Final = cowfs.HomeOptions(
    data_size_bytes=64 << 20, metadata_size_bytes=2 << 20, base_size_bytes=16 << 20, min_free_percent=0
)
ERRORS: Final = st.sampled_from(["EIO", "ENOSPC", "EAGAIN", "EINTR", "ENOMEM", "EROFS"])
KEPT: Final = st.sampled_from([{}, {"keep_bytes": 0}, {"keep_bytes": 1024}, {"keep_sectors": [0, 3, 130]}])
DISKS: Final = st.lists(st.sampled_from(DISK_OPERATIONS), min_size=1, max_size=4, unique=True)
ranges = st.tuples(st.integers(0, SECTORS - 1), st.integers(1, 2 * BLOCK_SECTORS)).map(
    lambda pair: range(pair[0], min(pair[0] + pair[1], SECTORS))
)
whens = st.fixed_dictionaries(
    {
        "after": st.sampled_from([0, 0, 1, 4]),
        "times": st.sampled_from([None, 1, 2, 5]),
        "probability": st.sampled_from([1.0, 1.0, 0.3]),
        "seed": st.integers(0, 3),
    }
)


def effects(kind: str, **fields: Any) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"kind": st.just(kind), **fields})


def rules(on: str, effect: st.SearchStrategy[dict[str, Any]], operations: Any, **where: Any) -> st.SearchStrategy[Rule]:
    """Of one place and kind of effect."""
    values = st.fixed_dictionaries({"effect": effect, "operations": operations, "on": st.just(on)})
    return st.tuples(values, whens).map(lambda parts: convert_rule({**parts[0], **parts[1], **where}, "the test"))


def honest() -> Iterator[st.SearchStrategy[Rule]]:
    """Faults that say that they failed, of each place."""
    pool_modes = effects("pool_mode", mode=st.sampled_from(get_args(PoolModeName)))
    no_space = effects("no_space", of=st.sampled_from(["data", "metadata"]))
    torn = st.tuples(effects("tear", errno=ERRORS), KEPT).map(lambda parts: parts[0] | parts[1])
    slow = effects("delay", seconds=st.just(0.0001))
    writing = st.just(["write"])
    for on in ("device", "data", "metadata"):
        where = {"device": "web"} if on == "device" else {}
        yield rules(on, effects("error", errno=ERRORS), DISKS, **where)
        yield rules(on, slow, DISKS, **where)
        yield rules(on, torn, writing, **where)
    yield rules("device", pool_modes, writing, device="web")
    yield rules("device", no_space, writing, device="web")
    yield rules("commit", effects("error", errno=ERRORS) | slow, st.just([]))


def lies() -> Iterator[st.SearchStrategy[Rule]]:
    """Faults that do not, of the device whose content is not checked."""
    yield rules(
        "device",
        st.tuples(effects("tear"), KEPT).map(lambda parts: parts[0] | parts[1]),
        st.just(["write"]),
        device="lies",
    )
    yield rules("device", effects("flip", bit=st.integers(0, 7)), st.sampled_from([["read"], ["write"]]), device="lies")
    yield rules("device", effects("lose"), st.sampled_from([["write"], ["flush"], ["discard"]]), device="lies")


class Contents:
    """What each sector may hold: one byte, all over the sector.

    Attributes:
        now: when it is read.
        durable: after the home was opened anew, whatever has failed.
    """

    def __init__(self) -> None:
        self.now: list[frozenset[int]] = [frozenset({0})] * SECTORS
        self.durable = list(self.now)

    def written(self, sectors: range, value: int, *, is_certain: bool) -> None:
        for sector in sectors:
            self.now[sector] = frozenset({value}) | (frozenset() if is_certain else self.now[sector])
            self.durable[sector] |= {value}

    def flushed(self) -> None:
        self.durable = list(self.now)

    def read(self, sectors: range, data: bytes) -> None:
        for number, sector in enumerate(sectors):
            piece = data[number * SECTOR_BYTES : (number + 1) * SECTOR_BYTES]
            assert piece == piece[:1] * SECTOR_BYTES, f"sector {sector} is torn"
            assert piece[0] in self.now[sector], f"sector {sector} holds {piece[0]}, and not one of {self.now[sector]}"
            self.now[sector] = frozenset({piece[0]})


class FaultMachine(RuleBasedStateMachine):
    """A home with the devices `web` and `lies`, both open as disks."""

    def __init__(self, golden: Path, path: Path) -> None:
        super().__init__()
        self.path = path
        with cowfs.open_home(golden, read_only=True, durable=False) as home:
            home.clone(path)
        self.values = itertools.count(1)
        self.contents = Contents()
        self.snapshots: dict[str, list[frozenset[int]]] = {}
        self.certain: set[str] = set()
        self.names = itertools.count(1)
        self.closing = contextlib.ExitStack()
        self.open()

    def open(self) -> None:
        self.home = self.closing.enter_context(cowfs.open_home(self.path, durable=False, virtual_clock=True))
        self.web: ThinDevice = self.closing.enter_context(self.home.device("web"))
        self.lying: ThinDevice = self.closing.enter_context(self.home.device("lies"))

    # ------------------------------------------------------------------ faults

    @rule(added=st.one_of(*honest(), *lies()))
    def add_fault(self, added: Rule) -> None:
        self.home.faults.add(added)

    @rule()
    def clear_faults(self) -> None:
        self.home.faults.clear()

    # ------------------------------------------------------------------ operations

    @rule(sectors=ranges)
    def write(self, sectors: range) -> None:
        value = next(self.values) % 255 + 1
        data = bytes([value]) * (len(sectors) * SECTOR_BYTES)
        is_done = self.succeeds(lambda: self.web.pwrite(sectors.start * SECTOR_BYTES, data))
        self.contents.written(sectors, value, is_certain=is_done)

    @rule(sectors=ranges)
    def zero(self, sectors: range) -> None:
        is_done = self.succeeds(lambda: self.web.zero(sectors.start * SECTOR_BYTES, len(sectors) * SECTOR_BYTES))
        self.contents.written(sectors, 0, is_certain=is_done)

    @rule(sectors=ranges)
    def discard(self, sectors: range) -> None:
        """Of whole blocks the content is gone, of others it may be."""
        self.succeeds(lambda: self.web.discard(sectors.start * SECTOR_BYTES, len(sectors) * SECTOR_BYTES))
        self.contents.written(sectors, 0, is_certain=False)

    @rule(sectors=ranges)
    def read(self, sectors: range) -> None:
        with contextlib.suppress(CowfsError):
            data = self.web.pread(sectors.start * SECTOR_BYTES, len(sectors) * SECTOR_BYTES)
            self.contents.read(sectors, data)

    @rule()
    def flush(self) -> None:
        if self.succeeds(self.web.flush):
            self.contents.flushed()

    @rule(sectors=ranges)
    def use_the_lying_disk(self, sectors: range) -> None:
        offset, length = sectors.start * SECTOR_BYTES, len(sectors) * SECTOR_BYTES
        for step in (
            lambda: self.lying.pwrite(offset, b"l" * length),
            lambda: self.lying.pread(offset, length),
            lambda: self.lying.discard(offset, length),
            self.lying.flush,
        ):
            self.succeeds(step)

    @precondition(lambda self: len(self.snapshots) < 3)
    @rule()
    def snapshot(self) -> None:
        name = f"s{next(self.names)}"
        self.snapshots[name] = list(self.contents.now)
        if self.succeeds(lambda: self.home.snapshot("web", name)):
            self.certain.add(name)

    @precondition(lambda self: self.snapshots)
    @rule(data=st.data())
    def remove_snapshot(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.snapshots)))
        self.certain.discard(name)
        if self.succeeds(lambda: self.home.remove(name)):
            del self.snapshots[name]

    @rule()
    def pass_time(self) -> None:
        """In which the pool commits."""
        self.succeeds(lambda: self.home.advance_clock(2))

    @rule()
    def look(self) -> None:
        for step in (self.home.status, self.home.usage, self.home.devices, self.home.check):
            self.succeeds(step)

    # ------------------------------------------------------------------ the end

    @rule(is_healed=st.booleans())
    def open_anew(self, is_healed: bool) -> None:
        """Close all of it, with the faults or without, and see what is there."""
        if is_healed:
            self.home.faults.clear()
        is_flushed = self.succeeds(self.web.flush)
        if is_flushed:
            self.contents.flushed()
        self.succeeds(self.closing.close)
        self.contents.now = list(self.contents.durable)
        with cowfs.open_home(self.path, durable=False) as home:
            assert home.check().clean
            needs_check = home.status().needs_check
        if needs_check:
            assert not repair_home(self.path).losses
        self.open()
        self.require_contents()

    def require_contents(self) -> None:
        everything = range(SECTORS)
        self.contents.read(everything, self.web.pread(0, SECTORS * SECTOR_BYTES))
        self.contents.flushed()
        there = {row.name for row in self.home.devices()} - {"base", "web", "lies"}
        assert self.certain <= there <= self.snapshots.keys()
        self.snapshots = {name: self.snapshots[name] for name in there}
        self.certain = set(there)
        for name in there:
            kept = Contents()
            kept.now = self.snapshots[name]
            with self.home.device(name, read_only=True) as disk:
                kept.read(everything, disk.pread(0, SECTORS * SECTOR_BYTES))

    def teardown(self) -> None:
        try:
            self.open_anew(is_healed=False)
        finally:
            with contextlib.suppress(CowfsError):
                self.closing.close()
            remove_tree(self.path)

    @staticmethod
    def succeeds(step: Callable[[], object]) -> bool:
        """Whether it does; what it fails with are errors that are declared."""
        try:
            step()
        except CowfsError:
            return False
        return True


def test_honest_disks_lose_nothing_that_was_synced(fast_directory: Path) -> None:
    golden = fast_directory / "golden"
    with cowfs.open_home(golden, create=True, options=OPTIONS, durable=False) as home:
        for name in ("web", "lies"):
            home.create(name)
            with home.device(name) as disk:
                disk.zero(0, SECTORS * SECTOR_BYTES)
    numbers = itertools.count()
    found = profile()
    run_state_machine_as_test(
        lambda: FaultMachine(golden, fast_directory / f"home-{next(numbers)}"),  # type: ignore[arg-type]
        settings=settings(found, max_examples=max(found.max_examples // 5, 10), stateful_step_count=30),
    )
