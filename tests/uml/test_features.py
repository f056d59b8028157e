"""Volumes with every feature of mke2fs: read as the kernel wrote them, written as the kernel reads them, or refused.

The table says what is expected of each; nothing may be read wrong.
"""

from __future__ import annotations

import json
import stat
from contextlib import closing
from pathlib import Path

import pytest

from cowfs.blockdev import FileDevice
from cowfs.errors import FilesystemError
from cowfs.ext4.tools import commands as tools
from cowfs.ext4.volume import Volume
from cowfs.filetree import ROOT_INODE
from cowfs.uml import UmlKernel
from tests.ext4.crash_world import read_state
from tests.kit.guests import run_in_guest
from tests.uml.test_journals import as_seen

MIB = 1 << 20
WRITTEN = {
    "default": [],
    "1k": ["-b", "1024"],
    "2k": ["-b", "2048"],
    "128-byte-inodes": ["-I", "128"],
    "1024-byte-inodes-inline": ["-I", "1024", "-O", "inline_data"],
    "inline_data": ["-O", "inline_data"],
    "inline_data-plain": ["-O", "inline_data,^metadata_csum,^dir_index"],
    "no-64bit": ["-O", "^64bit"],
    "no-extents": ["-O", "^extents,^64bit"],
    "no-filetype": ["-O", "^filetype"],
    "no-flex_bg": ["-O", "^flex_bg"],
    "no-journal": ["-O", "^has_journal"],
    "no-huge_file": ["-O", "^huge_file,^extra_isize,^dir_nlink"],
    "uninit_bg": ["-O", "uninit_bg,^metadata_csum"],
    "meta_bg": ["-O", "meta_bg,^resize_inode"],
    "sparse_super2": ["-O", "sparse_super2"],
    "large_dir": ["-O", "large_dir"],
    "ea_inode": ["-O", "ea_inode"],
    "metadata_csum_seed": ["-O", "metadata_csum_seed"],
    "orphan_file": ["-O", "orphan_file"],
    "stable_inodes": ["-O", "stable_inodes"],
    "fast_commit": ["-O", "fast_commit"],
    "packed": ["-E", "packed_meta_blocks=1"],
    "small-groups": ["-g", "8192"],
}
READ_ONLY = {
    "bigalloc": (["-O", "bigalloc"], "bigalloc"),
    "bigalloc-inline": (["-O", "bigalloc,inline_data"], "bigalloc"),
    "quota": (["-O", "quota"], "quota"),
    "project": (["-O", "quota,project"], "project"),
    "verity": (["-O", "verity"], "verity"),
}
REFUSED = {
    "casefold": (["-O", "casefold"], "casefold"),
    "encrypt": (["-O", "encrypt"], "encrypt"),
    "mmp": (["-O", "mmp"], "mmp"),
    "journal_dev": (["-O", "journal_dev"], "journal_dev"),
    "64k": (["-b", "65536"], "2^16"),
}


def make(path: Path, options: list[str]) -> None:
    with path.open("wb") as file:
        file.truncate(48 * MIB)
    block = [] if "-b" in options else ["-b", "4096"]
    status, output = tools.run(
        "mke2fs", ["-q", "-F", "-t", "ext4", "-E", "nodiscard,root_owner=0:0", *block, *options, str(path)]
    )
    assert status == 0, output


def tree_of(path: Path) -> dict[str, str]:
    device = FileDevice(path, read_only=True)
    with closing(device), closing(Volume.open(device, read_only=True)) as volume:
        return as_seen(read_state(volume))


def change(path: Path) -> None:
    """Something of each kind, in what is there and beside it."""
    device = FileDevice(path)
    with closing(device), closing(Volume.open(device)) as volume:
        for name in (b"file-1", b"file-100", b"file-3000", b"attributes-50"):
            entry = {one.name: one.inode for one in volume.list_directory(ROOT_INODE)}.get(name)
            if entry is not None:
                volume.write(entry, volume.attributes(entry).size_bytes, b"appended")
        for entry_ in list(volume.list_directory(ROOT_INODE)):
            if entry_.mode == stat.S_IFDIR and entry_.name not in (b".", b"..", b"lost+found"):
                volume.make_node(entry_.inode, b"new", stat.S_IFREG | 0o644, 0, 0)
                names = {one.name for one in volume.list_directory(entry_.inode)}
                if b"n1" in names:
                    volume.unlink(entry_.inode, b"n1")
        top = volume.make_directory(ROOT_INODE, b"ours", 0o755, 0, 0).inode
        for number in range(150):
            inode = volume.make_node(top, b"f%d" % number, stat.S_IFREG | 0o644, 0, 0).inode
            volume.write(inode, 0, b"%d" % number * (number * 7))
        volume.make_symlink(top, b"short", b"s", 0, 0)
        volume.make_symlink(top, b"long", b"l" * 200, 0, 0)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_supported_is_refused_by_name(tmp_path: Path, name: str) -> None:
    options, word = REFUSED[name]
    image = tmp_path / "image"
    make(image, options)
    for read_only in (True, False):
        with closing(FileDevice(image, read_only=True)) as device, pytest.raises(FilesystemError) as caught:
            Volume.open(device, read_only=read_only)
        assert word in str(caught.value)


def test_every_feature_beside_the_kernel(uml_kernel: UmlKernel, fast_directory: Path) -> None:
    expected = {}
    for name, options in [*WRITTEN.items(), *((name, options) for name, (options, _) in READ_ONLY.items())]:
        make(fast_directory / f"theirs-{name}", options)
    for name, options in WRITTEN.items():
        make(fast_directory / f"ours-{name}", options)
        change(fast_directory / f"ours-{name}")
        expected[f"ours-{name}"] = tree_of(fast_directory / f"ours-{name}")
    done = run_in_guest(uml_kernel, "tests.uml.guest_features", fast_directory)
    assert done.returncode == 0, done.stderr
    lines = {line["name"]: line for line in map(json.loads, done.stdout.splitlines())}
    not_mounted = {name for name, line in lines.items() if "error" in line}
    assert not_mounted <= {"theirs-quota", "theirs-project", "theirs-verity"}, not_mounted  # by its configuration
    for name, tree in expected.items():
        assert lines[name]["tree"] == tree, name
    for name in [*WRITTEN, *READ_ONLY]:
        if f"theirs-{name}" not in not_mounted:
            assert tree_of(fast_directory / f"theirs-{name}") == lines[f"theirs-{name}"]["tree"], name
    for name, (_, word) in READ_ONLY.items():
        device = FileDevice(fast_directory / f"theirs-{name}")
        with closing(device), pytest.raises(FilesystemError, match=word):
            Volume.open(device)
    for name in WRITTEN:
        image = fast_directory / f"theirs-{name}"
        change(image)
        status, output = tools.run("e2fsck", ["-fn", str(image)])
        assert status == 0, (name, output)
        status, output = tools.run("e2fsck", ["-fn", str(fast_directory / f"ours-{name}")])
        assert status == 0, (name, output)
