"""A home that cannot be written: an ordinary user's without permission, root's on a read-only mount."""

from __future__ import annotations

import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cli.mounted_home import SMALL, MountedHome

if TYPE_CHECKING:
    from tests.conftest import Account

pytestmark = pytest.mark.fuse


@pytest.fixture
def unwritable(mounted: MountedHome) -> Iterator[MountedHome]:
    """With a file in the device web, and a layer with a file."""
    mounted.run("mount", "web", mounted.target)
    mounted.shell("echo content > 'mount point/file'")
    mounted.run("umount", mounted.target)
    mounted.shell("echo layered > layered && tar -cf layer.tar layered")
    mounted.run("layer", "create", "layer")
    mounted.shell(f"cowfs --home '{mounted.home}' layer apply layer < layer.tar")
    if mounted.account.uid:
        modes = {path: path.stat().st_mode for path in [mounted.home, *mounted.home.rglob("*")]}
        for path, mode in modes.items():
            path.chmod(stat.S_IMODE(mode) & ~0o222)
    else:
        subprocess.run(["mount", "--bind", mounted.home, mounted.home], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", mounted.home], check=True)
    try:
        yield mounted
    finally:
        mounted.clear()
        if mounted.account.uid:
            for path, mode in modes.items():
                path.chmod(stat.S_IMODE(mode))
        else:
            subprocess.run(["umount", mounted.home], check=True)


def content_of(home: MountedHome) -> dict[Path, tuple[int, bytes]]:
    paths = [path for path in sorted(home.home.rglob("*")) if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def test_everything_that_only_reads(unwritable: MountedHome) -> None:
    home = unwritable
    before = content_of(home)
    views = []
    for target in (home.target, home.other_target):  # two at once, and commands beside them
        home.run("mount", "--read-only", "web", target)
        views.append({"device": "web", "mount_point": str(target), "view": "tree", "read_only": True})
        assert home.json("status")["views"] == views
    assert [row["mounted"] for row in home.json("list") if row["name"] == "web"] == [
        [str(home.target), str(home.other_target)]
    ]
    for name in (home.target.name, home.other_target.name):
        assert home.shell(f"cat '{name}/file'") == "content\n"
    with pytest.raises(AssertionError, match="Read-only file system"):
        home.shell("touch 'mount point/new'")
    assert home.run("layer", "changes", "layer").stdout == "A /layered\n"
    listed = home.shell(f"cowfs --home '{home.home}' layer diff layer | tar -t")
    assert "layered" in listed.split()
    assert home.json("check")["clean"]
    for target in (home.target, home.other_target):
        home.run("umount", target)
    assert home.json("status")["views"] == []

    home.run("mount", "--raw", "--read-only", "web", home.target)
    home.run("mount", "--read-only", home.other_target)
    assert home.shell("debugfs -R 'cat /file' 'mount point/web' 2>&1 | tail -1") == "content\n"
    assert home.shell("cat other/layer/rootfs/layered") == "layered\n"
    home.run("umount", home.target)
    home.run("umount", home.other_target)
    assert content_of(home) == before


def test_what_would_write_is_one_line(unwritable: MountedHome) -> None:
    home = unwritable
    assert "without writing there is 'mount --read-only'" in home.refused(5, "mount", "web", home.target)
    assert "'mount --read-only MNT' shows the files" in home.refused(5, "layer", "get", "layer")
    assert "open read-only" in home.refused(5, "create", "new")
    assert not home.is_mounted(home.target)


def test_a_holder_that_writes_keeps_readers_away(needs_fuse: None, ordinary_user: Account) -> None:
    """And readers keep a writer away. Root can write whatever the permissions say."""
    home = MountedHome(ordinary_user)
    home.run("init", *SMALL)
    home.run("create", "web")
    try:
        keep_each_other_away(home)
    finally:
        home.clear()
    home.judge()


def keep_each_other_away(home: MountedHome) -> None:
    home.run("mount", "web", home.target)
    pid = home.json("status")["holder_pid"]
    home.home.chmod(0o500)
    lock = home.home / "cowfs.lock"
    lock.chmod(0o400)
    refused = home.refused(5, "mount", "--read-only", "web", home.other_target)
    assert f"process {pid} has 'web' of it mounted at {home.target}" in refused
    home.run("umount", home.target)
    home.run("mount", "--read-only", "web", home.target)
    home.home.chmod(0o700)
    lock.chmod(0o600)
    assert "is held by another process" in home.refused(5, "create", "new")
    home.run("umount", home.target)
    home.run("create", "new")
