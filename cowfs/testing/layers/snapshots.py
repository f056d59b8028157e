"""Cases of containerd's snapshotter suite and of its devmapper snapshotter, as far as a graph driver has the notion.

Left out are labels and walks, which no graph driver has; views, which are mounts with `--read-only` and tested as such;
and what only xfs has to show (several mounts of one UUID), which takes the kernel.
"""

from __future__ import annotations

import stat

from cowfs.errors import DeviceExists
from cowfs.testing.conformance.lab import expect_equal, expect_error
from cowfs.testing.layers.lab import MIB, LayerLab, content, give_away
from cowfs.testing.layers.registry import case


@case("snapshot-1", "Basic")
def layers_build_on_one_another(lab: LayerLab) -> None:
    lab.create("first")
    with lab.files("first") as files:
        files.write("foo", b"foo\n", 0o777)
        files.make_directory("a")
        files.make_directory("a/b")
    first = lab.tree("first")
    lab.create("second", "first")
    with lab.files("second") as files:
        expect_equal(files.tree(), first, "the new layer")
        files.write("bar", b"bar\n", 0o777)
        files.remove("a/b")
    expect_equal(lab.tree("first"), first, "the parent")
    expect_equal(sorted(lab.tree("second")), ["a", "bar", "foo"], "paths")


@case("snapshot-2", "TransitivityTest")
def a_change_against_the_first_is_the_sum_of_the_changes(lab: LayerLab) -> None:
    lab.layer("1", None, {"a": b"1", "b": b"1", "c": b"1"})
    lab.layer("2", "1", {"b": b"22", "d": b"2"})
    lab.create("3", "2")
    with lab.files("3") as files:
        files.write("c", b"333")
        files.remove("d")
        files.remove("a")
    expect_equal(lab.changes("2", "1"), ["C /b", "A /d"], "changes of the second")
    expect_equal(lab.changes("3", "2"), ["D /a", "C /c", "D /d"], "changes of the third")
    expect_equal(lab.changes("3", "1"), ["D /a", "C /b", "C /c"], "changes of the third against the first")


@case("snapshot-3")
def two_layers_of_one_parent_are_used_at_once(lab: LayerLab) -> None:
    lab.layer("parent", None, {"file": b"parent"})
    lab.create("left", "parent")
    lab.create("right", "parent")
    with lab.files("left") as left, lab.files("right") as right, lab.files("parent") as parent:
        left.write("file", b"left")
        right.write("file", b"right")
        found = [files.read("file") for files in (left, right, parent)]
    expect_equal(found, [b"left", b"right", b"parent"], "contents")


@case("snapshot-4", "DeletedFilesInChildSnapshot")
def what_a_child_deletes_stays_with_the_parent(lab: LayerLab) -> None:
    lab.layer("l1", None, {"foo": b"foo", "bar": b"bar"})
    lab.create("l2", "l1")
    with lab.files("l2") as files:
        files.remove("foo")
    lab.layer("l3", "l2", {"new": b"new"})
    expect_equal(sorted(lab.tree("l1")), ["bar", "foo"], "the first")
    expect_equal(sorted(lab.tree("l3")), ["bar", "new"], "the third")


@case("snapshot-5", "RemoveIntermediateSnapshot")
def layers_go_in_any_order(lab: LayerLab) -> None:
    """Layers are independent once they are made; what the snapshotter refuses is allowed here."""
    lab.layer("bottom", None, {"bottom": content(1, MIB)})
    lab.layer("middle", "bottom", {"middle": content(2, MIB)})
    lab.layer("top", "middle", {"top": content(3, MIB)})
    lab.driver.remove("middle")
    expect_equal(sorted(lab.tree("top")), ["bottom", "middle", "top"], "the top without the middle")
    lab.driver.remove("bottom")
    with lab.files("top") as files:
        found = [files.read(name) for name in ("bottom", "middle", "top")]
    expect_equal(found, [content(seed, MIB) for seed in (1, 2, 3)], "contents of the top alone")
    lab.layer("middle", "top", {"middle": b"again"})
    expect_equal(lab.read("middle", "middle"), b"again", "a name that was free again")


