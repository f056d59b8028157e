"""What the commands print and answer, and the program around them. The layout of every text is asserted exactly."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cowfs.cli import output
from cowfs.cli.app import cli
from cowfs.cli.settings import SizeType
from cowfs.devices.on_disk.options import HomeOptions
from cowfs.pool import PoolStatus, PoolTable, ThinStatus, ThinTable
from cowfs.units import format_size, parse_size
from tests.cli.conftest import Run
from tests.home.conftest import serving

BASE_BYTES = 16 << 20

SECTIONS = {
    "Homes": ["init", "status", "metrics", "clone-home", "recover", "doctor"],
    "Devices": [
        "create",
        "snapshot",
        "rollback",
        "list",
        "inspect",
        "import",
        "export",
        "mount",
        "umount",
        "activate",
        "deactivate",
        "resize",
        "trim",
        "rename",
        "remove",
    ],
    "Files in devices": ["changes", "diff", "ls", "cat", "cp"],
    "Tests of other programs": ["crash-test", "crash-mark"],
    "Benchmarks": ["bench"],
    "Groups of commands": ["pool", "layer", "docker", "dm", "faults", "trace"],
    "Other": ["snapshotter", "batch", "uml", "help", "completion"],
}


def mapped(cowfs: Run) -> str:
    """What the base device maps, which is up to mke2fs."""
    return format_size(cowfs("--json", "inspect", "base").json["mapped_bytes"])


# --------------------------------------------------------------------------------------------- text


def test_making_and_removing_says_so(cowfs_anywhere: Run, tmp_path: Path) -> None:
    home = tmp_path / "home"
    sizes = ("--data-size", "256M", "--metadata-size", "4M", "--base-size", "16M")
    made = cowfs_anywhere("--home", home, "init", *sizes)
    assert made.out == f"made {home}: 256 MiB of data, base of 16 MiB\n"
    assert cowfs_anywhere("--home", home, "create", "web").out == "made web: id 2, 16 MiB, snapshot of base\n"
    larger = cowfs_anywhere("--home", home, "create", "big", "--size", "1.5G", "--parent", "web")
    assert larger.out == "made big: id 3, 1.5 GiB, snapshot of web\n"
    assert (
        cowfs_anywhere("--home", home, "snapshot", "web", "web 1").out == "made web 1: id 4, 16 MiB, snapshot of web\n"
    )
    assert cowfs_anywhere("--home", home, "remove", "web", "web 1").out == "removed web\nremoved web 1\n"


@pytest.mark.parametrize("policy", ["queue", "error"])
def test_what_a_full_pool_does_is_chosen_when_it_is_made(cowfs_anywhere: Run, tmp_path: Path, policy: str) -> None:
    home = ("--home", str(tmp_path / "home"))
    sizes = ("--data-size", "256M", "--metadata-size", "4M", "--base-size", "16M")
    cowfs_anywhere(*home, "init", *sizes, "--no-space", policy)
    assert json.loads(cowfs_anywhere(*home, "--json", "status").out)["no_space"] == policy


def test_what_a_full_pool_does_is_changed(cowfs: Run) -> None:
    assert "queue: writes wait for space, at most 60 s\n" in cowfs("status").out
    assert cowfs("pool", "set", "--no-space", "error").out == "when full: error: writes fail\n"
    assert "error: writes fail\n" in cowfs("status").out
    changed = cowfs("--json", "pool", "set", "--no-space", "queue", "--no-space-timeout", "90").json
    assert changed == {"no_space": "queue", "timeout_seconds": 90}
    assert cowfs("--json", "status").json["no_space_timeout_seconds"] == 90
    said = cowfs("pool", "set", "--no-space-timeout", "0").out
    assert said == "when full: queue: writes wait for space\n"


def test_list(cowfs: Run) -> None:
    m = mapped(cowfs)
    w = max(len("MAPPED"), len(m))
    assert cowfs("list").out == (
        f"NAME   ID    SIZE  {'MAPPED':>{w}}  EXCLUSIVE  PARENT  MOUNTED\n"
        f"base    1  16 MiB  {m:>{w}}        0 B  -       -\n"
        f"web     2  16 MiB  {m:>{w}}        0 B  base    -\n"
        f"web-1   3  16 MiB  {m:>{w}}        0 B  web     -\n"
    )


def test_list_as_a_tree(cowfs: Run) -> None:
    for words in (("snapshot", "web", "web-2"), ("snapshot", "web-1", "deep"), ("create", "other")):
        assert cowfs(*words).status == 0
    m = mapped(cowfs)
    assert cowfs("list", "--tree").out == (
        f"base  0 B of {m} exclusive\n"
        f"├── other  0 B of {m} exclusive\n"
        f"└── web  0 B of {m} exclusive\n"
        f"    ├── web-1  0 B of {m} exclusive\n"
        f"    │   └── deep  0 B of {m} exclusive\n"
        f"    └── web-2  0 B of {m} exclusive\n"
    )
    # Without its parent a device stands at the top.
    cowfs("remove", "web")
    assert [line.split()[0] for line in cowfs("list", "--tree").out.splitlines()] == [
        *("base", "└──", "web-1", "└──", "web-2")
    ]


def test_inspect(cowfs: Run) -> None:
    report = cowfs("--json", "inspect", "web").json
    assert cowfs("inspect", "web").out == (
        "Name                    web\n"
        "Id                      2\n"
        "Size                    16 MiB (16777216 bytes)\n"
        f"Mapped                  {format_size(report['mapped_bytes'])}\n"
        "Exclusive               0 B\n"
        f"Highest mapped byte     {report['highest_mapped_byte']:#x}\n"
        "Contents                ext4\n"
        "Parent                  base\n"
        "Children                web-1\n"
        "Created in transaction  1\n"
        "Created at time         1\n"
        "Last snapshot at time   2\n"
        "Active                  no\n"
    )


def test_status(cowfs: Run, home: Path) -> None:
    report = cowfs("--json", "status").json
    used, total = report["data_used_bytes"], report["data_total_bytes"]
    metadata_used, metadata_total = report["metadata_used_bytes"], report["metadata_total_bytes"]
    out, _, disk_free = cowfs("status").out.removesuffix("\n").rpartition("\n")
    assert re.fullmatch(r"Disk free      [0-9.]+ \w+", disk_free)  # others write to the disk meanwhile
    assert out == (
        f"Home           {home}\n"
        "Lock holder    none\n"
        "Backend        emulated\n"
        f"Pool           {report['pool']}\n"
        "Mode           write\n"
        "When full      queue: writes wait for space, at most 60 s\n"
        "Transaction    3\n"
        "Block size     64 KiB\n"
        f"Data           {format_size(used)} of 256 MiB used ({100 * used / total:.1f} %)\n"
        f"Metadata       {format_size(metadata_used)} of 4 MiB used ({100 * metadata_used / metadata_total:.1f} %)\n"
        "Kept free      10 %\n"
        "Devices        2\n"
        f"Base device    16 MiB, UUID {report['base_uuid']}\n"
        f"Data file      {home}/devicemapper/data, {format_size(report['data_file_allocated_bytes'])} on disk\n"
        f"Metadata file  {home}/devicemapper/metadata"
    )


def test_status_says_what_needs_care(cowfs: Run, home: Path) -> None:
    cowfs("message", "create_thin", "77")
    cowfs("message", "reserve_metadata_snap")
    (home / "metadata" / "web").write_text("{")
    out = cowfs("status").out
    assert re.search(r"^Metadata snapshot +held at block \d+$", out, re.M)
    assert re.search(r"^Orphan thins +2, 77$", out, re.M)
    assert re.search(r"^Problem +the record of device 'web' is damaged", out, re.M) is not None


def test_check_dump_delta(cowfs: Run, tmp_path: Path) -> None:
    clean, figures = cowfs("check").out.splitlines()
    assert clean == "clean"
    assert re.fullmatch(r"3 thins map \d+ blocks; data \d+/4096, metadata \d+/1024 blocks used", figures)
    dump = cowfs("dump").out
    assert dump.startswith('<superblock uuid="" time="2" transaction="3" flags="0" version="2" data_block_size="128" ')
    assert dump.rstrip().endswith("</superblock>")
    assert cowfs("--json", "dump").json == {"xml": dump}
    delta = cowfs("delta", "base", "web").out
    assert '<diff left="1" right="2">' in delta
    assert "different" not in delta
    assert cowfs("--json", "delta", "base", "web").json == {"xml": delta}
    (tmp_path / "dump.xml").write_text(dump)
    restored = cowfs("restore", tmp_path / "dump.xml")
    assert re.fullmatch(r"restored 3 thins that map \d+ blocks\n", restored.out)
    assert cowfs("dump").out == dump
    assert cowfs("check").status == 0


@pytest.mark.skipif(
    shutil.which("thin_dump", path="/usr/sbin:/sbin:/usr/bin") is None,
    reason="needs thin_dump; run: apt-get install thin-provisioning-tools",
)
def test_dump_is_what_thin_dump_says(cowfs: Run, home: Path) -> None:
    command = ["/usr/sbin/thin_dump", str(home / "devicemapper" / "metadata")]
    theirs = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert cowfs("dump").out == theirs.stdout
    command = ["/usr/sbin/thin_delta", "--thin1", "1", "--thin2", "3", str(home / "devicemapper" / "metadata")]
    theirs = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert cowfs("delta", "base", "web-1").out == theirs.stdout


def test_table_and_dmstatus_are_the_kernels_lines(cowfs: Run, home: Path) -> None:
    pool, base, web, web_1 = (line.split(": ", 1) for line in cowfs("table").out.split("\n")[:-1])
    assert pool[0].endswith("-pool")
    metadata, data = home / "devicemapper" / "metadata", home / "devicemapper" / "data"
    assert pool[1] == f"0 524288 thin-pool {metadata} {data} 128 32768 1 skip_block_zeroing "
    assert PoolTable.parse(pool[1]).format() == pool[1]
    for line, thin_id in ((base, 1), (web, 2), (web_1, 3)):
        assert line[1] == f"0 32768 thin {ThinTable.parse(line[1]).pool_device} {thin_id}"
    assert web_1[0] == pool[0].removesuffix("pool") + "web-1"

    pool, base, web, web_1 = (line.split(": ", 1) for line in cowfs("dm", "status").out.split("\n")[:-1])
    figures = pool[1].removeprefix("0 524288 thin-pool ")
    status = PoolStatus.parse(figures)
    assert isinstance(status, PoolStatus)
    assert status.format() == figures
    assert status.transaction_id == 3
    thin = ThinStatus.parse(web[1].removeprefix("0 32768 thin "))
    assert isinstance(thin, ThinStatus)
    assert thin.mapped_sectors * 512 == cowfs("--json", "inspect", "web").json["mapped_bytes"]
    assert base[1] == web[1] == web_1[1]


def test_messages_go_to_the_pool(cowfs: Run) -> None:
    assert cowfs("message", "create_snap 7 1").out == ""
    assert cowfs("message", "CREATE_SNAP", "8", "+7").status == 0
    assert cowfs("message", "delete 7").status == 0
    assert cowfs("message", "set_transaction_id 3 9").status == 0
    report = cowfs("--json", "status").json
    assert report["orphan_thin_ids"] == [8]
    assert report["transaction_id"] == 9


def test_rename(cowfs: Run) -> None:
    assert cowfs("rename", "web", "my shop").out == "renamed web to my shop\n"
    assert {row["name"]: row["parent"] for row in cowfs("--json", "list").json} == {
        "base": None,
        "my shop": "base",
        "web-1": "my shop",
    }
    assert cowfs("--json", "rename", "my shop", "web").json == {"name": "web", "old_name": "my shop", "id": 2}
    assert cowfs("--json", "recover", "--dry-run").json["findings"] == []


def test_import_and_export(cowfs: Run, tmp_path: Path) -> None:
    disk, out = tmp_path / "disk.raw", tmp_path / "out.raw"
    disk.write_bytes(bytes(1 << 20) + b"data".ljust(65536))
    assert cowfs("import", disk, "disk").out == "made disk: id 4, 1.06 MiB, 64 KiB mapped\n"
    assert cowfs("export", "disk", out).out == f"wrote {out}: 1.06 MiB, 64 KiB of data\n"
    assert out.read_bytes() == disk.read_bytes()
    sizes = {"size_bytes": 1114112, "mapped_bytes": 65536}
    assert cowfs("--json", "import", disk, "two").json == {"name": "two", "id": 5, **sizes, "problems": []}
    written = cowfs("--json", "export", "--force", "two", out).json
    assert written == {"name": "two", "size_bytes": 1114112, "data_bytes": 65536}
    refused = cowfs("export", "two", out)
    assert (refused.status, refused.error) == (2, f"{out} exists; name another file, or overwrite it with --force")


def test_a_tar_archive_goes_to_standard_output(cowfs: Run, home: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    cowfs("cp", tmp_path / "file", "web:/etc")
    command = [sys.executable, "-m", "cowfs", "--home", str(home), "export", "web", "-"]
    archive = subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=60).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        member = tar.extractfile("etc")
        assert member is not None
        assert member.read() == b"text"
    assert "only a tar archive goes to standard output" in cowfs("export", "web", "-", "--format", "raw").error
    assert "raw or tar; write any other image to a file" in cowfs("import", "-", "new").error
    assert not Path("-").exists()


def test_clone_home(cowfs: Run, cowfs_anywhere: Run, home: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    assert cowfs("clone-home", copy).out.startswith(f"copied {home} to {copy}: ")
    assert [row["name"] for row in cowfs_anywhere("--home", copy, "--json", "list").json] == ["base", "web", "web-1"]
    answer = cowfs_anywhere("--json", "clone-home", copy, tmp_path / "other").json
    assert (answer["home"], answer["origin"]) == (str(tmp_path / "other"), str(copy))
    assert cowfs("clone-home", copy).error == f"cannot copy a home to {copy}: it exists; name a directory that does not"
    assert "takes [HOME] NEW" in cowfs("clone-home").error


def test_counters(cowfs: Run, home: Path) -> None:
    lines = cowfs("status", "--io").out.splitlines()
    (header,) = [line for line in lines if line.startswith("DEVICE")]
    assert header.split()[1:4] == ["READS", "READ", "WRITES"]
    assert any(line.startswith("all of the pool ") for line in lines)
    assert cowfs("--json", "status", "--io").json["io"]["pool"]["requests"]["writes"] == 0
    assert "io" not in cowfs("--json", "status").json
    assert cowfs("metrics").out.endswith("# EOF\n")
    assert f'cowfs_devices{{home="{home}"}} 2\n' in cowfs("--json", "metrics").json["metrics"]


def test_rollback(cowfs: Run) -> None:
    assert cowfs("snapshot", "web", "big").status == cowfs("resize", "big", "32M").status == 0
    assert cowfs("rollback", "web", "big").out == "rolled web back to big, 32 MiB\n"
    answer = cowfs("--json", "rollback", "web", "web-1", "--keep", "the 32").json
    assert answer == {
        "name": "web",
        "id": answer["id"],
        "snapshot": "web-1",
        "size_bytes": BASE_BYTES,
        "old_size_bytes": 32 << 20,
        "kept": "the 32",
        "is_related": True,
    }
    assert cowfs("rollback", "web", "the 32", "--keep", "old").out == (
        "rolled web back to the 32, 32 MiB; what it held is in old\n"
    )
    assert cowfs("create", "other").status == 0
    assert cowfs("rollback", "web", "base").out == "rolled web back to base, as a new device, 16 MiB\n"
    outcome = cowfs("rollback", "web", "other")
    assert outcome.out == "rolled web back to other\n"
    assert outcome.err == "cowfs: warning: other is not related to web: they share only what base has\n"
    rows = {row["name"]: row["parent"] for row in cowfs("--json", "list").json}
    assert rows == {
        "base": None,
        "web": "base",
        "other": "base",
        "web-1": "web",
        "big": "web",
        "the 32": "web",
        "old": "web",
    }
    assert cowfs("--json", "recover", "--dry-run").json["findings"] == []
    assert cowfs("--json", "check").json["clean"]


def test_many_at_once(cowfs: Run) -> None:
    before = cowfs("--json", "status").json["transaction_id"]
    assert cowfs("create", "a", "b", "--size", "32M").out == (
        "made a: id 4, 32 MiB, snapshot of base\nmade b: id 5, 32 MiB, snapshot of base\n"
    )
    made = cowfs("--json", "snapshot", "web", "web {}!", "--count", "3").json
    assert [(device["name"], device["parent"]) for device in made] == [(f"web {i}!", "web") for i in (1, 2, 3)]
    assert cowfs("--json", "status").json["transaction_id"] == before + 5
    assert isinstance(cowfs("--json", "create", "c").json, dict)
    assert isinstance(cowfs("--json", "create", "d{}", "--count", "1").json, list)


def test_remove_continues_after_an_error(cowfs: Run) -> None:
    outcome = cowfs("remove", "nope", "web", "base")
    assert outcome.out == "removed web\n"
    first, second = outcome.err.splitlines()
    assert "there is no device 'nope'" in first
    assert "the base device cannot be removed" in second
    assert outcome.status == 5  # the first error's


# --------------------------------------------------------------------------------------------- JSON


def test_json_of_the_reports(cowfs: Run, home: Path) -> None:
    rows = cowfs("--json", "list").json
    size = rows[0]["mapped_bytes"]
    assert rows == [
        {
            "name": name,
            "id": number,
            "size_bytes": BASE_BYTES,
            "mapped_bytes": size,
            "exclusive_bytes": 0,
            "parent": parent,
            "deleted": False,
            "mounted": [],
        }
        for name, number, parent in (("base", 1, None), ("web", 2, "base"), ("web-1", 3, "web"))
    ]
    report = cowfs("--json", "inspect", "web").json
    assert report == {
        "name": "web",
        "id": 2,
        "size_bytes": BASE_BYTES,
        "mapped_bytes": size,
        "exclusive_bytes": 0,
        "highest_mapped_byte": report["highest_mapped_byte"],
        "parent": "base",
        "children": ["web-1"],
        "created_transaction_id": 1,
        "creation_time": 1,
        "snapshotted_time": 2,
        "active": False,
        "deleted": False,
        "views": [],
    }
    assert size <= report["highest_mapped_byte"] + 1 <= BASE_BYTES
    status = cowfs("--json", "status").json
    assert status.keys() == {
        *("home", "backend", "holder_pid", "views", "pool", "mode", "no_space", "needs_check", "transaction_id"),
        "no_space_timeout_seconds",
        *("block_bytes", "data_used_bytes", "data_total_bytes", "metadata_used_bytes", "metadata_total_bytes"),
        *(
            "min_free_percent",
            "min_free_bytes",
            "warnings",
            "metadata_snapshot_block",
            "devices",
            "deleted_devices",
            "base_size_bytes",
        ),
        *(
            "base_uuid",
            "data_file",
            "data_file_allocated_bytes",
            "metadata_file",
            "host_free_bytes",
            "orphan_thin_ids",
            "problems",
        ),
    }
    assert status["home"] == str(home)
    assert status["holder_pid"] is None
    assert (status["mode"], status["no_space"], status["needs_check"]) == ("write", "queue", False)
    assert (status["block_bytes"], status["data_total_bytes"]) == (65536, 256 << 20)


def test_json_of_the_changes(cowfs_anywhere: Run, tmp_path: Path) -> None:
    home = tmp_path / "home"

    def answer(*words: str) -> object:
        outcome = cowfs_anywhere("--json", "--home", home, *words)
        assert (outcome.status, outcome.err) == (0, "")
        return outcome.json

    sizes = ("--data-size", "256M", "--metadata-size", "4M", "--base-size", "16M")
    made = {"home": str(home), "base_size_bytes": BASE_BYTES, "data_size_bytes": 256 << 20}
    assert answer("init", *sizes) == made
    assert answer("create", "web") == {
        "name": "web",
        "id": 2,
        "size_bytes": BASE_BYTES,
        "parent": "base",
        "warnings": [],
    }
    assert answer("snapshot", "web", "a") == {
        "name": "a",
        "id": 3,
        "size_bytes": BASE_BYTES,
        "parent": "web",
        "warnings": [],
    }
    assert answer("remove", "a") == {"removed": ["a"], "deferred": []}
    assert answer("message", "create_thin", "9") == {"message": "create_thin 9"}
    check = answer("check")
    assert isinstance(check, dict)
    assert (check["clean"], check["findings"], check["thins"]) == (True, [], 3)
    lines = answer("table")
    assert isinstance(lines, list)
    assert lines[0].keys() == {"name", "line"}


def test_usage(cowfs: Run) -> None:
    cowfs("message", "create_snap 9 2")
    m = mapped(cowfs)
    w = max(len("MAPPED"), len(m))
    lines = cowfs("usage").out.splitlines()
    assert lines[:5] == [
        f"NAME      {'MAPPED':>{w}}  {'SHARED':>{w}}  EXCLUSIVE  METADATA",
        *(f"{name:8}  {m:>{w}}  {m:>{w}}        0 B       0 B" for name in ("(thin 9)", "base", "web", "web-1")),
    ]
    assert lines[5].startswith(f"data: {m} of 256 MiB used, 0 B exclusive and {m} shared; sharing saves ")
    report = cowfs("--json", "usage").json
    assert [thin["name"] for thin in report["thins"]] == ["base", "web", "web-1", None]
    assert report["totals"]["mapped_bytes"] == 4 * report["totals"]["data_used_bytes"]


def test_trim(cowfs: Run) -> None:
    nothing = {"unmapped_bytes": 0, "freed_bytes": 0}
    devices = [{"name": name} | nothing for name in ("base", "web", "web-1")]
    assert cowfs("--json", "trim").json == {"trimmed": devices, "freed_bytes": 0}
    some = cowfs("trim", "web", "nope", "base")
    assert some.out == "NAME  UNMAPPED  FREED\nweb        0 B    0 B\nbase       0 B    0 B\n0 B freed\n"
    assert (some.status, some.err.count("\n")) == (5, 1)
    none = cowfs("trim", "nope")
    assert (none.status, none.out, none.err.count("\n")) == (5, "", 1)


def test_recover(cowfs: Run, home: Path) -> None:
    assert cowfs("recover").out == "nothing to recover\n"
    (home / "metadata/web").write_text("{")
    dry = cowfs("recover", "--dry-run")
    assert (dry.status, dry.out.splitlines()[-1]) == (
        0,
        "thin 2 (16 MiB) belongs to no device: would be recorded as 'web'",
    )
    report = cowfs("--json", "recover").json
    assert report["dry_run"] is False
    assert [finding["kind"] for finding in report["findings"]] == ["damaged_file", "orphan_thin"]
    assert report["findings"][1] == {
        "kind": "orphan_thin", "found": "thin 2 (16 MiB) belongs to no device", "action": "recorded as 'web'",
        "device": "web", "thin_id": 2,
    }  # fmt: skip
    cowfs("message", "create_snap", "9", "2")
    assert cowfs("recover", "--delete-orphans").out == "thin 9 (16 MiB) belongs to no device: deleted\n"
    (home / "metadata/twin").write_bytes((home / "metadata/web").read_bytes())
    left = cowfs("recover")
    assert (left.status, left.out.count("left as it is\n")) == (1, 1)


def test_growing(cowfs: Run, home: Path) -> None:
    assert cowfs("resize", "web", "32M").out == "web: 32 MiB, was 16 MiB\n"
    assert cowfs("--json", "resize", "web", "64M").json == {
        "name": "web", "id": 5, "old_size_bytes": 32 << 20, "size_bytes": 64 << 20,
    }  # fmt: skip
    refused = cowfs("resize", "web", "16M")
    assert (refused.status, refused.err.count("\n")) == (2, 1)
    assert "cannot shrink to 16777216 (16 MiB)" in refused.err
    assert (
        cowfs("pool", "resize", "--data-size", "512M").out == "data: 512 MiB, was 256 MiB\nmetadata: 4 MiB, as before\n"
    )
    assert cowfs("--json", "pool", "resize", "--metadata-size", "8M").json == {
        "old_data_bytes": 512 << 20, "data_bytes": 512 << 20, "old_metadata_bytes": 4 << 20, "metadata_bytes": 8 << 20,
    }  # fmt: skip
    assert "cannot shrink" in cowfs("pool", "resize", "--data-size", "256M").err
    assert cowfs("check").out.startswith("clean")


def test_names_of_foreign_homes_do_no_harm(cowfs: Run, home: Path) -> None:
    """A home from elsewhere may hold any file name; terminals and JSON get escapes."""
    cowfs("message", "create_snap 9 2")
    record = (home / "metadata" / "web").read_text().replace('"device_id":2', '"device_id":9')
    Path(os.fsdecode(os.fsencode(home / "metadata") + b"/a\x1b[2J")).write_text(record)
    out = cowfs("list").out
    assert "\x1b" not in out
    assert "a\\x1b[2J" in out
    assert any(row["name"].startswith("a\x1b[2J") for row in cowfs("--json", "list").json)


# --------------------------------------------------------------------------------------------- the program


def test_help_lists_every_command_in_sections(cowfs_anywhere: Run) -> None:
    outcome = cowfs_anywhere("--help")
    assert outcome.status == 0
    listed = dict(re.findall(r"^(\S.*):\n((?:  .*\n)+)", outcome.out, re.M))
    names = {title: re.findall(r"^  ([\w-]+) ", lines, re.M) for title, lines in listed.items() if title != "Options"}
    assert names == SECTIONS
    assert cowfs_anywhere("-h").status == 0
    bare = cowfs_anywhere()
    assert bare.status == 2
    assert bare.out == outcome.out


def test_version(cowfs_anywhere: Run) -> None:
    assert re.fullmatch(r"cowfs \d+\.\d+\.\d+\n", cowfs_anywhere("--version").out)


def test_doctor(cowfs_anywhere: Run) -> None:
    outcome = cowfs_anywhere("doctor")
    assert outcome.status in {0, 3}
    lines = outcome.out.splitlines()
    assert all(re.match(r"(ok|NO|- )  ?[a-z0-9_ -]+: \S", line) for line in lines), lines
    abilities = cowfs_anywhere("--json", "doctor").json
    assert [ability["name"] for ability in abilities] == [line[4:].split(":")[0] for line in lines]
    assert {"fuse", "mount", "libext2fs", "user-mode-linux", "backend dmthin", "backend emulated"} <= {
        ability["name"] for ability in abilities
    }
    needed = all(ability["works"] for ability in abilities if ability["needed"])
    assert outcome.status == (0 if needed else 3)
    assert all(ability["works"] or ability["detail"] for ability in abilities)


@pytest.mark.parametrize("need", ["pool", "fuse", "dm"])
def test_doctor_asked_for_one_thing_tries_no_other(cowfs_anywhere: Run, need: str) -> None:
    outcome = cowfs_anywhere("--json", "doctor", "--need", need)
    abilities = {ability["name"]: ability for ability in outcome.json}
    assert all(ability["needed"] for ability in abilities.values())
    works = all(ability["works"] for ability in abilities.values())
    assert outcome.status == (0 if works else 3)
    assert all(ability["works"] or ability["remedy"] for ability in abilities.values())
    assert ("mount" in abilities) == (need == "fuse")
    assert ("backend dmthin" in abilities) == (need == "dm")
    assert "user-mode-linux" not in abilities


def test_doctor_prints_what_it_has_tried_while_it_tries_the_next(
    cowfs_anywhere: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before: list[str] = []

    def boot() -> str:
        before.append(capsys.readouterr().out)
        return "booted"

    monkeypatch.setattr("cowfs.cli.uml.boot_uml", boot)
    after = cowfs_anywhere("doctor").out
    assert "mke2fs: " in before[0]
    assert after.startswith("ok  user-mode-linux: booted\n")


def test_doctor_notices_another_package_of_this_name(
    cowfs_anywhere: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata, package = tmp_path / "cowfs-1.0.dist-info", tmp_path / "cowfs"
    metadata.mkdir()
    package.mkdir()
    (package / "__init__.py").touch()  # files that are missing do not count, to a newer importlib.metadata
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: cowfs\nVersion: 1.0\n")
    (metadata / "RECORD").write_text("cowfs/__init__.py,,\ncowfs-1.0.dist-info/METADATA,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    outcome = cowfs_anywhere("doctor", "--need", "pool")
    assert outcome.status == 3
    (line,) = (line for line in outcome.out.splitlines() if line.startswith("NO  package: "))
    assert "the distribution cowfs has a package 'cowfs'" in line
    assert "pip uninstall cowfs" in line


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(cowfs_anywhere: Run, shell: str, tmp_path: Path) -> None:
    script = cowfs_anywhere("completion", shell).out
    assert "_COWFS_COMPLETE" in script
    if shutil.which(shell):
        (tmp_path / "script").write_text(script)
        subprocess.run([shell, "-n", tmp_path / "script"], check=True, timeout=60)


def test_completion_knows_commands_options_and_devices(home: Path) -> None:
    def complete(*words: str) -> list[str]:
        line = ["cowfs", *words]
        environment = os.environ | {
            "_COWFS_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(line),
            "COMP_CWORD": str(len(line) - 1),
        }
        command = [os.path.join(os.path.dirname(sys.executable), "cowfs")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
        return [item.split(",", 1)[1] for item in done.stdout.splitlines() if item]

    assert complete("sna") == ["snapshot", "snapshotter"]
    assert complete("--home", str(home), "mount", "web") == ["web", "web-1"]
    assert complete("--home", str(home), "mount", "web", "/tmp", "--r") == ["--raw", "--read-only", "--repair"]
    assert complete("--home", "/nonexistent", "inspect", "w") == []


def test_quick_commands_load_little(home: Path) -> None:
    """Commands start quickly because they leave out what they do not need."""
    code = (
        "import sys; from cowfs.cli.app import run; status = run(sys.argv[1:]); "
        "heavy = {'trio', 'pyfuse3', 'rich', 'hypothesis', 'pytest', 'cffi', 'asyncio'} & set(sys.modules); "
        "sys.exit(f'loaded {heavy}' if heavy else status)"
    )
    for words in (["--help"], ["status"], ["list"], ["create", "x"], ["check"], ["mount", "--help"]):
        command = [sys.executable, "-c", code, "--home", str(home), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, (words, done.stderr)


# Programs, ext4 beyond its superblock, the layer driver, and the walk of mapping trees, which `list` alone needs.
UNWANTED = {
    *(
        "asyncio",
        "cffi",
        "click.shell_completion",
        "copy",
        "ctypes",
        "dataclasses",
        "hashlib",
        "heapq",
        "importlib.metadata",
        "json",
        "rich",
        "shlex",
        "shutil",
        "sortedcontainers",
    ),
    *("subprocess", "tempfile", "trio", "cowfs.docker", "cowfs.devices.cloning", "cowfs.devices.recovery"),
    *("cowfs.ext4.library", "cowfs.ext4.tools", "cowfs.ext4.volume", "cowfs.filetree", "cowfs.fuse"),
    *("cowfs.home.kernel", "cowfs.home.api.layers", "cowfs.home.serving", "cowfs.layers", "cowfs.thinmeta.walk"),
}
CLIENT = {"socket", "cowfs.home.control"}


def require_little_loaded(home: Path, words: list[str], unwanted: set[str]) -> None:
    code = (
        "import sys; from cowfs.cli.app import run; status = run(sys.argv[1:]); "
        f"loaded = sorted({unwanted} & sys.modules.keys()); "
        "sys.exit(f'loaded {loaded}' if loaded else status)"
    )
    command = [sys.executable, "-c", code, "--home", str(home), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, (words, done.stderr)


QUICK: list[list[str]] = [["list"], ["status"], ["create", "x"], ["snapshot", "x", "x-1"]]


def test_commands_on_devices_load_only_what_they_run(home: Path) -> None:
    for words in QUICK:
        walk = {"cowfs.thinmeta.walk"} if words == ["list"] else set()
        require_little_loaded(home, words, (UNWANTED | CLIENT) - walk)


def test_disks_come_and_go_without_what_files_need(home: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(os.urandom(1 << 20))
    for words in (["import", str(disk), "disk"], ["export", "disk", str(tmp_path / "out.raw")]):
        require_little_loaded(
            home, words, (UNWANTED | CLIENT) - {"ctypes"}
        )  # what starts the writing calls the C library
    assert (tmp_path / "out.raw").read_bytes() == disk.read_bytes()


def test_commands_on_devices_of_a_home_that_is_held_load_no_more(home: Path) -> None:
    with serving(home):
        for words in QUICK:
            require_little_loaded(home, words, UNWANTED - {"ctypes"})  # an open file is checked by it


def started_by(program: str, home: Path) -> list[str]:
    """The lines of `cowfs inspect web` after a program of some lines."""
    code = f"{program}\nfrom cowfs.cli import main\nmain()"
    command = [sys.executable, "-c", code, "--home", str(home), "-q", "inspect", "web"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()


def test_no_garbage_is_looked_for_among_what_a_command_loads(home: Path) -> None:
    program = (
        "import atexit, gc\n"
        "starts = []\n"
        "atexit.register(lambda: print(len(starts)))\n"
        "import cowfs.cli\n"
        "gc.callbacks.append(lambda phase, info: starts.append(phase))"
    )
    assert started_by(program, home)[-1] == "0"


AT_THE_END = """
import atexit, threading

