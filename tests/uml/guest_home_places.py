"""Checks of where the pool of a home may be, and of homes that both backends use; see `guest_checks`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cowfs
from cowfs_dmthin.loop import loop_devices_of
from tests.kit.standby import fork_servers_from_here
from tests.uml.guest_checks import CONTROL, Checks, attached_loops, run_checks, wait_until
from tests.uml.guest_commands import Cowfs
from tests.uml.guest_homes import MIB, foreign_pool, loop_device, loops, make_home, point, shell

check = Checks()

# --- where a pool is


@check
def loops_of_the_files_that_are_attached_already_are_used_and_left(folder: Path) -> None:
    home = make_home(folder)
    files = [home.home / "devicemapper" / name for name in ("data", "metadata")]
    names = [loop_device(path) for path in files]
    shifted = shell("losetup", "--find", "--show", "--offset", "4096", files[0])
    home("create", "more")
    assert [len(loop_devices_of(os.stat(path))) for path in files] == [1, 1]
    assert sorted(attached_loops()) == sorted(name.removeprefix("/dev/") for name in (*names, shifted))
    shell("losetup", "--detach", *names, shifted)
    # One that cannot be written is not used.
    name = shell("losetup", "--find", "--show", "--read-only", files[0])
    home("create", "another")
    shell("losetup", "--detach", name)
    assert sorted(home.rows()) == ["another", "base", "more", "web"]


@check
def a_pool_on_devices_is_used_by_both_backends(folder: Path) -> None:
    with loops(folder) as (data, metadata):
        home = make_home(folder, "--data-device", data, "--metadata-device", metadata)
        assert os.listdir(home.home / "devicemapper") == []
        for number, backend in enumerate(["emulated", "dmthin", "emulated"]):
            home.on(backend)("snapshot", "web", f"web-{number}")
        status = home("--json", "status").json
        assert (status["data_file"], status["metadata_file"]) == (data, metadata)
        assert status["data_total_bytes"] == 96 * MIB
        for what in ("list", "dump"):
            assert home(what).out == home.on("emulated")(what).out
        home("check")
        mnt = point(folder)
        home("mount", "--kernel", "web", mnt)
        home.on("emulated").fails(5, "busy", words=("list",))
        home.on("emulated").fails(5, "busy", words=("check",))
        home("umount", mnt)
        home.on("emulated")("check")


@check
def half_a_pool_on_a_device_has_a_file_for_the_rest(folder: Path) -> None:
    with loops(folder) as (data, metadata):
        home = make_home(point(folder, "a"), "--data-device", data)
        assert os.listdir(home.home / "devicemapper") == ["metadata"]
        assert sorted(home.rows()) == ["base", "web"]
        home = make_home(point(folder, "b"), "--metadata-device", metadata)
        assert os.listdir(home.home / "devicemapper") == ["data"]
        assert sorted(home.on("emulated").rows()) == ["base", "web"]


@check
def wrong_devices_are_refused(folder: Path) -> None:
    with loops(folder) as (data, metadata):

        def refused(*texts: str, data: str = data, metadata: str = metadata, status: int = 5) -> None:
            home = Cowfs(folder / "home")
            words = ("init", "--base-size", "16M", "--data-device", data, "--metadata-device", metadata)
            home.fails(status, *texts, words=words)
            assert_no_devices()

        def assert_no_devices() -> None:
            assert not CONTROL.devices()

        alias = folder / "alias"
        os.mknod(alias, 0o600 | 0o060000, os.stat(data).st_rdev)
        refused("are the same device", metadata=data)
        refused("are the same device", metadata=str(alias))
        refused("no such file", data="/dev/nowhere")
        refused("neither a block device", data="/dev/tty")
        shell("mke2fs", "-q", data)
        refused("a file system (ext2)", "--force")
        mnt = point(folder)
        shell("mount", data, mnt)
        refused("busy", "mounted or part of another device")
        shell("umount", mnt)
        home = make_home(folder, "--data-device", data, "--metadata-device", metadata, "--force")
        other = Cowfs(folder / "other")
        options = ("--base-size", "16M", "--metadata-device", metadata)
        other.fails(5, "the metadata of a thin pool already", words=("init", *options))
        home("mount", "--kernel", "web", mnt)
        other.fails(5, "part of another device", words=("init", *options))
        other.fails(5, "part of another device", words=("init", *options, "--force"))
        home("umount", mnt)
        assert sorted(home.rows()) == ["base", "web"]


@check
def a_pool_that_somebody_else_made_is_used_and_left(folder: Path) -> None:
    with foreign_pool(folder):
        home = make_home(folder, "--thin-pool", "/dev/mapper/tank")
        table = shell("dmsetup", "table", "tank")
        assert json.loads((home.home / "cowfs.json").read_text())["thin_pool"] == "tank"
        assert sorted(CONTROL.devices()) == ["tank"]
        status = home("--json", "status").json
        assert (status["pool"], status["devices"]) == ("tank", 1)
        home("snapshot", "web", "copy")
        mnt = point(folder)
        for options in ([], ["--kernel"]):
            home("mount", *options, "web", mnt)
            (mnt / "file").write_text("here")
            assert sorted(home.rows()) == ["base", "copy", "web"]
            names = [line.partition(": ")[0] for line in home("table").out.splitlines()]
            assert names[0] == "tank"
            prefix = names[1].removesuffix("-base")
            assert prefix.startswith("docker-")
            assert sorted(CONTROL.devices()) == [f"{prefix}-web", "tank"], (options, CONTROL.devices())
            home("umount", mnt)
            wait_until(lambda: sorted(CONTROL.devices()) == ["tank"])
        home("check")
        assert "<device dev_id=" in home("dump").out
        home.fails(5, "lvconvert --repair", words=("check", "--repair"))
        home.on("emulated").fails(3, "'tank' of the kernel", "--backend dmthin", words=("list",))
        home("remove", "copy")
        assert shell("dmsetup", "table", "tank") == table
    home.fails(4, "there is no device 'tank'", words=("list",))


@check
def a_pool_of_somebody_elses_that_was_used_is_not_taken(folder: Path) -> None:
    def refused(*texts: str, status: int = 5) -> None:
        words = ("init", "--base-size", "16M", "--thin-pool", "tank")
        Cowfs(folder / "home").fails(status, *texts, words=words)

    refused("there is no device 'tank'", status=4)
    with foreign_pool(folder):
        shell("dmsetup", "message", "tank", "0", "set_transaction_id 0 5")
        refused("unable to take ownership", "transaction id 5")
        shell("dmsetup", "message", "tank", "0", "set_transaction_id 5 0")
        shell("dmsetup", "message", "tank", "0", "create_thin 7")
        refused("unable to take ownership", "1 thin devices")
        shell("dmsetup", "create", "theirs", "--table", "0 2048 thin /dev/mapper/tank 7")
        shell("dd", "if=/dev/zero", "of=/dev/mapper/theirs", "bs=64K", "count=2", "oflag=direct")
        refused("unable to take ownership of thin-pool tank", "2 used data blocks")
        shell("dmsetup", "remove", "theirs")
        shell("dmsetup", "message", "tank", "0", "delete 7")
        make_home(folder, "--thin-pool", "tank")
        other = Cowfs(folder / "other")
        other.fails(5, "unable to take ownership", words=("init", "--base-size", "16M", "--thin-pool", "tank"))


@check
def a_pool_of_somebody_elses_that_cannot_be_used_is_told(folder: Path) -> None:
    with foreign_pool(folder):
        home = make_home(folder, "--thin-pool", "tank")
        shell("dmsetup", "suspend", "tank")
        home.fails(4, "'tank' is suspended", "dmsetup resume tank", words=("list",))
        shell("dmsetup", "resume", "tank")
        home("list")
    shell("dmsetup", "create", "tank", "--table", "0 2048 error")
    home.fails(4, "'tank' is not a thin pool", "error", words=("list",))
    shell("dmsetup", "remove", "tank")


@check
def making_a_home_in_somebody_elses_pool_is_repeated_after_a_crash(folder: Path) -> None:
    with foreign_pool(folder):
        words = ["--home", str(folder / "home"), "--backend", "dmthin", "init", "--base-size", "16M"]
        program = (
            "import os, sys; from cowfs.devices.base.base_ext4 import Ext4; from cowfs.cli.app import main\n"
            "Ext4.make = lambda self, device, uuid: os.kill(os.getpid(), 9)\n"
            "main(sys.argv[1:])\n"
        )
        done = subprocess.run([sys.executable, "-c", program, *words, "--thin-pool", "tank"], check=False)
        assert done.returncode == -9
        wait_until(lambda: sorted(CONTROL.devices()) == ["tank"])
        home = make_home(folder, "--thin-pool", "tank")
        assert [row["id"] for row in home.rows().values()] == [2, 3]  # 1 was that of the base that was not finished
        assert home("--json", "status").json["orphan_thin_ids"] == []


# --- one home, either backend


def tell(home: Cowfs) -> dict[str, Any]:
    """What a home reports that must not depend on the backend."""
    status = home("--json", "status").json
    for key in ("backend", "data_file_allocated_bytes", "host_free_bytes"):
        del status[key]
    return {
        "status": status,
        **{what: home("--json", what).json for what in ("list", "table")},
        "dmstatus": home("dm", "status").out,
        "dump": home("dump").out,
        "check": home("--json", "check").json,
    }


@check
def a_home_goes_back_and_forth_between_the_backends(folder: Path) -> None:
    home = make_home(folder, backend="emulated")
    contents: dict[str, bytes] = {"web": b""}
    for number in range(6):
        now = home.on(("dmthin", "emulated")[number % 2])
        mark = f"round {number} on {now.backend}".encode() * 1000
        with cowfs.open_home(now.home, backend=now.backend) as api:
            api.snapshot("web", f"web-{number}")
            contents[f"web-{number}"] = contents["web"]
            with api.device("web") as disk:
                disk.pwrite(MIB + 12345 * number, mark)
                contents["web"] = disk.pread(MIB, 2 * MIB)
            if number == 3:
                api.remove("web-1")
                del contents["web-1"]
        told = [tell(home.on(backend)) for backend in ("emulated", "dmthin")]
        for what, value in told[0].items():
            assert told[1][what] == value, (what, value, told[1][what])
        for backend in ("emulated", "dmthin"):
            with cowfs.open_home(now.home, backend=backend) as api:
                for name, content in contents.items():
                    with api.device(name, read_only=True) as disk:
                        assert not content or disk.pread(MIB, 2 * MIB) == content, (number, backend, name)


if __name__ == "__main__":
    fork_servers_from_here()
    run_checks(check, sys.argv[1:])
