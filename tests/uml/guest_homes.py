"""Checks of homes on kernel pools that run inside a guest; see `guest_checks`."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cowfs
from cowfs.devices import opening
from cowfs.errors import CowfsError, DeviceBusy, ForkedError, MountError
from cowfs.ext4.tools.fsck import check_volume
from cowfs.faults.plan import Delay, Error, Flip, Lose, Rule, Tear
from cowfs.home.kernel.devices import mount_by_kernel
from cowfs.home.opened.spec import HomeSpec
from cowfs.home.requests.devices import OpenNode, Rename
from cowfs.home.session import connect
from cowfs.pool import load_backend
from cowfs_dmthin import nodes
from tests.kit.standby import fork_servers_from_here
from tests.uml.guest_checks import (
    CONTROL,
    Checks,
    attached_loops,
    expected,
    run_checks,
    somebody_has_open,
    wait_until,
)
from tests.uml.guest_commands import Cowfs, Outcome

check = Checks()
MIB = 1 << 20
SMALL = ("--data-size", "128M", "--metadata-size", "4M", "--base-size", "16M")


def make_home(folder: Path, *options: object, backend: str = "dmthin") -> Cowfs:
    """A home with the devices base and web."""
    home = Cowfs(folder / "home", backend)
    home("init", *SMALL, *options)
    home("create", "web")
    return home


def point(folder: Path, name: str = "point") -> Path:
    path = folder / name
    path.mkdir()
    return path


def assert_free() -> None:
    """Nothing is left, at once."""
    assert not CONTROL.devices()
    assert not attached_loops()


def shell(*words: object) -> str:
    done = subprocess.run([str(word) for word in words], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done
    return done.stdout.strip()


def loop_device(path: Path, size_bytes: int = 0) -> str:
    """A loop device that stays until it is detached, with a node."""
    if size_bytes:
        with path.open("xb") as file:
            file.truncate(size_bytes)
    return shell("losetup", "--find", "--show", path)


@contextlib.contextmanager
def loops(folder: Path) -> Iterator[tuple[str, str]]:
    """Two block devices, for data and for metadata."""
    names = loop_device(folder / "disk", 96 * MIB), loop_device(folder / "small-disk", 8 * MIB)
    try:
        yield names
    finally:
        shell("losetup", "--detach", *names)


@contextlib.contextmanager
def foreign_pool(folder: Path, name: str = "tank") -> Iterator[None]:
    """A pool that dmsetup made."""
    with loops(folder) as (data, metadata):
        table = f"0 {96 * MIB // 512} thin-pool {metadata} {data} 128 0 1 skip_block_zeroing"
        shell("dmsetup", "create", name, "--table", table)
        try:
            yield
        finally:
            shell("dmsetup", "remove", name)


# --- full pools


@check
def what_a_full_pool_of_the_kernel_does_is_chosen_and_changed(folder: Path) -> None:
    home = make_home(folder, "--no-space", "error")
    assert "error_if_no_space" in home("dm", "status").out
    home("pool", "set", "--no-space", "queue")
    assert "queue_if_no_space" in home("dm", "status").out
    home("pool", "set", "--no-space", "error")
    assert "error_if_no_space" in home("dm", "status").out
    report = home("--json", "status").json
    assert (report["no_space"], report["no_space_timeout_seconds"]) == ("error", 60)
    home.fails(2, "parameters/no_space_timeout", words=("pool", "set", "--no-space-timeout", "5"))
    other = Cowfs(folder / "other", "dmthin")
    other.fails(2, "parameters/no_space_timeout", words=("init", *SMALL, "--no-space-timeout", "5"))
    assert not (folder / "other").exists()
    assert_free()


# --- mounts by the kernel


@check
def the_kernel_mounts_a_device_and_the_home_is_free(folder: Path) -> None:
    home, mnt = make_home(folder), point(folder)
    assert home("mount", "--kernel", "web", mnt).out == ""
    (mnt / "file").write_text("through the kernel\n")
    assert home.rows()["web"]["mounted"] == [str(mnt)]
    status = home("--json", "status").json
    assert status["holder_pid"] is None
    assert status["views"] == [{"device": "web", "mount_point": str(mnt), "view": "kernel", "read_only": False}]
    assert f"Mounted        web at {mnt}, file tree, by the kernel\n" in home("status").out
    report = home("--json", "inspect", "web").json
    assert report["active"]
    assert report["views"] == status["views"]
    home("snapshot", "web", "copy")
    home("check")
    assert "<device dev_id=" in home("dump").out
    home("umount", mnt)
    assert_free()
    home("mount", "copy", mnt)
    assert (mnt / "file").read_text() == "through the kernel\n"
    home("umount", mnt)


@check
def python_has_a_mount_for_a_block(folder: Path) -> None:
    home = make_home(folder)
    with cowfs.open_home(home.home, backend="dmthin") as opened:
        with opened.mount() as tree:
            (tree / "web" / "file").write_text("one")
            opened.snapshot("web", "copy")
            (tree / "web" / "file").write_text("two")
        with opened.device("web", read_only=True) as disk:
            assert disk.size_bytes == 16 * MIB
        with opened.mount("copy") as tree:
            assert (tree / "file").read_text() == "one"
        with opened.mount("web", raw=True) as tree:
            assert (tree / "web").stat().st_size == 16 * MIB
    assert_free()


@check
def disks_and_requests_fail_on_demand(folder: Path) -> None:
    home = make_home(folder)
    with cowfs.open_home(home.home, backend="dmthin") as opened:
        with opened.device("web") as disk:
            before = disk.pread(65536, 1024)
            with opened.faults.fail("write", on="device", range_blocks=(1, 2), errno="ENXIO") as fault:
                with expected(CowfsError, errno.ENXIO):
                    disk.pwrite(65536 + 512, b"x" * 512)
                disk.pwrite(2 * 65536, disk.pread(2 * 65536, 512))
                assert fault.hits == 1
            with opened.faults.tear(on="device", keep_sectors=[1]):
                disk.pwrite(65536, b"x" * 1024)
            assert disk.pread(65536, 1024) == before[:512] + b"x" * 512
            with expected(CowfsError, errno.EINVAL, "'commit' is not possible"):
                opened.faults.fail(on="commit")
            with expected(CowfsError, errno.EINVAL, "'pool_mode' is not possible"):
                opened.faults.pool_mode("failed", on="device")
            disk.pwrite(65536, before)
        with opened.mount("web") as tree:
            (tree / "file").write_text("before")
            with opened.faults.fail("write", path="file", errno="EDQUOT"), expected(OSError, errno.EDQUOT):
                (tree / "file").write_text("after")
            with opened.faults.fail("write", on="device"), expected(OSError, errno.EIO):
                (tree / "other").write_bytes(b"x" * 4096)
            (tree / "file").write_text("after")
            os.sync()
        with opened.mount("web") as tree:
            assert (tree / "file").read_text() == "after"
    home("pool", "check")
    assert_free()


def clone(home: Cowfs, name: str = "copy") -> Cowfs:
    """A copy of a home, judged."""
    copy = Cowfs(home.home.parent / name, home.backend)
    home("clone-home", home.home, copy.home)
    assert not list(copy.home.glob("cowfs.replacing/*"))
    with cowfs.open_home(copy.home, backend="emulated") as opened:
        assert opened.check().clean
        assert not opened.status().problems
    return copy


def read(home: Cowfs, name: str, path: str) -> str:
    with cowfs.open_home(home.home, backend=home.backend) as opened, opened.open_file(name, path) as file:
        return file.read().decode()


def tell_clones(home: Cowfs) -> tuple[object, ...]:
    """What is the same in a home and its copy: devices, mappings, and how much is used."""
    status = home("--json", "status").json
    rows = {name: (row["id"], row["parent"], row["size_bytes"]) for name, row in home.rows().items()}
    return rows, home("dump").out, status["data_used_bytes"], status["data_total_bytes"], status["metadata_total_bytes"]


EVERY = ("read", "write", "discard")
CHANGES = ("write", "discard", "flush")


def layers_of_faults() -> list[str]:
    return [line for line in shell("dmsetup", "ls").splitlines() if "-faults-" in line]


@check
def the_kernel_fails_and_delays_what_is_below_its_pool(folder: Path) -> None:
    """Errors and delays by tables of device mapper, which are gone when the faults are, and the home is clean."""
    home = make_home(folder, "--no-space", "error")
    with cowfs.open_home(home.home, backend="dmthin") as opened:
        with opened.device("web") as disk:
            disk.pwrite(0, b"a" * 65536 * 4)
            disk.flush()
        with opened.faults.delay("flush", on="data", seconds=0.3):
            assert len(layers_of_faults()) == 2
            with opened.device("web") as disk:
                disk.pwrite(0, b"b" * 4096)
                begin = time.monotonic()
                disk.flush()
                assert time.monotonic() - begin >= 0.3
                disk.pread(0, 4096)
                assert time.monotonic() - begin < 10
        assert not layers_of_faults()
        fault = opened.faults.fail(*CHANGES, on="data")
        with opened.device("web") as disk:
            assert disk.pread(0, 4096) == b"b" * 4096
            with expected(CowfsError, errno.EIO):
                disk.pwrite(0, b"c" * 4096)
            fault.clear()
        with opened.faults.lose(*CHANGES, on="data"), opened.device("web") as disk:
            disk.pwrite(0, b"c" * 4096)
            disk.flush()
        fault = opened.faults.fail(*EVERY, on="data", range_blocks=(0, 1 << 20))
        with opened.device("web") as disk:
            with expected(CowfsError, errno.EIO):
                disk.pread(0, 4096)
            fault.clear()  # while a device is in use: what passes everything on stays until it is not
            assert len(layers_of_faults()) == 2
            assert disk.pread(0, 4096) == b"b" * 4096
            with expected(CowfsError, errno.EINVAL, "another one is about the same bytes"):
                opened.faults.add(
                    Rule(effect=Delay(1), operations=("read",), on="data"),
                    Rule(effect=Delay(1), operations=("flush",), on="data"),
                )
            assert opened.faults.reports() == []
            for wrong, words in WRONG:
                with expected(CowfsError, errno.EINVAL, words):
                    opened.faults.add(wrong)
            opened.resize_pool(data_size_bytes=192 * MIB)  # the devices for faults grow with it
            assert disk.pread(0, 4096) == b"b" * 4096
    assert not layers_of_faults()
    home("pool", "check")
    assert_free()


WRONG = [
    (Rule(effect=Flip(), operations=("read",), on="data"), "no 'flip' below a pool"),
    (Rule(effect=Tear(), operations=("write",), on="metadata"), "no 'tear' below a pool"),
    (Rule(effect=Error("ENOSPC"), operations=EVERY, on="data"), "with EIO, not with ENOSPC"),
    (Rule(effect=Error(), operations=EVERY, on="data", nth=3), "to each request"),
    (Rule(effect=Error(), operations=EVERY, on="data", range_bytes=(5, 1024)), "byte 5 is not the begin of a sector"),
    (Rule(effect=Error(), operations=("write",), on="data"), "without reads the kernel fails writes, discards and"),
    (Rule(effect=Error(), operations=("read",), on="data"), "fails reads, writes and discards alike"),
    (Rule(effect=Delay(0.5), operations=("write",), on="data"), "delays writes and discards alike"),
    (Rule(effect=Lose(), operations=("write", "discard"), on="data", range_bytes=(0, 512)), "loses writes, discards"),
    (Rule(effect=Error(), on="commit"), "'commit' is not possible"),
]


@check
def a_plan_fails_below_the_kernels_pool_while_the_kernel_has_the_mount(folder: Path) -> None:
    """`mount --faults` puts them below before anything is in use; a server that is killed leaves a sound home."""
    home = make_home(folder)
    plan = folder / "plan.toml"
    plan.write_text(
        '[[rules]]\non = "data"\noperations = ["read", "write", "discard"]\nrange_blocks = [1000, 1100]\n'
        'effect = { kind = "error" }\nname = "bad blocks"\n'
    )
    target = point(folder)
    home("mount", "--faults", plan, "web", target)
    (target / "file").write_bytes(b"x" * 100_000)
    assert "bad blocks" in home("faults", "list").out
    assert len(layers_of_faults()) == 2
    home.fails(2, "the same bytes", words=("faults", "add", "*", "delay", "read", "--seconds", "1", "--on", "data"))
    home("faults", "clear")
    home("faults", "add", "*", "delay", "read", "--seconds", "0.01", "--on", "data")
    home("umount", target)
    assert not layers_of_faults()
    home("mount", "web", target)
    home.fails(
        2,
        "is in use, and the kernel puts nothing below a pool in use",
        "mount --faults",
        words=("faults", "add", "*", "delay", "read", "--seconds", "1", "--on", "data"),
    )
    assert (target / "file").read_bytes() == b"x" * 100_000
    home("umount", target)
    home("mount", "--faults", plan, "web", target)
    with cowfs.open_home(home.home) as opened:
        assert opened.holder_pid
        os.kill(opened.holder_pid, signal.SIGKILL)
    wait_until(lambda: not layers_of_faults())
    shell("umount", "-l", target)
    home("pool", "check")
    assert_free()


@check
def a_home_is_copied_from_the_kernels_pool(folder: Path) -> None:
    home = make_home(folder)
    with cowfs.open_home(home.home, backend="dmthin") as opened:
        with opened.device("web") as disk:
            disk.pwrite(8 * MIB, b"x" * MIB)
        opened.snapshot("web", "monday")
        with opened.device("web") as disk:
            disk.pwrite(8 * MIB, b"y" * 65536)
            opened.clone(folder / "in use")  # a disk that is open
    copy = clone(home)
    assert tell_clones(copy) == tell_clones(home) == tell_clones(Cowfs(folder / "in use"))
    for backend in ("emulated", "dmthin"):
        with cowfs.open_home(copy.home, backend=backend) as opened:
            for name, first in (("web", b"y"), ("monday", b"x")):
                with opened.device(name, read_only=True) as disk:
                    assert disk.pread(8 * MIB, MIB) == first * 65536 + b"x" * (MIB - 65536)
    home.fails(5, "it exists", words=("clone-home", home.home, copy.home))
    assert_free()


@check
def a_home_is_copied_from_a_pool_on_devices(folder: Path) -> None:
    """Also with what the kernel has mounted; a copy of it lies in files."""
    with loops(folder) as (data, metadata):
        home = make_home(folder, "--data-device", data, "--metadata-device", metadata)
        mnt = point(folder)
        for backend in ("dmthin", "emulated"):
            copy = clone(home.on(backend), f"copy by {backend}")
            assert tell_clones(copy) == tell_clones(home)
            assert sorted(os.listdir(copy.home / "devicemapper")) == ["data", "metadata"]
        home("mount", "--kernel", "web", mnt)
        (mnt / "file").write_text("content")
        copy = clone(home)
        home("umount", mnt)
        assert read(copy, "web", "/file") == "content"
    with foreign_pool(point(folder, "foreign")):
        home = make_home(folder / "foreign", "--thin-pool", "tank")
        copy = clone(home)
        assert tell_clones(copy) == tell_clones(home)
    assert_free()


@check
def a_home_is_copied_while_the_kernel_and_a_server_have_devices_mounted(folder: Path) -> None:
    """One moment of all of them, consistent, and with nothing but what they hold."""
    home, served = make_home(folder), point(folder, "served")
    points = {name: point(folder, f"at-{name}") for name in ("web", "shop")}
    home("create", "shop")
    home("create", "store")
    home("mount", "store", served)
    for name, mnt in points.items():
        home("mount", "--kernel", name, mnt)
        (mnt / "number").write_text("0")
    (served / "file").write_text("kept by the server")
    writer = (
        "import os, sys, itertools\n"
        "for i in itertools.count(1):\n"
        "    for folder in sys.argv[1:]:\n"
        "        with open(folder + '/new', 'w') as file:\n"
        "            file.write(str(i)); file.flush(); os.fsync(file.fileno())\n"
        "        os.rename(folder + '/new', folder + '/number')\n"
    )
    with subprocess.Popen([sys.executable, "-c", writer, *map(str, points.values())]) as process:
        try:
            wait_until(lambda: (points["shop"] / "number").read_text() > "0")
            copies = [clone(home, f"busy-{number}") for number in range(2)]
            assert process.poll() is None
        finally:
            process.kill()
    for copy in copies:
        web, shop = (int(read(copy, name, "/number")) for name in points)
        assert web - shop in (0, 1), (web, shop)
        assert read(copy, "store", "/file") == "kept by the server"
        with cowfs.open_home(copy.home) as opened:
            for name in (*points, "store"):
                with opened.device(name, read_only=True) as disk:
                    checked = check_volume(disk)
                assert checked.clean, (name, checked.output)
    for mnt in points.values():
        shell("mount", "-o", "remount,ro", mnt)
    shell("sync")
    copy = clone(home)
    assert tell_clones(copy) == tell_clones(home)
    for mnt in (*points.values(), served):
        home("umount", mnt)
    assert home("--json", "status").json["orphan_thin_ids"] == []
    home("check")
    assert_free()


@check
def a_copy_that_is_killed_is_no_home_and_mounts_go_on(folder: Path) -> None:
    home, mnt = make_home(folder), point(folder)
    home("mount", "--kernel", "web", mnt)
    (mnt / "file").write_text("content")
    for place in ("_copy_data", "_put_in_place"):
        program = (
            f"import os, sys; from cowfs.devices import cloning; from cowfs.cli.app import main\n"
            f"cloning.{place} = lambda *_: os.kill(os.getpid(), 9)\n"
            "main(sys.argv[1:])\n"
        )
        words = ["--home", str(home.home), "--backend", "dmthin", "clone-home", str(folder / "copy")]
        assert subprocess.run([sys.executable, "-c", program, *words], check=False).returncode == -9
        Cowfs(folder / "copy").fails(5, "incomplete", words=("list",))
        (mnt / "file").write_text(place)
        os.sync()
    copy = clone(home)
    assert read(copy, "web", "/file") == "_put_in_place"
    assert home("--json", "status").json["orphan_thin_ids"] == []
    home("umount", mnt)
    assert home.rows().keys() == {"base", "web"}
    home("check")
    assert_free()


@check
def the_kernel_counts_requests_and_bytes(folder: Path) -> None:
    home = make_home(folder)
    with cowfs.open_home(home.home, backend="dmthin") as opened:
        mapped_bytes = opened.inspect("web").mapped_bytes
        for _ in range(2):  # the second time with a device that was closed
            with opened.device("web") as disk:
                for block in range(8):
                    disk.pwrite(block * 65536, bytes([block + 1]) * 65536)
                disk.pread(0, 65536)
                disk.flush()
        report = opened.io()
        (web,) = [device.counters for device in report.devices if device.name == "web"]
        assert (web.written_bytes, web.read_bytes) == (2 * 8 * 65536, 2 * 65536), web
        assert web.writes is not None
        assert web.writes >= 16
        assert web.provisioned_blocks == (opened.inspect("web").mapped_bytes - mapped_bytes) // 65536 > 0
        assert web.copied_blocks is None
        assert web.copied_bytes is None  # new blocks and reads: it does not follow
        assert report.pool.commits is None
        assert report.pool.requests.written_bytes == web.written_bytes
        assert report.write_amplification.total is not None
        assert report.write_amplification.total > 1
        assert report.write_amplification.copied is None
        assert opened.inspect("web").counters == web
    assert 'device="web"' not in home("metrics").out  # nothing was asked of it since
    assert "copied_blocks" not in home("metrics").out
    assert "-" in home("status", "--io").out


@check
def files_are_copied_without_a_mount_and_beside_one(folder: Path) -> None:
    """What goes in is what the kernel sees, and what the kernel writes comes out."""
    home, mnt, tree = make_home(folder), point(folder), point(folder, "tree")
    (tree / "sub").mkdir()
    (tree / "file").write_text("content\n")
    (tree / "sub" / "again").hardlink_to(tree / "file")
    (tree / "sub" / "link").symlink_to("../file")
    os.mknod(tree / "null", 0o20666, os.makedev(1, 3))
    os.setxattr(tree / "file", "trusted.name", b"value")  # the only ones that a tmpfs has everywhere
    with (tree / "sparse").open("wb") as file:
        file.seek(5 * MIB)
        file.write(b"end")
    os.utime(tree / "sub", ns=(1, 1_700_000_000_123_456_789))
    home("cp", "-r", tree, "web:/tree")
    home("snapshot", "web", "copy")
    home("cp", "-r", "web:/tree/sub", "copy:/tree/more")
    home("mount", "--kernel", "web", mnt)
    shell("diff", "-r", "--exclude=null", "--no-dereference", tree, mnt / "tree")
    for path in ("file", "sub", "null", "sparse"):
        ours, theirs = (tree / path).lstat(), (mnt / "tree" / path).lstat()
        assert (ours.st_mode, ours.st_mtime_ns, ours.st_rdev) == (theirs.st_mode, theirs.st_mtime_ns, theirs.st_rdev)
    assert os.getxattr(mnt / "tree" / "file", "trusted.name") == b"value"
    assert (mnt / "tree" / "file").stat().st_nlink == 2
    assert (mnt / "tree" / "sparse").stat().st_blocks < 100
    # While the kernel has it, a snapshot is read, and nothing is written beside the kernel.
    (mnt / "tree" / "new").write_text("by the kernel")
    os.rename(mnt / "tree" / "sub", mnt / "tree" / "moved")
    home("cp", "web:/tree/new", folder / "new")
    assert (folder / "new").read_text() == "by the kernel"
    home.fails(5, "in use already", f"the mount at {mnt}", words=("cp", tree / "file", "web:/other"))
    assert home("changes", "web", "copy").out.splitlines() == [
        *("D  /tree/more", "R  /tree/sub -> /tree/moved", "A  /tree/new")
    ]
    home("cp", "-r", "web:/tree/.", folder / "out")
    shell("diff", "-r", "--exclude=null", "--no-dereference", mnt / "tree", folder / "out")
    ranges = home("--json", "pool", "delta", "--ranges", "copy", "web").out.splitlines()
    assert ranges
    assert all(set(json.loads(line)) == {"byte_offset", "size_bytes", "hole"} for line in ranges)
    home("umount", mnt)
    for name in ("web", "copy"):
        home("mount", "--raw", "--read-only", name, mnt)
        shell("e2fsck", "-fn", mnt / name)
        home("umount", mnt)
    assert_free()


@check
def files_of_xfs_are_copied_too(folder: Path) -> None:
    home, tree = Cowfs(folder / "home"), point(folder, "tree")
    options = ("--storage-opt", "dm.fs=xfs")
    run_home(home, *options, "init", "--data-size", "512M", "--metadata-size", "4M", "--base-size", "320M")
    run_home(home, *options, "layer", "create", "one")
    (tree / "file").write_text("content\n")
    (tree / "link").symlink_to("file")
    run_home(home, *options, "cp", "-r", f"{tree}/.", "one:")
    run_home(home, *options, "layer", "create", "two", "one")
    run_home(home, *options, "cp", "one:/file", "two:/other")
    assert run_home(home, *options, "changes", "two").out == "A  /other\n"
    assert run_home(home, *options, "ls", "two:").out == "file\nlink\nother\n"
    run_home(home, *options, "cp", "-r", "two:", folder / "out")
    assert (folder / "out" / "other").read_text() == "content\n"
    assert_free()


def run_home(home: Cowfs, *words: object) -> Outcome:
    """A command with global options."""
    outcome = home.try_(*words)
    assert (outcome.status, outcome.err) == (0, ""), outcome
    return outcome


@check
def disks_files_and_chains_go_in_and_out(folder: Path) -> None:
    home = make_home(folder)
    disk = folder / "disk"
    disk.write_bytes(b"a" * 65536 + bytes(MIB) + b"b" * 65536)
    other = Cowfs(folder / "other", "dmthin")
    other("init", *SMALL)
    with cowfs.open_home(home.home, backend="dmthin") as opened:
        assert opened.import_image(disk, "disk").mapped_bytes == 2 * 65536
        opened.snapshot("disk", "later")
        with opened.device("later") as thin:
            thin.pwrite(65536, b"c" * 65536)
        opened.export_image("disk", folder / "out")
        assert (folder / "out").read_bytes() == disk.read_bytes()
        opened.export_chain("disk", folder / "chain")
        (folder / "files").mkdir()
        (folder / "files" / "file").write_text("content")
        opened.import_image(folder / "files", "files")
        opened.export_image("files", folder / "out.tar")
        assert {row.name for row in opened.devices()} == {"base", "web", "disk", "later", "files"}
    assert b"content" in (folder / "out.tar").read_bytes()
    with cowfs.open_home(other.home, backend="dmthin") as opened:
        before = opened.status().data_used_bytes
        opened.import_chain(folder / "chain")
        assert opened.status().data_used_bytes - before == 3 * 65536
        with opened.device("later", read_only=True) as thin:
            assert thin.pread(0, 2 * 65536) == b"a" * 65536 + b"c" * 65536
    other("check")
    full = Cowfs(folder / "full", "dmthin")
    full("init", "--data-size", "32M", "--metadata-size", "4M", "--base-size", "16M", "--no-space", "error")
    with (folder / "large").open("wb") as file:
        for _ in range(40):
            file.write(b"x" * MIB)
    outcome = full.try_("import", folder / "large", "large")
    assert outcome.status, outcome
    assert outcome.err.count("\n") == 1, outcome
    assert set(full.rows()) == {"base"}
    full("check")
    assert_free()


@check
def a_full_disk_below_the_kernels_pool_is_told(folder: Path) -> None:
    """The kernel says EIO, and where its commit met it, the pool is read-only until it was checked."""
    disk = point(folder, "small")
    shell("mount", "-t", "tmpfs", "-o", "size=24M", "none", disk)
    try:
        home = make_home(disk)
        with (folder / "large").open("wb") as file:
            for _ in range(32):
                file.write(os.urandom(MIB))
        outcome = home.try_("import", folder / "large", "large")
        assert outcome.status == 5, outcome
        line = outcome.err.splitlines()[-1]  # before it perhaps that what was begun is removed later
        assert f"import disk 'large' failed: the disk below {home.home} is full; " in line
        assert "free space on that disk" in line
        shell("mount", "-o", "remount,size=96M", disk)
        if "ro" in home("dm", "status").out:
            home("pool", "check", "--repair")
        home("import", folder / "large", "large")
        assert home.rows().keys() == {"base", "web", "large"}
        home("check")
    finally:
        shell("umount", disk)
    assert_free()


@check
def the_kernel_too_mounts_the_base_device_for_reading_only(folder: Path) -> None:
    home, mnt = make_home(folder), point(folder)
    for options in ((), ("--options", "rw,noatime")):
        home.fails(0, "mounting base for reading only", words=("mount", "--kernel", "base", mnt, *options))
        assert os.statvfs(mnt).f_flag & os.ST_RDONLY
        home("umount", mnt)
    home("mount", "--kernel", "--write-base", "base", mnt)
    (mnt / "x").write_bytes(b"on purpose")
    home("umount", mnt)
    assert_free()


@check
def what_the_kernel_has_mounted_is_busy(folder: Path) -> None:
    home, mnt, other = make_home(folder), point(folder), point(folder, "other")
    home("mount", "--kernel", "web", mnt)
    home.fails(5, "'web' is mounted at", str(mnt), "cowfs umount", words=("remove", "web"))
    home.fails(5, "in use already", f"the mount at {mnt}", words=("mount", "web", other))
    home.fails(5, "in use already", f"the mount at {mnt}", words=("mount", "--kernel", "web", other))
    home.fails(5, "the kernel uses its pool", words=("check", "--repair"))
    home.on("emulated").fails(5, "in use by another pool", "--backend dmthin", words=("list",))
    home.fails(4, "is in use", f"the mount at {mnt}", words=("message", "delete", "2"))
    with somebody_has_open(str(mnt)):
        home.fails(6, f"umount {mnt}: files in it are in use", words=("umount", mnt))
    home("umount", mnt)
    home("remove", "web")


@check
def a_device_is_rolled_back_unless_the_kernel_has_it_mounted(folder: Path) -> None:
    home, mnt, served = make_home(folder), point(folder), point(folder, "served")
    home("mount", "--kernel", "web", mnt)
    (mnt / "file").write_text("one")
    home("snapshot", "web", "monday")
    (mnt / "file").write_text("two")
    for force in ((), ("--force",)):
        words = ("rollback", "web", "monday", *force)
        home.fails(5, f"'web' is mounted at {mnt}", "cannot be rolled back", "umount", words=words)
    assert (mnt / "file").read_text() == "two"
    home("umount", mnt)
    home("rollback", "web", "monday", "--keep", "tuesday")
    home("snapshot", "tuesday", "late-{}", "--count", "3")
    parents = {name: row["parent"] for name, row in home.rows().items()}
    assert parents == {"base": None, "web": "base", "monday": "web", "tuesday": "web"} | {
        f"late-{number}": "tuesday" for number in (1, 2, 3)
    }
    for name, text in (("web", "one"), ("tuesday", "two"), ("late-3", "two")):
        home("mount", "--kernel", name, mnt)
        assert (mnt / "file").read_text() == text
        home("umount", mnt)
    home("mount", "--kernel", "monday", mnt)
    (mnt / "file").write_text("busy")
    home("rollback", "web", "monday")  # which is held still for the moment
    home("umount", mnt)
    home("mount", served)
    assert (served / "web" / "file").read_text() == "busy"
    with (served / "web" / "file").open() as file:
        home.fails(5, f"is in use at {served}/web by", f"({os.getpid()})", words=("rollback", "web", "tuesday"))
        home("rollback", "web", "tuesday", "--force")
        with expected(OSError, errno.ESTALE):
            os.fstat(file.fileno())
    assert (served / "web" / "file").read_text() == "two"
    home("umount", served)
    assert home("--json", "check").json["clean"]
    assert not home("--json", "recover", "--dry-run").json["findings"]
    assert_free()


@check
def a_device_is_renamed_unless_the_kernel_uses_it_by_its_name(folder: Path) -> None:
    home, mnt, served = make_home(folder), point(folder), point(folder, "served")
    home("snapshot", "web", "copy")
    home("mount", "--kernel", "web", mnt)
    (mnt / "file").write_text("kept")
    home.fails(5, f"'web' is mounted at {mnt}", "cannot be renamed", "umount", words=("rename", "web", "shop"))
    home("umount", mnt)
    with connect(HomeSpec(home.home, "dmthin")) as session:
        node = session.call(OpenNode("web")).fd
        with expected(DeviceBusy, errno.EBUSY, "in use through its node"):
            session.call(Rename("web", "shop"))
        os.close(node)
        assert session.call(Rename("web", "shop")).name == "shop"
    assert {name: row["parent"] for name, row in home.rows().items()} == {"base": None, "copy": "shop", "shop": "base"}
    home("mount", "--kernel", "shop", mnt)
    assert (mnt / "file").read_text() == "kept"
    assert any(name.endswith("-shop") for name in CONTROL.devices())
    home("umount", mnt)
    home("mount", served)
    assert (served / "shop" / "file").read_text() == "kept"
    home("rename", "shop", "web")
    assert (served / "web" / "file").read_text() == "kept"
    assert not (served / "shop").exists()
    home("umount", served)
    home("mount", "web", served)
    with (served / "file").open("r+") as file:
        home("rename", "web", "store")
        assert any(name.endswith("-store") for name in CONTROL.devices())
        home("snapshot", "store", "web")
        home("cp", "store:/file", "web:/copy")
        file.write("new ")
        file.flush()
    assert (served / "file").read_text() == "new "
    assert home.rows()["store"]["mounted"] == [str(served)]
    home("umount", "store")
    assert_free()


@check
def a_plain_umount_leaves_nothing_either(folder: Path) -> None:
    home, mnt = make_home(folder), point(folder)
    home("mount", "--kernel", "web", mnt)
    shell("umount", mnt)
    wait_until(lambda: not CONTROL.devices() and not attached_loops())


@check
def a_device_is_a_node_for_any_tool(folder: Path) -> None:
    home, mnt = make_home(folder), point(folder)
    node = home("activate", "web").out.strip()
    assert node.startswith("/dev/mapper/docker-")
    (name,) = (name for name in CONTROL.devices() if node == f"/dev/mapper/{name}")
    fd = os.open(node, os.O_RDWR)
    os.pwrite(fd, b"by a node" + bytes(503), 8 * MIB)
    os.fsync(fd)
    use = {"device": "web", "kind": "node", "where": node, "since": None}
    assert home("--json", "inspect", "web").json["uses"] == home("--json", "status").json["uses"] == [use]
    assert f"active as a node at {node}" in home("inspect", "web").out
    for words in (
        *(("remove", "web"), ("rename", "web", "new"), ("rollback", "web", "base"), ("activate", "web")),
        *(("mount", "web", mnt), ("mount", "--kernel", "web", mnt), ("resize", "web", "32M")),
    ):
        home.fails(5, f"'web' is active as the node {node}", "first run: cowfs deactivate web", words=words)
    home.fails(5, "'web' cannot be deactivated", f"held by process {os.getpid()}", words=("deactivate", "web"))
    home("snapshot", "web", "copy")
    os.pwrite(fd, b"afterward" + bytes(503), 8 * MIB)
    os.close(fd)
    assert json.loads(home("--json", "deactivate", "web").out) == {"name": "web"}
    assert not os.path.lexists(node)
    assert name not in CONTROL.devices()
    assert_free()
    home.fails(2, "'web' was not activated as a node", words=("deactivate", "web"))
    with cowfs.open_home(home.home, backend="dmthin") as api:
        for device, text in (("web", b"afterward"), ("copy", b"by a node")):
            with api.device(device, read_only=True) as disk:
                assert disk.pread(8 * MIB, 9) == text
    home("check")


def takes_writes(node: str) -> bool:
    try:
        with open(node, "r+b", buffering=0) as file:
            return file.write(bytes(512)) > 0
    except OSError:
        return False


@check
def a_node_may_be_for_reading(folder: Path) -> None:
    home = make_home(folder)
    answer = home("--json", "activate", "--read-only", "web").json
    assert (answer["name"], answer["read_only"]) == ("web", True)
    assert not takes_writes(answer["node"])
    assert Path(answer["node"]).read_bytes()[:1024] == bytes(1024)
    home("deactivate", "web")
    assert_free()


@check
def a_node_outlives_the_process_that_held_the_home(folder: Path) -> None:
    """Made through the server of a mount, and used by mount(8)."""
    home, served, mnt = make_home(folder), point(folder, "served"), point(folder)
    home("create", "other")
    home("mount", "other", served)
    home.fails(5, "'other' is mounted at", words=("activate", "other"))
    node = home("activate", "web").out.strip()
    home("umount", served)
    shell("mount", node, mnt)
    (mnt / "file").write_text("by mount(8)")
    home.fails(5, "'web' is mounted at", words=("remove", "web"))
    home.fails(5, "'web' cannot be deactivated", f"the mount at {mnt}", words=("deactivate", "web"))
    home("mount", "other", served)
    assert {use["kind"] for use in home("--json", "inspect", "web").json["uses"]} == {"kernel", "node"}
    shell("umount", mnt)
    home("deactivate", "web")
    home("umount", served)
    home("mount", "web", mnt)
    assert (mnt / "file").read_text() == "by mount(8)"
    home("umount", mnt)
    assert_free()


@check
def a_lazy_unmount_leaves_the_device_to_who_uses_it(folder: Path) -> None:
    home, mnt = make_home(folder), point(folder)
    home("mount", "--kernel", "web", mnt)
    (mnt / "file").touch()
    with somebody_has_open(str(mnt / "file")):
        home("umount", "--lazy", mnt)
        assert home.rows()["web"]["mounted"] == []
        home.fails(5, "device 'web' cannot be removed", "held by process", words=("remove", "web"))
    wait_until(lambda: not CONTROL.devices() and not attached_loops())
    home("remove", "web")


@check
def a_snapshot_of_a_busy_mount_holds_what_was_synced(folder: Path) -> None:
    home, mnt, other = make_home(folder), point(folder), point(folder, "other")
    home("mount", "--kernel", "web", mnt)
    writer = "i=0; while :; do i=$((i+1)); echo $i >$0/$i; done"
    with subprocess.Popen(["sh", "-c", writer, str(mnt)], stderr=subprocess.DEVNULL) as process:
        try:
            for number in range(3):
                (mnt / f"mark-{number}").write_text("synced")
                home("snapshot", "web", f"copy-{number}")
        finally:
            process.kill()
    home("umount", mnt)
    for number in range(3):
        home("mount", "--raw", "--read-only", f"copy-{number}", other)
        shell("e2fsck", "-fn", other / f"copy-{number}")  # frozen: clean without a replay
        home("umount", other)
        home("mount", "--kernel", "--read-only", f"copy-{number}", other)
        assert [path.name for path in sorted(other.glob("mark-*"))] == [f"mark-{n}" for n in range(number + 1)]
        home("umount", other)


@check
def xfs_is_mounted_beside_its_snapshot(folder: Path) -> None:
    home = Cowfs(folder / "home")
    home("init", "--data-size", "512M", "--metadata-size", "4M", "--base-size", "320M")
    home("create", "web")
    with cowfs.open_home(home.home, backend="dmthin") as api, api.device("web") as disk:
        shell("mkfs.xfs", "-q", "-f", getattr(disk, "node"))  # noqa: B009
    home("snapshot", "web", "copy")
    points = [point(folder, name) for name in ("web", "copy")]
    for mnt in points:
        home("mount", "--kernel", mnt.name, mnt, "--options", "noatime")
        (mnt / "file").write_text(mnt.name)
    lines = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    options = {line[1]: line[3].split(",") for line in lines if line[2] == "xfs"}
    assert all({"noatime", "nouuid"} <= set(options[str(mnt)]) for mnt in points)
    for mnt in points:
        home("umount", mnt)
    home.fails(7, "'web'", words=("mount", "web", points[0]))  # not a file tree of ours


@check
def errors_of_mount_say_what_was_asked(folder: Path) -> None:
    home, mnt = make_home(folder), point(folder)
    with connect(HomeSpec(home.home, "dmthin")) as session:

        def open_node() -> int:
            return session.call(OpenNode("web")).fd

        try:
            mount_by_kernel(session.path, "web", str(mnt), open_node, options="nodev,nosuch=1,noatime", read_only=True)
        except MountError as caught:
            error = caught
        else:
            raise AssertionError("it was mounted")
    assert (error.op, error.target, error.errno) == ("mount", str(mnt), errno.EINVAL)
    assert error.source.startswith("/dev/dm-")
    assert (error.flags, error.data) == (0x405, "nosuch=1")
    text, _, said = str(error).partition("; the kernel's log ends with: ")
    assert text == f"mount {error.source}:{mnt}, flags: 0x405, data: nosuch=1: invalid argument"
    assert "nosuch" in said
    wait_until(lambda: not CONTROL.devices() and not attached_loops())
    home.fails(2, "'bind'", words=("mount", "--kernel", "web", mnt, "--options", "bind"))
    home.fails(2, "--kernel", words=("mount", "--kernel", "--raw", "web", mnt))
    home.fails(2, "--kernel", words=("mount", "web", mnt, "--options", "ro"))
    home.fails(5, "'nix'", words=("mount", "--kernel", "nix", mnt))
    home.fails(6, "does not exist", words=("mount", "--kernel", "web", mnt / "nowhere"))
    (mnt / "file").touch()
    home.fails(6, "not empty", words=("mount", "--kernel", "web", mnt))
    (mnt / "file").unlink()
    home.on("emulated").fails(3, "no block device node", "--backend dmthin", words=("mount", "--kernel", "web", mnt))
    with cowfs.open_home(home.home, backend="dmthin") as api, api.device("web") as disk:
        disk.zero(0, disk.size_bytes)
    home.fails(7, "'web'", "unknown file system type", words=("mount", "--kernel", "web", mnt))


@check
def a_home_that_is_served_lends_its_devices_too(folder: Path) -> None:
    home, served, mnt = make_home(folder), point(folder, "served"), point(folder)
    home("create", "other")
    home("mount", "web", served)
    home.fails(5, "'web'", "is mounted at", words=("mount", "--kernel", "web", mnt))
    home("mount", "--kernel", "other", mnt)
    (mnt / "file").write_text("other")
    assert {name: row["mounted"] for name, row in home.rows().items()} == {
        "base": [],
        "other": [str(mnt)],
        "web": [str(served)],
    }
    home.fails(5, f"'other' is mounted at {mnt}", words=("remove", "other"))
    home("snapshot", "other", "copy")
    home("umount", served)
    assert home.rows()["other"]["mounted"] == [str(mnt)]
    home("mount", "copy", served)
    assert (served / "file").read_text() == "other"
    home("umount", mnt)
    home("umount", served)
    assert_free()


@check
def devices_of_several_homes_are_mounted_at_once(folder: Path) -> None:
    homes = [make_home(point(folder, name)) for name in ("a", "b")]
    for home in homes:
        home("mount", "--kernel", "web", point(home.home.parent, "point"))
    for home in homes:
        assert home.rows()["web"]["mounted"] == [str(home.home.parent / "point")]
        home("umount", home.home.parent / "point")


# --- what is removed


@check
def a_full_pool_holds_a_write_and_not_who_serves_the_mount(folder: Path) -> None:
    """While a program waits for space, commands and other files are served, and a larger pool lets it go on."""
    home, mount = Cowfs(folder / "home"), point(folder)
    home("init", "--data-size", "8M", "--metadata-size", "4M", "--base-size", "64M")
    home("create", "web")
    home("mount", "web", mount)
    (mount / "small").write_text("there")
    content = random.Random(1).randbytes(12 * MIB)
    (folder / "content").write_bytes(content)
    with subprocess.Popen(
        ["dd", f"if={folder}/content", f"of={mount}/file", "bs=1M", "conv=fsync", "status=none"]
    ) as dd:
        wait_until(lambda: "out_of_data_space" in home("dm", "status").out)
        assert "writes wait for space" in home("status").out
        assert (mount / "small").read_text() == "there"
        assert dd.poll() is None
        home("pool", "resize", "--data-size", "32M")
        assert dd.wait(timeout=20) == 0
    assert " rw " in home("dm", "status").out
    assert (mount / "file").read_bytes() == content
    home("umount", mount)
    assert_free()
    home.on("emulated")("check")
    home.on("emulated")("mount", "web", mount)
    assert (mount / "file").read_bytes() == content
    home("umount", mount)


@check
def a_server_that_is_told_to_end_does_though_a_write_waits_for_space(folder: Path) -> None:
    home, mount = Cowfs(folder / "home"), point(folder)
    home("init", "--data-size", "8M", "--metadata-size", "4M", "--base-size", "64M")
    home("mount", "base", mount, "--raw", "--write-base")
    with subprocess.Popen(
        ["dd", "if=/dev/zero", f"of={mount}/base", "bs=1M", "seek=40", "conv=notrunc"], stderr=-1
    ) as dd:
        wait_until(lambda: "out_of_data_space" in home("dm", "status").out)
        assert dd.poll() is None
        os.kill(home("--json", "status").json["holder_pid"], signal.SIGTERM)
        dd.communicate(timeout=20)
    wait_until(lambda: not CONTROL.devices() and not attached_loops())
    home.on("emulated")("check")


@check
def a_thin_that_was_removed_behind_our_back_is_told(folder: Path) -> None:
    home = make_home(folder)
    with cowfs.open_home(home.home, backend="dmthin") as api, api.device("web") as disk:
        # The kernel's way to remove what is in use: every request fails from then on.
        shell("dmsetup", "wipe_table", "--noflush", getattr(disk, "dm_name"))  # noqa: B009
        with expected(CowfsError, errno.EIO, "web"):
            disk.pread(0, 4096)
    assert sorted(home.rows()) == ["base", "web"]


@check
def a_node_that_vanished_is_made_up_for(folder: Path) -> None:
    home, mnt = make_home(folder), point(folder)
    for number in range(8):
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"/dev/dm-{number}", f"/dev/hidden-{number}")
    home("mount", "--kernel", "web", mnt)
    numbers = CONTROL.devices()
    for name, number in numbers.items():
        os.unlink(nodes.node_path(number))
        assert name
    (mnt / "file").touch()
    home("snapshot", "web", "copy")
    home("umount", mnt)
    home("mount", "copy", mnt)
    assert (mnt / "file").exists()
    home("umount", mnt)


@check
def a_lent_device_is_used_once(folder: Path) -> None:
    home = make_home(folder)
    with opening.open_home(home.home, load_backend("dmthin")) as devices:
        fd = devices.active.open_node("web")
        assert devices.active.open_nodes().keys() == {"web"}
        with expected(CowfsError, errno.EBUSY, "in use already", f"process {os.getpid()}"):
            devices.active.open_node("web")
        os.close(fd)
        wait_until(lambda: not devices.active.open_nodes())
        devices.remove("web")


@check
def a_forked_process_has_nothing_of_the_pool_and_keeps_nothing_of_it(folder: Path) -> None:
    home = make_home(folder)
    waiting, ready = os.pipe()
    reading, writing = os.pipe()
    with cowfs.open_home(home.home, backend="dmthin") as opened:
        with opened.device("web") as disk:
            disk.pwrite(0, b"before")
            uses = (lambda: disk.pread(0, 512), lambda: disk.pwrite(0, b"child"), lambda: opened.create("child"))
            child = os.fork()
            if child == 0:
                os.close(writing)
                refused = 0
                for use in uses:
                    try:
                        use()
                    except ForkedError:
                        refused += 1
                os.write(ready, b"%d" % refused)
                os.read(reading, 1)
                os._exit(0)
            os.close(reading)
            assert os.read(waiting, 1) == b"%d" % len(uses)
            disk.pwrite(0, b"parent")
        opened.create("later")
    try:
        assert_free()  # while the child lives
        assert home("--json", "check").json["clean"]
        assert [row["name"] for row in home("--json", "list").json] == ["base", "later", "web"]
    finally:
        os.close(writing)
        assert os.waitpid(child, 0)[1] == 0


if __name__ == "__main__":
    fork_servers_from_here()
    run_checks(check, sys.argv[1:])
