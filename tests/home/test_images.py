"""Disks, archives and directories brought in and out: the same bytes, no zeros mapped, wholly or not at all."""

from __future__ import annotations

import errno
import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

import cowfs
from cowfs import errors
from cowfs.disk_images.writing import DiskWriter
from tests.home.conftest import SMALL, serving

BLOCK = 64 << 10
MIB = 1 << 20

needs_qemu_img = pytest.mark.skipif(
    shutil.which("qemu-img") is None, reason="needs qemu-img; run: apt-get install qemu-utils"
)


@pytest.fixture(params=["here", "through the holder"])
def opened(request: pytest.FixtureRequest, home: Path) -> Iterator[cowfs.Home]:
    with serving(home) if request.param != "here" else nullcontext(), cowfs.open_home(home, durable=False) as opened:
        yield opened


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """16 MiB: data in four blocks, written zeros, holes, and an end within a block."""
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.write(b"first" * 1000)
        file.seek(MIB)
        file.write(bytes(2 * MIB))  # zeros that were written
        file.seek(3 * MIB + BLOCK - 5)
        file.write(b"x" * 10)  # in two blocks
        file.seek(16 * MIB + 512 - 4)
        file.write(b"last")
    return path


def qemu_img(*words: object) -> None:
    subprocess.run(["qemu-img", *map(str, words)], check=True, capture_output=True, timeout=60)


def used_blocks(home: cowfs.Home) -> int:
    return home.status().data_used_bytes // BLOCK


def assert_untouched(home: cowfs.Home, before: int) -> None:
    assert [row.name for row in home.devices()] == ["base", "web"]
    assert used_blocks(home) == before
    assert home.check().clean


def test_a_raw_disk_goes_in_and_out(opened: cowfs.Home, disk: Path, tmp_path: Path) -> None:
    before = used_blocks(opened)
    seen: list[tuple[int, int]] = []
    made = opened.import_image(disk, "disk", progress=lambda *step: seen.append(step))
    assert seen
    assert (made.size_bytes, made.mapped_bytes) == (16 * MIB + 512, 4 * BLOCK)
    assert used_blocks(opened) - before == 4
    assert opened.inspect("disk").parent is None
    opened.snapshot("disk", "copy")
    out = opened.export_image("copy", tmp_path / "out.raw")
    assert (out.size_bytes, out.data_bytes) == (16 * MIB + 512, 3 * BLOCK + 512)
    assert (tmp_path / "out.raw").read_bytes() == disk.read_bytes()
    assert (tmp_path / "out.raw").stat().st_blocks * 512 <= 4 * BLOCK + 8192
    assert opened.check().clean


def test_a_disk_comes_in_by_a_pipe_and_from_the_middle_of_a_file(
    opened: cowfs.Home, disk: Path, tmp_path: Path
) -> None:
    with subprocess.Popen(["cat", disk], stdout=subprocess.PIPE) as cat:
        assert cat.stdout is not None
        made = opened.import_stream(cat.stdout, "disk", format="raw")
    assert (made.size_bytes, made.mapped_bytes) == (16 * MIB + 512, 4 * BLOCK)
    with disk.open("rb") as file:
        file.seek(3 * MIB)
        assert opened.import_stream(file, "end", format="raw").mapped_bytes == 3 * BLOCK
    for name, begin in (("disk", 0), ("end", 3 * MIB)):
        opened.export_image(name, tmp_path / name)
        assert (tmp_path / name).read_bytes() == disk.read_bytes()[begin:]
    with pytest.raises(errors.UsageError, match="leave out a size for a stream"), disk.open("rb") as file:
        opened.import_stream(file, "sized", format="raw", size_bytes=MIB)
    with (
        pytest.raises(errors.UsageError, match="is raw or tar, not qcow2; write it to a file"),
        disk.open("rb") as file,
    ):
        opened.import_stream(file, "new", format="qcow2")  # type: ignore[arg-type]
    assert opened.check().clean


