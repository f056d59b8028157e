"""A home that cannot be written: an ordinary user's without permission, root's on a read-only mount."""

from __future__ import annotations

import stat
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cli.mounted_home import SMALL, MountedHome, has_ended, kill_and_wait
from tests.kit.contents import Contents, contents

if TYPE_CHECKING:
    from tests.conftest import Account

pytestmark = pytest.mark.fuse


@pytest.fixture
def account(account: Account) -> Account:
    """Root has a runtime directory of the test's; an ordinary user none, and with that ~/.cache."""
    if account.uid:
        return account
    parent = account.mkdir("runtime")
    parent.chmod(0o700)
    return replace(account, environment={**account.environment, "XDG_RUNTIME_DIR": str(parent)})


@pytest.fixture
def unwritable(mounted: MountedHome) -> Iterator[MountedHome]:
    """With a file in the device web, and a layer with a file."""
    mounted.run("mount", "web", mounted.target)
    mounted.shell("echo content > 'mount point/file'")
    mounted.run("umount", mounted.target)
    mounted.shell("echo layered > layered && tar -cf layer.tar layered")
    mounted.run("layer", "create", "layer")
    mounted.shell(f"cowfs --home '{mounted.home}' layer apply layer < layer.tar")
    mounted.run("layer", "create", "never-used")
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
        mounted.run("umount", "--all", check=False)
        mounted.clear()
        if mounted.account.uid:
            for path, mode in modes.items():
                path.chmod(stat.S_IMODE(mode))
        else:
            subprocess.run(["umount", mounted.home], check=True)


def content_of(home: MountedHome) -> tuple[list[int], Contents]:
    paths = [path for path in sorted(home.home.rglob("*")) if path.is_file()]
    return [path.stat().st_mtime_ns for path in paths], contents(home.home, leave_out=())


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
    got = home.refused(5, "layer", "get", "never-used")
    assert got.startswith("cowfs: layer 'never-used' has no files")
    assert "nothing can be written here" in got
    assert "open read-only" in home.refused(5, "create", "new")
    assert not home.is_mounted(home.target)


def test_a_layer_is_got_until_it_is_put(unwritable: MountedHome) -> None:
    home, before = unwritable, content_of(unwritable)
    parent = home.account.directory / (".cache" if home.account.uid else "runtime")

    # Several that come at once start one server.
    words = ["cowfs", "--home", home.home, "layer", "get", "layer"]
    starting = [home.account.start(words, stdout=subprocess.PIPE) for _ in range(3)]
    (path,) = {process.communicate()[0].strip() for process in starting}
    assert [process.returncode for process in starting] == [0, 0, 0]
    mount_point = path.removesuffix("/layer/rootfs")
    directory = Path(mount_point).parent
    assert (directory.parent, directory.name[:7]) == (parent / "cowfs", "a_home-")
    assert stat.S_IMODE(directory.stat().st_mode) == stat.S_IMODE(directory.parent.stat().st_mode) == 0o700
    assert home.shell(f"cat '{path}/layered'") == "layered\n"
    with pytest.raises(AssertionError, match="Read-only file system"):
        home.shell(f"touch '{path}/new'")

    # Commands go through that server, beside other readers, which are seen.
    home.run("mount", "--read-only", "web", home.target)
    status = home.json("status")
    assert [(view["device"], view["mount_point"]) for view in status["views"]] == [
        (None, mount_point),
        ("web", str(home.target)),
    ]
    home.run("umount", home.target)
    assert home.run("layer", "list").stdout == "layer\nnever-used\n"
    listed = home.shell(f"cowfs --home '{home.home}' layer diff layer | tar -t")
    assert "layered" in listed.split()
    assert "open read-only" in home.refused(5, "layer", "create", "new")

    # As many puts as gets.
    for _ in range(2):
        home.run("layer", "put", "layer")
    assert home.json("status")["holder_pid"] == status["holder_pid"]
    home.run("layer", "put", "layer")
    home.wait_until(lambda: has_ended(status["holder_pid"]))
    assert not home.is_mounted(Path(mount_point))
    assert content_of(home) == before


def test_a_server_of_its_layers_that_is_killed(unwritable: MountedHome) -> None:
    home, before = unwritable, content_of(unwritable)
    for _ in range(2):
        path = home.run("layer", "get", "layer").stdout.strip()
        assert home.shell(f"cat '{path}/layered'") == "layered\n"
        kill_and_wait(home.json("status")["holder_pid"])
    home.run("layer", "put", "layer")  # of nothing
    assert home.json("status")["holder_pid"] is None

    path = home.run("layer", "get", "layer").stdout.strip()
    holder = home.json("status")["holder_pid"]
    home.run("umount", "--all")  # finds it, and with it the gets end
    home.wait_until(lambda: has_ended(holder))
    assert not home.is_mounted(Path(path.removesuffix("/layer/rootfs")))
    assert content_of(home) == before


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
