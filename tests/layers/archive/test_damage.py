"""Archives that are cut off, damaged or malicious: one clear error, and never a loop or much memory."""

from __future__ import annotations

import contextlib
import io
import random
import re
import struct
import tarfile
import tracemalloc
import zlib
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cowfs.errors import ArchiveError, BreakoutError, CowfsError, FilesystemError
from cowfs.layers import LayerRoot
from cowfs.layers.archive import apply_archive
from cowfs.layers.archive.reader import ArchiveReader
from cowfs.steps import finish
from tests.conftest import profile
from tests.ext4.conftest import MIB
from tests.layers.archive.conftest import LayerVolume
from tests.layers.archive.trees import apply, archive_of, directory, entry, file, look, padded, pax, symlink, write

DIRECTORY, SYMLINK, LINK = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE


def read_all(archive: bytes, *, end_required: bool = True) -> list[tuple[bytes, bytes]]:
    """(name, content) of everything, without a layer."""
    reader = ArchiveReader(io.BytesIO(archive), end_required=end_required)
    found = []
    while (item := reader.next()) is not None:
        content = bytearray()
        for offset, data in reader.content(item):
            content += bytes(offset - len(content)) + data
        found.append((item.name, bytes(content)))
        finish_all(reader.pass_over())
    return found


def finish_all(steps: Iterator[None]) -> None:
    for _ in steps:
        pass


def small_archive() -> bytes:
    return archive_of(
        entry(b"dir/", DIRECTORY),
        entry(b"dir/file", content=b"content" * 100, records={b"mtime": b"1.5", b"SCHILY.xattr.user.a": b"b"}),
        entry(b"././@LongLink", b"L", content=b"n" * 200 + b"\0"),
        entry(b"short", content=b"x"),
        entry(b"link", SYMLINK, target=b"dir"),
        entry(b"hard", LINK, target=b"dir/file"),
        entry(b"dir/.wh.file"),
    )


def test_every_truncation(layers: LayerVolume) -> None:
    """Up to the first of the two blocks of zeros, which is enough of an end."""
    archive = small_archive()
    ends = [0, 512, 512 * 6, 512 * 10, 512 * 11, 512 * 12, 512 * 13]
    for length in range(0, len(archive) - 1024 + 1, 256):
        expected = (
            r"it is empty|it ends after '.*' without the blocks of zeros that end an archive"
            if length in ends
            else r"ends in the middle|without the blocks|no header follows|not a tar"
        )
        with pytest.raises(ArchiveError, match=expected):
            read_all(archive[:length])
    assert read_all(archive[: len(archive) - 512]) == read_all(archive)
    layer = layers.new_layer()
    with pytest.raises(ArchiveError, match="entry 'dir/file': it ends in the middle of a file"):
        apply(layer, archive[: 512 * 5])


def test_every_truncation_where_the_end_is_known_otherwise() -> None:
    """At the end of an entry it is taken for whole; anywhere else it is an error."""
    archive = small_archive()
    whole = read_all(archive)
    ends = [0, 512, 512 * 6, 512 * 10, 512 * 11, 512 * 12, 512 * 13]
    assert len(ends) == len(whole) + 1
    for length in range(0, len(archive) - 1024, 256):
        if length in ends:
            assert read_all(archive[:length], end_required=False) == whole[: ends.index(length)]
            continue
        with pytest.raises(ArchiveError, match=r"ends in the middle|ends after an extended|no header follows|a tar"):
            read_all(archive[:length], end_required=False)


@pytest.mark.parametrize("length", [0, 1, 511, 512, 513, 1023, 1024, 10240])
def test_an_archive_of_zeros_alone(layer: LayerRoot, length: int) -> None:
    """A whole block of them is the end of an archive of no files, to Docker and GNU tar too; a part of one is not."""
    if length % 512 == 0 and length:
        assert apply(layer, bytes(length)).entries == 0
        return
    with pytest.raises(ArchiveError, match=r"it is empty|not a tar archive|in the middle of the blocks of zeros"):
        apply(layer, bytes(length))


