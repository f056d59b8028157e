"""qcow2 images read and written by their tables, beside qemu's own programs; nothing in a damaged one is believed."""

from __future__ import annotations

import os
import random
import shutil
import struct
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from cowfs.blockdev import FileDevice
from cowfs.disk_images.disk import not_zeros, open_disk
from cowfs.disk_images.qcow2_reading import Tables, read_tables
from cowfs.disk_images.writing import DiskWriter
from cowfs.errors import UsageError

BLOCK = 64 << 10
MIB = 1 << 20

pytestmark = pytest.mark.skipif(
    shutil.which("qemu-io") is None, reason="needs qemu-img and qemu-io; run: apt-get install qemu-utils"
)


def run(*words: object) -> None:
    subprocess.run([*map(str, words)], check=True, capture_output=True, timeout=60)


def qemu_io(image: Path, *commands: str) -> None:
    run("qemu-io", "-f", "qcow2", *(word for command in commands for word in ("-c", command)), image)


def tables_of(path: Path) -> Tables | None:
    with closing(FileDevice(path, read_only=True)) as file:
        return read_tables(file)


def content_of(path: Path, size_bytes: int) -> bytes:
    found = bytearray(size_bytes)
    with open_disk(str(path), "qcow2") as disk:
        assert disk.size_bytes == size_bytes
        done = 0
        for offset, data in disk.data():
            assert offset >= done, "in order, and nothing twice"
            found[offset : offset + len(data)] = data
            done = offset + len(data)
    return bytes(found)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """5 MiB and a half sector: data here and there, its end within a cluster of any size."""
    path = tmp_path / "disk"
    with path.open("wb") as file:
        for offset in (0, 100_000, MIB - 700, 3 * MIB, 5 * MIB + 200):
            file.seek(offset)
            file.write(os.urandom(900))
        file.truncate(5 * MIB + 1536)
    return path


@pytest.mark.parametrize(
    "options", ["compat=0.10", "cluster_size=512", "cluster_size=2M", "preallocation=metadata", "lazy_refcounts=on"]
)
def test_plain_images_are_read_by_their_tables(disk: Path, tmp_path: Path, options: str) -> None:
    image = tmp_path / "image"
    run("qemu-img", "convert", "-O", "qcow2", "-o", options, disk, image)
    tables = tables_of(image)
    assert tables is not None
    assert content_of(image, 5 * MIB + 1536) == disk.read_bytes()
    if options == "preallocation=metadata":
        assert tables.runs[0].length > MIB, "clusters without data have places"


def test_clusters_of_zeros_and_snapshots_in_the_image(tmp_path: Path) -> None:
    image = tmp_path / "image"
    run("qemu-img", "create", "-f", "qcow2", image, "4M")
    qemu_io(image, "write -P 1 0 1M", "write -P 2 2M 1M")
    run("qemu-img", "snapshot", "-c", "before", image)
    qemu_io(image, "write -z 0 512k", "write -P 3 2M 64k", "discard 3M 64k")
    expected = bytes(512 << 10) + b"\1" * (512 << 10) + bytes(MIB) + b"\3" * BLOCK + b"\2" * (MIB - BLOCK) + bytes(MIB)
    assert tables_of(image) is not None
    assert content_of(image, 4 * MIB) == expected


def test_an_image_that_was_not_closed(tmp_path: Path) -> None:
    image = tmp_path / "image"
    run("qemu-img", "create", "-f", "qcow2", "-o", "lazy_refcounts=on", image, "1M")
    qemu_io(image, "write -P 7 64k 64k")
    with image.open("r+b") as file:
        file.seek(72)
        file.write((1).to_bytes(8, "big"))  # the feature bit "dirty"
    assert content_of(image, MIB) == bytes(BLOCK) + b"\7" * BLOCK + bytes(MIB - 2 * BLOCK)


@pytest.mark.parametrize("options", ["extended_l2=on,cluster_size=128k", "compression_type=zstd", "compressed"])
def test_other_images_are_left_to_qemu_img(disk: Path, tmp_path: Path, options: str) -> None:
    image = tmp_path / "image"
    how = ["-c"] if options == "compressed" else ["-o", options]
    run("qemu-img", "convert", "-O", "qcow2", *how, disk, image)
    assert tables_of(image) is None
    assert content_of(image, 5 * MIB + 1536) == disk.read_bytes()