@case("snapshot-6")
def what_all_layers_below_hold_is_seen(lab: LayerLab) -> None:
    lab.create("lower")
    with lab.files("lower") as files:
        files.make_directory("dir1")
        files.write("dir1/f1", b"\x01", 0o644)
        files.make_directory("dir2")
        files.write("dir2/f2", b"\x02", 0o700)
    lab.create("upper", "lower")
    with lab.files("upper") as files:
        files.write("dir1/f1", b"\x03", 0o600)
        files.rename("dir2", "dir3")
    entries = lab.tree("upper")
    expect_equal(sorted(entries), ["dir1", "dir1/f1", "dir3", "dir3/f2"], "paths")
    expect_equal([stat.S_IMODE(entries[path].mode) for path in ("dir1/f1", "dir3/f2")], [0o600, 0o700], "modes")
    expected = ["C /dir1", "C /dir1/f1", "D /dir2", "A /dir3", "A /dir3/f2"]
    expect_equal(lab.changes("upper", "lower"), expected, "changes")


@case("snapshot-7", "RootPermission")
def the_mode_of_the_root_is_inherited(lab: LayerLab) -> None:
    lab.create("l1")
    with lab.files("l1") as files:
        expect_equal(stat.S_IMODE(files.entry().mode), 0o755, "mode of a new root")
        files.set_mode("", 0o711)
    lab.create("l2", "l1")
    with lab.files("l2") as files:
        expect_equal(stat.S_IMODE(files.entry().mode), 0o711, "mode of a child's root")
    expect_equal(lab.changes("l2", "l1"), [], "changes")


@case("snapshot-8", "CloseTwice")
def a_home_closes_twice(lab: LayerLab) -> None:
    lab.layer("a")
    home = lab.home
    home.close()
    home.close()
    lab.restart()
    expect_equal(lab.driver.list_layers(), ["a"], "layers")


