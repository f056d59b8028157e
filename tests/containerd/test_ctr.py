"""containerd itself with the snapshotter: its images, containers and garbage collection, beside its overlayfs."""

from __future__ import annotations

import io
import signal
import subprocess
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import Account
from tests.containerd.server import with_containerd
from tests.containerd.tiny_image import CHANGE, CHANGED, IMAGE, write_tiny_image
from tests.kit.containerd_engine import Containerd

pytestmark = [pytest.mark.fuse, pytest.mark.slow, pytest.mark.timeout(600)]

SHOW = """
busybox find / -xdev | busybox sort | busybox xargs busybox stat -c '%n %f %u %g %t %T'
busybox find / -xdev -type f | busybox sort | busybox xargs busybox stat -c '%Y %s'
"""


def changes(engine: Containerd, snapshotter: str, key: str) -> dict[str, tuple[object, ...]]:
    """What `ctr snapshots diff` says, by path."""
    words = ["ctr", "snapshots", "--snapshotter", snapshotter, "diff", key]
    archive = subprocess.run(words, env=engine.environment, capture_output=True, check=True).stdout
    found: dict[str, tuple[object, ...]] = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:  # compressed or not
        for info in tar:
            content = tar.extractfile(info).read() if info.isreg() else b""  # type: ignore[union-attr]
            is_whiteout = ".wh." in info.name
            found[info.name] = (info.type, info.uid, info.gid, content, 0 if is_whiteout else info.mode)
    return found


def test_images_and_containers_are_as_with_overlayfs(directory: Path, root_user: Account) -> None:
    image = write_tiny_image(directory / "image.tar")
    trees: dict[str, tuple[str, str]] = {}
    diffs: dict[str, dict[str, tuple[object, ...]]] = {}
    with with_containerd(root_user, directory) as (engine, server):
        for snapshotter in ("cowfs", "overlayfs"):
            using = ("--snapshotter", snapshotter)
            engine.ctr("images", "import", *using, image)
            tree = engine.ctr("run", "--rm", *using, IMAGE, "one", "sh", "-c", SHOW)
            mapped = ("--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536")
            user = engine.ctr("run", "--rm", *using, *mapped, IMAGE, "two", "sh", "-c", "id -u; echo x > /m")
            engine.ctr("run", *using, IMAGE, "three", "sh", "-c", CHANGE)
            trees[snapshotter] = tree, user
            diffs[snapshotter] = changes(engine, snapshotter, "three")
            engine.ctr("containers", "rm", "three")
            engine.ctr("images", "rm", "--sync", IMAGE)
            assert engine.ctr("snapshots", *using, "ls").split() == ["KEY", "PARENT", "KIND"]
        assert trees["cowfs"] == trees["overlayfs"]
        assert trees["cowfs"][1] == "0\n"
        assert diffs["cowfs"] == diffs["overlayfs"]
        assert set(diffs["cowfs"]) == CHANGED
        assert "not implemented" not in engine.log_tail()
    assert server.log().count("unpacked sha256:") == 3  # and none of overlayfs'
    assert server.log().count("made sha256:") == 1


FOREVER = "echo begun > /begun; while :; do echo x >> /w; busybox sleep 0.1; done"
LOOK = "cat /begun; busybox cut -d' ' -f2,3 /proc/mounts; busybox test -e /dev/null"


def test_containers_go_on_while_others_are_made_and_containerd_is_killed(directory: Path, root_user: Account) -> None:
    """And when the snapshotter is killed, what it had is removed as ever, and new ones run."""
    image = write_tiny_image(directory / "image.tar")
    using = ("--snapshotter", "cowfs")

    def look() -> str:
        return engine.ctr("task", "exec", "--exec-id", "look", "long", "sh", "-ec", LOOK)

    def say(number: int) -> str:
        return engine.ctr("run", "--rm", *using, IMAGE, f"n{number}", "sh", "-c", f"echo {number} > /n; cat /n")

    with with_containerd(root_user, directory) as (engine, server):
        engine.ctr("images", "import", *using, image)
        engine.ctr("run", "--detach", *using, IMAGE, "long", "sh", "-c", FOREVER)
        seen = look()
        assert seen.startswith("begun\n")
        with ThreadPoolExecutor(6) as pool:
            assert list(pool.map(say, range(6))) == [f"{number}\n" for number in range(6)]
        engine.ctr("snapshots", *using, "commit", "committed", "long")
        assert look() == seen
        engine.stop(kill=True)
        engine.start()
        assert look() == seen
        # containerd waits before it dials one again that has ended: it is begun anew instead.
        engine.stop(kill=True)
        server.stop(signal.SIGKILL)
        server.start().__exit__()
        engine.start()
        assert say(7) == "7\n"
        engine.ctr("task", "rm", "--force", "long")
        engine.ctr("containers", "rm", "long")
        engine.ctr("snapshots", *using, "rm", "committed")
        engine.ctr("images", "rm", "--sync", IMAGE)
        assert engine.ctr("snapshots", *using, "ls").split() == ["KEY", "PARENT", "KIND"]


def test_an_image_that_was_pushed_is_pulled_by_ctr(directory: Path, root_user: Account, debian_registry: str) -> None:
    """Layers that came from elsewhere and one of ours, from a registry that has blocks beside them."""
    image = write_tiny_image(directory / "image.tar")
    (directory / "new").write_text("new\n")
    name = f"{debian_registry}/team/tiny:1"
    home = ["cowfs", "--home", root_user.directory / "work"]
    root_user.run([*home, "init", "--data-size", "256M", "--metadata-size", "4M", "--base-size", "32M"])
    root_user.run([*home, "layer", "import", image, "--name", "mine"])
    root_user.run([*home, "cp", directory / "new", "mine:/etc/new"])
    root_user.run([*home, "layer", "push", "mine", name])
    with with_containerd(root_user, directory) as (engine, server):
        engine.ctr("images", "pull", "--plain-http", "--snapshotter", "cowfs", name)
        look = "cat /etc/new /etc/b; busybox ls /etc"
        said = engine.ctr("run", "--rm", "--snapshotter", "cowfs", name, "one", "sh", "-c", look)
        assert said == "new\ntwo\nb\nnew\n"
        engine.ctr("images", "rm", "--sync", name)
    assert server.log().count("unpacked sha256:") == 4