def test_a_large_disk_has_many_tables(tmp_path: Path) -> None:
    """Two tables that follow one another, one far away, and the last cluster of 4 TiB."""
    size = 4 << 40
    written = {offset: os.urandom(2 * BLOCK) for offset in ((512 * MIB) - BLOCK, 3 << 40)}
    written[size - BLOCK] = os.urandom(BLOCK)
    image = tmp_path / "image"
    image.touch()
    with closing(FileDevice(image)) as file:
        writer = DiskWriter(file, "qcow2")
        for offset, data in written.items():
            writer.write(offset, data)
        writer.finish(size)
    run("qemu-img", "check", "-f", "qcow2", image)
    assert image.stat().st_size < 2 * MIB
    with open_disk(str(image), "qcow2") as disk:
        assert disk.size_bytes == size
        found = dict(disk.data())
    border = 512 * MIB
    whole = found.pop(border - BLOCK) + found.pop(border)  # one run on the disk, not in the file
    assert {border - BLOCK: whole, **found} == written
    run("qemu-img", "convert", "-O", "raw", image, tmp_path / "raw")
    with (tmp_path / "raw").open("rb") as raw:
        for offset, data in written.items():
            raw.seek(offset)
            assert raw.read(len(data)) == data


def patched(image: Path, offset: int, format_: str, value: int) -> None:
    with image.open("r+b") as file:
        file.seek(offset)
        file.write(struct.pack(format_, value))


@pytest.mark.parametrize(
    ("offset", "format_", "value", "says"),
    [
        (20, ">I", 40, "clusters have 2 to the power of 40"),
        (36, ">I", 0, "L1 table has 0 entries"),
        (36, ">I", 1 << 30, "L1 table has 1073741824 entries"),
        (24, ">Q", 1 << 60, "L1 table has 1 entries for a disk of"),
        (40, ">Q", 1 << 40, "L1 table of 8 bytes at 0x10000000000 is not in it"),
        (40, ">Q", 512, "L1 table of 8 bytes at 0x200 is not in it"),
        ("l1", ">Q", (1 << 63) | (1 << 40), "an L2 table of 65536 bytes at 0x10000000000 is not in it"),
        ("l1", ">Q", (1 << 63) | (1 << 60) | 0x40000, "entry 0 of its L1 table is"),
        ("l1", ">Q", 1 << 63, None),  # no table: a disk of zeros
        ("l2", ">Q", (1 << 63) | (1 << 40), "the entry of the disk's byte 0x0"),
        ("l2", ">Q", (1 << 63) | 0x50200, "the entry of the disk's byte 0x0"),
        ("l2", ">Q", (1 << 63) | (1 << 57) | 0x50000, "the entry of the disk's byte 0x0"),
        ("l2", ">Q", (1 << 63) | 0, None),
        ("l2", ">Q", (1 << 63) | 0x60000, "use the cluster at 0x60000 more than once"),  # that of the next entry
        ("l2", ">Q", 1 << 63 | 0x30000, "use the cluster at 0x30000 more than once"),  # the L1 table
    ],
)
def test_tables_that_cannot_be(tmp_path: Path, offset: int | str, format_: str, value: int, says: str | None) -> None:
    image = tmp_path / "image"
    run("qemu-img", "create", "-f", "qcow2", image, "4M")
    qemu_io(image, "write -P 1 0 256k")
    head = image.read_bytes()
    l1 = int.from_bytes(head[40:48], "big")
    l2 = int.from_bytes(head[l1 : l1 + 8], "big") & ~(1 << 63)
    data = int.from_bytes(head[l2 : l2 + 8], "big") & ~(1 << 63)
    assert (l1, l2, data) == (0x30000, 0x40000, 0x50000)
    patched(image, {"l1": l1, "l2": l2}.get(str(offset), 0) or int(offset), format_, value)
    if says is None:
        assert tables_of(image) is not None
    else:
        with pytest.raises(UsageError, match=says) as caught:
            tables_of(image)
        assert "is damaged, or breaks off" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_damage_anywhere_is_refused_or_harmless(disk: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    run("qemu-img", "convert", "-O", "qcow2", "-o", "cluster_size=512", disk, image)
    whole = image.read_bytes()
    chance = random.Random(12)  # one seed: every run sees the same damage
    refused = 0
    with closing(FileDevice(image)) as file:
        for _ in range(400):
            end = chance.choice([104, len(whole)])
            changed = {chance.randrange(end): chance.randbytes(chance.choice([1, 8])) for _ in range(3)}
            for at, data in changed.items():
                file.pwrite(at, data)
            try:
                tables = read_tables(file)
                for run_ in tables.runs if tables else ():
                    assert 0 < run_.place <= run_.place + run_.length <= len(whole) + 16
            except UsageError:
                refused += 1
            for at in changed:
                file.pwrite(at, whole[at : at + 8])
    assert 40 < refused < 360


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (bytes(BLOCK), []),
        (bytes(BLOCK + 5), []),
        (b"x" + bytes(2 * BLOCK), [(0, BLOCK)]),
        (bytes(BLOCK) + b"x" * BLOCK + bytes(BLOCK) + b"\0x", [(BLOCK, BLOCK), (3 * BLOCK, 2)]),
        (bytes(2 * BLOCK - 1) + b"x", [(BLOCK, BLOCK)]),
    ],
)
def test_blocks_of_zeros_are_passed_over(data: bytes, expected: list[tuple[int, int]]) -> None:
    assert list(not_zeros(data)) == expected