@case("snapshot-9", "testUsage")
def a_layer_maps_what_is_written_to_it(lab: LayerLab) -> None:
    lab.create("empty")
    before = lab.home.mapped_bytes("empty")
    expect_equal(before > 0, True, "an empty file system maps something")
    lab.layer("full", "empty", {"file": content(1, MIB)})
    lab.restart()
    expect_equal(lab.home.mapped_bytes("full") >= before + MIB // 2, True, "a file of 1 MiB is mapped")
    expect_equal(lab.diff_size("full", "empty"), MIB, "the size of the difference")
    expect_equal(lab.home.mapped_bytes("empty"), before, "the parent maps what it did")


@case("snapshot-10", "TestPoolDevice")
def a_snapshot_keeps_what_its_origin_had(lab: LayerLab) -> None:
    lab.layer("origin", None, {"test-1": b"test-1", "test-2": b"test-2"})
    lab.create("snapshot", "origin")
    with lab.files("origin") as files:
        files.write("test-1", b"test-3-longer")
        files.remove("test-2")
    expect_equal((lab.read("snapshot", "test-1"), lab.read("snapshot", "test-2")), (b"test-1", b"test-2"), "snapshot")
    lab.driver.remove("origin")
    expect_equal((lab.read("snapshot", "test-1"), lab.read("snapshot", "test-2")), (b"test-1", b"test-2"), "alone")


@case("snapshot-11")
def a_name_is_taken_once(lab: LayerLab) -> None:
    lab.layer("a", None, {"file": b"first"})
    before = lab.driver.metadata("a")
    for parent in (None, "a"):
        error = expect_error(DeviceExists.default_errno, lab.create, "a", parent)
        expect_equal(type(error), DeviceExists, "error")
    expect_equal(lab.driver.metadata("a"), before, "metadata")
    expect_equal(lab.read("a", "file"), b"first", "content")


@case("snapshot-12")
def what_was_written_before_a_snapshot_is_in_it(lab: LayerLab) -> None:
    """The origin is in use, and nothing was flushed."""
    lab.create("origin")
    with lab.files("origin") as files:
        for number in range(5):
            files.write(f"file-{number}", content(number, 100_000))
            lab.create(f"snapshot-{number}", "origin")
        for number in range(5):
            found = lab.tree(f"snapshot-{number}")
            expect_equal(sorted(found), [f"file-{n}" for n in range(number + 1)], f"paths in snapshot {number}")
            expect_equal(lab.read(f"snapshot-{number}", f"file-{number}"), content(number, 100_000), "content")


@case("snapshot-13", "LayerFileupdate")
def a_file_that_every_layer_writes_has_the_last_content(lab: LayerLab) -> None:
    lab.layer("0", None, {"file": content(0, 10_000)})
    for number in range(1, 6):
        lab.layer(str(number), str(number - 1), {"file": content(number, 10_000 - number)})
    for number in range(6):
        expect_equal(lab.read(str(number), "file"), content(number, 10_000 - number), f"content in layer {number}")
        if number:
            expect_equal(lab.changes(str(number), str(number - 1)), ["C /file"], f"changes of layer {number}")


@case("snapshot-14", "RemoveDirectoryInLowerLayer")
def a_directory_made_anew_shows_nothing_of_the_old_one(lab: LayerLab) -> None:
    lab.create("l1")
    with lab.files("l1") as files:
        files.make_directory("dir")
        files.write_many({f"dir/{name}": name.encode() for name in ("a", "b", "c")})
    lab.create("l2", "l1")
    with lab.files("l2") as files:
        files.remove("dir")
        files.make_directory("dir")
        files.write("dir/b", b"new")
    expect_equal(sorted(lab.tree("l2")), ["dir", "dir/b"], "paths")
    expect_equal(lab.changes("l2", "l1"), ["C /dir", "D /dir/a", "C /dir/b", "D /dir/c"], "changes")
    archive = lab.diff("l2", "l1")
    lab.create("l3", "l1")
    lab.apply("l3", "l1", archive)
    expect_equal(lab.tree("l3"), lab.tree("l2"), "the tree after the difference is applied")


@case("snapshot-15", "Chown")
def a_change_of_owner_alone_is_a_change(lab: LayerLab) -> None:
    lab.create("l1")
    with lab.files("l1") as files:
        files.make_directory("opt")
        files.make_directory("opt/a")
        files.write("opt/a/file", b"same")
    lab.create("l2", "l1")
    with lab.files("l2") as files:
        give_away(files, "opt", 1, 1)
        give_away(files, "opt/a/file", 3, 4)
    expect_equal(lab.changes("l2", "l1"), ["C /opt", "C /opt/a", "C /opt/a/file"], "changes")
    lab.create("l3", "l2")
    entries = lab.tree("l3")
    owners = {path: (entry.uid, entry.gid) for path, entry in entries.items() if path != "opt/a"}
    expect_equal(owners, {"opt": (1, 1), "opt/a/file": (3, 4)}, "owners")


@case("snapshot-16", "DirectoryPermissionOnCommit")
def owners_of_directories_last_over_restarts(lab: LayerLab) -> None:
    names = ["dir1", "dir2", "dir3"]
    lab.create("l1")
    with lab.files("l1") as files:
        for number, name in enumerate(names, 1):
            files.make_directory(name, 0o700 + number)
            give_away(files, name, number, number + 10)
    expected = lab.tree("l1")
    lab.create("l2", "l1")
    lab.restart()
    for layer_id in ("l1", "l2"):
        expect_equal(lab.tree(layer_id), expected, f"the tree of '{layer_id}'")


@case("snapshot-17", "Rename")
def a_directory_that_was_renamed_is_a_deletion_and_an_addition(lab: LayerLab) -> None:
    lab.create("l1")
    with lab.files("l1") as files:
        files.make_directory("dir1")
        files.make_directory("somefiles")
        files.write("somefiles/f1", b"was here first!", 0o644)
    lab.create("l2", "l1")
    with lab.files("l2") as files:
        files.rename("dir1", "dir2")
        files.rename("somefiles/f1", "somefiles/f2")
    expected = ["D /dir1", "A /dir2", "C /somefiles", "D /somefiles/f1", "A /somefiles/f2"]
    expect_equal(lab.changes("l2", "l1"), expected, "changes")


@case("snapshot-18", "MarkDeviceFaulty")
def an_id_that_is_taken_in_the_pool_is_passed_over_and_kept(lab: LayerLab) -> None:
    lab.layer("a", None, {"file": b"mine"})
    taken = int(lab.driver.metadata("a")["DeviceId"]) + 1
    lab.home.message(f"create_thin {taken}")
    lab.create("b", "a")
    lab.restart()
    lab.create("c", "b")
    ids = [int(lab.driver.metadata(layer_id)["DeviceId"]) for layer_id in ("a", "b", "c")]
    expect_equal(taken in ids, False, f"layers have the ids {ids}; {taken} among them")
    expect_equal(lab.read("c", "file"), b"mine", "content")
    lab.home.message(f"delete {taken}")  # which fails where it was taken away