class Kept:
    def __del__(self):
        print("taken apart")

kept = Kept()
atexit.register(print, "registered")
"""


def test_a_command_ends_without_taking_apart_what_it_loaded(home: Path) -> None:
    assert started_by(AT_THE_END, home)[-1] == "registered"


def test_a_thread_that_goes_on_is_waited_for_at_the_end(home: Path) -> None:
    waiting = "threading.Thread(target=lambda: (threading.main_thread().join(), print('the thread'))).start()"
    program = f"{AT_THE_END}\n{waiting}"
    assert started_by(program, home)[-3:] == ["the thread", "registered", "taken apart"]


def test_run_as_a_module(home: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cowfs", "--home", str(home), "--json", "list"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
    assert [row["name"] for row in json.loads(done.stdout)] == ["base", "web", "web-1"]


def test_a_reader_who_leaves_is_no_error(home: Path) -> None:
    cowfs = os.path.join(os.path.dirname(sys.executable), "cowfs")
    for words in (["list"], ["dump"], ["--help"]):
        with subprocess.Popen(
            [cowfs, "--home", str(home), *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            said = process.stderr.read()
            status = process.wait(60)
        assert said == b""
        assert status in {141, 1}  # click's own output ends with 1


def test_ctrl_c_is_one_line(cowfs: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cowfs.home.api.home.Home.devices", interrupted)
    outcome = cowfs("list")
    assert outcome.status == 130
    assert outcome.err.strip() == "cowfs: interrupted"


def test_a_defect_of_ours_keeps_its_traceback(cowfs: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: object, **_options: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("cowfs.home.api.home.Home.devices", broken)
    with pytest.raises(ZeroDivisionError):
        cowfs("list")


def test_sizes_in_help_are_the_defaults_of_a_home() -> None:
    """The words of the command line and the figures of the engine are the same."""
    command = cli.get_command(None, "init")  # type: ignore[arg-type]
    assert command is not None
    defaults = {
        parameter.name: parse_size(str(parameter.default))
        for parameter in command.params
        if isinstance(parameter.type, SizeType)
    }
    options = HomeOptions()
    assert defaults == {
        "data_size": options.data_size_bytes,
        "metadata_size": options.metadata_size_bytes,
        "block_size": options.block_bytes,
        "base_size": options.base_size_bytes,
    }


# --------------------------------------------------------------------------------------------- drawing


def test_a_deep_tree_is_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    """A chain of a thousand snapshots takes no recursion."""
    output.print_tree(["0"], lambda name: [str(int(name) + 1)] if int(name) < 3000 else [], lambda name: name)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3001
    assert lines[2] == "    └── 2"


def test_a_progress_bar_needs_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with output.progress("working") as show:
        assert show is None
    assert capsys.readouterr().err == ""


class HeldTimer:
    """A `threading.Timer` that the test lets go off."""

    made: HeldTimer

    def __init__(self, seconds: float, go_off: Callable[[], None]) -> None:
        self.go_off, self.daemon = go_off, False
        self.calls: list[object] = [seconds]
        HeldTimer.made = self

    def start(self) -> None:
        self.calls.append("start")

    def cancel(self) -> None:
        self.calls.append("cancel")


@pytest.mark.parametrize("calls_back", [True, False])
def test_a_progress_bar_shows_after_a_while(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], calls_back: bool
) -> None:
    monkeypatch.setenv("TERM", "xterm")  # a dumb terminal has no bars
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(threading, "Timer", HeldTimer)
    with output.progress("counting sheep") as show:
        assert show is not None
        if calls_back:
            show(1, 100)
        assert capsys.readouterr().err == ""
        HeldTimer.made.go_off()
        if calls_back:
            show(50, 100)
    shown = capsys.readouterr().err
    assert "counting sheep" in shown
    assert ("50%" in shown) == calls_back
    assert HeldTimer.made.calls == [0.3, "start", "cancel"]
    HeldTimer.made.go_off()  # at the same moment as the end
    assert capsys.readouterr().err == ""
