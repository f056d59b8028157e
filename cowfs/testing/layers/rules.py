"""Rules of the `Driver` that the other suites do not look at."""

from __future__ import annotations

import errno
import io
import stat
import tarfile
from typing import Final

from cowfs.errors import UnknownDevice, UsageError
from cowfs.steps import finish
from cowfs.testing.conformance.lab import expect_equal, expect_error
from cowfs.testing.layers.files import Files
from cowfs.testing.layers.lab import LayerLab, content, give_away
from cowfs.testing.layers.registry import case

_LONG_ID: Final = "0123456789abcdef" * 4 + "-init"
_SECOND_NS: Final = 1_000_000_000


@case("rule-1")
def a_layer_that_is_not_there_is_no_layer(lab: LayerLab) -> None:
    expect_equal(lab.driver.exists("nothing"), False, "exists")
    lab.driver.remove("nothing")
    lab.driver.put("nothing")
    for call in (
        lambda: lab.driver.metadata("nothing"),
        lambda: lab.create("child", "nothing"),
        lambda: lab.changes("nothing", None),
        lambda: lab.diff("nothing", None),
        lambda: lab.diff_size("nothing", None),
        lambda: lab.apply("nothing", None, b""),
    ):
        expect_equal(type(expect_error(errno.ENOENT, call)), UnknownDevice, "error")
    expect_equal(lab.driver.list_layers(), [], "layers")


@case("rule-2")
def an_id_that_cannot_be_is_refused(lab: LayerLab) -> None:
    for layer_id in ("", ".", "..", "a/b", "/a", ".hidden", "base", "deviceset-metadata", "transaction-metadata",
                     "x.migrated", "line\nbreak", "x" * 256):  # fmt: skip
        error = expect_error(errno.EINVAL, lab.create, layer_id)
        expect_equal(type(error), UsageError, f"error for {layer_id!r}")
        expect_equal(lab.driver.exists(layer_id), False, f"{layer_id!r} exists")
    for layer_id in ("a", "A.b-c_d", _LONG_ID, "ü", "with space"):
        lab.layer(layer_id, None, {"file": layer_id.encode()})
        expect_equal(lab.read(layer_id, "file"), layer_id.encode(), "content")


@case("rule-3")
def an_option_that_is_not_known_is_refused(lab: LayerLab) -> None:
    for options, text in (
        ({"foo": "1"}, "Unknown option foo"),
        ({"size": "64M", "foo": "1"}, "Unknown option foo"),
        ({"foo": "1", "size": "64M"}, "Unknown option foo"),
        ({"size": "large"}, "invalid size: 'large'"),
    ):
        error = expect_error(errno.EINVAL, lab.create, "a", None, options)
        expect_equal(text in str(error), True, f"'{text}' in '{error}'")
    expect_equal(lab.driver.list_layers(), [], "layers")


@case("rule-4", needs_paths=True)
def a_layer_is_got_as_often_as_it_is_put(lab: LayerLab) -> None:
    lab.layer("a", None, {"file": b"there"})
    path = lab.path("a")
    expect_equal(lab.driver.get("a"), path, "the path of a second get")
    lab.driver.put("a")
    expect_equal(lab.read("a", "file"), b"there", "content, got once")
    lab.driver.put("a")
    lab.driver.put("a")
    lab.driver.remove("a")
    expect_equal(lab.driver.list_layers(), [], "layers")


@case("rule-5", needs_paths=True)
def a_layer_in_use_that_is_removed_goes_when_it_is_put(lab: LayerLab) -> None:
    lab.layer("a", None, {"file": b"there"})
    lab.path("a")
    lab.driver.remove("a")
    expect_equal(lab.driver.list_layers(), [], "layers")
    lab.driver.put("a")
    lab.restart()
    expect_equal(lab.driver.exists("a"), False, "exists after a restart")
    lab.layer("a", None, {"other": b"new"})
    expect_equal(sorted(lab.tree("a")), ["other"], "paths of a new layer of that name")


def fill_richly(files: Files) -> None:
    """All that an archive can hold and any user may make."""
    files.make_directory("dir", 0o2750)
    files.write("dir/plain", content(1, 5000), 0o640)
    files.write("dir/setuid", b"#!", 0o4711)
    files.write("empty", b"", 0o000)
    files.make_symlink("link", "dir/../dir/plain")
    files.make_symlink("dangling", "/nowhere/at/all")
    files.make_link("hard", "dir/plain")
    files.make_link("dir/harder", "dir/plain")
    files.make_node("fifo", stat.S_IFIFO | 0o622)
    files.write("sparse", b"")
    files.write_at("sparse", 3_000_000, b"end")
    files.set_xattr("dir/plain", "user.key", b"\x00value\xff")
    files.set_xattr("dir", "user.of-a-directory", b"1")
    files.write("ü ñ \u2603", b"unicode")
    files.write("x" * 200, b"a long name")
    deep = "deep"
    files.make_directory(deep)
    for _ in range(12):
        deep += "/" + "d" * 20
        files.make_directory(deep)
    files.write(f"{deep}/file", b"deep")
    files.set_mtime("dir/plain", 1_234_567_890 * _SECOND_NS + 123_456_789)
    files.set_mtime("link", 1_000_000_000 * _SECOND_NS + 1)
    files.set_mtime("empty", -5 * _SECOND_NS)


