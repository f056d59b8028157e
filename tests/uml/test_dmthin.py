"""The dmthin backend: its checks in a guest, its ABI, and what it says where it cannot work."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cowfs.errors import MissingRequirement
from cowfs.pool import PoolTable, load_backend
from cowfs.uml import UmlKernel
from cowfs.units import Sectors
from cowfs_dmthin import abi
from cowfs_dmthin.pool import dm_name_of_thin
from tests.conftest import Account
from tests.kit.guests import run_in_guest_of
from tests.uml.guest_dmthin import check

TABLE = PoolTable(Sectors(1280), "/nowhere/metadata", "/nowhere/data", Sectors(128))


@pytest.fixture(scope="module")
def results(results_of: Callable[[str], dict[str, str]]) -> dict[str, str]:
    return results_of("tests.uml.guest_dmthin")


@pytest.mark.parametrize("name", [case.__name__ for case in check])
def test_in_the_guest(results: dict[str, str], name: str) -> None:
    assert not results[name], results[name]


def test_a_home_is_used_by_both_backends(uml_kernel: UmlKernel, account: Account) -> None:
    """Made by one, extended by the other, mounted by both; they tell the same."""
    home, point = account.directory / "home", account.mkdir("point")
    cowfs = ["cowfs", "--home", home]
    account.run([*cowfs, "init", "--data-size", "256M", "--metadata-size", "4M", "--base-size", "64M"])
    account.run([*cowfs, "create", "ours"])
    output = run_in_guest_of(account, uml_kernel, "tests.uml.guest_both_backends", home, point)
    seen = json.loads(output.splitlines()[-1])
    assert seen["read"] == {
        "theirs": "written through the kernel\nand more\n",
        "frozen": "written through the kernel\n",
    }
    ours, kernels = seen["told"].values()
    assert ours == kernels
    assert [account.run([*cowfs, what]).stdout for what in ("list", "dump")] == ours


def test_where_it_cannot_work_it_says_so() -> None:
    probe = load_backend("dmthin").probe()
    if probe.usable:
        pytest.skip("this machine's kernel has dm-thin")
    assert probe.problem
    assert "cowfs uml" in probe.remedy or "modprobe" in probe.remedy
    with pytest.raises(MissingRequirement, match="backend 'dmthin' cannot work here"):
        load_backend("dmthin").open_pool("x", TABLE)


def test_names_of_thin_devices() -> None:
    assert dm_name_of_thin("docker-8:1-77-pool", "web") == "docker-8:1-77-web"
    assert dm_name_of_thin("docker-8:1-77-pool", "pool") != "docker-8:1-77-pool"
    names = {dm_name_of_thin("docker-pool", name) for name in ("x" * 200, "x" * 201, "a/b", "pool")}
    assert len(names) == 4
    assert all(len(name.encode()) <= 127 and "/" not in name for name in names)


C_PROGRAM = """
#include <stddef.h>
#include <stdio.h>
#include <linux/dm-ioctl.h>
#include <linux/fs.h>
#include <linux/loop.h>
#define SHOW(name, value) printf("%s %lu\\n", name, (unsigned long)(value))
int main(void) {
    SHOW("dm_ioctl", sizeof(struct dm_ioctl));
    SHOW("dm_target_spec", sizeof(struct dm_target_spec));
    SHOW("loop_info64", sizeof(struct loop_info64));
    SHOW("loop_config", sizeof(struct loop_config));
    SHOW("VERSION", DM_VERSION); SHOW("LIST_DEVICES", DM_LIST_DEVICES); SHOW("DEV_CREATE", DM_DEV_CREATE);
    SHOW("DEV_RENAME", DM_DEV_RENAME); SHOW("UUID", DM_UUID_FLAG);
    SHOW("DEV_REMOVE", DM_DEV_REMOVE); SHOW("DEV_SUSPEND", DM_DEV_SUSPEND); SHOW("DEV_STATUS", DM_DEV_STATUS);
    SHOW("DEV_ARM_POLL", DM_DEV_ARM_POLL); SHOW("TABLE_LOAD", DM_TABLE_LOAD); SHOW("TABLE_CLEAR", DM_TABLE_CLEAR);
    SHOW("TABLE_DEPS", DM_TABLE_DEPS); SHOW("TABLE_STATUS", DM_TABLE_STATUS);
    SHOW("LIST_VERSIONS", DM_LIST_VERSIONS); SHOW("TARGET_MSG", DM_TARGET_MSG);
    SHOW("GET_TARGET_VERSION", DM_GET_TARGET_VERSION);
    SHOW("READ_ONLY", DM_READONLY_FLAG); SHOW("SUSPEND", DM_SUSPEND_FLAG); SHOW("STATUS_TABLE", DM_STATUS_TABLE_FLAG);
    SHOW("ACTIVE_PRESENT", DM_ACTIVE_PRESENT_FLAG); SHOW("INACTIVE_PRESENT", DM_INACTIVE_PRESENT_FLAG);
    SHOW("BUFFER_FULL", DM_BUFFER_FULL_FLAG); SHOW("SKIP_LOCKFS", DM_SKIP_LOCKFS_FLAG);
    SHOW("NOFLUSH", DM_NOFLUSH_FLAG);
    SHOW("QUERY_INACTIVE", DM_QUERY_INACTIVE_TABLE_FLAG); SHOW("DEFERRED_REMOVE", DM_DEFERRED_REMOVE);
    SHOW("BLKDISCARD", BLKDISCARD); SHOW("BLKSSZGET", BLKSSZGET); SHOW("BLKGETSIZE64", BLKGETSIZE64);
    SHOW("LOOP_CONFIGURE", LOOP_CONFIGURE); SHOW("LOOP_GET_STATUS64", LOOP_GET_STATUS64);
    SHOW("LOOP_SET_CAPACITY", LOOP_SET_CAPACITY); SHOW("LOOP_CTL_GET_FREE", LOOP_CTL_GET_FREE);
    SHOW("AUTOCLEAR", LO_FLAGS_AUTOCLEAR);
    return 0;
}
"""


def test_numbers_are_those_of_the_headers(tmp_path: Path) -> None:
    compiler = shutil.which("gcc")
    if compiler is None or not Path("/usr/include/linux/dm-ioctl.h").exists():
        pytest.skip("needs gcc and the kernel's headers; run: sudo apt-get install gcc libc6-dev")
    source, program = tmp_path / "numbers.c", tmp_path / "numbers"
    source.write_text(C_PROGRAM)
    subprocess.run([compiler, "-o", program, source], check=True, timeout=60)
    lines = subprocess.run([program], check=True, capture_output=True, text=True, timeout=10).stdout.splitlines()
    headers = {name: int(number) for name, number in map(str.split, lines)}
    ours = {
        "dm_ioctl": abi.DmHeader.SIZE,
        "dm_target_spec": abi.TargetLine.SIZE,
        "loop_info64": abi.LoopInfo.SIZE,
        "loop_config": len(abi.pack_loop_config(0, abi.LoopInfo())),
        "AUTOCLEAR": abi.LoopFlag.AUTOCLEAR,
        **{command.name: command.value for command in abi.Command},
        **{flag.name: flag.value for flag in abi.Flag if flag.name},
        **{
            name: value for name, value in vars(abi).items() if name.startswith(("BLK", "LOOP_")) and "PATH" not in name
        },
    }
    assert ours == headers


def test_requests_pack_and_answers_unpack() -> None:
    header = abi.DmHeader(4096, "name", abi.Flag.SUSPEND | abi.Flag.NOFLUSH, 7, 1)
    packed = header.pack()
    assert len(packed) == 312
    assert abi.DmHeader.unpack(packed) == header
    lines = [abi.TargetLine(0, 128, "thin", "254:0 7"), abi.TargetLine(128, 8, "zero", "")]
    first = lines[0].pack()
    assert len(first) % 8 == 0
    assert list(abi.TargetLine.unpack_all(first + lines[1].pack(), 2)) == lines
    assert abi.unpack_names(b"") == {}
    info = abi.LoopInfo(offset_bytes=512, limit_bytes=4096, flags=abi.LoopFlag.AUTOCLEAR, file_name=b"file")
    assert abi.LoopInfo.unpack(info.pack()) == info