def test_a_list_shows_what_disks_hold(opened: cowfs.Home, tmp_path: Path) -> None:
    """A file system of another kind, swap space, partitions, data, and nothing; each comes out as it went in."""
    for name, size_bytes in (("xfs", 300 * MIB), ("swap", MIB), ("partitions", MIB), ("data", MIB), ("empty", 512)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size_bytes)
    subprocess.run(["mkfs.xfs", "-q", tmp_path / "xfs"], check=True, capture_output=True, timeout=60)
    subprocess.run(["mkswap", tmp_path / "swap"], check=True, capture_output=True, timeout=60)
    with (tmp_path / "partitions").open("r+b") as file:
        file.seek(446)  # one partition of Linux's kind, and the mark of a boot sector
        file.write(bytes([0, 2, 3, 0, 0x83, 32, 33, 0]) + (8).to_bytes(4, "little") + (16).to_bytes(4, "little"))
        file.write(bytes(48) + b"\x55\xaa")
    (tmp_path / "data").write_bytes(b"data" * (MIB // 4))
    kinds = ("data", "empty", "partitions", "swap", "xfs")
    for kind in kinds:
        opened.import_image(tmp_path / kind, kind)
        assert opened.inspect(kind).contents == kind
    opened.snapshot("xfs", "xfs-1")
    expected = {kind: kind for kind in kinds} | {"xfs-1": "xfs", "base": "ext4", "web": "ext4"}
    assert {row.name: row.contents for row in opened.devices()} == expected
    for kind in kinds:
        opened.export_image(kind, tmp_path / "out", force=True)
        subprocess.run(["cmp", tmp_path / kind, tmp_path / "out"], check=True, timeout=60)


def test_a_disk_that_cannot_be_read_is_listed_without_contents(home: Path) -> None:
    with cowfs.open_home(home, durable=False) as opened:
        with (home / "devicemapper" / "data").open("r+b") as file:
            file.truncate(0)
        assert {row.name: row.contents for row in opened.devices()} == {"base": None, "web": None}
        assert opened.inspect("web").contents is None


@needs_qemu_img
@pytest.mark.parametrize("kind", ["qcow2", "vmdk", "vdi", "vhdx"])
def test_images_of_other_formats(home: Path, disk: Path, tmp_path: Path, kind: str) -> None:
    image = tmp_path / "image"  # without an ending that says what it is
    qemu_img("convert", "-O", kind, disk, image)
    with cowfs.open_home(home, durable=False) as opened:
        made = opened.import_image(image, "disk")
        assert made.mapped_bytes <= 5 * BLOCK
        opened.export_image("disk", tmp_path / "out.raw")
        found = (tmp_path / "out.raw").read_bytes()
        assert found[: 16 * MIB + 512] == disk.read_bytes()
        assert not any(found[16 * MIB + 512 :])


@needs_qemu_img
def test_a_qcow2_image_is_written(opened: cowfs.Home, disk: Path, tmp_path: Path) -> None:
    opened.import_image(disk, "disk")
    opened.export_image("disk", tmp_path / "out.qcow2")
    qemu_img("check", tmp_path / "out.qcow2")
    qemu_img("compare", "-f", "raw", "-F", "qcow2", disk, tmp_path / "out.qcow2")
    assert (tmp_path / "out.qcow2").stat().st_size < 2 * MIB


def backing(tmp_path: Path, disk: Path) -> Path:
    qemu_img("create", "-f", "qcow2", "-b", disk, "-F", "raw", tmp_path / "image")
    return tmp_path / "image"


def without_backing(tmp_path: Path, disk: Path) -> Path:
    qemu_img("create", "-u", "-f", "qcow2", "-b", "/nowhere/disk", "-F", "raw", tmp_path / "image", "16M")
    return tmp_path / "image"


def data_file(tmp_path: Path, disk: Path) -> Path:
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={tmp_path / 'data'},data_file_raw=on", tmp_path / "image", "8M")
    return tmp_path / "image"


def flat_vmdk(tmp_path: Path, disk: Path) -> Path:
    qemu_img("convert", "-O", "vmdk", "-o", "subformat=monolithicFlat", disk, tmp_path / "image.vmdk")
    return tmp_path / "image.vmdk"


def encrypted(tmp_path: Path, disk: Path) -> Path:
    """By its header: making a real one measures this machine's speed, which fails where others use it."""
    qemu_img("create", "-f", "qcow2", tmp_path / "image", "8M")
    with (tmp_path / "image").open("r+b") as file:
        file.seek(32)
        file.write((1).to_bytes(4, "big"))  # crypt_method, AES: qemu's docs/interop/qcow2.txt
    return tmp_path / "image"


def cut(tmp_path: Path, disk: Path) -> Path:
    qemu_img("convert", "-O", "qcow2", disk, tmp_path / "image")
    os.truncate(tmp_path / "image", 5 * BLOCK)
    return tmp_path / "image"


def cut_vmdk(tmp_path: Path, disk: Path) -> Path:
    qemu_img("convert", "-O", "vmdk", disk, tmp_path / "image")
    os.truncate(tmp_path / "image", (tmp_path / "image").stat().st_size - BLOCK)
    return tmp_path / "image"


def cut_vdi(tmp_path: Path, disk: Path) -> Path:
    qemu_img("convert", "-O", "vdi", disk, tmp_path / "image")
    os.truncate(tmp_path / "image", (tmp_path / "image").stat().st_size - BLOCK)
    return tmp_path / "image"


def damaged(tmp_path: Path, disk: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(b"QFI\xfb" + os.urandom(100_000))
    return path


@needs_qemu_img
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (backing, "needs the file .*disk.raw, which was not read; --follow-backing"),
        (without_backing, "needs the file /nowhere/disk, which was not read"),
        (data_file, "needs the file .*data, which was not read"),
        (flat_vmdk, "needs the file .*image-flat.vmdk, which was not read"),
        (encrypted, "is encrypted"),
        (cut, "is damaged, or breaks off: the entry of the disk's byte 0x0 "),
        (cut_vmdk, "qemu-img check of .* failed"),
        (cut_vdi, "breaks off: it has [0-9]+ bytes of [0-9]+"),
        (damaged, "qemu-img info of .* failed"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_images_that_are_refused(
    opened: cowfs.Home, disk: Path, tmp_path: Path, make: Callable[[Path, Path], Path], says: str
) -> None:
    before = used_blocks(opened)
    image = make(tmp_path, disk)
    with pytest.raises(errors.UsageError, match=says) as caught:
        opened.import_image(image, "disk")
    assert "\n" not in str(caught.value)
    assert_untouched(opened, before)
    if make in (backing, flat_vmdk):
        opened.import_image(image, "disk", follow_backing=True)
        opened.export_image("disk", tmp_path / "out.raw")
        assert (tmp_path / "out.raw").read_bytes()[: 16 * MIB] == disk.read_bytes()[: 16 * MIB]
    elif make is without_backing:
        with pytest.raises(errors.UsageError, match="No such file"):
            opened.import_image(image, "disk", follow_backing=True)


def test_qemu_img_is_named_where_it_is_missing(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "image").write_bytes(b"QFI\xfb" + bytes(1000))
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    with cowfs.open_home(home) as opened, pytest.raises(errors.MissingRequirement, match="apt-get install qemu-utils"):
        opened.import_image(tmp_path / "image", "disk")


@pytest.mark.parametrize("kind", ["directory", "archive"])
def test_files_become_a_file_system(opened: cowfs.Home, tmp_path: Path, kind: str) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "file").write_bytes(b"content")
    os.link(source / "sub" / "file", source / "link")
    (source / "symbolic").symlink_to("sub/file")
    os.setxattr(source / "sub" / "file", "user.x", b"value")
    with (source / "sparse").open("wb") as file:
        file.seek(4 * MIB)
        file.write(b"end")
    from_where = source
    if kind == "archive":
        from_where = tmp_path / "source.tar"
        with tarfile.open(from_where, "w", format=tarfile.PAX_FORMAT) as archive:
            archive.add(source, ".")
    made = opened.import_image(from_where, "files", size_bytes=32 * MIB)
    assert (made.size_bytes, made.problems) == (32 * MIB, [])
    assert opened.inspect("files").exclusive_bytes < 2 * MIB
    rows = {row.name: row for row in opened.list_files("files", "")}
    assert set(rows) == {"sub", "link", "symbolic", "sparse", "lost+found"}
    assert (rows["link"].links, rows["symbolic"].target) == (2, "sub/file")
    opened.export_image("files", tmp_path / "out.tar")
    with tarfile.open(tmp_path / "out.tar") as archive:
        names = {member.name.removeprefix("./"): member for member in archive.getmembers()}
        assert {"sub/file", "link", "symbolic", "sparse"} <= set(names)
        assert names["sparse"].size == 4 * MIB + 3
        reader = archive.extractfile(names["link"])
        assert reader is not None
        assert reader.read() == b"content"


def test_bad_input(opened: cowfs.Home, disk: Path, tmp_path: Path) -> None:
    before = used_blocks(opened)
    cases: list[tuple[type[errors.CowfsError], str, dict[str, Any]]] = [
        (errors.DeviceExists, "'web' exists already", {"source": disk, "name": "web"}),
        (errors.UsageError, "a/b", {"source": disk, "name": "a/b"}),
        (errors.CowfsError, "nowhere: No such file", {"source": tmp_path / "nowhere", "name": "disk"}),
        (errors.UsageError, "leave out a size", {"source": disk, "name": "disk", "size_bytes": MIB}),
        (errors.UsageError, "less than that of its parent", {"source": tmp_path, "name": "disk", "size_bytes": MIB}),
    ]
    (tmp_path / "archive").write_bytes(b"\x1f\x8b" + bytes(100))
    cases.append((errors.UsageError, r"compressed \(gzip\)", {"source": tmp_path / "archive", "name": "disk"}))
    for name in ("disk.qcow2", "old.tar"):
        (tmp_path / name).write_bytes(b"no magic" * 100)
        ending = name.rpartition(".")[2]
        cases.append(
            (errors.UsageError, f"does not begin as {ending} does", {"source": tmp_path / name, "name": "disk"})
        )
    os.mkfifo(tmp_path / "fifo")  # which would be waited for
    specials = (tmp_path / "fifo", "/dev/zero")
    says = "is not a file, directory or disk"
    cases += [(errors.UsageError, says, {"source": special, "name": "disk"}) for special in specials]
    (tmp_path / "empty").touch()
    cases.append((errors.UsageError, "empty is empty; the size of", {"source": tmp_path / "empty", "name": "disk"}))
    for kind, says, arguments in cases:
        with pytest.raises(kind, match=says) as caught:
            opened.import_image(**arguments)
        assert "\n" not in str(caught.value)
        assert_untouched(opened, before)


def test_an_archive_that_breaks_off_leaves_nothing(opened: cowfs.Home, tmp_path: Path) -> None:
    before = used_blocks(opened)
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        for name in ("one", "two"):
            member = tarfile.TarInfo(name)
            member.size = 100_000
            archive.addfile(member, io.BytesIO(os.urandom(100_000)))
    (tmp_path / "cut.tar").write_bytes(whole.getvalue()[:150_000])
    with pytest.raises(errors.ArchiveError, match=r"/cut\.tar, entry 'two': "):
        opened.import_image(tmp_path / "cut.tar", "files")
    assert_untouched(opened, before)


def test_a_pool_that_is_full_half_way(opened: cowfs.Home, tmp_path: Path) -> None:
    opened.set_no_space("error")
    before = used_blocks(opened)
    (tmp_path / "files").mkdir()
    large = tmp_path / "files" / "large.raw"
    with large.open("wb") as file:
        for _ in range(300):  # of 256 MiB
            file.write(b"x" * MIB)
    with tarfile.open(tmp_path / "files.tar", "w") as archive:
        archive.add(large, "large")
    for source, size_bytes in ((large, None), (tmp_path / "files", 512 * MIB), (tmp_path / "files.tar", 512 * MIB)):
        with pytest.raises((errors.OutOfDataSpace, errors.CopyError)) as caught:
            opened.import_image(source, "disk", size_bytes=size_bytes)
        assert str(caught.value).startswith(f"cannot import {source}: ")
        assert "out of data space" in str(caught.value)
        assert str(caught.value).endswith("; nothing was made")
        assert "\n" not in str(caught.value)
        assert_untouched(opened, before)


@pytest.mark.parametrize("ending", ["vmdk", "VDI", "vhdx", "tar.gz"])
def test_an_ending_of_what_is_not_written_is_refused(opened: cowfs.Home, tmp_path: Path, ending: str) -> None:
    target = tmp_path / f"out.{ending}"
    with pytest.raises(errors.UsageError, match=r"is a format that is not written; .*--format"):
        opened.export_image("web", target)
    assert not target.exists()
    opened.export_image("web", target, format="raw")
    assert target.stat().st_size == 16 * MIB


def test_files_that_exist_are_kept(opened: cowfs.Home, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(errors.UsageError, match="exists; name another file, or overwrite it with --force"):
        opened.export_image("web", tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "mine"
    (tmp_path / "pipe").symlink_to("/dev/null")
    for name, said in (("pipe", "is not a regular file"), (".", "is a directory; name a file")):
        with pytest.raises(errors.UsageError, match=said):
            opened.export_image("web", tmp_path / name, force=True)
    opened.export_image("web", tmp_path / "mine", force=True)
    assert (tmp_path / "mine").stat().st_size == 16 * MIB
    with pytest.raises(errors.UnknownDevice):
        opened.export_image("nope", tmp_path / "out")
    with pytest.raises(errors.CowfsError, match=r"cannot export 'web' to .*No such file"):
        opened.export_image("web", tmp_path / "nowhere" / "out")
    assert sorted(os.listdir(tmp_path)) == ["home", "mine", "pipe"]


def test_a_full_disk_leaves_nothing(opened: cowfs.Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(DiskWriter, "write", full)
    with pytest.raises(errors.CowfsError, match=r"cannot export 'web' to .*: No space left") as caught:
        opened.export_image("web", tmp_path / "out")
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == ["home"]


def test_a_device_in_use_is_exported_as_it_is_now(home: Path, tmp_path: Path) -> None:
    with cowfs.open_home(home, durable=False) as opened:
        with opened.device("web") as disk:
            disk.pwrite(12 * MIB, b"before")
            opened.export_image("web", tmp_path / "out")
            disk.pwrite(12 * MIB, b"after.")
        assert (tmp_path / "out").read_bytes()[12 * MIB :][:6] == b"before"
        assert [row.name for row in opened.devices()] == ["base", "web"]


def make_family(home: cowfs.Home) -> list[str]:
    """Snapshots of a new disk as it changes, and a snapshot of one of them; parts are shared by some alone."""

    def write(name: str, block: int, data: bytes) -> None:
        with home.device(name) as disk:
            disk.pwrite(block * BLOCK, data * BLOCK)

    home.create("disk")
    with home.device("disk") as disk:
        disk.discard(0, disk.size_bytes)  # nothing is shared with base
    for block in range(8):
        write("disk", block, b"a")
    home.snapshot("disk", "one")
    write("disk", 0, b"b")
    home.snapshot("disk", "two")
    write("disk", 1, b"c")
    with home.device("disk") as disk:
        disk.discard(2 * BLOCK, 2 * BLOCK)  # which `one` and `two` still share
    home.snapshot("two", "of two")
    write("of two", 5, b"d")
    home.create("latest", parent="disk")
    return ["disk", "one", "two", "of two", "latest"]


def content_of(home: cowfs.Home, name: str, directory: Path) -> bytes:
    home.export_image(name, directory / "content", force=True)
    return (directory / "content").read_bytes()


@pytest.mark.parametrize("through_holder", [False, True])
def test_a_chain_shares_elsewhere_what_it_shared(home: Path, tmp_path: Path, through_holder: bool) -> None:
    other = tmp_path / "other"
    cowfs.open_home(other, create=True, options=SMALL).close()
    with cowfs.open_home(home, durable=False) as opened:
        names = make_family(opened)
        parents = {row.name: row.parent for row in opened.devices() if row.name in names}
        totals = {row.name: (row.size_bytes, row.mapped_bytes) for row in opened.devices() if row.name in names}
        contents = {name: content_of(opened, name, tmp_path) for name in names}
        with_family = used_blocks(opened)
    with serving(home) if through_holder else nullcontext(), cowfs.open_home(home, durable=False) as opened:
        chain = opened.export_chain("disk", tmp_path / "chain")
        assert sorted(device.name for device in chain.devices) == sorted(names)
        size = sum(path.stat().st_size for path in (tmp_path / "chain").iterdir())
        assert size < 12 * BLOCK  # 11 blocks
        for name in reversed(names):
            opened.remove(name)
        family_blocks = with_family - used_blocks(opened)
    with serving(other) if through_holder else nullcontext(), cowfs.open_home(other, durable=False) as opened:
        before = used_blocks(opened)
        opened.import_chain(tmp_path / "chain")
        assert used_blocks(opened) - before == family_blocks == 11
        found = {row.name: (row.size_bytes, row.mapped_bytes) for row in opened.devices() if row.name != "base"}
        assert found == totals
        assert {row.name: row.parent for row in opened.devices() if row.name != "base"} == {**parents, "disk": None}
        assert opened.check().clean
        with pytest.raises(errors.DeviceExists):
            opened.import_chain(tmp_path / "chain")
    with cowfs.open_home(other) as opened:
        assert {name: content_of(opened, name, tmp_path) for name in names} == contents
        assert not opened.status().problems
        assert len(opened.devices()) == 6


def test_what_comes_in_is_a_layer_where_it_was_one(home: Path, tmp_path: Path) -> None:
    """A file system without files, too: what is copied into it is then in its root."""
    other = tmp_path / "other"
    cowfs.open_home(other, create=True, options=SMALL).close()
    with cowfs.open_home(home, durable=False) as opened:
        opened.layers.create("layer")
        opened.create("plain")
        for name in ("layer", "plain"):
            opened.export_chain(name, tmp_path / f"chain of {name}")
        opened.copy_in(tmp_path / "chain of plain" / "chain.json", "layer", "/file")
        opened.layers.create("child", "layer")
        opened.export_image("layer", tmp_path / "layer")
        opened.export_image("plain", tmp_path / "plain")
        opened.import_image(tmp_path / "layer", "imported layer")
        opened.import_image(tmp_path / "plain", "imported plain")
        assert list(opened.layers.list()) == ["child", "imported layer", "layer"]
        assert [info.name for info in opened.list_files("imported layer")] == ["file"]
        assert [info.name for info in opened.list_files("imported plain")] == ["lost+found"]
    with cowfs.open_home(other, durable=False) as opened:
        for name in ("layer", "plain"):
            opened.import_chain(tmp_path / f"chain of {name}")
        assert list(opened.layers.list()) == ["layer"]
        assert [info.name for info in opened.list_files("plain")] == ["lost+found"]


@pytest.mark.parametrize("damage", ["cut", "order", "manifest", "parent", "missing", "no blocks", "changed", "version"])
def test_a_damaged_chain_leaves_nothing(home: Path, tmp_path: Path, damage: str) -> None:
    chain = tmp_path / "chain"
    with cowfs.open_home(home, durable=False) as opened:
        names = make_family(opened)
        opened.export_chain("disk", chain)
        for name in reversed(names):
            opened.remove(name)
        before = used_blocks(opened)
        manifest = chain / "chain.json"
        if damage == "cut":
            last = max(chain.glob("*.blocks"))
            os.truncate(last, last.stat().st_size - 10)
        elif damage == "no blocks":
            max(chain.glob("*.blocks")).unlink()
        elif damage == "changed":
            with max(chain.glob("*.blocks")).open("r+b") as file:
                file.seek(-1, os.SEEK_END)
                (last_byte,) = file.read(1)
                file.seek(-1, os.SEEK_END)
                file.write(bytes([last_byte ^ 1]))
        elif damage == "version":
            manifest.write_text(manifest.read_text().replace('"version": 1', '"version": 2'))
        elif damage == "order":
            blocks = sorted(chain.glob("*.blocks"))
            blocks[-1].rename(chain / "000000.blocks")
        elif damage == "manifest":
            manifest.write_text(manifest.read_text()[:100])
        elif damage == "parent":
            manifest.write_text(manifest.read_text().replace('"parent": 0', '"parent": 7', 1))
        else:
            manifest.unlink()
        with pytest.raises(errors.CowfsError) as caught:
            opened.import_chain(chain)
        assert "\n" not in str(caught.value)
        assert_untouched(opened, before)


def test_a_chain_is_written_to_a_new_directory(opened: cowfs.Home, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(errors.UsageError, match="exists; name a directory that does not"):
        opened.export_chain("web", tmp_path / "mine")
    with pytest.raises(errors.UnknownDevice):
        opened.export_chain("nope", tmp_path / "new")
    assert sorted(os.listdir(tmp_path)) == ["home", "mine"]
    opened.export_chain("web", tmp_path / "chain")
    with pytest.raises(
        errors.DeviceExists, match=r"cannot import .*chain: device 'web' exists .*; rename or remove it"
    ):
        opened.import_chain(tmp_path / "chain")