@case("rule-6")
def all_of_a_layer_comes_back_from_its_archive(lab: LayerLab) -> None:
    lab.create("source")
    with lab.files("source") as files:
        fill_richly(files)
    archive = lab.diff("source", None)
    lab.create("target")
    size_bytes = lab.apply("target", None, archive)
    expect_equal(size_bytes, lab.diff_size("source", None), "the size that was applied")
    expect_equal(lab.tree("target"), lab.tree("source"), "the tree")
    expect_equal(lab.changes("target", "source"), [], "changes")
    expect_equal(lab.diff("target", None), archive, "the archive of the copy")


@case("rule-7")
def owners_and_devices_come_back_from_an_archive(lab: LayerLab) -> None:
    lab.create("source")
    with lab.files("source") as files:
        files.write("file", b"1")
        give_away(files, "file", 1000, 2_000_000_000)
        files.make_node("device", stat.S_IFCHR | 0o600, 0x103)
        files.set_xattr("file", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    lab.create("target")
    lab.apply("target", None, lab.diff("source", None))
    expect_equal(lab.tree("target"), lab.tree("source"), "the tree")


@case("rule-8")
def kinds_of_files_take_the_place_of_one_another(lab: LayerLab) -> None:
    kinds = ("file", "directory", "symlink", "fifo")

    def make(files: Files, kind: str, path: str) -> None:
        if kind == "file":
            files.write(path, kind.encode())
        elif kind == "symlink":
            files.make_symlink(path, kind)
        elif kind == "fifo":
            files.make_node(path, stat.S_IFIFO | 0o600)
        else:
            files.make_directory(path)
            files.write(f"{path}/inside", b"inside")

    pairs = [(old, new) for old in kinds for new in kinds if old != new]
    lab.create("old")
    with lab.files("old") as files:
        for old, new in pairs:
            make(files, old, f"{old}-{new}")
    lab.create("new", "old")
    with lab.files("new") as files:
        for old, new in pairs:
            files.remove(f"{old}-{new}")
            make(files, new, f"{old}-{new}")
    expected = [f"C /{old}-{new}" for old, new in pairs]
    expected += [f"A /{old}-directory/inside" for old in kinds if old != "directory"]
    expect_equal(lab.changes("new", "old"), sorted(expected, key=lambda line: line[2:]), "changes")
    lab.create("applied", "old")
    lab.apply("applied", "old", lab.diff("new", "old"))
    expect_equal(lab.tree("applied"), lab.tree("new"), "the tree")


@case("rule-9")
def an_archive_that_is_damaged_changes_nothing(lab: LayerLab) -> None:
    lab.layer("source", None, {f"file-{number}": content(number, 3000) for number in range(10)})
    archive = lab.diff("source", None)
    lab.layer("target", None, {"kept": b"kept", "file-3": b"old"})
    before = lab.tree("target")
    for damaged in (archive[: len(archive) // 2], archive[:512] + b"\xff" * 512 + archive[1024:]):
        _expect_refused(lab, "target", damaged)
        expect_equal(lab.tree("target"), before, "the tree after a refused archive")


def _expect_refused(lab: LayerLab, layer_id: str, archive: bytes) -> None:
    try:
        lab.apply(layer_id, None, archive)
    except OSError:
        return
    raise AssertionError("an archive that must be refused was applied")


@case("rule-10")
def an_archive_reaches_nothing_outside_the_layer(lab: LayerLab) -> None:
    lab.layer("target", None, {"kept": b"kept"})
    lab.layer("other", None, {"kept": b"other"})
    before = lab.tree("target"), lab.tree("other")
    for name, kind, target in (
        ("../outside", tarfile.REGTYPE, ""),
        ("a/../../outside", tarfile.REGTYPE, ""),
        ("hard", tarfile.LNKTYPE, "../id"),
        ("hard", tarfile.LNKTYPE, "../../etc/passwd"),
    ):
        member = tarfile.TarInfo(name)
        member.type = kind
        member.linkname = target
        _expect_refused(lab, "target", _archive(member))
        expect_equal((lab.tree("target"), lab.tree("other")), before, f"the trees after {name} {target}")


@case("rule-11")
def a_symbolic_link_leads_an_archive_nowhere_outside_the_layer(lab: LayerLab) -> None:
    """Refused, or followed as by a process whose root is the layer's."""
    link = tarfile.TarInfo("link")
    link.type = tarfile.SYMTYPE
    for number, target in enumerate(("/", "..", "../../..", "/../..", "dir/../..")):
        layer_id = f"target-{number}"
        link.linkname = target
        lab.create(layer_id)
        with lab.files(layer_id) as files:
            files.make_directory("dir")
        before = lab.tree(layer_id)
        try:
            lab.apply(layer_id, None, _archive(link, tarfile.TarInfo("link/escaped")))
        except OSError:
            expect_equal(lab.tree(layer_id), before, f"the tree after a refused link to {target}")
        else:
            made = [path for path in lab.tree(layer_id) if path.endswith("escaped")]
            expect_equal(len(made), 1, f"files in the layer after a link to {target}")


def _archive(*members: tarfile.TarInfo) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for member in members:
            tar.addfile(member)
    return file.getvalue()


@case("rule-12")
def whiteouts_delete_and_opaque_directories_hide(lab: LayerLab) -> None:
    lab.create("lower")
    with lab.files("lower") as files:
        files.make_directory("dir")
        files.make_directory("opaque")
        files.write_many({"dir/a": b"a", "dir/b": b"b", "opaque/old": b"old", "top": b"top"})
    lab.create("upper", "lower")
    directory = tarfile.TarInfo("opaque/")
    directory.type = tarfile.DIRTYPE
    directory.mode = 0o755
    names = ("dir/.wh.a", ".wh.top", ".wh.never-there", "opaque/.wh..wh..opq", "opaque/new")
    lab.apply("upper", "lower", _archive(directory, *(tarfile.TarInfo(name) for name in names)))
    expect_equal(sorted(lab.tree("upper")), ["dir", "dir/b", "opaque", "opaque/new"], "paths")
    expected = ["C /dir", "D /dir/a", "C /opaque", "A /opaque/new", "D /opaque/old", "D /top"]
    expect_equal(lab.changes("upper", "lower"), expected, "changes")


@case("rule-13")
def a_search_for_changes_may_be_given_up(lab: LayerLab) -> None:
    lab.layer("a", None, {f"file-{number}": b"1" for number in range(300)})
    for steps in (lab.driver.changes("a", None), lab.driver.diff_size("a", None)):
        next(steps, None)
        steps.close()
    pieces = lab.driver.diff("a", None)
    next(pieces)
    del pieces
    lab.driver.remove("a")
    expect_equal(lab.driver.list_layers(), [], "layers")


@case("rule-14")
def the_status_has_the_items_of_the_original_in_its_order(lab: LayerLab) -> None:
    names = [name for name, _ in lab.driver.status()]
    expected = [
        "Pool Name", "Pool Blocksize", "Base Device Size", "Backing Filesystem", "Udev Sync Supported", "Data file",
        "Metadata file", "Data loop file", "Metadata loop file", "Data Space Used", "Data Space Total",
        "Data Space Available", "Metadata Space Used", "Metadata Space Total", "Metadata Space Available",
        "Thin Pool Minimum Free Space", "Deferred Removal Enabled", "Deferred Deletion Enabled",
        "Deferred Deleted Device Count", "Library Version",
    ]  # fmt: skip
    optional = {"Data file", "Metadata file", "Data loop file", "Metadata loop file", "Library Version"}
    expect_equal([name for name in expected if name in names or name not in optional], names, "names")
    lab.create("a")
    found = lab.status()
    expect_equal(found["Base Device Size"], "50.33MB", "base device size")
    expect_equal(found["Deferred Deleted Device Count"], "0", "deferred deletions")


@case("rule-15")
def a_difference_against_any_layer_can_be_made(lab: LayerLab) -> None:
    """Also against one that is not an ancestor."""
    lab.layer("left", None, {"both": b"same", "left": b"1", "differs": b"left"})
    lab.layer("right", None, {"both": b"same", "right": b"1", "differs": b"right!"})
    with lab.files("left") as left, lab.files("right") as right:
        for files in (left, right):
            files.set_mtime("both", _SECOND_NS)
    expect_equal(lab.changes("right", "left"), ["C /differs", "D /left", "A /right"], "changes")
    lab.create("made", "left")
    lab.apply("made", "left", lab.diff("right", "left"))
    expect_equal(lab.tree("made"), lab.tree("right"), "the tree")
    expect_equal(finish(lab.driver.diff_size("right", "left")), 7, "the size of the difference")
