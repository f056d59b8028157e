"""A disk that fails by rules: each effect, when it is met, and a device without rules that is what it was."""

from __future__ import annotations

import errno
import random
from typing import Any

import pytest

from cowfs.blockdev import BlockDevice, Buffer, MemoryDevice, writer_through
from cowfs.errors import OutOfDataSpace, PoolIoError, UsageError
from cowfs.faults.disk import FaultyDevice, as_pool_error
from cowfs.faults.effects import Means
from cowfs.faults.plan import Crash, Delay, Effect, Error, Flip, Lose, NoSpace, PoolMode, PoolModeName, Rule, Tear
from cowfs.faults.rules import FaultSet, Operation
from cowfs.in_place import put_in_place

SIZE = 16384


def faulty(effect: Effect, *operations: str, means: Means | None = None, **when: Any) -> FaultyDevice:
    rule = Rule(effect=effect, operations=operations, on="device", **when)
    return FaultyDevice(MemoryDevice(bytearray(b"\xaa" * SIZE)), FaultSet([rule]), means=means or Means())


def test_a_torn_write_keeps_the_first_bytes() -> None:
    device = faulty(Tear(keep_bytes=700), "write")
    device.pwrite(100, b"x" * 2000)
    assert device.pread(0, 2200) == b"\xaa" * 100 + b"x" * 700 + b"\xaa" * 1400


def test_a_torn_write_keeps_sectors_of_the_write_and_fails() -> None:
    device = faulty(Tear(keep_sectors=(0, 2, 9), errno="EIO"), "write", times=1)
    with pytest.raises(OSError, match="fault 'rule-1' in write at 0x64") as caught:
        device.pwrite(100, b"x" * 1100)
    assert caught.value.errno == errno.EIO
    assert device.pread(100, 1100) == b"x" * 512 + b"\xaa" * 512 + b"x" * 76
    device.pwrite(100, b"y" * 1100)
    assert device.pread(100, 1100) == b"y" * 1100


def test_a_seed_tears_the_same_way_and_another_one_differently() -> None:
    def torn(seed: int) -> bytes:
        device = faulty(Tear(), "write", seed=seed)
        device.pwrite(0, bytes(SIZE))
        return device.pread(0, SIZE)

    assert torn(1) == torn(1)
    assert torn(1) != torn(2)
    assert 0 < torn(1).count(0) < SIZE


def test_zeroing_and_copying_tear_too() -> None:
    device = faulty(Tear(keep_bytes=512), "write")
    device.zero(0, 2048)
    assert device.pread(0, 2048) == bytes(512) + b"\xaa" * 1536
    device.copy(0, 4096, 1024)
    assert device.pread(4096, 1024) == bytes(512) + b"\xaa" * 512


def test_a_bit_is_wrong_in_each_read_of_its_byte() -> None:
    device = faulty(Flip(offset_bytes=4097, bit=3), "read")
    assert device.pread(4096, 3) == b"\xaa\xa2\xaa"
    assert device.pread(4097, 1) == b"\xa2"
    assert device.pread(4098, 3) == b"\xaa" * 3
    assert device.faults.rules[0].seen == 2
    device.copy(4096, 0, 2)
    assert device.inner.pread(0, 2) == b"\xaa\xa2"
    assert device.inner.pread(4096, 2) == b"\xaa\xaa"


def test_a_bit_is_wrong_in_what_is_written() -> None:
    device = faulty(Flip(offset_bytes=10, bit=0), "write")
    device.pwrite(0, bytes(20))
    assert device.inner.pread(0, 20) == bytes(10) + b"\x01" + bytes(9)
    device.zero(8, 4)
    assert device.inner.pread(8, 4) == b"\0\0\x01\0"


def test_a_random_bit_is_wrong() -> None:
    device = faulty(Flip(), "read", seed=4)
    data = device.pread(0, 4096)
    assert sum((one ^ 0xAA).bit_count() for one in data) == 1
    assert device.pread(0, 4096) != data


def test_what_is_lost_succeeds_and_is_not_done() -> None:
    device = faulty(Lose(), "write", "discard", "flush")
    device.pwrite(0, b"x")
    device.zero(0, 512)
    device.copy(0, 4096, 512)
    device.discard(0, 4096)
    device.flush()
    assert device.pread(0, SIZE) == b"\xaa" * SIZE
    assert device.faults.rules[0].hits == 5


