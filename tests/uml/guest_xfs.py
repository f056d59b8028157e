"""Checks of reading xfs beside the kernel, inside a guest; see `guest_checks`.

The kernel makes the trees, and after a stop like a power cut it replays its log on one copy, while another is read.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

from cowfs.blockdev import FileDevice
from cowfs.errors import FilesystemError
from cowfs.xfs.format.superblock import read_superblock
from cowfs.xfs.log.records import Log
from cowfs.xfs.volume import XfsVolume
from tests.uml.guest_checks import Checks, run_checks
from tests.xfs.images import (
    FlippedDevice,
    Shown,
    fill,
    look_at_all,
    make_image,
    mounted,
    shown_by,
    shown_by_kernel,
)

check = Checks()
VERSION_4 = ("-m", "crc=0,finobt=0")
_SHUT_DOWN = 0x8004587D  # XFS_IOC_GOINGDOWN
_WITH_LOG, _WITHOUT_LOG = 1, 2  # what is in memory of the log is written before, or not


@contextlib.contextmanager
def opened(image: Path, *, rescue: bool = False) -> Iterator[XfsVolume]:
    with contextlib.closing(FileDevice(image, read_only=True)) as device:
        yield XfsVolume.open(device, rescue=rescue)


def ours(image: Path) -> Shown:
    with opened(image) as volume:
        return shown_by(volume)


def kernels(image: Path, folder: Path) -> tuple[Shown, int]:
    """What the kernel shows, and how many blocks are free."""
    with mounted(image, folder / "point", "loop,ro,norecovery") as root:
        return shown_by_kernel(root), os.statvfs(root).f_bfree


def assert_same(mine: Shown, kernel: Shown) -> None:
    differing = {name: (mine.get(name), kernel.get(name)) for name in mine.keys() | kernel.keys()}
    differing = {name: both for name, both in differing.items() if both[0] != both[1]}
    assert not differing, str(differing)[:2000]


def trees_are_read(folder: Path, *options: str) -> None:
    image = make_image(folder / "image", *options)
    with mounted(image, folder / "point") as root:
        fill(root)
    assert_same(ours(image), kernels(image, folder)[0])


@check
def trees_of_version_5_are_read(folder: Path) -> None:
    trees_are_read(folder, "-b", "size=1024", "-n", "size=4096", "-m", "bigtime=0")


@check
def trees_of_version_4_are_read(folder: Path) -> None:
    trees_are_read(folder, *VERSION_4, "-n", "ftype=0", "-i", "size=256")


def work(root: Path, rng: random.Random, steps: int) -> None:
    """Changes of all kinds, few of them synced."""
    for _ in range(steps):
        directory = root / f"directory{rng.randrange(6)}"
        directory.mkdir(exist_ok=True)
        path = directory / f"file{rng.randrange(200)}"
        with contextlib.suppress(FileNotFoundError, FileExistsError, OSError):
            _change(path, rng)


def _change(path: Path, rng: random.Random) -> None:
    kind = rng.randrange(9)
    if kind < 2:
        path.write_bytes(rng.randbytes(rng.randrange(20_000)))
    elif kind == 2:
        path.unlink()
    elif kind == 3:
        path.rename(path.with_name(f"renamed{rng.randrange(200)}"))
    elif kind == 4:
        path.with_name(f"link{rng.randrange(200)}").symlink_to("t" * rng.randrange(1, 900))
    elif kind == 5:
        os.setxattr(path, f"user.x{rng.randrange(30)}", rng.randbytes(rng.randrange(600)))
    elif kind == 6:
        os.truncate(path, rng.randrange(50_000))
        os.chmod(path, rng.randrange(0o1000))
    elif kind == 7:
        os.link(path, path.with_name(f"hard{rng.randrange(200)}"))
    elif rng.random() < 0.05:
        shutil.rmtree(path.parent)
    else:
        with path.open("r+b") as file:
            for _ in range(10):
                file.seek(rng.randrange(1000) * 8192)
                file.write(b"piece")


def crashed(folder: Path, seed: int, flags: int, *options: str) -> tuple[Path, Path]:
    """Two equal images of a volume whose kernel stopped."""
    image = make_image(folder / "image", *options)
    with mounted(image, folder / "point") as root:
        work(root, random.Random(seed), 800)
        fd = os.open(root, os.O_RDONLY)
        fcntl.ioctl(fd, _SHUT_DOWN, struct.pack("I", flags))
        os.close(fd)
    other = folder / "other"
    with image.open("rb") as source, other.open("xb") as target:
        target.truncate(image.stat().st_size)
        offset = 0
        with contextlib.suppress(OSError):
            while True:
                offset = os.lseek(source.fileno(), offset, os.SEEK_DATA)
                end = os.lseek(source.fileno(), offset, os.SEEK_HOLE)
                os.copy_file_range(source.fileno(), target.fileno(), end - offset, offset, offset)
                offset = end
    return image, other


def logs_are_replayed(folder: Path, seed: int, flags: int, *options: str) -> None:
    image, other = crashed(folder, seed, flags, *options)
    with opened(image) as volume:
        mine, free = shown_by(volume), volume.statistics()
        assert volume._is_replayed
    with mounted(other, folder / "point"):
        pass
    shown, blocks_free = kernels(other, folder)
    assert_same(mine, shown)
    assert abs(free.blocks_free - blocks_free) < 2000, (free, blocks_free)  # the kernel frees what had lost its name


@check
def a_log_of_version_5_is_replayed(folder: Path) -> None:
    logs_are_replayed(folder, 1, _WITH_LOG)


@check
def a_log_that_was_cut_off_is_replayed(folder: Path) -> None:
    logs_are_replayed(folder, 2, _WITHOUT_LOG, "-b", "size=1024", "-n", "size=4096")


@check
def a_log_of_version_4_is_replayed(folder: Path) -> None:
    logs_are_replayed(folder, 3, _WITH_LOG, *VERSION_4, "-i", "size=256")


@check
def a_damaged_log_is_refused_or_left_out(folder: Path) -> None:
    image, _ = crashed(folder, 4, _WITH_LOG)
    rng = random.Random(4)
    with contextlib.closing(FileDevice(image, read_only=True)) as device:
        sb = read_superblock(device)
        begin = sb.offset_of(sb.log_start)
        assert begin is not None
        records = Log(device, sb).records()
        for number, record in enumerate([records[0], *rng.choices(records, k=6)]):
            first = begin + record.place.sector * 512
            flips = {first + rng.randrange(record.sectors * 512): rng.randrange(1, 256) for _ in range(1 + 30 * number)}
            damaged = FlippedDevice(device, flips, hides_checksums=True)
            try:
                look_at_all(XfsVolume.open(damaged))
                assert number  # without the oldest record nothing can be replayed
            except FilesystemError:
                rescued = XfsVolume.open(damaged, rescue=True)
                assert "its log cannot be replayed" in rescued.problems[0]
                look_at_all(rescued)


if __name__ == "__main__":
    run_checks(check)
