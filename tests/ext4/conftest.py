"""Volumes in image files, judged by e2fsck after every test and read by debugfs."""

from __future__ import annotations

import itertools
import re
import stat
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from cowfs.blockdev import BlockDevice, FileDevice
from cowfs.ext4.tools import commands as tools
from cowfs.ext4.volume import Volume
from cowfs.filetree import ROOT_INODE

MIB = 1 << 20
START_NS = 1_700_000_000_123_456_789

FEATURE_SETS = {
    "default": [],
    "1k-blocks": ["-b", "1024"],
    "no-checksums": ["-O", "^metadata_csum"],
    "uninit_bg": ["-O", "^metadata_csum,uninit_bg"],
    "no-extents": ["-O", "^extents,^64bit"],
    "no-extents-1k": ["-O", "^extents,^64bit,^metadata_csum", "-b", "1024"],
    "small-inodes": ["-I", "128"],
    "no-index": ["-O", "^dir_index"],
    "no-filetype": ["-O", "^filetype"],
    "32bit": ["-O", "^64bit,^flex_bg"],
    "csum-seed": ["-O", "metadata_csum_seed"],
    "large-dir": ["-O", "large_dir", "-b", "1024"],
    "ea-inode": ["-O", "ea_inode"],
    "orphan-file": ["-O", "orphan_file"],
    "ext2": ["-O", "none,filetype,sparse_super,large_file,ext_attr"],
    "meta-bg": ["-O", "meta_bg,^resize_inode"],
    "inline-data": ["-O", "inline_data"],
}


class Clock:
    """Nanoseconds that pass by one microsecond a look."""

    def __init__(self) -> None:
        self._ticks = itertools.count(START_NS, 1000)

    def __call__(self) -> int:
        return next(self._ticks)


class Image:
    """A volume in a file: opened on demand, judged when asked."""

    def __init__(self, path: Path, size_bytes: int, options: Sequence[str] = ()) -> None:
        self.path = path
        self.clock = Clock()
        self.volume_or_none: Volume | None = None
        self.device: FileDevice | None = None
        with path.open("wb") as file:
            file.truncate(size_bytes)
        # mke2fs takes blocks of 1 KiB for small volumes; real ones have 4 KiB.
        block = [] if "-b" in options else ["-b", "4096"]
        arguments = ["-q", "-F", "-t", "ext4", "-E", "nodiscard,root_owner=0:0", *block, *options, str(path)]
        status, output = tools.run("mke2fs", arguments)
        assert status == 0, output

    @property
    def volume(self) -> Volume:
        if self.volume_or_none is None:
            self.open()
        assert self.volume_or_none is not None
        return self.volume_or_none

    def open(
        self,
        *,
        read_only: bool = False,
        journaled: bool = True,
        wrap: Callable[[BlockDevice], BlockDevice] | None = None,
    ) -> Volume:
        assert self.volume_or_none is None
        self.device = FileDevice(self.path, read_only=read_only)
        device = wrap(self.device) if wrap else self.device
        self.volume_or_none = Volume.open(device, read_only=read_only, journaled=journaled, now_ns=self.clock)
        return self.volume_or_none

    def close(self) -> None:
        """Unmount. The file may be looked at by others until the next `open`."""
        if self.volume_or_none is not None:
            volume, self.volume_or_none = self.volume_or_none, None
            volume.close()
        if self.device is not None:
            self.device.close()
            self.device = None

    def reopen(self) -> Volume:
        self.close()
        return self.open()

    def require_clean(self) -> None:
        status, output = tools.run("e2fsck", ["-fn", str(self.path)])
        assert status == 0, output

    def debugfs(self, request: str) -> str:
        """What debugfs answers; the volume must be closed or synced."""
        result = subprocess.run(
            [tools.find("debugfs"), "-R", request, str(self.path)], capture_output=True, check=True, timeout=60
        )
        return result.stdout.decode("utf-8", "surrogateescape")

    def dump(self, name: str, target: Path) -> bytes:
        """A file's content as debugfs reads it."""
        self.debugfs(f"dump {name} {target}")
        return target.read_bytes()

    def stat(self, name: str) -> dict[str, str]:
        """Fields of debugfs's stat, as it prints them."""
        text = self.debugfs(f"stat {name}")
        fields = dict(re.findall(r"(\w+): +(\S+)", text))
        for time in re.findall(r"^ *([acm]time|crtime): (0x\w+):?(\w+)?", text, re.MULTILINE):
            fields[time[0]] = f"{time[1]}:{time[2]}"
        return fields


@pytest.fixture
def make_image(tmp_path: Path) -> Iterator[Callable[..., Image]]:
    """`make_image(size_bytes=, options=)`; every image must be clean when the test ends."""
    images: list[Image] = []

    def make(size_bytes: int = 64 * MIB, options: Sequence[str] = ()) -> Image:
        image = Image(tmp_path / f"volume-{len(images)}.img", size_bytes, options)
        images.append(image)
        return image

    yield make
    for image in images:
        image.close()
        image.require_clean()


@pytest.fixture
def image(make_image: Callable[..., Image]) -> Image:
    return make_image()


@pytest.fixture
def volume(image: Image) -> Volume:
    return image.volume


@pytest.fixture(params=list(FEATURE_SETS))
def any_image(request: pytest.FixtureRequest, make_image: Callable[..., Image]) -> Image:
    """An image of each feature set in turn."""
    return make_image(options=FEATURE_SETS[request.param])


def make_file(volume: Volume, name: bytes, content: bytes = b"", parent: int = ROOT_INODE) -> int:
    """A regular file; returns its inode number."""
    inode = volume.make_node(parent, name, stat.S_IFREG | 0o644, 0, 0).inode
    if content:
        assert volume.write(inode, 0, content) == len(content)
    return inode


def names(volume: Volume, inode: int = ROOT_INODE) -> set[bytes]:
    return {entry.name for entry in volume.list_directory(inode)} - {b".", b"..", b"lost+found"}