@pytest.mark.parametrize("records", [{b"COWFS.deleted": b"/"}, {b"COWFS.deleted": b"a/.."}])
def test_a_whiteout_of_the_root_by_a_record(layer: LayerRoot, records: dict[bytes, bytes]) -> None:
    with pytest.raises(ArchiveError, match=r"entry 'x': a whiteout of the layer's root"):
        apply(layer, archive_of(entry(b"x", records=records)))


@pytest.mark.parametrize("keyword", [b"COWFS.deleted", b"COWFS.path"])
def test_true_names_do_not_lead_out(layer: LayerRoot, keyword: bytes) -> None:
    with pytest.raises(BreakoutError, match="leads out"):
        apply(layer, archive_of(entry(b"x", records={keyword: b"../x"})))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({b"": (0, b"\x1f\x8b\x08")}, "it is compressed with gzip; decompress it first"),
        ({b"": (0, b"BZh9")}, "compressed with bzip2"),
        ({b"": (0, b"\xfd7zXZ\0")}, "compressed with xz"),
        ({b"": (0, b"\x28\xb5\x2f\xfd")}, "compressed with zstd"),
        ({b"": (0, b"anything")}, "it is not a tar archive: bad checksum"),
        ({b"": (512, b"anything")}, "no header follows 'dir': bad checksum"),
        ({b"": (512, bytes(512))}, "a block of zeros where a header belongs, after 'dir'"),
    ],
)
def test_damaged_headers(layer: LayerRoot, damage: dict[bytes, tuple[int, bytes]], message: str) -> None:
    archive = bytearray(small_archive())
    for offset, data in damage.values():
        archive[offset : offset + len(data)] = data
    with pytest.raises(ArchiveError, match=re.escape(message)):
        apply(layer, bytes(archive))


