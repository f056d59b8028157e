"""Every kind of bad input gives one clear line and its exit status, and changes nothing."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cowfs.blockdev import FileDevice
from cowfs.devices.on_disk.lock import HomeLock
from cowfs.ext4.tools import commands as tools
from cowfs.thinmeta.walk import BITMAP_INDEX, MetadataReader
from tests.cli.conftest import SMALL, Outcome, Run

if TYPE_CHECKING:
    from tests.conftest import Account

MIB = 1 << 20
SYSTEM, USAGE, MISSING, POOL, HOME, MOUNT, FILESYSTEM = 1, 2, 3, 4, 5, 6, 7


def contents(home: Path) -> dict[str, bytes]:
    """Every file of a home but the lock, by path."""
    return {
        str(path.relative_to(home)): path.read_bytes()
        for path in sorted(home.rglob("*"))
        if path.is_file() and path.name not in {"cowfs.lock", "data"}
    }


# --------------------------------------------------------------------------------------------- requests

BAD_REQUESTS: dict[str, tuple[list[str], int, str]] = {
    "no such command": (["frobnicate"], USAGE, "no such command 'frobnicate'; see 'cowfs --help'"),
    "no such option": (["create", "x", "--force"], USAGE, "no such option '--force'; see 'cowfs create --help'"),
    "global option late": (
        ["list", "--json"],
        USAGE,
        "no such option '--json' of this command; --json must come before it: cowfs --json ... COMMAND",
    ),
    "global option late, and like another": (
        ["list", "--home", "H"],
        USAGE,
        "no such option '--home' of this command; --home must come before it: cowfs --home ... COMMAND",
    ),
    "no choice made": (["completion"], USAGE, "'{bash|zsh|fish}'. Choose from: bash, zsh, fish; see 'cowfs completion"),
    "argument missing": (["snapshot", "web"], USAGE, "missing argument 'NAME...'; see 'cowfs snapshot --help'"),
    "argument too many": (["inspect", "web", "base"], USAGE, "unexpected extra argument"),
    "nothing to remove": (["remove"], USAGE, "missing argument 'NAME...'"),
    "unknown device": (["inspect", "nope"], HOME, "there is no device 'nope' in the home"),
    "unknown origin": (["snapshot", "nope", "x"], HOME, "there is no device 'nope' in the home"),
    "unknown parent": (["create", "x", "--parent", "nope"], HOME, "there is no device 'nope' in the home"),
    "unknown to mount": (["mount", "nope", "MNT"], HOME, "there is no device 'nope' in the home"),
    "unknown to compare": (["delta", "web", "nope"], HOME, "there is no device 'nope' in the home"),
    "duplicate": (["create", "web"], HOME, "device 'web' exists already (thin 2); choose another name"),
    "fault without a kind": (["faults", "add", "web"], USAGE, "which fault?"),
    "fault of nothing": (["faults", "add", "web", "error"], USAGE, "field 'operations': there is none"),
    "fault with an unknown errno": (
        ["faults", "add", "web", "error", "read", "--errno", "E"],
        USAGE,
        "'E' is not an errno",
    ),
    "fault without a part": (["faults", "add", "web", "short", "write"], USAGE, "field 'effect.keep_bytes'"),
    "fault with words as sectors": (
        ["faults", "add", "web", "tear", "write", "--keep-sectors", "1,x"],
        USAGE,
        "field 'effect.keep_sectors[1]'",
    ),
    "fault with a wrong range": (["faults", "add", "web", "error", "read", "--bytes", "5"], USAGE, "BEGIN:END"),
    "fault of an unmounted home": (["faults", "add", "web", "error", "read"], USAGE, "is mounted, and faults last as"),
    "fault beside a plan": (["faults", "add", "web", "--plan", "x"], USAGE, "give it alone"),
    "faults of no plan": (["faults", "add", "--plan", "/nope"], USAGE, "/nope cannot be read"),
    "activate without nodes": (
        ["activate", "web"],
        MISSING,
        "no block device node, as its pool runs in a process; a disk",
    ),
    "activate no device": (["activate", "nope"], HOME, "there is no device 'nope'"),
    "deactivate what is not active": (["deactivate", "web"], USAGE, "'web' was not activated as a node, so it cannot"),
    "trace of an unmounted device": (
        ["trace", "web", "-o", "/nope/t"],
        USAGE,
        "device 'web' is not in use, so it gets",
    ),
    "trace of no device": (["trace", "nope", "-o", "/nope/t"], HOME, "there is no device 'nope'"),
    "trace without a file": (["trace", "web"], USAGE, "missing option '--output'"),
    "trace over a directory": (["trace", "web", "-o", "/dev"], USAGE, "/dev is a directory; name a file"),
    "trace with two ends": (
        ["trace", "web", "-o", "t", "--for", "1", "true"],
        USAGE,
        "--for and COMMAND exclude each other",
    ),
    "no trace": (["trace", "show", "/dev/null"], USAGE, "/dev/null is not a trace that is known"),
    "a trace that is not there": (["trace", "show", "/nope"], 1, "/nope: No such file or directory"),
    "trace to a name that says nothing": (
        ["trace", "convert", "a", "b"],
        USAGE,
        "the name of b does not show the format",
    ),
    "clear an unknown fault": (["faults", "clear", "x"], USAGE, "there is no rule 'x'"),
    "rename base": (["rename", "base", "x"], USAGE, "the base device cannot be renamed"),
    "rename to base": (["rename", "web", "base"], USAGE, "'base' cannot be the name of a device"),
    "rename to itself": (["rename", "web", "web"], USAGE, "'web' has this name already"),
    "rename to another": (["rename", "web", "web-1"], HOME, "'web-1' exists already"),
    "rename unknown": (["rename", "nope", "x"], HOME, "there is no device 'nope'"),
    "rollback base": (["rollback", "base", "web"], USAGE, "the base device cannot be rolled back"),
    "rollback to itself": (["rollback", "web", "web"], USAGE, "'web' cannot be rolled back to itself; name one of its"),
    "rollback unknown": (["rollback", "nope", "web"], HOME, "there is no device 'nope'"),
    "rollback to unknown": (["rollback", "web", "nope"], HOME, "there is no device 'nope'"),
    "rollback keep taken": (["rollback", "web", "web-1", "--keep", "web-1"], HOME, "'web-1' exists already"),
    "rollback keep reserved": (["rollback", "web", "web-1", "--keep", "base"], USAGE, "it is reserved for the home"),
    "create twice": (["create", "x", "y", "x"], USAGE, "the device 'x' is named twice, so nothing was made"),
    "create one that is there": (["create", "x", "web"], HOME, "'web' exists already"),
    "count without pattern": (["create", "x", "--count", "3"], USAGE, "needs one name with {} for the number, as in"),
    "count of two patterns": (["snapshot", "web", "x{}", "y{}", "--count", "3"], USAGE, "needs one name with {}"),
    "count zero": (["create", "x{}", "--count", "0"], USAGE, "0 is not in the range 1<=x<=100000"),
    "count too large": (["create", "x{}", "--count", "10000000"], USAGE, "10000000 is not in the range 1<=x<=100000"),
    "import of no archive": (
        ["import", "/etc/passwd", "x", "--format", "tar"],
        USAGE,
        "/etc/passwd: it is not a tar archive: ",
    ),
    "import of no layer": (["layer", "import", "/etc/passwd"], USAGE, "/etc/passwd: it is not a tar archive: "),
    "export of no layer": (["layer", "export", "nope"], HOME, "there is no layer 'nope' in "),
    "cp of no file": (["cp", "/does/not/exist", "web:/"], SYSTEM, "/does/not/exist: No such file or directory"),
    "cp of a file that cannot be read": (["cp", "/proc/self/mem", "web:/"], SYSTEM, "/proc/self/mem: Input/output"),
    "promote": (["promote", "web-1"], USAGE, "snapshots are peers here, so none needs promoting"),
    "remove base": (["remove", "base"], USAGE, "the base device cannot be removed"),
    "reserved base": (["create", "base"], USAGE, "'base' cannot be the name of a device: it is reserved for the home"),
    "reserved set": (["create", "deviceset-metadata"], USAGE, "it is reserved for the home"),
    "reserved transaction": (["create", "transaction-metadata"], USAGE, "it is reserved for the home"),
    "dot": (["create", ".x"], USAGE, "it starts with a dot"),
    "slash": (["create", "a/b"], USAGE, "it contains a slash"),
    "migrated": (["create", "x.migrated"], USAGE, "it ends in '.migrated'"),
    "empty": (["create", ""], USAGE, "it is empty"),
    "too long": (["create", "x" * 256], USAGE, "it is 256 bytes long, and 255 is the most"),
    "too long in UTF-8": (["create", "ü" * 128], USAGE, "it is 256 bytes long"),
    "line break": (["create", "a\nb"], USAGE, "it contains a character that cannot be printed"),
    "escape": (["create", "a\x1b[2J"], USAGE, "it contains a character that cannot be printed"),
    "not UTF-8": (["create", os.fsdecode(b"a\xff")], USAGE, "it contains a character that cannot be printed"),
    "size zero": (["create", "x", "--size", "0"], USAGE, "size '0' is too small; a size is more than 0"),
    "size negative": (["create", "x", "--size", "-1"], USAGE, "'-1' is not a size"),
    "size unit": (["create", "x", "--size", "10Q"], USAGE, "'10Q' is not a size; write a number with an optional K"),
    "size empty": (["create", "x", "--size", ""], USAGE, "'' is not a size"),
    "size odd": (["create", "x", "--size", "17000001"], USAGE, "is not a multiple of the sector size, 512 bytes; take"),
    "size of more than 1 EiB": (["create", "x", "--size", "2048P"], USAGE, "is too large; 1152921504606846976"),
    "smaller than its parent": (["create", "x", "--size", "1M"], USAGE, "is less than that of its parent 'base'"),
    "id over 24 bits": (["message", "create_thin 16777216"], POOL, "is not a decimal number from 0 to 16777215"),
    "id taken": (["message", "create_thin 1"], POOL, "thin device 1 exists already"),
    "id unknown": (["message", "create_snap 9 8"], POOL, "8"),
    "message unknown": (["message", "make_coffee"], POOL, "'make_coffee' is not a pool message; the messages are"),
    "message short": (["message", "create_snap 9"], POOL, "create_snap takes 2 numbers, not 1"),
    "message hexadecimal": (["message", "delete 0x1"], POOL, "'0x1' is not a decimal number"),
    "transaction": (["message", "set_transaction_id 99 100"], POOL, "99"),
    "file to restore": (["restore", "/nonexistent.xml"], USAGE, "'/nonexistent.xml': No such file or directory"),
    "shell": (["completion", "tcsh"], USAGE, "'tcsh' is not one of 'bash', 'zsh', 'fish'"),
    "mount point missing": (["mount", "web", "NOWHERE"], MOUNT, "does not exist; create it first: mkdir -p"),
    "mount point with a blank missing": (["mount", "web", "NO WHERE"], MOUNT, "create it first: mkdir -p '/"),
    "mount point left out": (["mount", "web"], USAGE, "name an empty directory too, as in: cowfs mount web MNT"),
    "mount point of all missing": (["mount", "NOWHERE"], MOUNT, "does not exist; create it first: mkdir -p"),
    "mount point a file": (["mount", "web", "FILE"], MOUNT, "the mount point is not a directory"),
    "mount point not empty": (["mount", "web", "FULL"], MOUNT, "is not empty: it holds something"),
    "not mounted": (["umount", "MNT"], MOUNT, "not mounted"),
    "no such mount point": (["umount", "NOWHERE"], MOUNT, "no such mount point"),
    "not ours to unmount": (["umount", "/proc"], MOUNT, "this is a mount of proc (proc), not of cowfs; use umount"),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_bad_requests(cowfs: Run, home: Path, tmp_path: Path, case: str) -> None:
    words, status, said = BAD_REQUESTS[case]
    places = {name: str(tmp_path / name.lower()) for name in ("MNT", "NOWHERE", "NO WHERE", "FILE", "FULL")}
    os.mkdir(places["MNT"])
    os.mkdir(places["FULL"])
    Path(places["FILE"]).touch()
    Path(places["FULL"], "something").touch()
    before = contents(home)
    outcome = cowfs(*(places.get(word, word) for word in words))
    assert said in outcome.error
    assert (outcome.status, outcome.out) == (status, "")
    assert contents(home).keys() - {"cowfs.log"} == before.keys()
    # A refused request may end with a commit, but nothing is another device than before.
    assert [row["name"] for row in cowfs("--json", "list").json] == ["base", "web", "web-1"]
    assert cowfs("check").status == 0


BAD_OPTIONS: dict[str, tuple[list[str], str]] = {
    "data zero": (["--data-size", "0"], "size '0' is too small"),
    "data negative": (["--data-size", "-1"], "'-1' is not a size"),
    "data unit": (["--data-size", "10Q"], "'10Q' is not a size"),
    "data no multiple": (
        ["--data-size", "100K"],
        "is not a multiple of the block size, 65536 bytes; take 65536 or 131072",
    ),
    "data less than a block": (["--data-size", "100"], "(100 B) is too small: an empty base device of 10 GiB takes"),
    "metadata no multiple": (["--metadata-size", "5000"], "is not a multiple of the metadata block size"),
    "metadata small": (["--metadata-size", "1M"], "is too small for"),
    "metadata large": (["--metadata-size", "17G"], "is more than a pool can use"),
    "base no multiple": (["--base-size", "1000"], "is not a multiple of the sector size"),
    "base small": (["--base-size", "4K"], "is too small for an ext4 file system"),
    "block zero": (["--block-size", "0"], "size '0' is too small"),
    "block small": (["--block-size", "32K"], "take a multiple of 64K from 64K to 1G"),
    "block no multiple": (["--block-size", "96K"], "take a multiple of 64K from 64K to 1G"),
    "block large": (["--block-size", "2G"], "take a multiple of 64K from 64K to 1G"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_options_of_init(cowfs_anywhere: Run, tmp_path: Path, case: str) -> None:
    words, said = BAD_OPTIONS[case]
    outcome = cowfs_anywhere("--home", tmp_path / "new", "init", *words)
    assert said in outcome.error
    assert outcome.status == USAGE
    assert not (tmp_path / "new").exists()


def test_no_home_is_named(cowfs_anywhere: Run) -> None:
    outcome = cowfs_anywhere("list")
    assert outcome.error.startswith("which home? name it before the command")
    assert outcome.status == USAGE


def test_the_home_may_come_from_the_environment(
    cowfs_anywhere: Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COWFS_HOME", str(home))
    assert cowfs_anywhere("list").status == 0


def test_no_such_backend(cowfs_anywhere: Run, home: Path) -> None:
    outcome = cowfs_anywhere("--backend", "abacus", "--home", home, "list")
    assert outcome.error.startswith("there is no backend 'abacus'; registered: ")
    assert outcome.status == USAGE


# --------------------------------------------------------------------------------------------- homes


def test_not_a_home(cowfs_anywhere: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter").touch()
    (tmp_path / "file").touch()
    for name in ("nothing", "empty", "other", "file"):
        for words in (["list"], ["check"], ["dump"], ["mount", "web", str(tmp_path / "empty")]):
            outcome = cowfs_anywhere("--home", tmp_path / name, *words)
            assert "is not a home" in outcome.error
            assert outcome.status == HOME
    for name, said in (("other", "not an empty directory"), ("file", "not an empty directory")):
        outcome = cowfs_anywhere("--home", tmp_path / name, "init", *SMALL)
        assert said in outcome.error
        assert outcome.status == HOME
    assert os.listdir(tmp_path / "other") == ["letter"]


def test_a_home_is_made_once(cowfs: Run, home: Path) -> None:
    before = contents(home)
    outcome = cowfs("init", *SMALL)
    assert "is a home already; nothing was changed" in outcome.error
    assert outcome.status == HOME
    assert contents(home) == before


@pytest.mark.parametrize(
    "text", ['{"format":"cowfs home","version":2}', '{"format":"zpool","version":1}', "{", "", "\xff", "[]"]
)
def test_a_home_of_another_version(cowfs: Run, home: Path, text: str) -> None:
    (home / "cowfs.json").write_bytes(text.encode("latin-1"))
    before = contents(home)
    outcome = cowfs("create", "x")
    assert str(home) in outcome.error
    assert outcome.status == HOME
    assert contents(home) == before


def test_a_home_held_by_another_process(cowfs: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cowfs.home.session.WAIT_SECONDS", 0.0)
    lock = HomeLock.acquire(str(home))
    try:
        outcome = cowfs("create", "x")
    finally:
        lock.release()
    assert f"is held by process {os.getpid()}" in outcome.error
    assert outcome.status == HOME


@pytest.mark.parametrize(
    "words", ["ls raw:", "cat raw:/x", "diff raw web", "resize raw 2M", "trim raw", "mount raw MNT"]
)
def test_a_disk_without_a_file_system(cowfs: Run, tmp_path: Path, words: str) -> None:
    (tmp_path / "MNT").mkdir()
    (tmp_path / "raw").write_bytes(bytes(MIB))
    cowfs("import", tmp_path / "raw", "raw")
    outcome = cowfs(*words.replace("MNT", str(tmp_path / "MNT")).split(" "))
    assert (outcome.status, outcome.out) == (FILESYSTEM, "")
    assert outcome.error == (
        "device 'raw': no ext4 or xfs, its disk is empty; 'mount --raw' and 'export' are for any disk"
    )


def test_a_home_of_another_user(home: Path, ordinary_user: Account) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to have another user's home; run: sudo make test")
    for path in (home, *home.parents):
        if path.stat().st_uid == 0 and path != Path("/"):
            path.chmod(path.stat().st_mode | stat.S_IXOTH)
    for words in (["list"], ["check"], ["dump"]):
        result = ordinary_user.run(["cowfs", "--home", home, *words], check=False)
        assert result.returncode == HOME
        assert "Permission denied" in result.stderr
        assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["data", "metadata"])
@pytest.mark.parametrize("size", [0, 1, 4095, 100_000])
def test_truncated_pool_files(cowfs: Run, home: Path, name: str, size: int) -> None:
    os.truncate(home / "devicemapper" / name, size)
    outcome = cowfs("list")
    assert outcome.status in {POOL, HOME}
    assert name in outcome.error


@pytest.mark.parametrize("name", ["data", "metadata"])
def test_missing_pool_files(cowfs: Run, home: Path, name: str) -> None:
    (home / "devicemapper" / name).unlink()
    outcome = cowfs("create", "x")
    assert name in outcome.error
    assert outcome.status == HOME
    assert not (home / "devicemapper" / name).exists()


@pytest.mark.parametrize("text", [b"", b"{", b'{"device_id":99999999,"size":1}', b"\xff" * 100])
def test_damaged_records(cowfs: Run, home: Path, text: bytes) -> None:
    """The others are still there, and status says what happened."""
    (home / "metadata" / "web").write_bytes(text)
    assert "web-1" in cowfs("list").out
    outcome = cowfs("inspect", "web")
    assert "there is no device 'web'" in outcome.error
    assert outcome.status == HOME


# --------------------------------------------------------------------------------------------- damage


def test_a_flipped_bit_in_any_block(cowfs: Run, home: Path) -> None:
    """Every block of the metadata in turn: damage is found with its path, and no command breaks down over it."""
    path = home / "devicemapper" / "metadata"
    whole = path.read_bytes()
    used = [n for n in range(len(whole) // 4096) if any(whole[4096 * n : 4096 * (n + 1)])]
    assert len(used) >= 8
    found = 0
    for block in used:
        damaged = bytearray(whole)
        damaged[4096 * block + 1000] ^= 0x10
        path.write_bytes(damaged)
        check = cowfs("check")
        assert check.err == ""
        if check.status:
            found += 1
            assert check.status == POOL
            assert f"metadata block {block} (" in check.out
        for words in (["list"], ["dump"], ["create", "x"]):
            outcome = cowfs(*words)
            if outcome.status:
                assert outcome.status in {POOL, HOME}, outcome
                assert "block" in outcome.error or "metadata" in outcome.error
        path.write_bytes(whole)
        (home / "metadata" / "x").unlink(missing_ok=True)
        (home / "metadata" / "transaction-metadata").unlink(missing_ok=True)
    # What is left are blocks of earlier transactions, which nothing refers to any more.
    assert found >= 6


def test_repair_rebuilds_what_can_be_counted(cowfs: Run, home: Path) -> None:
    path = home / "devicemapper" / "metadata"
    before = cowfs("dump").out
    damage_space_map(path)
    assert cowfs("check").status == POOL
    repaired = cowfs("--json", "check", "--repair").json
    assert repaired["clean"]
    assert repaired["repaired"]
    assert repaired["findings"]
    assert cowfs("check").status == 0
    assert cowfs("dump").out == before
    assert (path.parent / "metadata.replaced").exists()
    assert sorted(os.listdir(path.parent)) == ["data", "metadata", "metadata.replaced"]


def damage_space_map(path: Path) -> None:
    """Flip a bit in the bitmap of the data blocks."""
    device = FileDevice(path)
    try:
        reader = MetadataReader(device)
        root = reader.superblock().data_space_map.bitmap_root
        bitmap = reader.find(root, BITMAP_INDEX, 0, "data space map")
        assert bitmap is not None
        block = bytearray(device.pread(4096 * bitmap, 4096))
        block[100] ^= 1
        device.pwrite(4096 * bitmap, block)
    finally:
        device.close()


def test_repair_after_the_superblock_is_lost(cowfs: Run, home: Path) -> None:
    """It asks for what only the superblock knew, and then finds the rest."""
    path = home / "devicemapper" / "metadata"
    before = cowfs("dump").out
    with path.open("r+b") as file:
        file.write(b"\xff" * 4096)
    damaged = path.read_bytes()
    outcome = cowfs("check", "--repair")
    assert outcome.status == POOL
    assert "give it with --block-size" in outcome.error
    assert path.read_bytes() == damaged
    assert sorted(os.listdir(path.parent)) == ["data", "metadata"]
    repaired = cowfs("--json", "check", "--repair", "--block-size", "64K")
    assert repaired.status == 1  # a search is never sure
    assert repaired.json["losses"]
    assert cowfs("check").status == 0
    assert [row["name"] for row in cowfs("--json", "list").json] == ["base", "web", "web-1"]
    assert mappings(cowfs("dump").out) == mappings(before)


def mappings(xml: str) -> list[str]:
    return [line for line in xml.splitlines() if "mapping" in line]


def test_nothing_to_repair_from(cowfs: Run, home: Path) -> None:
    path = home / "devicemapper" / "metadata"
    path.write_bytes(b"\xff" * path.stat().st_size)
    outcome = cowfs("check", "--repair", "--block-size", "64K")
    assert outcome.status == POOL
    assert "metadata" in outcome.error
    assert path.read_bytes() == b"\xff" * path.stat().st_size
    assert sorted(os.listdir(path.parent)) == ["data", "metadata"]


BAD_XML = {
    "not XML": ("root:x:0:0\n", "line 1"),
    "empty": ("", ""),
    "another document": ("<html></html>", "html"),
    "no attributes": ("<superblock></superblock>", "uuid"),
    "cut short": ("CUT", ""),
    "another block size": ('data_block_size="256"', "data blocks of 256 sectors"),
    "past the data": ('data_begin="99999999"', "of a data map of 4096 blocks"),
    "more data than there is": ('nr_data_blocks="5000"', "expected at most 4096"),
    "more data than metadata can tell": ('nr_data_blocks="99999999"', "the metadata device has 1024 blocks"),
}


@pytest.mark.parametrize("case", BAD_XML)
def test_restore_refuses_bad_xml(cowfs: Run, home: Path, tmp_path: Path, case: str) -> None:
    text, said = BAD_XML[case]
    xml = cowfs("dump").out
    if text == "CUT":
        text = xml[: len(xml) // 2]
    elif "=" in text:
        name = text.split("=")[0]
        old = xml[xml.index(name) :].split(" ")[0].split("/")[0].split(">")[0]
        text = xml.replace(old, text)
        assert text != xml
    file = tmp_path / "metadata.xml"
    file.write_text(text)
    before = contents(home)
    outcome = cowfs("restore", file)
    assert said in outcome.error
    assert outcome.status == POOL
    assert contents(home) == before
    assert cowfs("check").status == 0


# --------------------------------------------------------------------------------------------- the machine


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small file system; run: sudo make test")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "none", disk], check=True)
    yield disk
    subprocess.run(["umount", disk], check=True)


def fill(disk: Path, room_bytes: int) -> None:
    """Leave so much free on a disk."""
    ballast = disk / "ballast"
    ballast.unlink(missing_ok=True)
    system = os.statvfs(disk)
    ballast.write_bytes(bytes(max(0, system.f_bavail * system.f_frsize - room_bytes)))


@pytest.mark.parametrize("room_kib", [0, 4, 12, 32, 64, 128, 256])
def test_a_home_for_which_there_is_no_room(cowfs_anywhere: Run, small_disk: Path, room_kib: int) -> None:
    """Making it fails in one line, and works when there is room."""
    home = small_disk / "home"
    fill(small_disk, room_kib << 10)
    outcome = cowfs_anywhere("--home", home, "init", *SMALL)
    if outcome.status == 0:
        assert room_kib > 64
        return
    assert outcome.status in {POOL, HOME}
    assert "o space left" in outcome.error
    assert cowfs_anywhere("--home", home, "list").status == HOME
    fill(small_disk, 1 << 20)
    assert cowfs_anywhere("--home", home, "init", *SMALL).status == 0
    assert cowfs_anywhere("--home", home, "check").status == 0


def test_what_does_not_fit_on_a_disk_is_not_left_there(cowfs_anywhere: Run, small_disk: Path, tmp_path: Path) -> None:
    home, large = tmp_path / "home", tmp_path / "large"
    large.write_bytes(os.urandom(2 << 20))
    for made in (("init", *SMALL), ("import", large, "disk"), ("create", "web"), ("cp", large, "web:")):
        assert cowfs_anywhere("--home", home, *made).status == 0
    target = small_disk / "out"
    for words in (
        *(("export", "disk", target), ("export", "disk", f"{target}.qcow2"), ("export", "web", f"{target}.tar")),
        *(("export", "--chain", "disk", target), ("clone-home", target), ("cp", "web:/large", target)),
    ):
        outcome = cowfs_anywhere("--home", home, *words)
        assert outcome.status in {SYSTEM, FILESYSTEM}, words
        assert outcome.error.count("\n") <= 1
        assert "No space left on device" in outcome.error
        assert str(target) in outcome.error
        assert words[0] == "cp" or outcome.error.rstrip().endswith("; nothing was left there")
        assert os.listdir(small_disk) == [], words
    assert cowfs_anywhere("--home", home, "check").status == 0


@pytest.mark.parametrize("room_kib", [0, 4, 8, 16, 32])
def test_a_full_disk_under_a_home(cowfs_anywhere: Run, small_disk: Path, room_kib: int) -> None:
    """A new device is made or refused in one line, and what was there stays."""
    home = small_disk / "home"
    assert cowfs_anywhere("--home", home, "init", *SMALL).status == 0
    fill(small_disk, room_kib << 10)
    outcome = cowfs_anywhere("--home", home, "create", "x")
    made = outcome.status == 0
    if not made:
        assert outcome.status in {POOL, HOME}
        assert "is full; nothing was changed; free space" in outcome.error
    names = [row["name"] for row in cowfs_anywhere("--home", home, "--json", "list").json]
    assert names == ["base", "x"] if made else ["base"]
    fill(small_disk, 1 << 20)
    assert cowfs_anywhere("--home", home, "check").status == 0
    assert cowfs_anywhere("--home", home, "create", "y").status == 0


def test_no_fuse_here(cowfs: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cowfs.mounts.mountpoint._DEVICE", str(tmp_path / "fuse"))
    for words in (["mount"], ["mount", "--foreground"]):
        outcome = cowfs(*words, "web", tmp_path)
        assert "fuse does not exist" in outcome.error
        assert "modprobe fuse" in outcome.error
        assert outcome.status == MISSING
    outcome = cowfs("doctor")
    assert outcome.status == MISSING
    assert "NO  fuse: " in outcome.out


def test_e2fsprogs_missing(cowfs_anywhere: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools.find.cache_clear()
    monkeypatch.setattr(shutil, "which", lambda *_arguments, **_options: None)
    try:
        outcome = cowfs_anywhere("--home", tmp_path / "home", "init", *SMALL)
    finally:
        tools.find.cache_clear()
    assert outcome.error == "mke2fs is not installed; try: apt-get install e2fsprogs"
    assert outcome.status == MISSING


# --------------------------------------------------------------------------------------------- as JSON


@pytest.mark.parametrize(
    ("words", "kind", "number", "status"),
    [
        (["inspect", "nope"], "UnknownDevice", 2, HOME),
        (["create", "a/b"], "UsageError", 22, USAGE),
        (["create", "web"], "DeviceExists", 17, HOME),
        (["message", "create_thin 1"], "ThinExists", 17, POOL),
        (["format"], "UsageError", 22, USAGE),
        (["mount", "web", "/nonexistent"], "MountError", 2, MOUNT),
    ],
)
def test_errors_as_json(cowfs: Run, words: list[str], kind: str, number: int, status: int) -> None:
    outcome: Outcome = cowfs("--json", *words)
    assert (outcome.status, outcome.out) == (status, "")
    (line,) = outcome.err.splitlines()
    error = json.loads(line)["error"]
    assert (error["class"], error["errno"], error["exit_code"]) == (kind, number, status)
    assert error["message"]


@pytest.mark.parametrize("words", [["resize", "web", "100P"], ["layer", "create", "x", "web", "--size", "100P"]])
def test_a_size_beyond_what_a_file_can_have(cowfs: Run, words: list[str]) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16 << 40, before[1]))  # as ext4 has it; files in memory have none
    try:
        outcome = cowfs(*words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert outcome.status == FILESYSTEM
    assert "112589990684262400 bytes (100 PiB)" in outcome.error
    assert [row["name"] for row in cowfs("--json", "list").json] == ["base", "web", "web-1"]


def test_a_home_that_cannot_be_written_is_read(home: Path, cowfs: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    real_open = os.open

    def read_only_open(path: object, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if str(path).startswith(str(home)) and flags & (os.O_RDWR | os.O_WRONLY | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real_open(path, flags, mode, dir_fd=dir_fd)  # type: ignore[arg-type]

    before = contents(home)
    monkeypatch.setattr(os, "open", read_only_open)
    assert [row["name"] for row in cowfs("--json", "list").json] == ["base", "web", "web-1"]
    assert cowfs("--storage-opt", "dm.basesize=1G", "layer", "changes", "web-1", "web").status == 0
    assert cowfs("--json", "layer", "size", "web").json["size_bytes"] == 0
    for words in (
        ["create", "x"],
        ["create", "x", "y"],
        ["rename", "web", "x"],
        ["rollback", "web", "web-1"],
        ["import", "/etc/hostname", "x"],
        ["remove", "web"],
        ["resize", "web", "32M"],
        ["trim", "web"],
    ):
        outcome = cowfs(*words)
        assert outcome.status == HOME, words
        assert "is open read-only" in outcome.error
    assert contents(home) == before


def test_what_a_command_meets_in_a_damaged_home_is_reported(home: Path) -> None:
    def lines(*words: str) -> list[str]:
        command = [sys.executable, "-m", "cowfs", "--home", str(home), "--json", *words, "list"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        assert [row["name"] for row in json.loads(done.stdout)] == ["base", "web", "web-1"]
        return done.stderr.splitlines()

    (home / "metadata" / "bro\nken").write_text("garbage")
    (line,) = lines()
    assert line.startswith("cowfs: the record of device 'bro\\nken' is damaged (")
    assert lines() == []
    assert lines("--storage-opt", "dm.blocksize=1M") == [
        "cowfs: dm.blocksize is ignored: the pool's is 64 KiB, for its life"
    ]


def test_a_command_that_is_ended_takes_its_temporary_files_with_it(home: Path, cowfs: Run, tmp_path: Path) -> None:
    tool, started, temporary = tmp_path / "resize2fs", tmp_path / "started", tmp_path / "temporary"
    tool.write_text(f"#!/bin/sh\necho > '{started}'\nexec sleep 60\n")
    tool.chmod(0o755)
    os.mkfifo(started)
    temporary.mkdir()
    words = ["--home", str(home), "layer", "create", "larger", "web", "--size", "32M"]
    script = (
        f"from cowfs.ext4.tools import commands; commands.find = lambda *_: {str(tool)!r}; "
        f"from cowfs.cli.app import main; main({words!r})"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    try:
        started.read_text()
        assert list(temporary.iterdir())
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, error) == (143, b"cowfs: interrupted\n")
    assert list(temporary.iterdir()) == []
    assert [row["name"] for row in cowfs("--json", "list").json] == ["base", "web", "web-1"]


@pytest.mark.parametrize(
    ("command", "status", "error"),
    [
        ("list > /dev/full", 1, "cowfs: standard output: No space left on device"),
        ("list >&-", 1, "cowfs: standard output: Bad file descriptor"),
        ("layer diff web > /dev/full", 1, "cowfs: standard output: No space left on device"),
        ("export web - > /dev/full", 1, "cowfs: standard output: No space left on device"),
        ("layer diff web >&-", 1, "cowfs: standard output: Bad file descriptor"),
        ("layer apply web <&-", SYSTEM, "cowfs: standard input: Bad file descriptor"),
        ("import - new --format raw <&-", SYSTEM, "cowfs: standard input: Bad file descriptor"),
        ("--help > /dev/full", SYSTEM, "cowfs: standard output: No space left on device"),
        ("help create > /dev/full", SYSTEM, "cowfs: standard output: No space left on device"),
        ("--version >&-", SYSTEM, "cowfs: standard output: Bad file descriptor"),
        ("doctor --need pool > /dev/full", SYSTEM, "cowfs: standard output: No space left on device"),
        ("--json list > /dev/full", SYSTEM, '"message":"standard output: No space left on device"'),
        ("list <&- >&- 2>&-", 1, ""),
        ("layer create third <&- 2>&-", 0, ""),
    ],
)
@pytest.mark.parametrize("buffering", ["buffered", "unbuffered"])
def test_standard_streams_that_are_closed_or_full(
    home: Path, command: str, status: int, error: str, buffering: str
) -> None:
    before = (home / "devicemapper/data").read_bytes()
    option = {"buffered": "", "unbuffered": "-u"}[buffering]
    script = f"exec '{sys.executable}' {option} -m cowfs --home '{home}' {command}"
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        ["sh", "-c", script], stderr=subprocess.PIPE, text=True, timeout=60, check=False, env=buffered
    )
    assert done.returncode == status
    lines = done.stderr.splitlines()
    assert len(lines) == bool(error), lines
    assert error in done.stderr
    assert (home / "devicemapper/data").read_bytes() == before


def test_a_reader_that_leaves_ends_a_diff(home: Path) -> None:
    script = f"'{sys.executable}' -m cowfs --home '{home}' layer diff web; echo $? >&2"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.close()
        _, error = process.communicate(timeout=60)
    assert error == "141\n"