def test_a_lost_flush_does_not_reach_the_disk() -> None:
    class Flushed(MemoryDevice):
        flushes = 0

        def flush(self) -> None:
            self.flushes += 1

    inner = Flushed(SIZE)
    device = FaultyDevice(inner, FaultSet([Rule(effect=Lose(), operations=("flush",), on="device", times=1)]))
    device.flush()
    assert inner.flushes == 0
    device.flush()
    assert inner.flushes == 1


def test_delays_crashes_and_modes_come_before_the_operation() -> None:
    said: list[object] = []
    means = Means(sleep=said.append, crash=lambda: said.append("crash"), change_pool=said.append)
    mode: PoolModeName = "failed"
    rules = [
        Rule(effect=effect, operations=("flush",), on="device")
        for effect in (Delay(0.25), Crash(), PoolMode(mode), NoSpace("metadata"), Error("EROFS"), Delay(9))
    ]
    device = FaultyDevice(MemoryDevice(SIZE), FaultSet(rules), means=means)
    with pytest.raises(OSError, match="Read-only") as caught:
        device.flush()
    assert caught.value.errno == errno.EROFS
    assert said == [0.25, "crash", "failed", "out_of_metadata_space"]


def test_a_full_pool() -> None:
    with pytest.raises(OutOfDataSpace) as caught:
        faulty(NoSpace(), "write").pwrite(0, b"x")
    assert caught.value.errno == errno.ENOSPC
    assert not caught.value.may_queue


def test_an_error_is_of_the_kind_that_the_device_has() -> None:
    device = FaultyDevice(MemoryDevice(SIZE), failure=as_pool_error)
    device.fail("read", errno="ENXIO")
    with pytest.raises(PoolIoError) as caught:
        device.pread(0, 1)
    assert caught.value.errno == errno.ENXIO


def test_when_a_rule_is_met() -> None:
    def met(count: int, **when: Any) -> list[int]:
        faults = FaultSet([Rule(effect=Error(), operations=("write",), **when)])
        return [n for n in range(1, count + 1) if faults.met(Operation("files", "write"))]

    assert met(5) == [1, 2, 3, 4, 5]
    assert met(5, after=2) == [3, 4, 5]
    assert met(5, after=1, times=2) == [2, 3]
    assert met(5, nth=4) == [4]
    assert met(5, times=0) == []
    some = met(1000, probability=0.1, seed=3)
    assert 50 < len(some) < 150
    assert met(1000, probability=0.1, seed=3) == some
    assert met(1000, probability=0.1, seed=4) != some
    assert len(met(1000, probability=0.1, times=7, after=500)) == 7


def test_where_a_rule_is_met() -> None:
    def meets(operation: Operation, **where: Any) -> bool:
        return bool(FaultSet([Rule(effect=Error(), operations=("write",), **where)]).met(operation, lambda: ["/a/b"]))

    files = Operation("files", "write", "web", 100, 50)
    assert meets(files)
    assert not meets(files._replace(name="read"))
    assert not meets(files._replace(on="device"))
    assert meets(files, device="w*")
    assert not meets(files, device="x*")
    assert meets(files, path="b")
    assert not meets(files, path="c")
    assert meets(files, range_bytes=(149, 150))
    assert not meets(files, range_bytes=(150, 151))
    assert not meets(files, range_bytes=(0, 100))
    disk = Operation("device", "write", "web", 3 * 65536, 512, 65536)
    assert meets(disk, on="device", range_blocks=(3, 4))
    assert not meets(disk, on="device", range_blocks=(2, 3))
    superblock = Operation("metadata", "write", offset=0, length=4096)
    assert bool(FaultSet([Rule(effect=Error(), on="commit")]).met(superblock))
    assert not FaultSet([Rule(effect=Error(), on="commit")]).met(superblock._replace(offset=4096))
    assert not FaultSet([Rule(effect=Error(), on="commit")]).met(superblock._replace(on="data"))


