"""Replaying journals: those of debugfs as e2fsck does, made-up ones as a model does, damaged ones without harm."""

from __future__ import annotations

import contextlib
import random
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cowfs.blockdev import FileDevice
from cowfs.errors import FilesystemError
from cowfs.ext4.journal import journal_format
from cowfs.ext4.journal.journal_format import MAGIC_BYTES, JournalFormat, JournalSuperblock, crc32
from cowfs.ext4.journal.journal_replay import read_log
from cowfs.ext4.journal.recovery import recover, recovered
from cowfs.ext4.tools import commands as tools
from cowfs.ext4.volume import Volume
from cowfs.testing.blockdev import memory_device
from tests.ext4.conftest import MIB
from tests.ext4.crash_world import make_image

COPIED = (3900, 3901, 3902, 3903)
KINDS = {
    "plain": ("jo", ["-b", "4096", "-O", "^metadata_csum"]),
    "plain-32bit": ("jo", ["-b", "1024", "-O", "^metadata_csum,^64bit"]),
    "v2": ("jo -c -v 2", ["-b", "4096"]),
    "v2-32bit": ("jo -c -v 2", ["-b", "1024", "-O", "^64bit"]),
    "v3": ("jo -c -v 3", ["-b", "1024"]),
    "v3-32bit": ("jo -c -v 3", ["-b", "4096", "-O", "^64bit"]),
}


def write_journal(directory: Path, kind: str) -> Path:
    """An image of 16 MiB with transactions in its journal: copies that are replaced, revoked, and escaped."""
    opening, options = KINDS[kind]
    image = make_image(directory / "volume.img", options, 16 * MIB)
    size = int(options[1])
    blocks = directory / "blocks"
    requests = [opening]
    for number, (where, revoked) in enumerate([("3900,3901,3902", ""), ("", "3901"), ("3903,3901", ""), ("3900", "")]):
        block = bytes([number + 1]) * size
        path = blocks.with_suffix(f".{number}")
        path.write_bytes(block + MAGIC_BYTES + block[4:] + block)
        requests.append(f"jw -b {where} {path}" if where else f"jw -r {revoked}")
    requests += ["jw -r 3902,3903", "jc"]
    commands = directory / "commands"
    commands.write_text("\n".join(requests))
    subprocess.run(
        [tools.find("debugfs"), "-w", "-f", str(commands), str(image)], capture_output=True, check=True, timeout=60
    )
    return image


@pytest.mark.parametrize("kind", list(KINDS))
def test_as_e2fsck_does_it(tmp_path: Path, kind: str) -> None:
    image = write_journal(tmp_path, kind)
    before = image.read_bytes()
    with closing(FileDevice(image)) as device:
        shown = recovered(device).pread(0, device.size_bytes)
        assert image.read_bytes() == before
        recover(device)
        recover(device)
    ours = image.read_bytes()
    image.write_bytes(before)
    assert tools.run("e2fsck", ["-fy", "-E", "journal_only", str(image)])[0] in (0, 1)
    theirs = image.read_bytes()
    assert different_blocks(ours, theirs) <= {0, 1}  # the superblock's time of writing
    assert ours[1024 + 0x60 : 1024 + 0x64] == theirs[1024 + 0x60 : 1024 + 0x64]
    assert len(different_blocks(ours, shown)) == 1  # the journal's superblock
    assert len(different_blocks(ours, before)) >= 4
    assert tools.run("e2fsck", ["-fn", str(image)])[0] == 0


def different_blocks(one: bytes, other: bytes) -> set[int]:
    return {
        begin // 1024 for begin in range(0, len(one), 1024) if one[begin : begin + 1024] != other[begin : begin + 1024]
    }


@pytest.mark.parametrize("kind", ["plain", "v2", "v3"])
def test_damage_never_crashes(tmp_path: Path, rng: random.Random, kind: str) -> None:
    """Any bytes: an error, or a replay of what was there; with checksums nothing else than that."""
    image = write_journal(tmp_path, kind)
    good = image.read_bytes()
    with closing(FileDevice(image)) as device:
        copies = recovered(device)
        size = int(KINDS[kind][1][1])
        legal = {block: {good[block * size : (block + 1) * size]} for block in COPIED}
        for block, contents in legal.items():
            contents.add(copies.pread(block * size, size))
            for number in range(1, 5):
                contents |= {bytes([number]) * size, MAGIC_BYTES + bytes([number]) * (size - 4)}
    journal = good.index(MAGIC_BYTES, 4096)
    for _ in range(150):
        damaged = bytearray(good)
        for _ in range(rng.choice([1, 3, 30])):
            damaged[journal + rng.randrange(18) * size + rng.choice([rng.randrange(64), rng.randrange(size)])] = (
                rng.randrange(256)
            )
        disk = memory_device(damaged)
        with contextlib.suppress(FilesystemError):
            recover(disk)
            if kind == "v3":
                for block, contents in legal.items():
                    assert disk.pread(block * size, size) in contents
        with contextlib.suppress(FilesystemError), closing(Volume.open(disk, read_only=True)) as volume:
            volume.statistics()


