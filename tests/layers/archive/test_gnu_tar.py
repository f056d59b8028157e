"""GNU tar as the other side: what it packs is unpacked here, and what is packed here it unpacks."""

from __future__ import annotations

import os
import random
import shutil
import stat
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cowfs.ext4.files import acl
from cowfs.layers import LayerRoot
from tests.ext4.conftest import MIB
from tests.layers.archive.conftest import LayerVolume
from tests.layers.archive.trees import (
    NO_ID,
    Tree,
    acl_value,
    apply,
    device,
    directory,
    fifo,
    file,
    look,
    look_at_disk,
    paths,
    symlink,
    twin,
    write,
)

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="needs root, to set owners and attributes of files: sudo make test"
)

# `--numeric-owner`, for access lists of names mean nothing elsewhere.
EVERYTHING = ["--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner"]
TIME_NS = 1_500_000_000_987_654_321
NAMED = acl_value((1, 6, NO_ID), (2, 7, 1000), (4, 4, NO_ID), (8, 1, 70000), (16, 6, NO_ID), (32, 4, NO_ID))
CAPABILITY = bytes.fromhex("0100000201040000000000000000000000000000")


def tar(*arguments: str, archive: bytes = b"") -> bytes:
    """Run GNU tar; it must say nothing."""
    found = shutil.which("tar")
    assert found is not None
    result = subprocess.run(
        [found, *arguments],
        input=archive,
        capture_output=True,
        check=False,
        timeout=60,
        env={"LC_ALL": "C", "PATH": os.defpath},
    )
    assert (result.returncode, result.stderr.decode()) == (0, "")
    return result.stdout


def on_disk(root: Path, tree: Tree) -> None:
    """Put a tree on the disk."""
    places = {path: os.path.join(os.fsencode(root), path) if path else os.fsencode(root) for path in tree}
    for path in sorted(tree):
        node, place = tree[path], places[path]
        if node.twin:
            os.link(places[node.twin], place, follow_symlinks=False)
        elif stat.S_ISREG(node.mode):
            Path(os.fsdecode(place)).write_bytes(node.content)
        elif stat.S_ISLNK(node.mode):
            os.symlink(node.content, place)
        elif not node.is_directory:
            os.mknod(place, node.mode, node.rdev)
        elif path:
            os.mkdir(place)
    for path in sorted(tree, reverse=True):
        node, place = tree[path], places[path]
        if node.twin:
            continue
        os.lchown(place, node.uid, node.gid)
        if not stat.S_ISLNK(node.mode):
            os.chmod(place, stat.S_IMODE(node.mode))
        for name, value in node.xattrs.items():
            os.setxattr(place, name, value, follow_symlinks=False)
        os.utime(place, ns=(node.mtime_ns, node.mtime_ns), follow_symlinks=False)


def rich_tree(rng: random.Random) -> Tree:
    """Everything that both sides can hold."""
    times: Any = {"mtime_ns": TIME_NS}
    tree: Tree = {
        b"": directory(0o711, uid=7, gid=8, **times),
        b"d": directory(0o2775, uid=1, gid=2, xattrs={acl.DEFAULT: NAMED}, **times),
        b"d/inside": file(b"inside a directory that hands down a list", **times),
        b"d/acl": file(b"x", 0o664, xattrs={acl.ACCESS: NAMED}, **times),
        b"suid": file(rng.randbytes(5000), 0o4755, uid=1000, gid=70000, mtime_ns=-1_500_000_000),
        b"caps": file(b"x", 0o755, xattrs={b"security.capability": CAPABILITY, b"user.c": b"c"}, **times),
        b"xattrs": file(b"", xattrs={b"user.binary": b"\x00=\n\xff", b"user.empty": b"", b"user.a=b%c": b"%"}, **times),
        b"trusted": directory(xattrs={b"trusted.overlay.opaque": b"y"}, **times),
        b"large": file(rng.randbytes(2 * MIB + 77), **times),
        b"large-id": file(uid=2**31, gid=2**32 - 2, **times),
        b"far": file(b"x", mtime_ns=2**33 * 10**9 + 1),
        b"link": symlink(b"d/inside", uid=5, xattrs={b"trusted.l": b"l"}, **times),
        b"long-link": symlink(b"x/" * 120 + b"\xff", **times),
        b"twin": twin(b"suid"),
        b"link-twin": twin(b"link"),
        b"fifo": fifo(**times),
        b"null": device(stat.S_IFCHR, 1, 3, **times),
        b"disk": device(stat.S_IFBLK, 259, 70000, uid=3, **times),
        b"n" * 255: file(b"long", **times),
        b"bytes-\xff\xfe": file(b"x", **times),
        "ünïcödé".encode(): directory(**times),
        "ünïcödé".encode() + b"/" + b"m" * 200: file(b"x", **times),
        b"new\nline": file(b"x", **times),
    }
    return tree


