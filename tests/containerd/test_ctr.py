"""containerd itself with the snapshotter: its images, containers and garbage collection, beside its overlayfs."""

from __future__ import annotations

import gzip
import io
import shutil
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from cowfs.errors import MissingRequirement
from tests.conftest import Account
from tests.containerd.server import Server
from tests.kit import containerd_engine
from tests.kit.containerd_engine import BUSYBOX, Containerd, write_image

pytestmark = [pytest.mark.fuse, pytest.mark.slow, pytest.mark.timeout(600)]

IMAGE = "docker.io/library/tiny:1"
SHOW = """
busybox find / -xdev | busybox sort | busybox xargs busybox stat -c '%n %f %u %g %t %T'
busybox find / -xdev -type f | busybox sort | busybox xargs busybox stat -c '%Y %s'
"""
CHANGE = "echo x > /new; echo y >> /etc/b; busybox rm /bin/ls; busybox chown 5:6 /etc; busybox mkdir /d; echo z > /d/f"


@pytest.fixture
def directory(root_user: Account, needs_fuse: None) -> Iterator[Path]:
    """A short path, for sockets."""
    try:
        containerd_engine.require()
    except MissingRequirement as error:
        pytest.skip(f"{error.message}; run: {error.remedy}")
    made = Path(tempfile.mkdtemp(prefix="ctr-"))
    made.chmod(0o711)  # for containers of other users
    yield made
    shutil.rmtree(made)


def entry(name: str, content: bytes = b"", kind: int = 0o100000, mode: int = 0o644, **more: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = {stat.S_IFDIR: tarfile.DIRTYPE, stat.S_IFLNK: tarfile.SYMTYPE, stat.S_IFCHR: tarfile.CHRTYPE}.get(
        kind, tarfile.REGTYPE
    )
    info.mode, info.mtime, info.size = mode, 1_600_000_000, len(content)
    for field, value in more.items():
        setattr(info, field, value)
    info.pax_headers = {"SCHILY.xattr.user.x": "1"} if kind == stat.S_IFREG and name == "etc/b" else {}
    return info


def layer(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return archive.getvalue()


@pytest.fixture
def image(directory: Path) -> Path:
    """Of three layers, each compressed in another way."""
    busybox = BUSYBOX.read_bytes()
    links = [(entry(f"bin/{name}", kind=stat.S_IFLNK, linkname="busybox"), b"") for name in ("sh", "ls", "id", "cat")]
    directories = [(entry(name, kind=stat.S_IFDIR, mode=0o755), b"") for name in ("proc", "sys", "dev", "tmp", "run")]
    first = layer(
        (entry("./", kind=stat.S_IFDIR, mode=0o755), b""),
        (entry("bin", kind=stat.S_IFDIR, mode=0o755), b""),
        (entry("bin/busybox", busybox, mode=0o4755), busybox),
        *links,
        *directories,
        (entry("etc", kind=stat.S_IFDIR, mode=0o755), b""),
        (entry("etc/a", b"one\n", uid=7, gid=8), b"one\n"),
        (entry("null", kind=stat.S_IFCHR, devmajor=1, devminor=3), b""),
    )
    second = layer((entry("etc/b", b"two\n"), b"two\n"), (entry("etc/.wh.a"), b""))
    third = layer((entry("big", bytes(range(256)) * 4096), bytes(range(256)) * 4096))
    kind = "application/vnd.oci.image.layer.v1.tar"
    halves = gzip.compress(first[:5000], 1) + gzip.compress(first[5000:], 1)  # of two members
    layers = [
        (first, halves, f"{kind}+gzip"),
        (second, zstandard.compress(second), f"{kind}+zstd"),
        (third, third, kind),
    ]
    path = directory / "image.tar"
    write_image(path, IMAGE, layers, ["sh"])
    return path


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


def test_images_and_containers_are_as_with_overlayfs(directory: Path, image: Path, root_user: Account) -> None:
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
            assert set(diffs["cowfs"]) == {"bin", "bin/.wh.ls", "d", "d/f", "etc", "etc/b", "new"}
            assert "not implemented" not in engine.log_tail()
        assert server.stop() == 0, server.log()
    finally:
        if server.process is not None and server.process.poll() is None:
            server.stop()
    assert server.log().count("unpacked sha256:") == 3  # and none of overlayfs'
    assert server.log().count("made sha256:") == 1
    assert "snapshot-" not in server.cowfs("list")
    assert server.cowfs("pool", "check").startswith("clean")
