"""Recordings made by hand, and what a crash leaves of them, worked out in the plainest way."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from cowfs.crashes.disk import DiskHistory
from cowfs.crashes.history import State
from cowfs.crashes.naming import Namer
from cowfs.recording.journal import Entry
from cowfs.recording.recorder import Mark, Recording

SECTOR = 512


def no_paths(inodes: set[int]) -> Mapping[int, str]:
    return {inode: f"old-{inode}" for inode in inodes}


def disk_recording(entries: Sequence[Entry], before: bytes, marks: Sequence[Mark] = ()) -> Recording:
    return Recording("ext4", "web", list(entries), [], list(marks), [(0, memoryview(before))])


def disk_history(entries: Sequence[Entry], before: bytes, marks: Sequence[Mark] = ()) -> DiskHistory:
    return DiskHistory(disk_recording(entries, before, marks), Namer([], no_paths))


def random_entries(rng: random.Random, count: int, size_bytes: int) -> list[Entry]:
    entries = []
    for _ in range(count):
        kind = rng.choice(["write", "write", "write", "zero", "flush"])
        begin = rng.randrange(size_bytes)
        length = min(rng.choice([1, 100, SECTOR, 3 * SECTOR, 700]), size_bytes - begin)
        if rng.random() < 0.6:
            begin -= begin % SECTOR
        if kind == "flush":
            entries.append(Entry("web", "flush"))
        elif kind == "zero":
            entries.append(Entry("web", "discard", begin, length))
        else:
            data = bytes([rng.randrange(3)]) * length  # few values: so that contents are often equal
            entries.append(Entry("web", "write", begin, length, data))
    return entries


def left_by_crash(entries: Sequence[Entry], before: bytes, events: int, lost: Mapping[int, Sequence[int]]) -> bytes:
    """What a disk holds after the first `events` entries, of which some were lost.

    Args:
        lost: by entry, the sectors of the disk in which it was lost; none for all.
    """
    image = bytearray(before)
    for number, entry in enumerate(entries[:events]):
        data = bytes(entry.length) if entry.data is None else bytes(entry.data)
        for at, byte in enumerate(data, entry.offset):
            if number not in lost or (lost[number] and at // SECTOR not in lost[number]):
                image[at] = byte
    return bytes(image)


def lost_entries(entries: Sequence[Entry], state: State) -> dict[int, Sequence[int]]:
    """The losses of a state by entry: its items are the entries that are no flushes."""
    numbers = [number for number, entry in enumerate(entries) if entry.operation != "flush"]
    return {numbers[loss.item]: loss.sectors for loss in state.lost}