@needs_root
@pytest.mark.parametrize("form", ["posix", "gnu"])
def test_what_gnu_tar_packs_is_unpacked(layer: LayerRoot, tmp_path: Path, rng: random.Random, form: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    on_disk(source, rich_tree(rng))
    expected = look_at_disk(source)
    options = EVERYTHING if form == "posix" else ["--numeric-owner"]
    archive = tar("-c", f"--format={form}", *options, "-C", str(source), ".")
    applied = apply(layer, archive)
    assert (applied.skipped_xattrs, applied.skipped_devices) == (0, 0)
    if form == "gnu":  # whole seconds, and no attributes
        expected = {
            path: replace(node, mtime_ns=node.mtime_ns // 10**9 * 10**9, xattrs={}) for path, node in expected.items()
        }
    found = look(layer)
    assert found == expected


@needs_root
@pytest.mark.parametrize("sparse", [False, True])
def test_what_is_packed_here_gnu_tar_unpacks(
    layers: LayerVolume, tmp_path: Path, rng: random.Random, sparse: bool
) -> None:
    tree = rich_tree(rng)
    layer = layers.new_layer(tree)
    inode = layer.tree.restore(layer.inode, b"sparse", stat.S_IFREG | 0o644, 0, 0)
    for place in range(0, 3 * MIB, 100_000):
        layer.tree.write(inode, place, b"data%d" % place)
    layer.tree.set_attributes(inode, size_bytes=5 * MIB + 3, mtime_ns=TIME_NS)
    layer.tree.set_attributes(layer.inode, mtime_ns=TIME_NS)
    target = tmp_path / "target"
    target.mkdir()
    options = ["-p", "--same-owner", "--warning=no-timestamp", *EVERYTHING]
    tar("-x", *options, "-C", str(target), archive=write(layer, sparse=sparse))
    assert look_at_disk(target) == look(layer)
    if sparse:
        assert (target / "sparse").stat().st_blocks * 512 < MIB


def write_sparse(path: Path, rng: random.Random, pieces: int) -> bytes:
    """A file with holes, at the start and at the end too; tar finds them by SEEK_HOLE."""
    with path.open("wb") as out:
        for number in range(1, pieces + 1):
            out.seek(number * 65536)
            out.write(rng.randbytes(4096 + number))
        out.truncate((pieces + 3) * 65536 + 77)
    return path.read_bytes()


@pytest.mark.parametrize("pieces", [0, 1, 4, 5, 60])
@pytest.mark.parametrize(
    "options",
    [
        ["--format=gnu"],
        ["--format=oldgnu"],
        ["--format=posix", "--sparse-version=0.0"],
        ["--format=posix", "--sparse-version=0.1"],
        ["--format=posix", "--sparse-version=1.0"],
    ],
    ids="-".join,
)
def test_sparse_formats_of_gnu_tar(
    layer: LayerRoot, tmp_path: Path, rng: random.Random, options: list[str], pieces: int
) -> None:
    """Read whole, holes kept, and none of them written."""
    content = write_sparse(tmp_path / "sparse", rng, pieces)
    long_name = "n" * 150
    write_sparse(tmp_path / long_name, rng, 2)
    archive = tar("-c", "-S", *options, "--owner=0", "--group=0", "-C", str(tmp_path), "sparse", long_name)
    assert len(archive) < len(content)
    applied = apply(layer, archive)
    assert paths(layer) == {b"sparse", long_name.encode()}
    found = layer.tree.lookup(layer.inode, b"sparse")
    assert layer.tree.read(found.inode, 0, len(content) + 1) == content
    assert applied.size_bytes == len(content) + (tmp_path / long_name).stat().st_size
    assert found.blocks * 512 <= 3 * 4096 * pieces + 8192


@pytest.mark.parametrize("sparse", [False, True])
def test_gnu_tar_lists_what_is_packed_here(layers: LayerVolume, sparse: bool) -> None:
    layer = layers.new_layer(
        {
            b"": directory(),
            b"d": directory(0o1777),
            b"d/f": file(b"x" * 1234, 0o4755, uid=5, gid=6),
            b"l": symlink(b"d"),
        }
    )
    inode = layer.tree.restore(layer.inode, b"s", stat.S_IFREG | 0o600, 0, 0, mtime_ns=TIME_NS)
    layer.tree.set_attributes(inode, size_bytes=3 << 40, mtime_ns=0)
    if not sparse:
        layer.tree.unlink(layer.inode, b"s")
    layer.tree.set_attributes(layer.inode, mtime_ns=1_600_000_000 * 10**9)
    listed = tar("-t", "-v", "--numeric-owner", "--utc", archive=write(layer, sparse=sparse)).decode().splitlines()
    assert listed == [
        "drwxr-xr-x 0/0               0 2020-09-13 12:26 ./",
        "drwxrwxrwt 0/0               0 2020-09-13 12:26 d/",
        "-rwsr-xr-x 5/6            1234 2020-09-13 12:26 d/f",
        "lrwxrwxrwx 0/0               0 2020-09-13 12:26 l -> d",
        *(["-rw------- 0/0   3298534883328 1970-01-01 00:00 s"] if sparse else []),
    ]
