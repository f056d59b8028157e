"""containerd itself with the snapshotter: its images, containers and garbage collection, beside its overlayfs."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.conftest import Account
from tests.containerd.server import Server
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
    engine = Containerd(directory / "e", directory / "s")
    server = Server(root_user, "--containerd", engine.socket)
    server.socket = directory / "s"
    trees: dict[str, tuple[str, str]] = {}
    diffs: dict[str, dict[str, tuple[object, ...]]] = {}
    try:
        with server.start(), engine:
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
        assert server.stop() == 0, server.log()
    finally:
        if server.process is not None and server.process.poll() is None:
            server.stop()
    assert server.log().count("unpacked sha256:") == 3  # and none of overlayfs'
    assert server.log().count("made sha256:") == 1
    assert "snapshot-" not in server.cowfs("list")
    assert server.cowfs("pool", "check").startswith("clean")