def test_a_journal_that_names_itself(tmp_path: Path) -> None:
    image = make_image(tmp_path / "volume.img", ["-b", "4096", "-O", "^metadata_csum"], 16 * MIB)
    output = tools.run("debugfs", ["-R", "blocks <8>", str(image)])[1]
    inside = int(output.split()[-1])
    for block in (inside, 1 << 31):
        with closing(FileDevice(image)) as device:
            superblock = JournalSuperblock.unpack(device.pread(journal_offset(image), 1024))
            format_ = superblock.format()
            raw = superblock.pack(start=1, sequence=7, compat=0, incompat=0)
            log = [*format_.pack_copies(7, [(block, b"x" * 4096)]), format_.pack_commit(7, 0, 0)]
            device.pwrite(journal_offset(image), raw.ljust(4096, b"\0") + b"".join(log))
            tools.run("debugfs", ["-w", "-R", "feature needs_recovery", str(image)])
            before = image.read_bytes()
            with pytest.raises(FilesystemError, match="journal"):
                recover(device)
            assert image.read_bytes() == before


def journal_offset(image: Path) -> int:
    return image.read_bytes().index(MAGIC_BYTES)


def test_the_checksum_of_transactions() -> None:
    """The check value of CRC-32/MPEG-2, which is this checksum."""
    assert crc32(0xFFFFFFFF, b"123456789") == 0x0376E6E7
    assert crc32(crc32(0xFFFFFFFF, b"1234"), b"56789") == 0x0376E6E7


SIZE = 1024
transactions = st.lists(
    st.tuples(
        st.dictionaries(st.integers(0, 5), st.binary(min_size=1, max_size=5) | st.just(MAGIC_BYTES), max_size=6),
        st.lists(st.integers(0, 5), max_size=3),
    ),
    max_size=6,
)


@settings(max_examples=200)
@given(
    transactions=transactions,
    start=st.integers(1, 89),
    wide=st.booleans(),
    checked=st.booleans(),
    sequence=st.sampled_from([1, 500, 2**32 - 2]),
    cut=st.integers(0, 60),
    data=st.data(),
)
def test_made_up_logs(
    transactions: list[tuple[dict[int, bytes], list[int]]],
    start: int,
    wide: bool,
    checked: bool,
    sequence: int,
    cut: int,
    data: st.DataObject,
) -> None:
    """A log that wraps around at the end, cut anywhere: all transactions before the cut, by a model of a dictionary."""
    compat = journal_format.COMPAT_CHECKSUM if checked else 0
    incompat = journal_format.INCOMPAT_64BIT if wide else 0
    incompat |= journal_format.INCOMPAT_ASYNC_COMMIT if checked else 0
    high = 1 << 40 if wide else 0
    format_ = JournalFormat(SIZE, b"u" * 16, compat, incompat)
    log: list[bytes] = []
    model: dict[int, bytes] = {}
    ends = []
    revokes: list[set[int]] = []
    for number, (copies, revoked) in enumerate(transactions):
        now = (sequence + number) % 2**32
        blocks = [(block + high, content.ljust(SIZE, b"-")) for block, content in copies.items()]
        packed = format_.pack_copies(now, blocks)
        checksum = crc32(0xFFFFFFFF, b"".join(packed))
        packed += format_.pack_revokes(now, [block + high for block in revoked])
        log += [*packed, format_.pack_commit(now, checksum if checked else 0, 5)]
        ends.append(len(log))
        revokes.append({block + high for block in revoked})
    journal = [bytes(SIZE)] * 90
    for index, block in enumerate(log):
        journal[1 + (start - 1 + index) % 89] = block
    lost = len(log)
    if cut < len(log):
        lost = data.draw(st.integers(0, len(log) - 1))
        journal[1 + (start - 1 + lost) % 89] = b"\x55" * SIZE
    whole = sum(end <= lost for end in ends)
    is_copy_lost = lost < len(log) and log[lost][:4] != MAGIC_BYTES
    if is_copy_lost and not checked:
        return  # nothing shows it
    for (copies, _), gone in zip(transactions[:whole], revokes[:whole], strict=True):
        model |= {block + high: content.ljust(SIZE, b"-") for block, content in copies.items()}
        model = {number: content for number, content in model.items() if number not in gone}
    raw = JournalSuperblock(SIZE, 90, 1, sequence, start, 0, compat, incompat, b"u" * 16, bytes(1024))
    if is_copy_lost and whole + 1 < len(transactions):
        with pytest.raises(FilesystemError):  # what follows says that it was whole once
            read_log(raw, journal.__getitem__)
        return
    replay = read_log(raw, journal.__getitem__)
    assert replay.transactions == whole
    assert {block: copy.restored(journal[copy.journal_block]) for block, copy in replay.copies.items()} == model
