"""Metadata samples, and the outside tools that judge them."""

from __future__ import annotations

import io
import random
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from cowfs.blockdev import BlockDevice, MemoryDevice, copy_sparse
from cowfs.errors import MissingRequirement
from cowfs.testing.blockdev import memory_device
from cowfs.thinmeta import Metadata
from cowfs.thinmeta.xml import dump
from tests import docker_home
from tests.kit import thin_tools

Finder = Callable[[str], str]


def tool_or_skip(find: Finder, tool: str) -> str:
    try:
        return find(tool)
    except MissingRequirement as error:
        pytest.skip(error.message)


class Tools:
    """One generation of the tools, run on copies of devices."""

    def __init__(self, find: Finder, directory: Path) -> None:
        self._find = find
        self._directory = directory
        tool_or_skip(find, "thin_check")

    def run(self, tool: str, device: BlockDevice, *arguments: str) -> subprocess.CompletedProcess[str]:
        path = self._directory / "judged"
        path.unlink(missing_ok=True)
        with path.open("wb") as file:
            copy_sparse(device, file.fileno())
        return subprocess.run(
            [self._find(tool), *arguments, str(path)], capture_output=True, text=True, check=False, timeout=120
        )

    def check(self, device: BlockDevice) -> int:
        return self.run("thin_check", device, "-q").returncode

    def output(self, tool: str, device: BlockDevice, *arguments: str) -> str:
        result = self.run(tool, device, *arguments)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def restore(self, xml: str, size_bytes: int) -> MemoryDevice:
        """What this generation's thin_restore makes of some XML."""
        source, target = self._directory / "restore.xml", self._directory / "restored"
        source.write_text(xml)
        target.unlink(missing_ok=True)
        with target.open("wb") as file:
            file.truncate(size_bytes)
        command = [self._find("thin_restore"), "-i", str(source), "-o", str(target)]
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert result.returncode == 0, result.stderr + result.stdout
        return memory_device(target.read_bytes())


@pytest.fixture
def old_tools(tmp_path: Path) -> Tools:
    """thin-provisioning-tools 0.9."""
    return Tools(thin_tools.find_old, tmp_path)


@pytest.fixture
def new_tools(tmp_path: Path) -> Tools:
    """thin-provisioning-tools 1.x."""
    return Tools(thin_tools.find_new, tmp_path)


def copy_of(device: BlockDevice) -> MemoryDevice:
    return memory_device(device.pread(0, device.size_bytes))


def xml_of(device: BlockDevice) -> str:
    out = io.StringIO()
    dump(device, out)
    return out.getvalue()


def map_blocks(metadata: Metadata, thin_id: int, vblock: int, count: int) -> None:
    thin = metadata.open_thin(thin_id)
    while count:
        dblock, length = metadata.allocate_data(count)
        thin.insert(vblock, dblock, length)
        vblock, count = vblock + length, count - length


def make_sample() -> MemoryDevice:
    """A small pool with everything in it.

    Thin 1 has several leaves; 2 to 5 are snapshots that share some of them; 6 to 8 share all of 5's; 9 is empty; 10 has
    scattered single blocks. Counts above two are in both overflow btrees, the data map has two bitmaps, a metadata
    snapshot is held that is older than the rest.
    """
    device = MemoryDevice(1 << 20)
    metadata = Metadata.create(device, 128)
    metadata.resize_data(20000)
    metadata.create_thin(1)
    for vblock in range(0, 1400, 7):
        map_blocks(metadata, 1, vblock, 5)
    metadata.commit()
    for thin_id in range(2, 6):
        metadata.create_snap(thin_id, 1)
        map_blocks(metadata, thin_id, 100 * thin_id, 3)
        map_blocks(metadata, 1, 50 * thin_id, 2)
        metadata.commit()
    metadata.reserve_snap()
    metadata.commit()
    for thin_id in range(6, 9):
        metadata.create_snap(thin_id, 5)
    metadata.create_thin(9)
    metadata.create_thin(10)
    scatter = random.Random(10)
    for vblock in sorted(scatter.sample(range(10**9), 300)):
        map_blocks(metadata, 10, vblock, 1)
    map_blocks(metadata, 3, 1300, 20)
    metadata.set_transaction_id(0, 17)
    metadata.commit()
    metadata.close()
    return device


@pytest.fixture(scope="session")
def sample_content() -> bytes:
    device = make_sample()
    return device.pread(0, device.size_bytes)


@pytest.fixture
def sample(sample_content: bytes) -> MemoryDevice:
    return memory_device(sample_content)


@pytest.fixture(scope="session")
def docker_content() -> bytes:
    """The metadata that Docker's devicemapper driver left."""
    with tarfile.open(docker_home.ARCHIVE) as archive:
        member = next(
            entry
            for entry in archive
            if entry.name.removeprefix("./") == f"{docker_home.DIRECTORY}/devicemapper/metadata"
        )
        file = archive.extractfile(member)
        assert file is not None
        return file.read()


@pytest.fixture
def docker(docker_content: bytes) -> MemoryDevice:
    return memory_device(docker_content)
