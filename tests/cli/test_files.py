"""ls, cat, cp, changes, diff, and ranges: what they print, alone and beside mounts, as root and as an ordinary user."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run
from tests.cli.mounted_home import MountedHome

BIG = 3 << 20
TIME = 1_700_000_000


@pytest.fixture
def site(tmp_path: Path) -> Path:
    site = tmp_path / "site"
    (site / "sub").mkdir(parents=True)
    (site / "index").write_text("hello\n")
    (site / "sub" / "link").symlink_to("../index")
    for path in (site / "index", site / "sub", site):
        path.chmod(0o755 if path.is_dir() else 0o640)
        os.utime(path, (TIME, TIME))
    return site


def test_ls_cat_and_cp(cowfs: Run, site: Path, tmp_path: Path) -> None:
    quiet = cowfs("cp", "-r", site, "web:/srv")
    assert (quiet.status, quiet.out, quiet.err) == (0, "", "")
    assert cowfs("ls", "web:").out == "lost+found\nsrv\n"
    assert cowfs("ls", "web").out == "lost+found\nsrv\n"
    assert cowfs("cat", "web:srv/sub/link").out == "hello\n"
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(TIME))
    link_when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime((site / "sub" / "link").lstat().st_mtime))
    owner = f"{os.getuid()} {os.getgid()}"
    assert cowfs("ls", "-l", "web:/srv").out == (
        f"-rw-r----- 1 {owner}    6 {when} index\ndrwxr-xr-x 2 {owner} 1024 {when} sub\n"
    )
    assert cowfs("ls", "-l", "web:/srv/sub").out == f"lrwxrwxrwx 1 {owner} 8 {link_when} link -> ../index\n"
    (row,) = cowfs("--json", "ls", "web:/srv/index").json
    assert row == {
        "name": "index",
        "mode": 0o100640,
        "links": 1,
        "uid": os.getuid(),
        "gid": os.getgid(),
        "size_bytes": 6,
        "device": 0,
        "mtime_ns": TIME * 10**9,
        "target": None,
        "problem": None,
        "inode": row["inode"],
    }
    copied = cowfs("--json", "cp", "-r", "web:/srv", tmp_path / "out").json
    assert copied == {
        "files": 4,
        "size_bytes": 6,
        "problems": [],
        "problem_count": 0,
        "left_out": [],
        "left_out_count": 0,
        "attributes_left_out": 0,
    }
    assert (tmp_path / "out" / "sub" / "link").read_text() == "hello\n"
    assert cowfs("cp", "-R", "web:/srv/.", "web-1:").status == 0
    assert cowfs("ls", "web-1:").out == "index\nlost+found\nsub\n"


def test_a_damaged_file_is_listed_and_costs_only_itself(cowfs: Run, site: Path, tmp_path: Path) -> None:
    cowfs("cp", "-r", site, "web:/srv")
    cowfs("export", "web", tmp_path / "image")
    for change in ("sif /srv/index mode 0", "sif /srv/sub/link size 60"):
        subprocess.run(["debugfs", "-w", "-R", change, tmp_path / "image"], check=True, capture_output=True)
    cowfs("import", tmp_path / "image", "damaged")
    listed = cowfs("ls", "damaged:/srv")
    assert (listed.status, listed.out, listed.err.count("\n")) == (7, "index\nsub\n", 1)
    assert "cowfs: damaged:/srv: ext4 is damaged: inode " in listed.err
    index, sub = cowfs("ls", "-l", "damaged:/srv").out.splitlines()
    assert index.split() == ["-?????????", "?", "?", "?", "?", "?", "index"]
    assert index.index("index") == sub.index("sub")
    row, _ = json.loads(cowfs("--json", "ls", "damaged:/srv").out)
    assert (row["name"], row["mode"], row["links"]) == ("index", stat.S_IFREG, 0)
    assert "has mode 0o0" in row["problem"]
    copied = cowfs("--json", "cp", "-r", "damaged:/srv", tmp_path / "out").json
    assert (copied["files"], copied["problem_count"]) == (3, 1)
    assert os.readlink(tmp_path / "out" / "sub" / "link") == "../index"  # up to the first zero byte


def test_a_progress_bar_is_for_terminals(cowfs: Run, site: Path) -> None:
    assert cowfs("cp", "-r", site, "web:").err == ""


def test_a_name_with_a_colon(cowfs: Run, site: Path, tmp_path: Path) -> None:
    for name in ("a:b", "a"):
        cowfs("create", name)
    assert cowfs("cp", "-r", f"{site}/.", "a:b:").status == 0
    assert cowfs("ls", "a:b:/sub").out == cowfs("ls", "a:b:/sub/").out == "link\n"
    assert cowfs("cat", "a:b:/index").out == (site / "index").read_text()
    assert cowfs("cp", "a:b:/index", "a:/c:d").status == 0
    assert cowfs("ls", "a:").out == "c:d\nlost+found\n"
    assert cowfs("cat", "a:c:d").out == (site / "index").read_text()
    cowfs("remove", "a")
    for words in (["ls", "a:b"], ["cat", "a:b/index"], ["cp", "a:b", tmp_path / "out"]):
        outcome = cowfs(*words)
        assert outcome.status == 5
        assert outcome.err.endswith("for 'a:b', whose name has a colon, write 'a:b:/PATH', or 'a:b:' for its root\n")
    assert "has a colon" not in cowfs("ls", "none:x").err


def test_names_that_a_terminal_would_obey_are_shown(cowfs: Run, tmp_path: Path) -> None:
    (tmp_path / "names").mkdir()
    (tmp_path / "names" / "a\n\x1b[31m").touch()
    cowfs("cp", "-r", tmp_path / "names", "web:")
    assert cowfs("ls", "web:/names").out == "a\\n\\x1b[31m\n"
    assert "a\\n\\x1b[31m" in cowfs("ls", "-l", "web:/names").out
    assert "a\\n\\x1b[31m" in cowfs("changes", "web").out


def test_one_line_each_for_what_is_not_copied(cowfs: Run, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "dir").mkdir(parents=True)
    (tree / "file").touch()
    cowfs("cp", "-r", tree, "web:")
    other = tmp_path / "other"
    (other / "file").mkdir(parents=True)
    (other / "dir").touch()
    (other / "good").touch()
    outcome = cowfs("cp", "-r", f"{other}/.", "web:/tree")
    assert outcome.status == 1
    assert outcome.err == "".join(
        f"cowfs: cannot make 'web:/tree/{name}': a directory and a file do not replace each other\n"
        for name in ("dir", "file")
    )
    assert cowfs("ls", "web:/tree").out == "dir\nfile\ngood\n"
    assert cowfs("--json", "cp", "-r", f"{other}/.", "web:/tree").json["problem_count"] == 2


def test_several_files_go_into_a_directory(cowfs: Run, site: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    quiet = cowfs("cp", "-r", tmp_path / "a", tmp_path / "b", site, "web:/")
    assert (quiet.status, quiet.out, quiet.err) == (0, "", "")
    assert cowfs("ls", "web:").out == "a\nb\nlost+found\nsite\n"
    (tmp_path / "out").mkdir()
    assert cowfs("cp", "web:/a", "web-1:lost+found", "-r", "web:site/.", tmp_path / "out").status == 0
    assert sorted(os.listdir(tmp_path / "out")) == ["a", "index", "lost+found", "sub"]
    # Between devices, from both at once, with the sums of all.
    (tmp_path / "c").write_text("of the host")
    copied = cowfs("--json", "cp", "web:/a", tmp_path / "c", "web:/b", "web-1:/lost+found").json
    assert (copied["files"], copied["size_bytes"], copied["problem_count"]) == (3, 13, 0)
    assert cowfs("ls", "web-1:/lost+found").out == "a\nb\nc\n"


def test_what_is_wrong_with_one_file_costs_only_it(cowfs: Run, site: Path, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    outcome = cowfs("cp", tmp_path / "nope", "web:/nope", "none:/x", site, "web-1:lost+found", tmp_path / "a", "web:/")
    assert outcome.status == 1
    unknown = cowfs("inspect", "none").err
    assert outcome.err == (
        f"cowfs: {tmp_path}/nope: No such file or directory\n"
        "cowfs: device 'web': web:/nope: No such file or directory\n"
        f"{unknown}"
        f"cowfs: '{site}' is a directory; copy it with -r\n"
        "cowfs: 'web-1:lost+found' is a directory; copy it with -r\n"
    )
    assert cowfs("cat", "web:/a").out == "a"
    copied = cowfs("--json", "cp", "web:/nope", "web:/a", "none:/x", tmp_path)
    assert (copied.status, copied.json["problem_count"], copied.json["files"]) == (1, 2, 1)


def test_no_copied_file_is_replaced_by_the_next(cowfs: Run, site: Path, tmp_path: Path) -> None:
    """As cp has it: files do not, and directories merge."""
    other = tmp_path / "other" / "site"
    other.mkdir(parents=True)
    (other / "more").touch()
    (other / "index").write_text("other")
    outcome = cowfs("cp", "-r", site / "index", other / "index", site, other, "web:")
    assert outcome.status == 1
    assert outcome.error == (
        f"'{other}/index' was not copied: it would replace '{site}/index', which was copied before it"
    )
    assert cowfs("cat", "web:/index").out == "hello\n"
    assert cowfs("ls", "web:/site").out == "index\nmore\nsub\n"


@pytest.mark.parametrize("target", ["web:/nope", "web:/file", "web:/file/more", "none", "file"])
def test_several_files_need_a_directory(cowfs: Run, site: Path, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (site / "file").write_text("kept")
    cowfs("cp", site / "file", "web:/file")
    monkeypatch.chdir(site)
    sources = ("web:/file", "web:/lost+found") if ":" not in target else ("index", "web:/lost+found")
    outcome = cowfs("cp", "-r", *sources, target)
    assert outcome.status == 2
    assert outcome.error == f"'{target}' is not a directory; several files are copied into a directory that exists"
    assert cowfs("ls", "web:").out == "file\nlost+found\n"
    assert cowfs("cat", "web:/file").out == "kept"
    assert not (site / "none").exists()


def test_a_full_device_ends_a_copy_of_several_files(cowfs: Run, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(os.urandom(1 << 20) * 40)
    (tmp_path / "small").write_text("small")
    outcome = cowfs("cp", tmp_path / "nope", tmp_path / "big", tmp_path / "small", "web:")
    assert outcome.status == 7
    assert outcome.err.splitlines()[0] == f"cowfs: {tmp_path}/nope: No such file or directory"
    assert "No space left on device" in outcome.err.splitlines()[1]
    assert "small" not in cowfs("ls", "web:").out


@pytest.mark.parametrize(
    ("words", "status", "line"),
    [
        (("cp", "a", "b"), 2, "neither 'a' nor 'b' is in a device; write one as NAME:PATH"),
        (("cp", "/bin", "web:"), 2, "'/bin' is a directory; copy it with -r")
        if not Path("/bin").is_symlink()
        else (("cp", "/usr", "web:"), 2, "'/usr' is a directory; copy it with -r"),
        (("cp", "web:", "x"), 7, "'web:/' is a directory; copy it with -r"),
        (("cp", "/nope", "web:"), 1, "/nope: No such file or directory"),
        (("cp", "./a:b", "web:"), 1, "./a:b: No such file or directory"),
        (("cp", "web:/nope", "x"), 7, "web:/nope: No such file or directory"),
        (("cp", "nope:/x", "x"), 5, "there is no device 'nope'"),
        (("cp", "-r", "/usr", "base:"), 2, "device 'base' is written only with --write-base"),
        (("cp", "--write-base", "web:/x", "x"), 2, "--write-base is for copying into the base device"),
        (("cp", ":/x", "y"), 2, "':/x' names no device"),
        (("cp", "web:/x"), 2, "missing argument 'SRC...'"),
        (("cp", "web:/x", "a", "b"), 2, "neither 'a' nor 'b' is in a device"),
        (("ls",), 2, "'cowfs list' lists the devices"),
        (("ls", "nope:"), 5, "there is no device 'nope'"),
        (("ls", "web:/a/b"), 7, "web:/a/b: No such file or directory"),
        (("ls", "/web"), 2, "'/web' names no device; write NAME:PATH"),
        (("cat", "web"), 2, "name a file of 'web', as in"),
        (("cat", "web:/"), 7, "web:/: Is a directory"),
        (("--json", "cat", "web:/x"), 2, "JSON cannot hold"),
        (("changes", "base"), 2, "name what to compare it with"),
        (("changes", "nope"), 5, "there is no device 'nope'"),
        (("diff", "web"), 2, "'cowfs layer diff web'"),
        (("diff", "web", "nope"), 5, "there is no device 'nope'"),
        (("pool", "delta", "web"), 2, "name the device to compare 'web' with"),
        (("pool", "delta", "web", "web-1", "--max-results", "3"), 2, "are for --ranges"),
        (("pool", "delta", "--ranges", "nope"), 5, "there is no device 'nope'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_line(cowfs: Run, words: tuple[str, ...], status: int, line: str) -> None:
    outcome = cowfs(*words)
    assert outcome.status == status
    error = json.loads(outcome.err)["error"]["message"] if words[0] == "--json" else outcome.error
    assert line in error
    assert outcome.out in ("", "[]\n")


def test_changes_and_diff(cowfs: Run, site: Path) -> None:
    cowfs("cp", "-r", site, "web:")
    cowfs("snapshot", "web", "web-2")
    (site / "index").write_text("goodbye\n")
    (site / "raw").write_bytes(b"\0")
    shutil.rmtree(site / "sub")
    cowfs("cp", "-r", f"{site}/.", "web-2:/site")
    cowfs("cp", "-r", "web-2:/site", "web-2:/again")
    assert cowfs("changes", "web-2").out == (
        "A  /again\nA  /again/index\nA  /again/raw\nA  /again/sub\nA  /again/sub/link\nM  /site/index\nA  /site/raw\n"
    )
    assert cowfs("changes", "web-2", "web-1").out.splitlines()[0] == "A  /again"
    assert cowfs("--json", "changes", "web", "web-2").json[-1] == {
        "path": "/site/raw",
        "kind": "D",
        "old_path": None,
        "modified": False,
    }
    assert cowfs("diff", "web", "web-2", "/site").out == (
        "--- web:/site/index\n+++ web-2:/site/index\n@@ -1 +1 @@\n-hello\n+goodbye\n"
        "only in web-2:/site/raw: a binary file\n"
    )
    (first, second) = cowfs("--json", "diff", "web", "web-2", "/site").json
    assert first["text"].endswith("-hello\n+goodbye\n")
    assert second["notes"] == ["only in web-2:/site/raw: a binary file"]
    assert cowfs("diff", "web", "web").out == ""


def test_ranges(cowfs: Run, site: Path) -> None:
    cowfs("snapshot", "web", "web-2")
    assert cowfs("pool", "delta", "--ranges", "web", "web-2").out == ""
    cowfs("cp", "-r", site, "web-2:")
    lines = cowfs("pool", "delta", "--ranges", "web", "web-2").out.splitlines()
    objects = [
        json.loads(line) for line in cowfs("--json", "pool", "delta", "--ranges", "web", "web-2").out.splitlines()
    ]
    assert lines == [f"{found['byte_offset']} {found['size_bytes']} data" for found in objects]
    assert all(found["byte_offset"] % 65536 == 0 for found in objects)
    first = objects[0]["byte_offset"] + objects[0]["size_bytes"]
    rest = cowfs("pool", "delta", "--ranges", "web", "web-2", "--starting-offset", str(first), "--max-results", "1")
    assert rest.out.splitlines() == lines[1:2]


# --- beside mounts


def numbers(path: Path) -> dict[str, Any]:
    """What a tree is, for any reader."""
    found: dict[str, Any] = {}
    for file in sorted(path.rglob("*")):
        status = file.lstat()
        content = (
            file.read_bytes() if stat.S_ISREG(status.st_mode) else os.readlink(file) if file.is_symlink() else None
        )
        found[str(file.relative_to(path))] = status.st_mode, status.st_mtime_ns, content
    return found


@pytest.mark.fuse
@pytest.mark.parametrize("whole", [False, True], ids=["one device", "the whole home"])
def test_a_mounted_device_shows_at_once_what_is_copied(mounted: MountedHome, whole: bool) -> None:
    account = mounted.account
    mounted.run("mount", *([] if whole else ["web"]), mounted.target)
    root = mounted.target / "web" if whole else mounted.target
    mounted.shell(f"mkdir '{root}/dir' && echo old > '{root}/dir/file' && echo old > '{root}/top'")
    looked_for = f"cat '{root}/dir/file' '{root}/top'; ls '{root}' '{root}/dir' '{root}/new' 2>/dev/null || true"
    assert "old\nold\n" in mounted.shell(looked_for)
    source = account.mkdir("source")
    mounted.shell(
        "cd source; mkdir dir new; echo new > dir/file; echo new > top; echo new > new/file; echo new > dir/b"
    )
    mounted.shell(
        f"head -c {BIG} /dev/urandom > source/new/large; ln -s ../top source/new/link; mkfifo source/dir/fifo"
    )
    mounted.run("cp", "-r", f"{source}/.", "web:")
    seen = mounted.shell(looked_for)
    assert "new\nnew\n" in seen
    assert {"new", "file", "large", "link", "fifo", "b"} <= set(seen.split())
    # What an application has just written, not synced, is what comes out.
    mounted.shell(f"echo fresh > '{root}/dir/fresh'")
    assert mounted.run("cat", "web:/dir/fresh").stdout == "fresh\n"
    mounted.run("cp", "-r", "web:/new", source / "out")
    assert numbers(source / "out") == numbers(source / "new")
    assert mounted.run("ls", "web:/new").stdout == "file\nlarge\nlink\n"
    mounted.run("snapshot", "web", "later")
    mounted.run("cp", "-r", "web:/new", "later:/again")
    assert [row["path"] for row in mounted.json("changes", "later", "web")] == [
        *("/again", "/again/file", "/again/large", "/again/link")
    ]
    account.run(["cowfs", "umount", mounted.target])
    mounted.judge()


@pytest.mark.fuse
def test_what_is_shown_for_reading_only_is_not_written(mounted: MountedHome) -> None:
    (mounted.account.mkdir("source") / "file").write_text("x")
    mounted.run("mount", "--read-only", "web", mounted.target)
    line = mounted.refused(5, "cp", "-r", mounted.account.directory / "source", "web:")
    assert "mounted for reading only" in line
    assert mounted.run("ls", "web:").stdout == "lost+found\n"
    mounted.run("umount", mounted.target)


@pytest.mark.fuse
def test_a_device_mounted_as_a_disk_is_read_and_not_written(mounted: MountedHome) -> None:
    (mounted.account.mkdir("source") / "file").write_text("x")
    mounted.run("cp", mounted.account.directory / "source" / "file", "web:")
    mounted.run("mount", "--raw", "web", mounted.target)
    assert f"mounted at {mounted.target}" in mounted.refused(
        5, "cp", mounted.account.directory / "source" / "file", "web:/new"
    )
    assert mounted.run("cat", "web:/file").stdout == "x"
    mounted.run("umount", mounted.target)
    mounted.judge()
