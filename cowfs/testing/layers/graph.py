"""The generic suite of graph drivers, as moby's drivers share it (its package `graphtest`)."""

from __future__ import annotations

import errno
import stat
from typing import Final

from cowfs.testing.conformance.lab import expect_equal
from cowfs.testing.layers.files import Files
from cowfs.testing.layers.lab import MIB, LayerLab, content, give_away
from cowfs.testing.layers.registry import case

_SOME_DATA: Final = b"Some data"
_FILE_MODE: Final = 0o222 | stat.S_ISUID
_DIRECTORY_MODE: Final = 0o705 | stat.S_ISVTX
_MANY_FILES: Final = 1000
_FILES_PER_DIRECTORY: Final = 100
_DEPTH: Final = 128


@case("graph-1", "CreateEmpty")
def an_empty_layer_has_an_empty_root(lab: LayerLab) -> None:
    lab.create("empty")
    expect_equal(lab.driver.exists("empty"), True, "exists")
    with lab.files("empty") as files:
        root = files.entry()
        expect_equal(files.list(), [], "names")
    expect_equal(oct(root.mode), oct(stat.S_IFDIR | 0o755), "mode of the root")
    expect_equal((root.uid, root.gid), lab.home.root_owner, "owner of the root")
    lab.driver.remove("empty")
    expect_equal(lab.driver.exists("empty"), False, "exists after its removal")


@case("graph-2", "CreateBase")
def modes_and_owners_are_kept(lab: LayerLab) -> None:
    _create_base(lab, "Base")
    with lab.files("Base") as files:
        _verify_base(files)
    lab.driver.remove("Base")


@case("graph-3", "CreateSnap")
def a_layer_on_another_is_the_same(lab: LayerLab) -> None:
    _create_base(lab, "Base")
    lab.create("Snap", "Base")
    with lab.files("Snap") as files:
        _verify_base(files)
    expect_equal(lab.tree("Snap"), lab.tree("Base"), "the two trees")
    lab.driver.remove("Snap")
    lab.driver.remove("Base")


def _create_base(lab: LayerLab, layer_id: str) -> None:
    lab.create(layer_id)
    with lab.files(layer_id) as files:
        files.make_directory("a subdir")
        files.write("a file", _SOME_DATA)
        give_away(files, "a subdir", 1, 2)
        files.set_mode("a subdir", _DIRECTORY_MODE)
        files.set_mode("a file", _FILE_MODE)


def _verify_base(files: Files) -> None:
    directory, file = files.entry("a subdir"), files.entry("a file")
    expect_equal(oct(directory.mode), oct(stat.S_IFDIR | _DIRECTORY_MODE), "mode of the directory")
    expect_equal((directory.uid, directory.gid), (1, 2), "owner of the directory")
    expect_equal(oct(file.mode), oct(stat.S_IFREG | _FILE_MODE), "mode of the file")
    expect_equal(files.read("a file"), _SOME_DATA, "content")
    expect_equal(files.list(), ["a file", "a subdir"], "names")


@case("graph-4", "DeepLayerRead")
def a_file_is_read_through_128_layers(lab: LayerLab) -> None:
    lab.layer("layer-0", None, {"base-file": content(1, 64)})
    for depth in range(1, _DEPTH + 1):
        layer_id, parent = f"layer-{depth}", f"layer-{depth - 1}"
        lab.create(layer_id, parent)
        with lab.files(layer_id) as files:
            files.write("top-id", layer_id.encode())
            files.make_directory(layer_id)
            files.write(f"{layer_id}/layer-id", layer_id.encode())
            files.write(f"{layer_id}/parent-id", parent.encode())
    with lab.files(f"layer-{_DEPTH}") as files:
        expect_equal(files.read("base-file"), content(1, 64), "the file of the lowest layer")
        found = files.read("top-id").decode()
        for depth in range(_DEPTH, 0, -1):
            expect_equal(found, f"layer-{depth}", "the chain, from the top")
            expect_equal(files.read(f"{found}/layer-id").decode(), found, "the layer's own note")
            found = files.read(f"{found}/parent-id").decode()
    expect_equal(found, "layer-0", "the end of the chain")


