"""Damaged volumes, mounted: what is damaged fails with EUCLEAN, and everything else works on."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Account
from tests.ext4.damage import BLOCK, MANY, SampleImage
from tests.fuse.conftest import Serve

pytestmark = pytest.mark.fuse

TOP = {b"sub", *(b"file-%d" % number for number in range(60))}
NAMES = {b"name-%d-%s" % (number, b"l" * 40) for number in range(MANY)}


@pytest.fixture
def sample(account: Account) -> SampleImage:
    return SampleImage(account.mkdir("images") / "image", ["-O", "^metadata_csum"])


@pytest.fixture
def mounted(account: Account, serve: Serve) -> Callable[[bytes], bytes]:
    def mount(image: bytes) -> bytes:
        path = account.directory / "damaged"
        path.write_bytes(image)
        os.chown(path, account.uid, account.gid)
        return os.fsencode(serve(account, "volume", path).target)

    return mount


def list_as(account: Account, path: bytes) -> tuple[set[bytes], str]:
    """The names that `ls` prints, and what it complains about."""
    done = account.run(["ls", "-U1", os.fsdecode(path)], check=False)
    return set(os.fsencode(done.stdout).split()), done.stderr


@pytest.mark.parametrize(
    ("offset", "width", "value"),
    [
        *((0x6C, 4, 0x80000000), (0x1A, 2, 0), (0x00, 2, 0), (0x00, 2, 0o070644), (0x68, 4, 0x7FFFFFFF)),
        (0x20, 4, 0x10000000),
    ],
    ids=["size", "links", "mode", "type", "attributes", "inline data without the feature"],
)
def test_a_damaged_inode(
    account: Account, sample: SampleImage, mounted: Callable[[bytes], bytes], offset: int, width: int, value: int
) -> None:
    root = mounted(sample.with_inode(b"file-7", offset, width, value))
    for _ in range(2):
        assert list_as(account, root + b"/top") == (TOP, "")
    for look in ("stat", "cat"):
        done = account.run([look, os.fsdecode(root + b"/top/file-7")], check=False)
        assert os.strerror(errno.EUCLEAN) in done.stderr
    script = f"cd {os.fsdecode(root)}/top && cat file-8 && echo new > new && mv new newer && rm file-9 && df ."
    assert account.run(["sh", "-c", script]).stdout.startswith("x" * 400)


def test_a_damaged_index_and_a_damaged_block(
    account: Account, sample: SampleImage, mounted: Callable[[bytes], bytes]
) -> None:
    root_block, leaf = (sample.directory_blocks[b"many"][index] for index in (0, 5))
    index = sample.with_bytes(root_block * BLOCK + 28, b"\x77")
    root = mounted(index[: leaf * BLOCK] + bytes(BLOCK) + index[(leaf + 1) * BLOCK :])
    found, complaint = list_as(account, root + b"/many")
    assert found < NAMES
    assert len(found) > MANY - 30
    assert os.strerror(errno.EUCLEAN) in complaint
    name = Path(os.fsdecode(root), "many", os.fsdecode(min(found)))
    account.run(["rm", name])
    done = account.run(["touch", name], check=False)
    assert os.strerror(errno.EUCLEAN) in done.stderr
    account.run(["touch", Path(os.fsdecode(root), "top", "elsewhere")])


def test_figures_that_make_no_sense(account: Account, sample: SampleImage, mounted: Callable[[bytes], bytes]) -> None:
    root = mounted(sample.with_bytes(BLOCK + 0x08, b"\xff" * 12))  # reserved, free and free inodes
    figures = os.statvfs(root)
    assert figures.f_bavail == 0
    assert figures.f_bfree <= figures.f_blocks <= 16384
    assert figures.f_ffree <= figures.f_files
