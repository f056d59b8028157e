"""Checks of direct-lvm with LVM itself, and of xfs on the kernel, that run inside a guest."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cowfs.benchmarks.engines.catalogue import ENGINES, Wanted, parse_over, with_thin_pool
from cowfs.benchmarks.runner import Run
from cowfs.benchmarks.workloads.disks import FirstWrites
from cowfs.benchmarks.workloads.interface import Workload
from cowfs.benchmarks.workloads.trees import SmallFiles
from cowfs.devices import opening
from cowfs.devices.base.base_device import filesystem_named
from cowfs.devices.base.base_xfs import Xfs, limit_nospace_retries
from cowfs.devices.injected import Injected
from cowfs.devices.on_disk.files import HomeFiles
from cowfs.errors import CowfsError, HomeError
from cowfs.ext4.tools import commands as tools
from cowfs.ext4.tools.mkfs import require_filesystem
from cowfs.home.opened.backend_facts import driver_facts
from cowfs.layers.direct_lvm import prepare_pool, read_config
from cowfs.layers.lvm_config import POOL_NAME, LvmConfig
from cowfs.layers.options import home_options, parse_storage_options
from cowfs.pool import NodeBackend, NodeThin, load_backend
from tests.kit.standby import fork_servers_from_here
from tests.uml.guest_checks import Checks, run_checks

DISK_BYTES = 2 << 30
WAIT_SECONDS = 60
# No udev runs in the guest, and its LVM has its own configuration.
CONFIGURATION = """
devices { obtain_device_list_from_udev=0 external_device_info_source="none" }
activation { udev_sync=0 udev_rules=0 monitoring=0 }
"""
BACKEND = load_backend("dmthin")
assert isinstance(BACKEND, NodeBackend)
NODE_BACKEND: NodeBackend = BACKEND
check = Checks()


def check_on_disk(function: Callable[[Path, str], None]) -> None:
    """A check that gets a disk of 2 GiB, too, from which LVM is removed at the end."""

    @functools.wraps(function)
    def run(folder: Path) -> None:
        image = folder / "disk"
        with image.open("xb") as file:
            file.truncate(DISK_BYTES)
        disk = said("losetup", "--find", "--show", str(image)).strip()
        try:
            function(folder, disk)
        finally:
            lvm = Lvm(folder)
            lvm.run("vgremove", ["-f", "docker"], "lvm2")
            lvm.run("pvremove", ["-f", disk], "lvm2")
            said("losetup", "--detach", disk)

    check(run)


def said(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


class Lvm:
    """The system's programs, with the guest's configuration; `broken` names one that fails."""

    def __init__(self, folder: Path, broken: str = "") -> None:
        self.profiles = folder / "lvm" / "profile"
        self.profiles.mkdir(parents=True, exist_ok=True)
        (folder / "lvm" / "lvm.conf").write_text(CONFIGURATION)
        self._environment = {**os.environ, "LVM_SYSTEM_DIR": str(folder / "lvm"), "DM_DISABLE_UDEV": "1"}
        self._broken = broken

    def find(self, command: str, package: str) -> str:
        return tools.find(command, package)

    def run(self, command: str, arguments: Sequence[str], package: str) -> tuple[int, str]:
        if command == self._broken:
            arguments = ["--no-such-option"]
        done = subprocess.run(
            [self.find(command, package), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self._environment,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout

    def prepare(self, folder: Path, disk: str, *, force: bool = False) -> str:
        files = HomeFiles(str(folder))
        config = LvmConfig(device=disk, autoextend_threshold=70)
        name = prepare_pool(files, config, force=force, commands=self, profile_directory=str(self.profiles))
        assert read_config(files) == config
        return name


def refusal(lvm: Lvm, folder: Path, disk: str) -> str:
    try:
        lvm.prepare(folder, disk)
    except CowfsError as error:
        assert not (folder / "setup-config.json").exists()
        return str(error)
    raise AssertionError("it was not refused")


@check_on_disk
def a_pool_is_made_and_used_again(folder: Path, disk: str) -> None:
    lvm = Lvm(folder)
    assert lvm.prepare(folder, disk) == POOL_NAME
    words = said("dmsetup", "table", POOL_NAME).split()
    # start, length, thin-pool, metadata, data, block size in sectors
    assert (words[2], words[5]) == ("thin-pool", "1024")
    assert abs(int(words[1]) * 512 - DISK_BYTES * 0.95) < 16 << 20
    status, profile = lvm.run("lvs", ["--noheadings", "-o", "profile", "docker/thinpool"], "lvm2")
    assert (status, profile.strip()) == (0, "docker-thinpool")
    status, threshold = lvm.run(
        "lvmconfig", ["--metadataprofile", "docker-thinpool", "activation/thin_pool_autoextend_threshold"], "lvm2"
    )
    assert (status, threshold.strip()) == (0, "thin_pool_autoextend_threshold=70")
    before = said("dmsetup", "table", POOL_NAME)
    assert lvm.prepare(folder, disk) == POOL_NAME
    assert said("dmsetup", "table", POOL_NAME) == before


@check_on_disk
def a_disk_of_a_volume_group_is_refused(folder: Path, disk: str) -> None:
    lvm = Lvm(folder)
    assert lvm.run("vgcreate", ["theirs", disk], "lvm2")[0] == 0
    assert f'{disk} is already part of a volume group "theirs"' in refusal(lvm, folder, disk)
    assert lvm.run("vgremove", ["theirs"], "lvm2")[0] == 0


@check_on_disk
def a_disk_with_a_filesystem_is_refused_and_can_be_forced(folder: Path, disk: str) -> None:
    said("mke2fs", "-q", "-t", "ext4", disk)
    lvm = Lvm(folder)
    assert f"{disk} has a filesystem already" in refusal(lvm, folder, disk)
    assert "ext4" in said("blkid", "-p", disk)
    assert lvm.prepare(folder, disk, force=True) == POOL_NAME


@check_on_disk
def what_is_no_disk_is_refused(folder: Path, disk: str) -> None:
    assert "is not available for use with devicemapper" in refusal(Lvm(folder), folder, "/dev/null")


@check_on_disk
def a_failed_step_leaves_the_disk_as_it_was(folder: Path, disk: str) -> None:
    assert "lvchange failed with status" in refusal(Lvm(folder, "lvchange"), folder, disk)
    lvm = Lvm(folder)
    assert lvm.run("vgs", ["--noheadings"], "lvm2") == (0, "")
    assert lvm.run("pvs", ["--noheadings"], "lvm2") == (0, "")
    assert lvm.prepare(folder, disk) == POOL_NAME


@check_on_disk
def a_home_is_made_in_the_pool(folder: Path, disk: str) -> None:
    home = folder / "home"
    home.mkdir()
    Lvm(folder).prepare(home, disk)
    options = parse_storage_options([f"dm.directlvm_device={disk}", "dm.basesize=64M"])
    with opening.make_home(home, BACKEND, home_options(options)) as devices:
        devices.create("layer")
        assert devices.reports.status().block_bytes == 512 << 10
        assert not devices.deletions.discards_removed
    with opening.open_home(home, BACKEND) as devices:
        assert [record.name for record in devices.records()] == ["base", "layer"]


@check_on_disk
def engines_of_the_kernel_are_compared_and_leave_nothing(folder: Path, disk: str) -> None:
    """cowfs bench over a pool that is there, LVM, and a new pool: only what was there before is left."""
    Lvm(folder).prepare(folder, disk)
    with contextlib.closing(NODE_BACKEND.open_existing_pool(POOL_NAME)) as pool:
        pool.create_thin(7)
        (theirs := pool.activate("theirs", 7, 2048)).pwrite(0, b"kept" * 1024)
        theirs.close()
    before = said("dmsetup", "ls"), said("losetup", "--list"), said("findmnt", "--noheadings")
    questions: list[Workload] = [
        FirstWrites(size_bytes=4 << 20, writes=4, sizes=[4096, 65536], seed=1),
        SmallFiles(files=6, changed=3, seed=1),
    ]
    directory = folder / "bench"
    directory.mkdir()
    own = Wanted("own", ENGINES["dmthin"], None)
    wanted = [*with_thin_pool(parse_over("dmthin"), POOL_NAME), *parse_over("lvm-thin:128K"), own]
    result = Run(wanted, questions, directory, rounds=1, seed=1, look_seconds=0.01)()
    assert not result.missing, result.missing
    for question in result.questions:
        assert not question.failed, question.failed
        for line in question.lines:
            assert set(line.samples) == {"dmthin", "lvm-thin:128K", "own"}
    small = {name: samples[0] for name, samples in result.questions[0].lines[0].samples.items()}
    block_bytes = {"dmthin": 512 << 10, "lvm-thin:128K": 128 << 10, "own": 64 << 10}
    for name, sample in small.items():  # each of four writes of 4 KiB has a shared block copied
        assert sample.engine_written_bytes is not None, name
        assert 4 * block_bytes[name] <= sample.engine_written_bytes < 4 * block_bytes[name] + (1 << 20), (name, sample)
    assert (said("dmsetup", "ls"), said("losetup", "--list"), said("findmnt", "--noheadings")) == before
    with contextlib.closing(NODE_BACKEND.open_existing_pool(POOL_NAME)) as pool:
        assert pool.thin_ids() == [7]
        with contextlib.closing(pool.activate("theirs", 7, 2048)) as theirs:
            assert theirs.pread(0, 4096) == b"kept" * 1024


@check
def a_killed_run_of_lvm_leaves_nothing(folder: Path) -> None:
    with killed_in_the_middle(folder, "--over", "lvm-thin"):
        assert "cowfs--bench" in said("dmsetup", "ls")
    assert not list(Path("/dev").glob("cowfs-bench-*"))


@check_on_disk
def a_killed_run_in_a_pool_of_the_users_leaves_what_was_there(folder: Path, disk: str) -> None:
    Lvm(folder).prepare(folder, disk)
    with contextlib.closing(NODE_BACKEND.open_existing_pool(POOL_NAME)) as pool:
        pool.create_thin(7)
    with killed_in_the_middle(folder, "--over", "dmthin", "--thin-pool", POOL_NAME):
        assert "cowfs-bench-" in said("dmsetup", "ls")
    with contextlib.closing(NODE_BACKEND.open_existing_pool(POOL_NAME)) as pool:
        assert pool.thin_ids() == [7]


@contextlib.contextmanager
def killed_in_the_middle(folder: Path, *options: str) -> Iterator[None]:
    """A run whose command works in the block, and that is killed at its end; nothing is left then."""
    before = said("dmsetup", "ls"), said("losetup", "--list"), said("findmnt", "--noheadings")
    work, started = folder / "work", folder / "started"
    work.write_text(f'#!/bin/sh\necho $$ > {folder}/pid\nmv {folder}/pid {started}\ntouch "$1/file"\nexec sleep 60\n')
    work.chmod(0o755)
    words = ["bench", "--directory", str(folder), "--command", f"{work} {{dir}}", "--size", "64M", *options]
    run = subprocess.Popen([sys.executable, "-m", "cowfs", *words], stdout=subprocess.DEVNULL)
    wait_until(lambda: started.exists() or run.poll() is not None)
    yield
    run.kill()
    run.wait()
    os.kill(int(started.read_text()), signal.SIGKILL)  # the command is the user's own
    wait_until(lambda: not list(folder.glob("cowfs-bench-*")))
    assert (said("dmsetup", "ls"), said("losetup", "--list"), said("findmnt", "--noheadings")) == before


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# ---------------------------------------------------------------------------- xfs


@contextlib.contextmanager
def mounted(node: str, folder: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=folder) as point:
        said("mount", "-t", "xfs", "-o", "nouuid", node, point)
        try:
            yield Path(point)
        finally:
            said("umount", point)


@check
def what_the_guest_can_do(folder: Path) -> None:
    facts = driver_facts(BACKEND)
    assert (facts.kernel_mounts, facts.has_mkfs_xfs, facts.kernel_knows_xfs) == (True, True, True)
    assert facts.can_defer
    assert facts.dm_version is not None
    assert facts.dm_version[0] == 4


@check
def a_home_of_xfs(folder: Path) -> None:
    options = parse_storage_options(
        ["dm.fs=xfs", "dm.mkfsarg=-L", "dm.mkfsarg=layers", "dm.basesize=512M", "dm.loopdatasize=4G"]
    )
    filesystem = filesystem_named(options.fs, options.mkfs_args)
    with opening.make_home(
        folder / "home", BACKEND, home_options(options), injected=Injected(filesystem=filesystem)
    ) as devices:
        status = devices.reports.status()
        assert devices.base.filesystem_name == "xfs"
        devices.create("same")
        devices.create("larger", size_bytes=768 << 20)
    with opening.open_home(folder / "home", BACKEND) as devices:
        same, larger = devices.active.activate("same"), devices.active.activate("larger")
        assert isinstance(same, NodeThin)
        assert isinstance(larger, NodeThin)
        assert require_filesystem(same, "same") == "xfs"
        facts = said("blkid", "-p", same.node)
        assert f'UUID="{status.base_uuid}"' in facts
        assert 'LABEL="layers"' in facts
        with mounted(same.node, folder) as first, mounted(larger.node, folder) as second:
            (first / "file").write_text("only here")
            assert not (second / "file").exists()
            sizes = [os.statvfs(point).f_blocks * os.statvfs(point).f_frsize >> 20 for point in (first, second)]
            assert 400 < sizes[0] <= 512 < 650 < sizes[1] <= 768, sizes
            limit_nospace_retries(same.node, 3)
            name = Path(f"/sys/dev/block/{os.major(os.stat(same.node).st_rdev)}:{os.minor(os.stat(same.node).st_rdev)}")
            setting = Path("/sys/fs/xfs", name.resolve().name, "error/metadata/ENOSPC/max_retries")
            assert setting.read_text().strip() == "3"


@check
def another_xfs_is_found_out(folder: Path) -> None:
    options = home_options(parse_storage_options(["dm.basesize=512M", "dm.loopdatasize=4G"]))
    with opening.make_home(folder / "home", BACKEND, options, injected=Injected(filesystem=Xfs())) as devices:
        thin = devices.active.activate("base")
        assert isinstance(thin, NodeThin)
        said("xfs_admin", "-U", "generate", thin.node)
        devices.active.deactivate("base")
    try:
        opening.open_home(folder / "home", BACKEND).close()
    except HomeError as error:
        if "has UUID" in str(error):
            return
        raise
    raise AssertionError("another file system was taken for the base device's")


if __name__ == "__main__":
    fork_servers_from_here()
    run_checks(check, sys.argv[1:])
