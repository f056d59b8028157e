"""Headers that are parsed without the library: as the library does, or not at all."""

from __future__ import annotations

import tarfile
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowfs.layers.archive.headers import parse_header

FORMATS: tuple[Literal[0, 1, 2], ...] = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
TYPES = (b"0", b"\0", b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"x", b"g", b"L", b"K", b"S", b"V", b"A")
NUMBERS = (100, 108, 116, 124, 136, 148, 329, 337)
READ = ("name", "mode", "uid", "gid", "size", "mtime", "type", "linkname")


def read_by_both(block: bytes) -> tuple[object, object]:
    """What we and the library read of a block, or refuse."""
    found: list[object] = []
    for parse in (parse_header, lambda data: tarfile.TarInfo.frombuf(data, "latin-1", "strict")):
        try:
            info = parse(block)
        except tarfile.HeaderError as error:
            found.append(str(error))
        else:
            found.append([getattr(info, field) for field in READ])
    return found[0], found[1]


def with_checksum(block: bytearray) -> bytes:
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """A header as programs write them, in which some fields may be anything."""
    info = tarfile.TarInfo(draw(st.text("ab/.", min_size=1, max_size=150)))
    info.type = draw(st.sampled_from(TYPES))
    info.mode, info.uid, info.gid = draw(st.integers(0, 0o7777)), draw(st.integers(0, 1 << 30)), 5
    info.size, info.mtime = draw(st.integers(0, 1 << 40)), draw(st.integers(-(1 << 20), 1 << 40))
    info.linkname = draw(st.text("ab/", max_size=90))
    try:
        block = bytearray(info.tobuf(draw(st.sampled_from(FORMATS)), "latin-1", "replace")[-512:])
    except ValueError:  # a name without a place to split it
        block = bytearray(tarfile.TarInfo("name").tobuf(tarfile.USTAR_FORMAT))
    if draw(st.booleans()):
        place = draw(st.sampled_from(NUMBERS))
        part = draw(st.one_of(st.text("01278 \0_+-ox\x1c\t", max_size=8).map(str.encode), st.binary(max_size=8)))
        block[place : place + len(part)] = part
    if draw(st.booleans()):
        place = draw(st.integers(0, 511))
        block[place] = draw(st.integers(0, 255))
    return with_checksum(block) if draw(st.booleans()) else bytes(block)


@given(headers())
def test_a_header_is_read_as_the_library_reads_it(block: bytes) -> None:
    ours, library = read_by_both(block)
    assert ours == library


def test_common_headers_are_read_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = []
    for kind in (tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.XHDTYPE):
        for format_ in FORMATS:
            info = tarfile.TarInfo("a/b")
            info.type, info.mode, info.size, info.linkname = kind, 0o755, 12345, "c"
            blocks.append(info.tobuf(format_)[-512:])
    monkeypatch.delattr(tarfile.TarInfo, "frombuf")
    assert [parse_header(block).mode for block in blocks] == [0o755] * len(blocks)