def field(name: bytes, offset: int, data: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header with one field as given, its checksum right."""
    block = bytearray(entry(name, kind))
    block[offset : offset + len(data)] = data
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:512]) + 8 * 32)
    return bytes(block)


@pytest.mark.parametrize(
    ("archive", "message"),
    [
        (field(b"x", 124, b"\xff" * 12), "a size of -1 bytes"),
        (field(b"x", 124, b"\x80" + b"\xff" * 11), "a size of"),
        (field(b"x", 124, b"99999999999\0"), "not a tar archive"),
        (field(b"x", 108, b"\xff" * 8), "an owner of -1:0"),
        (field(b"x", 116, b"\x80" + b"\xff" * 7), "an owner of 0:"),
        (field(b"x", 329, b"\x80" + b"\xff" * 7, tarfile.CHRTYPE), "a device"),
        (entry(b"x", b"Z"), "entry 'x': its type 'Z' is not a type that a layer can have"),
        (entry(b"x", b"D"), "its type 'D'"),
        (entry(b"x", b"M"), "its type 'M'"),
        (field(b"x", 124, b"77777777777\0", b"x"), "an extended header of 8589934591 bytes"),
        (field(b"x", 124, b"77777777777\0", b"L"), "an extended header of 8589934591 bytes"),
        (field(b"x", 124, b"77777777777\0", b"g"), "an extended header of 8589934591 bytes"),
        (field(b"x", 124, b"00010000000\0", b"x"), "an extended header of 2097152 bytes"),
        (entry(b"x", b"x", content=pax({b"path": b"y"})) * 17, "extended headers in a row"),
        (entry(b"x", b"L", content=b"y\0") * 5000, "extended headers in a row"),
        (entry(b"x", b"g", content=pax({b"path": b"y"})) * 50, "extended headers in a row"),
        (entry(b"x", b"x", content=b"12 path=abc"), "no record at byte 0"),
        (entry(b"x", b"x", content=b"99 path=abc\n"), "no record at byte 0"),
        (entry(b"x", b"x", content=b"0 path=abc\n"), "no record at byte 0"),
        (entry(b"x", b"x", content=b"3 \n"), "no keyword at byte 0"),
        (entry(b"x", b"x", content=b"6 abc\n"), "no keyword at byte 0"),
        (entry(b"x", b"x", content=b"-5 a=\n"), "no record at byte 0"),
        (entry(b"x", b"x", content=b"9" * 5000), "no record at byte 0"),
        (entry(b"x", records={b"size": b"1e3"}), "'1e3' where a number belongs"),
        (entry(b"x", records={b"size": b"9" * 5000}), "where a number belongs"),
        (entry(b"x", records={b"uid": b"-1"}), "'-1' where a number belongs"),
        (entry(b"x", records={b"uid": b"4294967296"}), "an owner of 4294967296:0"),
        (entry(b"x", records={b"mtime": b"soon"}), "'soon' where a time belongs"),
        (entry(b"x", records={b"mtime": b"1" * 5000}), "where a time belongs"),
        (entry(b"x", records={b"size": b"9" * 19}), "ends in the middle of a file"),
    ],
)
def test_what_an_entry_cannot_be(layer: LayerRoot, archive: bytes, message: str) -> None:
    with pytest.raises(ArchiveError, match=message):
        apply(layer, archive_of(archive, entry(b"after")))
    assert set(look(layer)) <= {b"", b"x"}


def test_times_that_no_inode_can_hold_are_clamped(layer: LayerRoot) -> None:
    apply(
        layer,
        archive_of(
            entry(b"late", records={b"mtime": b"9" * 18}),
            entry(b"early", records={b"mtime": b"-" + b"9" * 18 + b".999"}),
            field(b"binary", 136, b"\x80" + b"\xff" * 11),
        ),
    )
    found = look(layer)
    assert found[b"late"].mtime_ns == found[b"binary"].mtime_ns > 2**33 * 10**9
    assert found[b"early"].mtime_ns == -(2**31) * 10**9


def test_what_means_nothing_is_ignored(layer: LayerRoot) -> None:
    archive = archive_of(
        entry(b"volume", b"V"),
        entry(b"pax_global", b"g", content=pax({b"path": b"everything", b"comment": b"x"})),
        entry(b"a", content=b"a", records={b"hdrcharset": b"BINARY", b"unknown": b"x", b"path": b"", b"size": b""}),
        entry(b"b", LINK, target=b"a", size=0),
        field(b"d", 124, b"00000001000\0", DIRECTORY),
        field(b"fifo", 124, b"00000001000\0", tarfile.FIFOTYPE),
        entry(b"c", records={b"path": b"./c2", b"mtime": b"5"}),
    )
    assert apply(layer, archive).size_bytes == 1
    assert set(look(layer)) == {b"", b"a", b"b", b"d", b"fifo", b"c2"}


def test_old_archives(layer: LayerRoot) -> None:
    """V7 had neither a magic nor a type for directories; old GNU tar has times where ustar has a prefix."""
    v7 = bytearray(entry(b"olddir/", tarfile.AREGTYPE))
    v7[257:] = bytes(255)
    gnu = bytearray(entry(b"gnu", content=b"x")[:512])
    gnu[257:265] = b"ustar  \0"
    gnu[345:357] = b"14000000000\0"
    for block in (v7, gnu):
        block[148:156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:512]) + 8 * 32)
    apply(layer, archive_of(bytes(v7), bytes(gnu) + padded(b"x"), entry(b"regular", tarfile.AREGTYPE)))
    found = look(layer)
    assert set(found) == {b"", b"olddir", b"gnu", b"regular"}
    assert found[b"olddir"].is_directory


@pytest.mark.parametrize("end", [bytes(512), bytes(1024), bytes(10240), bytes(1024) + b"junk" * 1000])
def test_ends(layer: LayerRoot, end: bytes) -> None:
    apply(layer, entry(b"a") + end)
    assert set(look(layer)) == {b"", b"a"}


def test_nothing_but_what_means_nothing(layer: LayerRoot) -> None:
    archive = archive_of(entry(b"pax_global", b"g", content=pax({b"comment": b"x"})), entry(b"volume", b"V"))
    assert apply(layer, archive).entries == 0


def test_an_empty_stream_is_no_layer(layer: LayerRoot) -> None:
    with pytest.raises(ArchiveError, match="it is empty, not even an archive of no files"):
        apply(layer, b"")
    assert apply(layer, archive_of()).entries == 0
    assert apply(layer, b"", end_required=False).entries == 0


def test_a_disk_image_is_no_layer_without_files(layer: LayerRoot) -> None:
    with pytest.raises(ArchiveError, match="it begins with zeros, and data follows"):
        apply(layer, bytes(1080) + b"\x53\xef" + bytes(2000))
    assert apply(layer, bytes(10240)).entries == 0


def sparse_records(**fields: bytes) -> dict[bytes, bytes]:
    return {b"GNU.sparse." + name.encode(): value for name, value in fields.items()}


V1 = {"major": b"1", "minor": b"0", "name": b"s"}


@pytest.mark.parametrize(
    ("archive", "message"),
    [
        (entry(b"s", records=sparse_records(size=b"9", map=b"0,1,2")), "an odd count of numbers"),
        (entry(b"s", records=sparse_records(size=b"9", map=b"0,x")), "where a number belongs"),
        (entry(b"s", records=sparse_records(size=b"9", map=b"8,2")), "2 bytes at 8 after 0 of 9"),
        (entry(b"s", records=sparse_records(size=b"9", map=b"4,2,5,1")), "1 bytes at 5 after 6 of 9"),
        (entry(b"s", content=b"x", records=sparse_records(size=b"9", map=b"4,2")), "1 bytes are stored"),
        (entry(b"s", records=sparse_records(map=b"0,0")), "'' where a number belongs"),
        (entry(b"s", records=sparse_records(size=b"9" * 18, map=b"0,%d" % 10**17)), "0 bytes are stored"),
        (entry(b"s", records=sparse_records(**V1, realsize=b"9")), "a sparse map that does not end"),
        (entry(b"s", content=b"\0" * 4096, records=sparse_records(**V1, realsize=b"9")), "a line that is too long"),
        (entry(b"s", content=b"9\n" * 256, records=sparse_records(**V1, realsize=b"9")), "9 bytes at 9 after"),
        (entry(b"s", content=b"99\n" + b"9\n" * 254 + b"1", records=sparse_records(**V1, realsize=b"9")), "9 bytes at"),
        (entry(b"s", content=padded(b"1000000\n"), records=sparse_records(**V1, realsize=b"9")), "more than 262144"),
        (entry(b"s", content=padded(b"-1\n"), records=sparse_records(**V1, realsize=b"9")), "where a number belongs"),
        (entry(b"s", records=sparse_records(major=b"2", minor=b"0", realsize=b"9")), "not known here"),
        (field(b"s", 386, b"00000000001\0" * 2, b"S"), "1 bytes at 1 after 0 of 0"),
        (field(b"s", 386, b"00000000009\0" * 2, b"S"), "not a tar archive|invalid literal"),
        (field(b"s", 482, b"\1", b"S") + b"0000000009x\0" * 42 + bytes(8), "an invalid number"),
        (field(b"s", 482, b"\1", b"S"), "ends in the middle of a sparse map"),
        (
            field(b"s", 482, b"\1", b"S") + (b"00000000001\0" * 42 + b"\1" + bytes(7)) * 15000,
            "more than 262144 pieces",
        ),
    ],
)
def test_sparse_maps_that_make_no_sense(layer: LayerRoot, archive: bytes, message: str) -> None:
    with pytest.raises(ArchiveError, match=message):
        apply(layer, archive)


def test_a_sparse_file_that_is_larger_than_a_file_can_be(layer: LayerRoot) -> None:
    records = sparse_records(size=b"%d" % (1 << 60), map=b"0,1")
    with pytest.raises(FilesystemError, match=r"cannot unpack 's'.*File too large"):
        apply(layer, archive_of(entry(b"s", content=b"x", records=records)))


class Generated(io.RawIOBase):
    """A stream of as much as is asked for, from a function of the offset."""

    def __init__(self, make: Callable[[int], bytes], limit_bytes: int) -> None:
        self._make = make
        self._position = 0
        self._limit_bytes = limit_bytes

    def read(self, size: int = -1) -> bytes:
        assert self._position < self._limit_bytes, "read on and on"
        data = self._make(self._position)
        self._position += len(data)
        return data


@pytest.mark.parametrize(
    "block",
    [
        entry(b"x", b"x", content=pax({b"path": b"p" * 1000})),
        entry(b"x", b"L", content=b"n" * 1000),
        entry(b"x", b"K", content=b"n" * 1000),
        entry(b"x", b"g", content=b""),
        entry(b"x", b"V"),
        field(b"s", 482, b"\1", b"S") + (b"00000000001\0" * 42 + b"\1" + bytes(7)) * 2000,
        entry(b"s", content=b"1\n" * 500_000, records=sparse_records(**V1, realsize=b"9")),
    ],
)
def test_endless_archives_end(layer: LayerRoot, block: bytes) -> None:
    """What comes before an entry is bounded in memory and in time, within one step."""
    archive = Generated(lambda _: block, 300 * MIB)
    steps = apply_archive(layer, archive)  # type: ignore[arg-type]
    tracemalloc.start()
    try:
        with pytest.raises(ArchiveError):
            next(steps)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64 * MIB


def test_a_file_of_endless_zeros_takes_neither_memory_nor_space(layer: LayerRoot) -> None:
    header = entry(b"zeros", records={b"size": b"%d" % (1 << 50)})
    archive = Generated(lambda position: header if not position else bytes(MIB), 1 << 62)
    steps = apply_archive(layer, archive)  # type: ignore[arg-type]
    tracemalloc.start()
    try:
        for _ in range(200):
            next(steps)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 * MIB
    assert layer.tree.lookup(layer.inode, b"zeros").blocks == 0
    steps.close()


def test_errors_of_the_stream_are_reported(layer: LayerRoot) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise ConnectionResetError(104, "Connection reset by peer")

    with pytest.raises(ArchiveError, match="layer archive: it cannot be read: Connection reset by peer") as caught:
        finish(apply_archive(layer, Broken()))
    assert caught.value.errno == 104


def sample(layers: LayerVolume) -> bytes:
    layer = layers.new_layer(
        {
            b"": directory(),
            b"d": directory(),
            b"d/f": file(b"content" * 50, xattrs={b"user.x": b"y"}),
            b"d/" + b"n" * 150: file(b"x"),
            b"l": symlink(b"d"),
        }
    )
    inode = layer.tree.restore(layer.inode, b"s", 0o100644, 0, 0)
    layer.tree.write(inode, 50_000, b"sparse")
    return write(layer, sparse=True)


@settings(
    max_examples=max(150, profile().max_examples // 2),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_damage_anywhere_is_reported_or_harmless(layers: LayerVolume, data: st.DataObject) -> None:
    """Whatever is done to an archive, the answer is one of our errors, and the volume stays whole."""
    layers.clear()
    archive = bytearray(sample(layers))
    for _ in range(data.draw(st.integers(1, 4))):
        offset = data.draw(st.integers(0, len(archive) - 1))
        archive[offset] = data.draw(st.integers(0, 255))
        if data.draw(st.booleans()):  # what a check of the sum would catch comes through
            begin = offset // 512 * 512
            block = archive[begin : begin + 512]
            archive[begin + 148 : begin + 156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:512]) + 8 * 32)
    layer = layers.new_layer()
    with contextlib.suppress(ArchiveError, FilesystemError):
        apply(layer, bytes(archive))
    look(layer)


def test_random_bytes(layer: LayerRoot, rng: random.Random) -> None:
    for _ in range(50):
        with pytest.raises(ArchiveError):
            apply(layer, rng.randbytes(rng.randrange(1, 5000)))
    assert set(look(layer)) == {b""}


def test_a_bomb_of_compressed_data_is_not_opened(layer: LayerRoot) -> None:
    with pytest.raises(CowfsError, match="not a tar archive"):
        apply(layer, zlib.compress(bytes(MIB)) + struct.pack("<Q", 0) * 100)
