"""Files in and out of devices without a mount: what is copied is the same, and written nowhere else."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import patch

import hypothesis
import pytest
from hypothesis import strategies

import cowfs
from cowfs import errors
from cowfs.blockdev import copy_sparse
from cowfs.copying.host import HostSink
from cowfs.copying.records import Data, End, Link, Node, Problem, Record, batches
from cowfs.devices.on_disk.options import HomeOptions
from cowfs.ext4.tools.fsck import check_volume
from cowfs.ext4.volume import Volume
from cowfs.filetree import ROOT_INODE
from cowfs.home.opened.opening import open_here
from cowfs.home.opened.spec import HomeSpec
from cowfs.home.requests.files import CopyIn, CopyOut
from cowfs.home.requests.request import Piece
from cowfs.home.session import connect
from cowfs.steps import pieces_of
from tests.home.conftest import serving

NOW_NS = 1_700_000_000_123_456_789
IS_ROOT = os.geteuid() == 0
HOLE = 64 << 10


# --- trees of the host


def walk(top: Path) -> dict[str, Any]:
    """Everything about the files below a directory, found by the kernel alone."""
    found: dict[str, Any] = {}
    numbers: dict[int, int] = {}
    paths = [top, *sorted(top.rglob("*"))]
    for path in paths:
        status = path.lstat()
        name = str(path.relative_to(top))
        what: list[Any] = [oct(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns, status.st_rdev]
        what.append({key: os.getxattr(path, key, follow_symlinks=False) for key in xattrs(path)})
        if stat.S_ISREG(status.st_mode):
            what += [path.read_bytes(), holes(path), numbers.setdefault(status.st_ino, len(numbers))]
        elif stat.S_ISLNK(status.st_mode):
            what.append(os.readlink(path))
        found[name] = what
    return found


def xattrs(path: Path) -> list[str]:
    return sorted(os.listxattr(path, follow_symlinks=False))


def holes(path: Path) -> list[tuple[int, int]]:
    """Where there is data, in blocks of 4 KiB."""
    ranges: list[tuple[int, int]] = []
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        end = 0
        while end < size:
            try:
                begin = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
            ranges.append((begin // 4096, -(-end // 4096)))
    return ranges


names = strategies.binary(min_size=1, max_size=12).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)
modes = strategies.integers(0, 0o7777)
times = strategies.integers(0, 2**33 * 10**9)
contents = strategies.lists(strategies.tuples(strategies.booleans(), strategies.integers(1, 5)), max_size=4)
leaves = strategies.one_of(
    strategies.tuples(strategies.just("file"), contents, strategies.integers(0, 4095)),
    strategies.tuples(strategies.just("link to another file"), strategies.integers(0, 100)),
    strategies.tuples(strategies.just("symlink"), strategies.binary(min_size=1, max_size=80)),
    strategies.tuples(strategies.just("fifo")),
    strategies.tuples(strategies.just("socket")),
    strategies.tuples(strategies.just("device"), strategies.integers(0, 2**20 - 1)),
)
trees = strategies.recursive(
    leaves,
    lambda below: strategies.tuples(strategies.just("directory"), strategies.dictionaries(names, below, max_size=5)),
)
attributes = strategies.tuples(modes, times, strategies.binary(max_size=64), strategies.integers(0, 3))


def build(path: bytes, tree: Any, draw: Callable[[Any], Any], files: list[bytes]) -> None:
    kind, *rest = tree
    mode, mtime_ns, value, owner = draw(attributes)
    if kind == "directory":
        os.mkdir(path)
        for name, below in rest[0].items():
            build(path + b"/" + name, below, draw, files)
    elif kind == "file":
        files.append(path)
        with open(path, "wb") as file:
            for is_hole, count in rest[0]:
                if is_hole:
                    file.seek(count * HOLE, os.SEEK_CUR)
                else:
                    file.write(b"x" * (count * 4096))
            file.truncate(file.tell() + rest[1])
    elif kind == "link to another file":
        if files:
            os.link(files[rest[0] % len(files)], path)
        return
    elif kind == "symlink":
        os.symlink(rest[0].replace(b"\0", b"-"), path)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        os.mknod(path, stat.S_IFSOCK | 0o600)
    elif IS_ROOT:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, rest[0]))
    else:
        return
    if IS_ROOT:
        os.chown(path, owner, 2 * owner, follow_symlinks=False)
    if kind != "symlink":
        os.chmod(path, mode if IS_ROOT else mode | 0o700)
    if kind in ("file", "directory") and value:
        os.setxattr(path, "user.value", value)
    os.utime(path, ns=(mtime_ns, mtime_ns), follow_symlinks=False)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A tree with one of everything."""
    top = tmp_path / "source"
    (top / "sub" / "deeper").mkdir(parents=True)
    (top / "hello").write_text("hello\n")
    (top / "empty").touch()
    (top / "sub" / "again").hardlink_to(top / "hello")
    (top / "sub" / "link").symlink_to("../hello")
    (top / "dangling").symlink_to("/nowhere/at/all")
    (top / "large").write_bytes(os.urandom(3 << 20))
    with (top / "sparse").open("wb") as file:
        file.seek(5 << 20)
        file.write(b"end")
        file.truncate(9 << 20)
    os.mkfifo(top / "fifo")
    os.setxattr(top / "hello", "user.comment", b"\0binary")
    os.utime(top / "sub", ns=(NOW_NS, NOW_NS + 1))
    os.utime(top / "hello", ns=(NOW_NS, NOW_NS + 2))
    return top


