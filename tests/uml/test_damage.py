"""Damaged volumes read by the kernel and by us: we show every name and every content that it shows."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import random
import stat
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cowfs.errors import FilesystemError
from cowfs.ext4.volume import Volume
from cowfs.filetree import ROOT_INODE
from cowfs.testing.blockdev import memory_device
from cowfs.uml import UmlKernel
from tests.conftest import session_seed
from tests.ext4.damage import BLOCK, SampleImage
from tests.kit.guests import run_in_guest

KINDS = {"plain": ["-O", "^metadata_csum"], "checksums": []}
CASES = 12  # of each kind


def write_sparse(path: Path, image: bytes) -> None:
    with path.open("xb") as file:
        file.truncate(len(image))
        for offset in range(0, len(image), 4096):
            piece = image[offset : offset + 4096]
            if piece.count(0) < len(piece):
                file.seek(offset)
                file.write(piece)


def chosen(sample: SampleImage) -> dict[str, bytes]:
    """The cases that matter most, and some of all kinds."""
    many = sample.directory_blocks[b"many"]
    images = {
        "size": sample.with_inode(b"file-7", 0x6C, 4, 0x80000000),
        "links": sample.with_inode(b"file-7", 0x1A, 2, 0),
        "mode": sample.with_inode(b"file-7", 0x00, 2, 0),
        "index": sample.with_bytes(many[0] * BLOCK + 28, b"\x77"),
        "index-wiped": sample.with_bytes(many[0] * BLOCK, bytes(BLOCK)),
        "leaf-wiped": sample.with_bytes(many[5] * BLOCK, bytes(BLOCK)),
    }
    for case in range(CASES):
        images[f"case-{case}"], _ = sample.damaged(random.Random(f"{session_seed()} {case}"))
    return images


def look(volume: Volume) -> dict[str, dict[str, Any]]:
    """As the guest looks."""
    listed: dict[str, list[str]] = {}
    found: dict[str, str | int] = {}
    todo = [(".", ROOT_INODE)]
    while todo:
        path, inode = todo.pop()
        names = listed[path] = []
        with contextlib.suppress(OSError):  # what came before it counts
            names.extend(os.fsdecode(entry.name) for entry in volume.list_directory(inode))
        for name in {*names} - {".", ".."}:
            below = os.path.join(path, name)
            found[below] = what = look_at(volume, inode, os.fsencode(name))
            if what == "directory" and len(below) < 100:
                todo.append((below, volume.lookup(inode, os.fsencode(name)).inode))
    return {"listed": listed, "found": found}


def look_at(volume: Volume, directory: int, name: bytes) -> str | int:
    try:
        about = volume.lookup(directory, name)
        if stat.S_ISDIR(about.mode):
            return "directory"
        if stat.S_ISLNK(about.mode):
            return "link " + os.fsdecode(volume.read_symlink(about.inode).partition(b"\0")[0])
        if stat.S_ISREG(about.mode):
            content = volume.read(about.inode, 0, 1 << 22)
            return f"file of {about.size_bytes} bytes, {hashlib.sha256(content).hexdigest()}"
    except OSError as error:
        return error.errno or 0
    return f"mode {about.mode:o}"


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_hidden_that_the_kernel_shows(
    uml_kernel: UmlKernel, kind: str, tmp_path: Path, fast_directory: Path
) -> None:
    images = chosen(SampleImage(tmp_path / "sample", KINDS[kind]))
    directory = fast_directory / kind
    directory.mkdir()
    for name, image in images.items():
        write_sparse(directory / name, image)
    done = run_in_guest(uml_kernel, "tests.uml.guest_damage", directory)
    assert done.returncode == 0, done.stderr
    trees = {line["name"]: line["tree"] for line in map(json.loads, done.stdout.splitlines())}
    assert trees.keys() == images.keys()
    missed = []
    for name, theirs in trees.items():
        if theirs is None:
            continue
        try:
            with closing(Volume.open(memory_device(images[name]), read_only=True)) as volume:
                ours = look(volume)
        except FilesystemError as error:
            missed.append(f"{name}: not opened: {error}")
            continue
        missed += [f"{name}: {what}" for what in hidden(theirs, ours)]
    assert not missed, f"seed {session_seed()}: " + "\n".join(missed)


def hidden(theirs: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    """What they show, and we do not. A name that has a zero byte in it they list cut off, and do not find."""
    found = []
    for path, names in theirs["listed"].items():
        if isinstance(names, int):
            continue
        shown = {name for name in names if theirs["found"][os.path.join(path, name)] != errno.ENOENT}
        missing = shown - {*ours["listed"].get(path, ())}
        if missing:
            found.append(f"names in {path}: {sorted(missing)[:5]}")
    for path, what in theirs["found"].items():
        if isinstance(what, str) and ours["found"].get(path) != what:
            found.append(f"{path} is {what}, and for us {ours['found'].get(path)}")
    return found