def test_paths_are_asked_for_only_where_they_decide() -> None:
    def never() -> list[str]:
        raise AssertionError("asked")

    faults = FaultSet([Rule(effect=Error(), operations=("write",), path="*.db", device="web")])
    assert not faults.met(Operation("files", "read", "web"), never)
    assert not faults.met(Operation("files", "write", "other"), never)


def test_names_are_given_kept_and_cleared() -> None:
    rule = Rule(effect=Error(), operations=("write",))
    faults = FaultSet([rule, Rule(effect=Error(), operations=("read",), name="rule-2"), rule])
    assert [active.name for active in faults.rules] == ["rule-1", "rule-2", "rule-3"]
    with pytest.raises(UsageError, match="already a rule 'rule-2'"):
        faults.add([rule, Rule(effect=Error(), operations=("read",), name="rule-2")])
    assert len(faults.rules) == 3
    with pytest.raises(UsageError, match="no rule 'x'; in force: 'rule-1', 'rule-2', 'rule-3'"):
        faults.clear(["rule-1", "x"])
    assert [active.name for active in faults.clear(["rule-2", "rule-2"])] == ["rule-2"]
    assert [active.name for active in faults.clear()] == ["rule-1", "rule-3"]
    assert faults.reports() == []


@pytest.mark.parametrize("slotted", [False, True])
def test_in_the_place_of_methods_and_back(slotted: bool) -> None:
    """Who has the device meets the faults; afterwards its methods are those that it had, its own ones too."""
    device = MemoryDevice(bytearray(b"\xaa" * SIZE))
    if slotted:
        device.pread = device.pread  # type: ignore[method-assign]
    before = dict(vars(device))
    made: list[FaultyDevice] = []

    def make(original: BlockDevice) -> FaultyDevice:
        made.append(FaultyDevice(original))
        return made[0]

    take_back = put_in_place(device, make)
    made[0].fail("write", times=1)
    with pytest.raises(OSError, match="Input/output error"):
        device.pwrite(0, b"x")
    device.pwrite(0, b"x")
    assert device.pread(0, 2) == b"x\xaa"
    take_back()
    assert vars(device) == before
    assert device.pwrite.__func__ is MemoryDevice.pwrite  # type: ignore[attr-defined]


@pytest.mark.parametrize("operation", ["write", "flush"])
def test_a_durable_write_meets_what_stands_in_the_place_of_its_two_steps(operation: str) -> None:
    """Also for a user of the device who asked for its durable write before."""
    through = 0

    class Device(MemoryDevice):
        def pwrite_and_flush(self, offset: int, data: Buffer) -> None:
            nonlocal through
            through += 1
            self.pwrite(offset, data)
            self.flush()

    device = Device(SIZE)
    write = writer_through(device)
    before = dict(vars(device))
    faults = FaultSet([Rule(effect=Error(), operations=(operation,), on="device", times=1)])
    take_back = put_in_place(device, lambda original: FaultyDevice(original, faults))
    with pytest.raises(OSError, match=f"'rule-1' in {operation}"):
        write(0, b"x")
    write(0, b"y")
    assert (device.pread(0, 1), through) == (b"y", 0)
    take_back()
    assert vars(device) == before
    write(0, b"z")
    assert (device.pread(0, 1), through) == (b"z", 1)


def test_a_method_that_uses_others_of_the_device_is_one_operation() -> None:
    class Device(MemoryDevice):
        def zero(self, offset: int, length: int) -> None:
            self.pwrite(offset, bytes(length))

        def copy(self, source_offset: int, target_offset: int, length: int) -> None:
            self.pwrite(target_offset, self.pread(source_offset, length))

    device = Device(SIZE)
    faults = FaultSet([Rule(effect=Error(), operations=("read", "write"), on="device", times=0)])
    put_in_place(device, lambda original: FaultyDevice(original, faults))
    device.zero(0, 512)
    assert faults.rules[0].seen == 1
    device.copy(0, 512, 512)
    assert faults.rules[0].seen == 3


def test_the_random_numbers_of_a_rule_are_passed_in() -> None:
    seeds: list[str] = []

    def randomness(seed: str) -> random.Random:
        seeds.append(seed)
        return random.Random(1)

    FaultSet([Rule(effect=Error(), operations=("write",), seed=7, name="a")], randomness=randomness)
    assert seeds == ["7 a"]