def judge(home: cowfs.Home, device: str, tmp_path: Path) -> Path:
    """Ask e2fsck about a device; its content as an image, for debugfs."""
    with home.device(device, read_only=True) as disk:
        result = check_volume(disk)
        assert result.clean, result.output
        image = tmp_path / f"{device}.img"
        with image.open("wb") as file:
            copy_sparse(disk, file.fileno())
    return image


# --- the same


@hypothesis.settings(
    max_examples=25,
    phases=[hypothesis.Phase.generate],
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(data=strategies.data())
def test_any_tree_comes_out_as_it_went_in(opened: cowfs.Home, tmp_path: Path, data: Any) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for path in (here, there):
        shutil.rmtree(path, ignore_errors=True)
    here.mkdir()
    tree = data.draw(strategies.dictionaries(names, trees, max_size=6))
    files: list[bytes] = []
    for name, below in tree.items():
        build(os.fsencode(here) + b"/" + name, below, data.draw, files)
    expected = walk(here)
    opened.create("new")
    try:
        copied = opened.copy_in(here, "new", "/tree")
        assert (copied.problem_count, copied.left_out_count, copied.attributes_left_out) == (0, 0, 0)
        within = opened.copy_within("new", "/tree", "new", "/again")
        assert within.problems == []
        out = opened.copy_out("new", "/again", there)
        assert out.problems == []
        assert (out.problem_count, out.left_out_count, out.attributes_left_out) == (0, 0, 0)
        assert walk(there) == expected
    finally:
        opened.remove("new")


def test_the_kernel_and_debugfs_see_what_was_copied(home: Path, source: Path, tmp_path: Path) -> None:
    atime_ns = (source / "hello").stat().st_atime_ns
    with cowfs.open_home(home, durable=False) as opened:
        copied = opened.copy_in(source, "web")
        assert (copied.files, copied.problem_count) == (len(walk(source)), 0)
        image = judge(opened, "web", tmp_path)
        out = tmp_path / "out"
        opened.copy_out("web", "/source", out)
        assert (out / "hello").stat().st_atime_ns == atime_ns
    dumped = tmp_path / "dumped"
    dumped.mkdir()
    subprocess.run(["debugfs", "-R", f"rdump /source {dumped}", image], check=True, capture_output=True, timeout=60)
    for name in ("hello", "large", "sparse", "sub/again"):
        assert (dumped / "source" / name).read_bytes() == (source / name).read_bytes()
    said = subprocess.run(
        ["debugfs", "-R", "stat /source/hello", image], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    assert "Links: 2" in said
    assert "user.comment" in said
    if shutil.which("rsync"):
        rsync = ["rsync", "-aHXn", "--delete", "--itemize-changes", f"{source}/", f"{out}/"]
        assert subprocess.run(rsync, check=True, capture_output=True, text=True, timeout=60).stdout == ""
    assert walk(out) == walk(source)


def test_access_lists_are_kept(opened: cowfs.Home, tmp_path: Path) -> None:
    entries = b"".join(
        tag.to_bytes(2, "little") + permissions.to_bytes(2, "little") + number.to_bytes(4, "little")
        for tag, permissions, number in (
            *((1, 7, 2**32 - 1), (2, 5, 1234), (4, 4, 2**32 - 1), (16, 5, 2**32 - 1), (32, 0, 2**32 - 1)),
        )
    )
    acl = (2).to_bytes(4, "little") + entries
    directory = tmp_path / "directory"
    directory.mkdir()
    (directory / "file").touch()
    try:
        os.setxattr(directory / "file", "system.posix_acl_access", acl)
    except OSError as error:
        pytest.skip(f"needs a file system with access lists below {tmp_path}: {error}")
    os.setxattr(directory, "system.posix_acl_default", acl)
    opened.copy_in(directory, "web")
    inherited = tmp_path / "inherited"
    inherited.mkdir()
    os.setxattr(inherited, "system.posix_acl_default", acl)
    (tmp_path / "plain").touch()
    opened.copy_in(tmp_path / "plain", "web")
    opened.copy_out("web", "/directory", inherited)
    opened.copy_out("web", "/plain", inherited)
    assert walk(inherited / "directory") == walk(directory)
    assert xattrs(inherited / "plain") == []


# --- where a copy is put


@pytest.mark.parametrize(
    ("source_path", "target_path", "found"),
    [
        ("file", "/new", "/new"),
        ("file", "new", "/new"),
        ("file", "/dir", "/dir/file"),
        ("file", "/dir/", "/dir/file"),
        ("file", "/dir/old", "/dir/old"),
        ("file", "/dir/link", "/dir/link"),  # replaced, not written through
        ("file", "/to-dir", "/dir/file"),
        ("file", "", "/file"),
        ("file", "/../..", "/file"),
        ("file", "/out-of-it/x", "/x"),  # a link to ../../.. ends at the root
        ("file", "/absolute/x", "/dir/x"),  # and one to /dir begins there
        ("file", "/new/", "Not a directory"),
        ("file", "/missing/new", "No such file"),
        ("file", "/dir/old/new", "Not a directory"),
        ("tree", "/new", "/new/inside"),
        ("tree", "/dir", "/dir/tree/inside"),
        ("tree/", "/dir", "/dir/tree/inside"),
        ("tree/.", "/dir", "/dir/inside"),
        ("tree/.", "/new", "/new/inside"),
        ("tree", "/dir/old", "do not replace each other"),
        ("tree", "/loop/new", "Too many levels"),
    ],
)
def test_place_of_a_copy(opened: cowfs.Home, tmp_path: Path, source_path: str, target_path: str, found: str) -> None:
    """The same on the host, but for symbolic links that lead out of the device's root."""
    above = tmp_path / "above"
    for directory in (above, tmp_path / "host"):
        (directory / "dir").mkdir(parents=True)
        (directory / "dir" / "old").write_text("old")
        (directory / "dir" / "link").symlink_to("old")
        (directory / "to-dir").symlink_to("dir")
        (directory / "loop").symlink_to("loop")
        (directory / "out-of-it").symlink_to("../../..")
        (directory / "absolute").symlink_to("/dir")
    (tmp_path / "file").write_text("content")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "inside").write_text("content")
    opened.copy_in(f"{above}/.", "web")
    opened.copy_in(tmp_path / "file", "web", "/sources-file")
    outcome: Any
    try:
        copied = opened.copy_in(f"{tmp_path}/{source_path}", "web", target_path)
        outcome = copied.problems
    except errors.CopyError as error:
        outcome = [str(error)]
    if found.startswith("/"):
        assert outcome == []
        with opened.open_file("web", found) as file:
            assert file.read() == b"content"
        (info,) = opened.list_files("web", found, follow=False)
        assert stat.S_ISREG(info.mode)
        with opened.open_file("web", "/dir/old") as file:
            assert file.read() == (b"content" if found == "/dir/old" else b"old")
    else:
        (line,) = outcome
        assert found.lower() in line.lower()
        assert "web:" in line
    # Out to the host: by the same rules.
    if any(word in target_path for word in ("..", "out-of-it", "absolute")):
        return
    opened.create("other")
    opened.copy_in(f"{tmp_path}/file", "other")
    opened.copy_in(f"{tmp_path}/tree", "other")
    target = f"{tmp_path}/host/{target_path.lstrip('/')}"
    try:
        copied = opened.copy_out("other", "/" + source_path, target)
        outcome = copied.problems
    except errors.CopyError as error:
        outcome = [str(error)]
    if found.startswith("/"):
        assert outcome == []
        path = tmp_path / "host" / found[1:]
        assert path.read_text() == "content"
        assert not path.is_symlink()
        assert (tmp_path / "host" / "dir" / "old").read_text() == ("content" if found == "/dir/old" else "old")
    else:
        (line,) = outcome
        assert found.lower() in line.lower() or "not a directory" in line.lower()


def test_a_special_file_of_the_host_is_replaced_by_its_kind_only(opened: cowfs.Home, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("text")
    os.mkfifo(tmp_path / "pipe")
    opened.copy_in(tmp_path / "text", "web")
    opened.copy_in(tmp_path / "pipe", "web")
    (line,) = opened.copy_out("web", "/text", tmp_path / "pipe").problems
    assert line.endswith("a special file is there, which nothing else replaces")
    assert stat.S_ISFIFO((tmp_path / "pipe").lstat().st_mode)
    number = (tmp_path / "pipe").lstat().st_ino
    (tmp_path / "kept").hardlink_to(tmp_path / "pipe")
    assert opened.copy_out("web", "/pipe", tmp_path / "pipe").problems == []
    assert (tmp_path / "pipe").lstat().st_ino != number


def test_no_symbolic_link_of_the_host_is_followed_below_the_destination(
    opened: cowfs.Home, source: Path, tmp_path: Path
) -> None:
    outside, target = tmp_path / "outside", tmp_path / "target"
    outside.mkdir()
    (outside / "hello").write_text("mine")
    (target / "source").mkdir(parents=True)
    (target / "source" / "sub").symlink_to(outside)
    (target / "source" / "hello").symlink_to(outside / "hello")
    (target / "source" / "empty").symlink_to(outside / "made")
    opened.copy_in(source, "web")
    copied = opened.copy_out("web", "/source", target)
    assert copied.problems == [f"cannot make '{target}/source/sub': a directory and a file do not replace each other"]
    assert walk(outside) == {**walk(outside), "hello": walk(outside)["hello"]}
    assert [path.name for path in outside.iterdir()] == ["hello"]
    assert (outside / "hello").read_text() == "mine"
    assert (target / "source" / "hello").read_text() == "hello\n"


def test_symbolic_links_in_a_device_stay_in_it(opened: cowfs.Home, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("the host's")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "up").symlink_to("../../../../../../../../../..")
    opened.copy_in(tmp_path / "link", "web")
    opened.copy_in(tmp_path / "up", "web")
    for path in ("/link", f"/up{tmp_path}/secret", f"/../..{tmp_path}/secret"):
        with pytest.raises(errors.CopyError, match="No such file"):
            opened.open_file("web", path)
    assert [info.name for info in opened.list_files("web", "/up")] == ["link", "lost+found", "up"]


@pytest.mark.parametrize("name", [b"..", b".", b"", b"a/b", b"../up", b"/etc/x", b"a\0b"])
@pytest.mark.parametrize("below", [True, False])
def test_hostile_names_go_nowhere(opened: cowfs.Home, tmp_path: Path, name: bytes, below: bool) -> None:
    """As a damaged file system, or another program at the socket, may have them."""
    file = Node(name, 0o100644, 0, 0, 0, 0, 1, b"x")
    records: list[Record] = [file]
    if below:
        records = [Node(b"top", 0o40755, 0, 0, 0, 0), file, Node(b"good", 0o100644, 0, 0, 0, 0, 1, b"x"), End()]
    sent = opened._session.send(CopyIn("web", b"/"), pieces_of(batches(records)))
    assert sent.problem_count == 1
    assert [info.name for info in opened.list_files("web")] == ["lost+found", *(["top"] if below else [])]
    there = tmp_path / "there"
    there.mkdir()
    before = sorted(path.name for path in tmp_path.iterdir())
    with closing(HostSink(os.fsencode(there), has_own_name=True)) as sink:
        sink.take_all(records)
        assert sink.finish().problem_count == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert sorted(str(path.relative_to(there)) for path in there.rglob("*")) == (["top", "top/good"] if below else [])


# --- what cannot be copied


def test_what_is_not_there_or_not_what_was_asked(opened: cowfs.Home, source: Path, tmp_path: Path) -> None:
    opened.copy_in(source, "web")

    def refused(act: Callable[[], object], number: int, words: str) -> None:
        with pytest.raises(errors.CowfsError, match=words) as caught:
            act()
        assert caught.value.errno == number
        assert "\n" not in str(caught.value)

    refused(lambda: list(opened.list_files("web", "/nope")), errno.ENOENT, "web:/nope: No such file")
    refused(lambda: list(opened.list_files("nope")), errno.ENOENT, "nope")
    refused(lambda: opened.open_file("web", "/source"), errno.EISDIR, "web:/source: Is a directory")
    refused(lambda: opened.open_file("web", "/source/fifo"), errno.EINVAL, "not a regular file")
    refused(lambda: opened.open_file("web", "/source/hello/"), errno.ENOTDIR, "Not a directory")
    refused(lambda: opened.copy_out("web", "/nope", tmp_path / "x"), errno.ENOENT, "web:/nope: No such file")
    refused(lambda: opened.copy_out("web", "/source", tmp_path / "x", recursive=False), errno.EISDIR, "with -r")
    refused(lambda: opened.copy_in(source, "web", recursive=False), errno.EISDIR, "with -r")
    refused(lambda: opened.copy_within("web", "/source", "web", recursive=False), errno.EISDIR, "with -r")
    refused(lambda: opened.copy_in(source, "nope"), errno.ENOENT, "nope")
    refused(lambda: opened.copy_in(source, "base"), errno.EINVAL, "--write-base")
    refused(lambda: opened.copy_within("web", "/source", "base"), errno.EINVAL, "--write-base")
    refused(lambda: opened.copy_within("web", "/source", "web", "/source/sub"), errno.EINVAL, "in itself")
    refused(lambda: opened.copy_within("web", "/source", "web", "/"), errno.EINVAL, "the same file")
    refused(lambda: opened.copy_within("web", "/source/hello", "web", "/source/sub/again"), errno.EINVAL, "same file")
    with pytest.raises(FileNotFoundError):
        opened.copy_in(tmp_path / "nope", "web")
    assert not (tmp_path / "x").exists()
    assert [info.name for info in opened.list_files("web")] == ["lost+found", "source"]
    assert [info.name for info in opened.list_files("base")] == ["lost+found"]
    opened.copy_in(source / "hello", "base", write_base=True)
    opened.create("later")
    assert [info.name for info in opened.list_files("later")] == ["hello", "lost+found"]


def test_a_home_that_is_read_only_is_read(home: Path, source: Path, tmp_path: Path) -> None:
    with cowfs.open_home(home, durable=False) as opened:
        opened.copy_in(source, "web")
    with cowfs.open_home(home, read_only=True) as opened:
        opened.copy_out("web", "/source", tmp_path / "out")
        assert walk(tmp_path / "out") == walk(source)
        with pytest.raises(errors.HomeError, match="read-only"):
            opened.copy_in(source, "web", "/new")
        with pytest.raises(errors.HomeError, match="read-only"):
            opened.copy_within("web", "/source", "web", "/new")


def test_a_layers_root_is_its_rootfs(opened: cowfs.Home, source: Path, tmp_path: Path) -> None:
    opened.layers.create("lower")
    with pytest.raises(errors.CopyError, match="layer 'lower' has no files yet"):
        list(opened.list_files("lower"))
    opened.copy_in(f"{source}/.", "lower")
    opened.layers.create("upper", "lower")
    assert list(opened.layers.changes("upper", "lower")) == []
    opened.copy_within("lower", "/hello", "upper", "/sub/new")
    assert [(change.kind, change.path) for change in opened.layers.changes("upper", "lower")] == [
        ("C", "/sub"),
        ("A", "/sub/new"),
    ]
    opened.copy_out("lower", "/", tmp_path / "out")
    assert walk(tmp_path / "out") == walk(source)
    assert "rootfs" not in [info.name for info in opened.list_files("upper", "/..")]
    with opened.layers.diff("upper") as archive:
        assert b"sub/new" in archive.read()


def test_a_damaged_directory_costs_only_itself(opened_damaged: cowfs.Home, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    copied = opened_damaged.copy_out("web", "/source", out)
    assert copied.problem_count == 1
    (line,) = copied.problems
    assert line.startswith("cannot read 'web:/source/sub': ")
    assert "\n" not in line
    expected = {name: what for name, what in walk(source).items() if not name.startswith("sub/")}
    assert walk(out) | {"hello": None} == expected | {"hello": None}
    within = opened_damaged.copy_within("web", "/source", "other", "/copy")
    assert within.problems == copied.problems
    found: list[str] = []
    with pytest.raises(errors.FilesystemError, match="web:/source/sub"):
        found.extend(info.name for info in opened_damaged.list_files("web", "/source/sub"))
    with pytest.raises(errors.FilesystemError, match="cannot compare 'web' with 'other': "):
        list(opened_damaged.changes("web", "other"))


@pytest.fixture(params=["here", "through the holder"])
def opened_damaged(request: pytest.FixtureRequest, home: Path, source: Path) -> Iterator[cowfs.Home]:
    """A home whose device web has a directory that cannot be read."""
    with cowfs.open_home(home, durable=False) as opened:
        opened.create("other")
        opened.copy_in(source, "web")
        (sub,) = (info for info in opened.list_files("web", "/source") if info.name == "sub")
        with opened.device("web") as disk:
            image = disk.pread(0, disk.size_bytes)
            place = image.find(sub.inode.to_bytes(4, "little") + b"\x0c\0\x01\x02.\0\0\0")
            assert place > 0
            disk.pwrite(place, b"\xff" * 1024)
    if request.param == "here":
        with cowfs.open_home(home, durable=False) as opened:
            yield opened
    else:
        with serving(home), cowfs.open_home(home) as opened:
            yield opened


def test_a_full_device_ends_the_copy_with_one_line(home: Path, tmp_path: Path) -> None:
    many = tmp_path / "many"
    many.mkdir()
    for number in range(20):
        (many / f"file-{number:02}").write_bytes(os.urandom(1 << 20))
    with serving(home), cowfs.open_home(home) as opened:
        with pytest.raises(errors.CopyError, match=r"ended at 'web:/many/file-1\d': No space left") as caught:
            opened.copy_in(many, "web")
        assert caught.value.errno == errno.ENOSPC
        present = [info.name for info in opened.list_files("web", "/many")]
        assert present == [f"file-{number:02}" for number in range(len(present))]
        no_room = patch.object(os, "pwrite", side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        with no_room, pytest.raises(errors.CopyError, match=f"^the copy ended at '{tmp_path}/file-00': No space left"):
            opened.copy_out("web", "/many/.", tmp_path)
    with cowfs.open_home(home, durable=False) as opened:
        judge(opened, "web", tmp_path)
        opened.copy_out("web", "/many", tmp_path / "out")
    for name in present:
        assert (tmp_path / "out" / name).read_bytes() == (many / name).read_bytes()


def test_a_full_pool_ends_the_copy_with_one_line(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(12 << 20))
    options = cowfs.HomeOptions(
        data_size_bytes=8 << 20,
        metadata_size_bytes=4 << 20,
        base_size_bytes=64 << 20,
        min_free_percent=0,
        durable=False,
    )
    with cowfs.open_home(tmp_path / "home", create=True, options=options) as opened:
        opened.create("web")
        with pytest.raises(errors.OutOfDataSpace, match=r"ended at .web:/source.*nor is there space"):
            opened.copy_in(source, "web")
        assert [info.name for info in opened.list_files("web")] == ["lost+found"]
        judge(opened, "web", tmp_path)
        opened.resize_pool(data_size_bytes=64 << 20)
        opened.copy_in(source, "web")
        with opened.open_file("web", "source") as file:
            assert file.read() == source.read_bytes()


def test_what_an_ordinary_user_may_not_make_is_left_out(home: Path, tmp_path: Path, ordinary_user: Any) -> None:
    """Files of others become the user's own, without set-id bits; device nodes are named."""
    records: list[Record] = [
        Node(b"top", 0o40755, 0, 0, 0, 0),
        Node(b"console", 0o20600, 0, 0, 0, 0, rdev=os.makedev(5, 1)),
        Node(b"fifo", 0o10644, 0, 0, 0, 0),
        Node(b"su", 0o104755, 0, 0, 0, NOW_NS, 1, b"x", xattrs={b"security.capability": b"\1\0\0\2" + bytes(16)}),
        End(),
    ]
    script = """
import os, sys
from contextlib import closing
from cowfs.copying.host import HostSink
from cowfs.copying.records import records_in
with closing(HostSink(b"out", has_own_name=True)) as sink:
    sink.take_all(records_in(bytes.fromhex(sys.argv[1])))
    done = sink.finish()
assert done.left_out == ["out/console"] and done.left_out_count == 1 and done.problem_count == 0, done
assert done.attributes_left_out == 1, done
status = os.stat("out/su")
assert (status.st_mode, status.st_uid, status.st_mtime_ns) == (0o100755, os.getuid(), int(sys.argv[2])), status
assert sorted(os.listdir("out")) == ["fifo", "su"]
"""
    (batch,) = pieces_of(batches(records))
    command = [sys.executable, "-c", script, bytes(batch).hex(), NOW_NS]
    ordinary_user.run(command, cwd=ordinary_user.directory)


# --- beside others


def test_others_are_served_during_a_copy(home: Path, tmp_path: Path) -> None:
    """Each piece comes only when another client has had its answer."""
    with serving(home), cowfs.open_home(home) as other, connect(HomeSpec(home)) as session:

        def records() -> Iterator[Record]:
            yield Node(b"top", 0o40755, 0, 0, 0, 0)
            for number in range(5):
                yield Node(b"%d" % number, 0o100644, 0, 0, 0, 0, 1 << 20, b"x" * (1 << 20))
            yield End()

        def pieces() -> Iterator[Piece]:
            for number, piece in enumerate(pieces_of(batches(records()))):
                yield piece
                assert [row.name for row in other.devices()] == [*(f"at-{n}" for n in range(number)), "base", "web"]
                other.snapshot("web", f"at-{number}")

        copied = session.send(CopyIn("web", b"/"), pieces())
        assert copied.files == 6
        seen = 0

        def take(_piece: bytes) -> None:
            nonlocal seen
            seen += 1
            assert len(other.devices()) >= 3

        session.receive(CopyOut("web", b"/top"), take)
        assert seen >= 5
    with cowfs.open_home(home, durable=False) as opened:
        for row in opened.devices():
            judge(opened, row.name, tmp_path)


@pytest.mark.parametrize("ending", ["fails", "sends nonsense"])
def test_a_client_that_ends_early_leaves_what_came(home: Path, tmp_path: Path, ending: str) -> None:
    class OwnError(Exception):
        pass

    def pieces() -> Iterator[Piece]:
        records: list[Record] = [
            Node(b"top", 0o40755, 0, 0, 0, 0),
            Node(b"whole", 0o100644, 0, 0, 0, 0, 5, b"whole"),
            Node(b"part", 0o100644, 0, 0, 0, 0, 1 << 30),
            Data(4096, b"x" * 4096),
        ]
        yield from pieces_of(batches(records))
        if ending == "sends nonsense":
            yield b"nonsense"
            return
        with cowfs.open_home(home) as other:  # until the server has taken what was sent
            while "top" not in {info.name for info in other.list_files("web", "")}:
                pass
        raise OwnError

    with serving(home):
        with connect(HomeSpec(home)) as session, pytest.raises((OwnError, OSError)):
            session.send(CopyIn("web", b"/"), pieces())
        with cowfs.open_home(home) as opened:
            assert {"whole"} <= {info.name for info in opened.list_files("web", "/top")}
            with pytest.raises(errors.CowfsError):
                opened.copy_out("web", "/top/nope", tmp_path / "x")
    with cowfs.open_home(home, durable=False) as opened:
        judge(opened, "web", tmp_path)


def test_a_reader_that_leaves_early_ends_the_copy(opened: cowfs.Home, source: Path) -> None:
    opened.copy_in(source, "web")

    class OwnError(Exception):
        pass

    def take(_piece: bytes) -> None:
        raise OwnError

    with pytest.raises(OwnError):
        opened.read_file("web", "/source/large", take)


def test_a_problem_at_the_source_is_reported(opened: cowfs.Home) -> None:
    records: list[Record] = [
        Node(b"top", 0o40755, 0, 0, 0, 0),
        Problem("cannot read 'x'"),
        Node(b"part", 0o100644, 0, 0, 0, 0, 8192, number=1),
        Data(0, b"x"),
        End(is_whole=False),
        Link(b"other", 7),
        End(),
    ]
    copied = opened._session.send(CopyIn("web", b"/"), pieces_of(batches(records)))
    assert copied.problems == [
        "cannot read 'x'",
        "cannot make 'web:/top/other': the file that it is another name of was not copied",
    ]
    assert list(opened.list_files("web", "/top")) == []


def test_files_are_read_where_the_pool_has_no_room_for_the_journal(tmp_path: Path) -> None:
    """What was synced is not lost, can be read at once, and is written where it belongs when there is room again."""
    home = tmp_path / "full"
    options = HomeOptions(data_size_bytes=8 << 20, metadata_size_bytes=4 << 20, base_size_bytes=64 << 20)
    with cowfs.open_home(home, create=True, options=options, durable=False) as opened:
        opened.set_no_space("error")
        opened.create("web")
    synced = os.urandom(100_000)
    with open_here(HomeSpec(home, durable=False)) as served:
        volumes = served.use_volumes()
        volume = volumes.open("web")
        assert isinstance(volume, Volume)
        numbers = [volume.make_node(ROOT_INODE, name, 0o100644, 0, 0).inode for name in (b"synced", b"large")]
        volume.write(numbers[0], 0, synced)
        volume.sync()
        with pytest.raises(errors.OutOfDataSpace):
            volume.write(numbers[1], 0, os.urandom(16 << 20))
        volume.sync()
        with pytest.raises(
            errors.OutOfDataSpace, match=r"^not all of device 'web' could be written; what was synced is"
        ):
            volumes.close("web")
    with cowfs.open_home(home, durable=False) as opened:
        assert {info.name for info in opened.list_files("web")} >= {"synced", "large"}
        with opened.open_file("web", "/synced") as file:
            assert file.read() == synced
        assert ("A", "/synced") in [(change.kind, change.path) for change in opened.changes("web", "base")]
        with pytest.raises(
            errors.OutOfDataSpace, match=r"^device 'web' cannot be opened for writing \('mount --read-only'"
        ):
            opened.copy_in(tmp_path / "full" / "cowfs.json", "web")
        opened.resize_pool(data_size_bytes=16 << 20)
        opened.copy_in(tmp_path / "full" / "cowfs.json", "web")
        with opened.open_file("web", "/synced") as file:
            assert file.read() == synced
        assert opened.check().clean
