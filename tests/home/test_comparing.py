"""What differs between two devices: paths, texts, and ranges of blocks."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import cowfs
from cowfs import errors
from cowfs.ext4.volume import Volume
from cowfs.filetree import ROOT_INODE
from cowfs.home.api.comparing import TEXT_BYTES_MAX, BlockRange, FileChange, FileDifference
from cowfs.home.opened.opening import open_here
from cowfs.home.opened.spec import HomeSpec
from cowfs.units import SECTOR_BYTES

BLOCK = 64 << 10


def put(home: cowfs.Home, device: str, tmp_path: Path, path: str, content: bytes, mode: int = 0o644) -> None:
    file = tmp_path / "put"
    file.write_bytes(content)
    file.chmod(mode)
    home.copy_in(file, device, path)


def differences(home: cowfs.Home, old: str, new: str, path: str = "/") -> dict[str, FileDifference]:
    found: list[FileDifference] = []
    home.diff(old, new, found.append, path=path)
    assert [difference.change for difference in found if path == "/"] == (
        list(home.changes(new, old)) if path == "/" else []
    )
    return {difference.change.path: difference for difference in found}


def test_changes_from_what_it_is_a_snapshot_of(opened: cowfs.Home, tmp_path: Path) -> None:
    put(opened, "web", tmp_path, "/kept", b"kept")
    put(opened, "web", tmp_path, "/old", b"old")
    opened.snapshot("web", "copy")
    assert list(opened.changes("copy")) == []
    put(opened, "copy", tmp_path, "/new", b"new")
    put(opened, "copy", tmp_path, "/old", b"newer")
    name = os.fsdecode(b"/not \xff UTF-8")
    put(opened, "copy", tmp_path, name, b"x")
    expected = [
        FileChange("/new", "A", None, modified=False),
        FileChange(name, "A", None, modified=False),
        FileChange("/old", "M", None, modified=True),
    ]
    assert list(opened.changes("copy")) == list(opened.changes("copy", "web")) == expected
    assert [(change.kind, change.path) for change in opened.changes("web", "copy")] == [
        ("D", "/new"),
        ("D", name),
        ("M", "/old"),
    ]
    assert {change.kind for change in opened.changes("copy", "base")} == {"A"}
    with pytest.raises(errors.UsageError, match=r"what 'base' is a snapshot of is not known.*cowfs changes base OTHER"):
        list(opened.changes("base"))
    opened.remove("web")
    with pytest.raises(errors.UsageError, match="or was removed"):
        list(opened.changes("copy"))
    with pytest.raises(errors.UnknownDevice):
        list(opened.changes("copy", "web"))


def test_changes_of_a_layer_are_those_below_its_root(opened: cowfs.Home, tmp_path: Path) -> None:
    opened.layers.create("lower")
    put(opened, "lower", tmp_path, "/one", b"1")
    opened.layers.create("upper", "lower")
    put(opened, "upper", tmp_path, "/two", b"2")
    assert [(change.kind, change.path) for change in opened.changes("upper")] == [("A", "/two")]
    assert [(change.kind, change.path) for change in opened.layers.changes("upper", "lower")] == [("A", "/two")]
    with pytest.raises(errors.UsageError, match="is not a layer and"):
        list(opened.changes("upper", "web"))


TEXTS = {
    "empty": (b"", b"now\n"),
    "emptied": (b"was\n", b""),
    "no newline": (b"a\nb", b"a\nb\n"),
    "newline lost": (b"a\nb\n", b"a\nb"),
    "first": (b"1\n2\n3\n4\n5\n6\n", b"0\n2\n3\n4\n5\n6\n"),
    "two hunks": (b"".join(b"%d\n" % n for n in range(40)), b"".join(b"%d\n" % (n or 7) for n in range(39)) + b"x\n"),
    "carriage returns": (b"a\r\nb\r\n", b"a\r\nc\r\n"),
    "form feeds": (b"a\x0cb\x1cc\xc2\x85d\n", b"a\x0cb\x1cc\xc2\x85e\n"),
    "latin": (b"caf\xe9\n", b"caf\xe8\n"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_texts_differ_as_diff_has_it(home: Path, tmp_path: Path, name: str) -> None:
    old, new = TEXTS[name]
    with cowfs.open_home(home, durable=False) as opened:
        put(opened, "web", tmp_path, "/text", old)
        opened.snapshot("web", "copy")
        put(opened, "copy", tmp_path, "/text", new)
        (difference,) = differences(opened, "web", "copy").values()
    assert difference.lines[:2] == ["--- web:/text\n", "+++ copy:/text\n"]
    text = "".join(difference.lines).encode(errors="surrogateescape")
    for side, content in (("a", old), ("b", new)):
        (tmp_path / side).write_bytes(content)
    labels = ["--label", "web:/text", "--label", "copy:/text"]
    command = ["diff", "-a", "-u", *labels, str(tmp_path / "a"), str(tmp_path / "b")]
    assert text == subprocess.run(command, check=False, capture_output=True, timeout=60).stdout
    if shutil.which("patch"):
        subprocess.run(["patch", "-s", "--binary", tmp_path / "a"], input=text, check=True, timeout=60)
        assert (tmp_path / "a").read_bytes() == new


def test_other_differences_are_a_line_each(opened: cowfs.Home, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "gone").mkdir(parents=True)
    for name in ("binary", "large", "mode", "kind", "moved", "gone/text"):
        (tree / name).write_bytes(b"old\n")
    (tree / "link").symlink_to("one")
    (tree / "large-gone").write_bytes(b"x" * (TEXT_BYTES_MAX + 1))
    opened.copy_in(f"{tree}/.", "web")
    opened.snapshot("web", "copy")
    shutil.rmtree(tree / "gone")
    (tree / "large-gone").unlink()
    (tree / "binary-new").write_bytes(b"\0new, and of other bytes")
    (tree / "binary").write_bytes(b"\0new")
    (tree / "large").write_bytes(b"x" * (TEXT_BYTES_MAX + 1))
    (tree / "mode").chmod(0o4755)
    os.setxattr(tree / "mode", "user.new", b"1")
    (tree / "kind").unlink()
    (tree / "kind").mkdir()
    (tree / "link").unlink()
    (tree / "link").symlink_to("two")
    os.mkfifo(tree / "fifo")
    (tree / "empty").touch()
    opened.create("new")
    opened.copy_in(f"{tree}/.", "new")
    found = differences(opened, "copy", "new")
    assert {path: difference.notes for path, difference in found.items() if difference.notes} == {
        "/binary": ["binary files copy:/binary and new:/binary differ"],
        "/binary-new": ["only in new:/binary-new: a binary file"],
        "/empty": ["only in new:/empty: an empty file"],
        "/fifo": ["only in new:/fifo: a fifo"],
        "/gone": ["only in copy:/gone: a directory"],
        "/kind": ["copy:/kind is a regular file and new:/kind is a directory"],
        "/large": [f"copy:/large and new:/large differ (more than {TEXT_BYTES_MAX} bytes)"],
        "/large-gone": [f"only in copy:/large-gone: a file of more than {TEXT_BYTES_MAX} bytes"],
        "/link": ["copy:/link is a symbolic link to 'one' and new:/link is a symbolic link to 'two'"],
        "/mode": ["new:/mode: mode 0644 -> 4755", "new:/mode: extended attributes differ: user.new"],
    }
    assert list(differences(opened, "copy", "new", "/kind")) == ["/kind"]
    assert list(differences(opened, "copy", "new", "kind/")) == ["/kind"]
    assert list(differences(opened, "copy", "new", "/../gone/../kind")) == ["/kind"]
    for nowhere in ("/kin", "/kind/in", "/../etc/passwd"):
        with pytest.raises(
            errors.FilesystemError, match=f"there is no '{nowhere}' in 'new', nor in 'copy'; name a path"
        ):
            differences(opened, "copy", "new", nowhere)
    assert [line for difference in found.values() for line in difference.lines] == []


def test_ranges_rebuild_one_device_from_another(home: Path) -> None:
    with cowfs.open_home(home, durable=False) as opened:
        with opened.device("web") as disk:
            size = disk.size_bytes
            disk.pwrite(1 << 20, b"a" * BLOCK * 3)
            disk.pwrite(size - 1000, b"end of it" + bytes(991))
        opened.snapshot("web", "copy")
        with opened.device("copy") as disk:
            disk.pwrite((1 << 20) + BLOCK, b"b" * 100)
            disk.pwrite(5 << 20, b"c" * BLOCK * 2)
            disk.discard(0, BLOCK)
            disk.flush()
        content = {}
        for name in ("web", "copy"):
            with opened.device(name, read_only=True) as disk:
                content[name] = disk.pread(0, size)
        changed = list(opened.block_ranges("copy", "web"))
        mapped = list(opened.block_ranges("copy"))
    assert BlockRange(0, BLOCK, hole=True) in changed
    assert BlockRange((1 << 20) + BLOCK, BLOCK, hole=False) in changed
    assert BlockRange(5 << 20, 2 * BLOCK, hole=False) in changed
    assert len(changed) == 3
    for start, ranges in ((bytearray(content["web"]), changed), (bytearray(size), mapped)):
        for found in ranges:
            end = found.byte_offset + found.size_bytes
            assert found.byte_offset % BLOCK == 0
            assert end <= size
            data = bytes(found.size_bytes) if found.hole else content["copy"][found.byte_offset : end]
            start[found.byte_offset : end] = data
        assert start == content["copy"]
    assert not any(found.hole for found in mapped)


def test_ranges_go_on_where_they_were_left(opened: cowfs.Home, tmp_path: Path) -> None:
    for number in range(12):
        put(opened, "web", tmp_path, f"/file-{number}", os.urandom(200_000))
    opened.snapshot("web", "copy")
    for number in range(0, 12, 3):
        put(opened, "copy", tmp_path, f"/file-{number}", os.urandom(200_000))
    for base in (None, "web"):
        whole = list(opened.block_ranges("copy", base))
        assert len(whole) > 1
        pieces: list[BlockRange] = []
        while found := list(
            opened.block_ranges(
                "copy", base, starting_offset_bytes=_end(pieces[-1]) if pieces else 0, max_results=1 + len(pieces) % 2
            )
        ):
            pieces += found
        assert pieces == whole
        # In the middle of a range: from the block that this is in.
        first = whole[0]
        middle = first.byte_offset + first.size_bytes // 2
        (rest,) = opened.block_ranges("copy", base, starting_offset_bytes=middle, max_results=1)
        assert rest.byte_offset == middle // BLOCK * BLOCK or first.size_bytes == BLOCK
        assert list(opened.block_ranges("copy", base, starting_offset_bytes=1 << 50)) == []
    with pytest.raises(errors.UsageError, match="less than 0"):
        list(opened.block_ranges("copy", starting_offset_bytes=-1))
    with pytest.raises(errors.UnknownDevice):
        list(opened.block_ranges("copy", "nope"))
    assert SECTOR_BYTES * 128 == BLOCK


def _end(found: BlockRange) -> int:
    return found.byte_offset + found.size_bytes


def test_what_is_only_in_a_journal_is_a_change(home: Path, tmp_path: Path) -> None:
    """A home that a crash left, which cannot be written: the journal is read, and the blocks it is about differ."""
    with open_here(HomeSpec(home, durable=False)) as opened:
        opened.devices.create("monday", parent="web")
        volume = opened.use_volumes().open("web")
        assert isinstance(volume, Volume)
        made = volume.make_node(ROOT_INODE, b"new", 0o100644, 0, 0)
        volume.write(made.inode, 0, b"content")
        volume.sync()
        shutil.copytree(home, tmp_path / "crashed", ignore=shutil.ignore_patterns("cowfs.lock"))
        opened.volumes.close("web")
    with cowfs.open_home(tmp_path / "crashed", read_only=True) as crashed:
        expected = [FileChange("/new", "A", None, modified=False)]
        assert list(crashed.changes("web", "monday")) == expected
        assert [(change.kind, change.path) for change in crashed.changes("monday", "web")] == [("D", "/new")]
    with cowfs.open_home(tmp_path / "crashed", durable=False) as crashed:  # the journal is replayed
        assert list(crashed.changes("web", "monday")) == expected
