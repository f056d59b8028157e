"""The commands about layers, on a home that is free and on one whose layers are got."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator

import pytest

from tests.cli.mounted_home import SMALL, MountedHome, kill_and_wait
from tests.conftest import Account

pytestmark = [pytest.mark.fuse, pytest.mark.slow]


@pytest.fixture
def layers(account: Account) -> Iterator[MountedHome]:
    """A home with the layer `one`, which holds two files, and `two` on it."""
    home = MountedHome(account)
    options = [
        word
        for pair in zip(["--data-size", "--metadata-size", "--base-size"], SMALL[1::2], strict=True)
        for word in pair
    ]
    home.run("init", *options)
    tree = account.mkdir("tree")
    account.run(["sh", "-c", f"echo a > {tree}/a; echo b > {tree}/b"])
    account.run(["tar", "-C", tree, "-cf", account.directory / "tree.tar", "."])
    home.run("layer", "create", "one")
    home.shell(f"cowfs --home '{home.home}' layer apply one < tree.tar")
    home.run("layer", "create", "two", "one")
    yield home
    home.run("check")


def test_a_layer_is_used_at_a_path_until_it_is_put(layers: MountedHome) -> None:
    # Both at once: one of them starts the server.
    words = ["cowfs", "--home", layers.home, "layer", "get", "two"]
    starting = [layers.account.start(words, stdout=subprocess.PIPE) for _ in range(2)]
    (path,) = {process.communicate()[0].strip() for process in starting}
    assert [process.returncode for process in starting] == [0, 0]
    assert path == f"{layers.home}/mnt/two/rootfs"
    # As one that asks finds it when another one's server has just mounted it.
    make_mounts = "import sys; from cowfs.devices.on_disk.files import HomeFiles; HomeFiles(sys.argv[1]).make_mounts()"
    layers.account.run(["python", "-c", make_mounts, layers.home])
    layers.shell(f"cat '{path}/a'; echo new > '{path}/new'; rm '{path}/b'")
    assert layers.run("layer", "changes", "two", "one").stdout == "D /b\nA /new\n"
    holder = layers.json("status")["holder_pid"]
    assert holder

    # What is written is in a snapshot that is made meanwhile, and in a diff.
    layers.run("layer", "create", "three", "two")
    assert layers.shell(f"cowfs --home '{layers.home}' layer diff three one | tar tf -") == ".wh.b\nnew\n"
    assert layers.shell(f"cowfs --home '{layers.home}' layer diff two one | tar tf -") == ".wh.b\nnew\n"

    refused = layers.refused(5, "resize", "two", "128M")
    assert refused.endswith("so it cannot be resized; first run: cowfs layer put two")

    # Removing what is in use puts it off.
    layers.run("layer", "remove", "two")
    assert layers.run("layer", "list").stdout == "one\nthree\n"
    assert layers.run("layer", "exists", "two", check=False).returncode == 0

    layers.run("layer", "put", "two")
    assert layers.shell(f"cat '{path}/new'") == "new\n"
    assert layers.json("layer", "put", "two") == {"id": "two"}
    layers.wait_until(lambda: not os.path.isdir(f"/proc/{holder}"))
    assert not layers.is_mounted(layers.home / "mnt")
    assert layers.run("layer", "exists", "two", check=False).returncode == 1
    assert layers.run("layer", "changes", "three", "one").stdout == "D /b\nA /new\n"


def test_a_layer_is_mounted_again_after_its_server_was_killed(layers: MountedHome) -> None:
    path = layers.run("layer", "get", "two").stdout.strip()
    layers.shell(f"echo kept > '{path}/new'; sync '{path}/new'")
    kill_and_wait(layers.json("status")["holder_pid"])
    assert layers.run("layer", "changes", "two", "one").stdout == "A /new\n"
    assert layers.run("layer", "get", "two").stdout.strip() == path
    assert layers.shell(f"cat '{path}/new'") == "kept\n"
    layers.run("layer", "put", "two")
    layers.wait_until(lambda: not layers.is_mounted(layers.home / "mnt"))


def test_an_archive_reaches_a_layer_through_the_process_that_holds_the_home(layers: MountedHome) -> None:
    path = layers.run("layer", "get", "two").stdout.strip()
    layers.run("layer", "create", "other", "one")
    other = f"cowfs --home '{layers.home}' layer apply other"
    layers.shell(f"echo c > tree/c; tar -C tree -cf - . | {other}")
    assert layers.run("layer", "changes", "other", "one").stdout.splitlines()[-1] == "A /c"
    seen = layers.shell(f"ls '{path}/../../other/rootfs'")
    assert seen == "a\nb\nc\n"
    refused = layers.account.run(["sh", "-c", f"{other} < /etc/passwd"], check=False)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    layers.run("layer", "put", "two")
    layers.wait_until(lambda: not layers.is_mounted(layers.home / "mnt"))


def test_a_diff_is_applied_in_the_same_home_through_a_pipe(layers: MountedHome) -> None:
    """Neither command keeps the home while it waits for the other."""
    layers.run("layer", "create", "copy")
    cowfs = f"cowfs --home '{layers.home}'"
    layers.shell(f"{cowfs} layer diff one | {cowfs} layer apply copy")
    assert layers.run("layer", "changes", "copy", "one").stdout == ""
    assert layers.run("layer", "changes", "copy").stdout == "A /a\nA /b\n"


def test_what_a_failed_diff_wrote_is_no_layer(layers: MountedHome) -> None:
    layers.run("layer", "create", "copy", "one")
    cowfs = f"cowfs --home '{layers.home}'"
    piped = f"({cowfs} layer diff nobody | {cowfs} layer apply copy) 2>&1 || echo status $?"
    assert "layer archive: it is empty, not even an archive of no files" in layers.shell(piped)
    assert layers.shell(piped).endswith("status 2\n")
    cut = f"{cowfs} layer diff one | head -c 1024 | ({cowfs} layer apply copy 2>&1 || echo status $?)"
    assert "it was cut off" in layers.shell(cut) or "it ends in the middle" in layers.shell(cut)
    assert layers.run("layer", "changes", "copy", "one").stdout == ""


def test_holes_of_files_take_no_space_in_an_archive(layers: MountedHome) -> None:
    """The same bytes, into whatever they are written."""
    layers.shell("mkdir big && echo begin > big/f && truncate -s 50M big/f && tar -C big -cSf big.tar f")
    cowfs = f"cowfs --home '{layers.home}'"
    layers.shell(f"{cowfs} layer apply two < big.tar")
    layers.shell(f"{cowfs} layer diff two one > file; {cowfs} layer diff two one | cat > piped; cmp file piped")
    layers.shell(f"echo before > appended; {cowfs} layer diff two one >> appended; tail -c +8 appended | cmp - piped")
    layers.shell(f"({cowfs} layer diff two one; echo after) > followed; head -c -6 followed | cmp - piped")
    layers.shell(f"{cowfs} layer diff --sparse two one > sparse")
    sizes = {name: (layers.account.directory / name).stat() for name in ("file", "sparse", "piped")}
    assert sizes["file"].st_size == sizes["piped"].st_size > 50 << 20
    assert sizes["file"].st_blocks * 512 < 1 << 20
    assert sizes["sparse"].st_size < 1 << 16
    layers.run("layer", "create", "three", "one")
    layers.shell(f"{cowfs} layer apply three < sparse")
    assert layers.run("layer", "changes", "three", "two").stdout == ""


def test_what_info_says(layers: MountedHome) -> None:
    lines = layers.run("info").stdout.splitlines()
    assert lines[0].startswith("Pool Name: docker-")
    assert "Base Device Size: 67.11MB" in lines
    info = layers.json("info")
    assert info["base_size_bytes"] == 64 << 20
    options = ["--storage-opt", "dm.basesize=128M"]
    grown = layers.account.run(["cowfs", "--home", layers.home, *options, "--json", "info"])
    assert json.loads(grown.stdout)["base_size_bytes"] == 128 << 20
    smaller = ["--storage-opt", "dm.basesize=64M"]
    refused = layers.account.run(["cowfs", "--home", layers.home, *smaller, "info"], check=False)
    assert refused.returncode == 2
    assert "Base device size cannot be smaller than" in refused.stderr


def test_a_mount_of_one_device_shows_no_layers(layers: MountedHome) -> None:
    point = layers.account.mkdir("one")
    layers.run("mount", "one", point)
    assert f"the mount at {point} has 'one' alone; first run: cowfs umount" in layers.refused(5, "layer", "get", "two")
    assert layers.run("layer", "changes", "two", "one").stdout == ""
    layers.run("umount", point)
    layers.run("layer", "get", "two")
    layers.run("layer", "put", "two")
    layers.wait_until(lambda: not layers.is_mounted(layers.home / "mnt"))


def test_bad_requests(layers: MountedHome) -> None:
    assert "exists already" in layers.refused(5, "layer", "create", "one")
    assert "no device 'nobody'" in layers.refused(5, "layer", "create", "x", "nobody")
    assert "cannot be the name" in layers.refused(2, "layer", "create", "a/b")
    assert "no device 'nobody'" in layers.refused(5, "layer", "get", "nobody")
    assert "no device 'nobody'" in layers.refused(5, "layer", "changes", "nobody")
    assert "invalid size" in layers.refused(2, "layer", "create", "x", "one", "--size", "many")
    layers.run("layer", "put", "one")
    layers.run("layer", "remove", "nobody")
    layers.wait_until(lambda: not layers.is_mounted(layers.home / "mnt"))