@case("graph-5", "DiffApply(10)")
def a_diff_of_10_files_is_applied(lab: LayerLab) -> None:
    _diff_apply(lab, 10)


@case("graph-6", "DiffApply(1000)")
def a_diff_of_1000_files_is_applied(lab: LayerLab) -> None:
    _diff_apply(lab, _MANY_FILES)


def _diff_apply(lab: LayerLab, count: int) -> None:
    paths = [f"directory-{number // _FILES_PER_DIRECTORY}/file-{number}" for number in range(count)]
    old = {path: content(3 + number, 64) for number, path in enumerate(paths)}
    new = {path: content(6 + number, 64) for number, path in enumerate(paths)}
    lab.create("lower")
    with lab.files("lower") as files:
        for number in range(-(-count // _FILES_PER_DIRECTORY)):
            files.make_directory(f"directory-{number}")
        files.write_many(old)
        files.write("file-remove.txt", b"removed")
        files.make_directory("var")
        files.make_directory("var/lib")
    lab.create("upper", "lower")
    with lab.files("upper") as files:
        files.write_many(new)
        files.remove("file-remove.txt")
        files.remove("var/lib")
    size_bytes = lab.diff_size("upper", "lower")
    expect_equal(size_bytes, 64 * count, "the size of the difference")
    expect_equal(lab.diff_size("upper", None), 64 * count, "the size of all of the layer")
    archive = lab.diff("upper", "lower")
    lab.create("applied", "lower")
    expect_equal(lab.apply("applied", "lower", archive), size_bytes, "the size that was applied")
    with lab.files("applied") as files:
        found = {path: files.read(path) for path in paths}
        expect_equal(found, new, "contents")
        expect_equal("file-remove.txt" in files.list(), False, "the file that was removed is there")
        expect_equal(files.list("var"), [], "what is left of the directory that was removed")
    expect_equal(lab.changes("applied", "upper"), [], "changes against the layer it came from")


@case("graph-7", "Changes")
def added_modified_and_deleted_files_are_told(lab: LayerLab) -> None:
    names = [f"file-{number}" for number in range(20)]
    lab.create("lower")
    with lab.files("lower") as files:
        files.make_directory("directory")
        files.write_many({f"directory/{name}": content(20 + number, 64) for number, name in enumerate(names)})
    lab.create("upper", "lower")
    expected = ["C /directory"]
    with lab.files("upper") as files:
        for number, name in enumerate(names):
            if number % 3 == 0:
                files.write(f"directory/{name}", content(9999 + number, 65))
                expected.append(f"C /directory/{name}")
            elif number % 3 == 1:
                files.write(f"directory/{name}-again", content(9999 + number, 64))
                expected.append(f"A /directory/{name}-again")
            else:
                files.remove(f"directory/{name}")
                expected.append(f"D /directory/{name}")
    expect_equal(lab.changes("upper", "lower"), sorted(expected, key=lambda line: line[2:]), "changes")
    expect_equal(lab.changes("lower", "lower"), [], "changes against itself")
    everything = ["A /directory", *sorted(f"A /directory/{name}" for name in names)]
    expect_equal(lab.changes("lower", None), everything, "changes against nothing")


@case("graph-8", "SetQuota")
def a_layer_holds_as_much_as_its_size(lab: LayerLab) -> None:
    lab.use_options("dm.basesize=16M")
    lab.create("small", None, {"size": "24M"})
    expect_equal(int(lab.driver.metadata("small")["DeviceSize"]), 24 * MIB, "the size of the layer")
    first = content(1, 12 * MIB)
    with lab.files("small") as files:
        files.write("first", first)
        files.write("second", b"")
        try:
            files.write_at("second", 0, bytes(range(256)) * (24 * MIB // 256))
        except OSError as error:
            expect_equal(error.errno in (errno.ENOSPC, errno.EDQUOT), True, f"an error of a full disk ({error})")
        else:
            raise AssertionError("36 MiB fit into a layer of 24 MiB")
        expect_equal(files.read("first"), first, "what was written before")
