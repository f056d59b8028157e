"""Maps of sparse files in archives: where in the file the stored bytes belong, in the four forms that GNU tar wrote.

    old GNU   type S: 4 entries in the header, 21 in each block that follows it; 12-digit numbers
    PAX 0.0   records GNU.sparse.offset and GNU.sparse.numbytes in turn, the size in GNU.sparse.size
    PAX 0.1   one record GNU.sparse.map of numbers and commas, the name in GNU.sparse.name
    PAX 1.0   lines of numbers before the data, padded to a block: a count, then offsets and lengths;
              the size in GNU.sparse.realsize, the name in GNU.sparse.name

All become one thing: a SparseMap, checked. Archives are written with 1.0.
"""

from __future__ import annotations

import tarfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from cowfs.layers.archive import records

BLOCK_BYTES: Final = tarfile.BLOCKSIZE
_ENTRIES_MAX: Final = 1 << 18  # what a hostile archive can make us hold: 4 MiB
_DIGITS_MAX: Final = 20
_OLD_HEADER_ENTRIES: Final = range(386, 482, 24)
_OLD_HEADER_CONTINUES: Final = 482
_OLD_HEADER_SIZE: Final = slice(483, 495)
_OLD_BLOCK_ENTRIES: Final = range(0, 504, 24)
_OLD_BLOCK_CONTINUES: Final = 504


class SparseMap:
    """Ranges of a file in ascending order, with holes between them.

    Raises:
        ValueError: too many, not in order, or beyond `size_bytes`.
    """

    def __init__(self, numbers: Sequence[int], size_bytes: int) -> None:
        """`numbers`: offset and length in turn."""
        if len(numbers) % 2:
            raise ValueError("an odd count of numbers in its sparse map")
        self._numbers = array("Q")
        self.size_bytes = size_bytes
        self.stored_bytes = 0
        end = 0
        for offset, length in zip(numbers[::2], numbers[1::2], strict=True):
            if not end <= offset <= offset + length <= size_bytes:
                raise ValueError(f"a sparse map with {length} bytes at {offset} after {end} of {size_bytes}")
            end = offset + length
            self.stored_bytes += length
            if length:
                self._numbers.extend((offset, length))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """(offset, length)."""
        return zip(self._numbers[::2], self._numbers[1::2], strict=True)


def from_old_header(header: bytes, next_block: Callable[[], bytes]) -> SparseMap:
    """Raises ValueError."""
    numbers = array("Q")
    _old_entries(header, _OLD_HEADER_ENTRIES, numbers)
    continues = header[_OLD_HEADER_CONTINUES]
    while continues:
        block = next_block()
        _old_entries(block, _OLD_BLOCK_ENTRIES, numbers)
        continues = block[_OLD_BLOCK_CONTINUES]
    return SparseMap(numbers, _old_number(header[_OLD_HEADER_SIZE]))


def _old_entries(block: bytes, places: Iterable[int], numbers: array[int]) -> None:
    for place in places:
        if block[place + 12]:  # an unused entry is all zeros
            numbers.extend((_old_number(block[place : place + 12]), _old_number(block[place + 12 : place + 24])))
    _check_count(len(numbers) // 2)


def _old_number(field: bytes) -> int:
    """Octal digits, or after a byte of 0x80 binary."""
    if field[0] == 0x80:
        value = int.from_bytes(field[1:], "big")
    else:
        digits = field.partition(b"\0")[0].strip()
        if digits.strip(b"01234567"):
            raise ValueError("a sparse map with an invalid number")
        value = int(digits or b"0", 8)
    if value >= 1 << 63:
        raise ValueError(f"a sparse map with the number {value}")
    return value


def from_records(found: Sequence[tuple[bytes, bytes]], next_block: Callable[[], bytes]) -> SparseMap | None:
    """The map in an extended header, if it has one.

    Args:
        next_block: reads a block of what is stored of the file; called for 1.0 only.

    Raises:
        ValueError: it makes no sense.
    """
    fields = {keyword[len(records.SPARSE) :]: value for keyword, value in found if keyword.startswith(records.SPARSE)}
    if not fields:
        return None
    version = fields.get(b"major", b"0"), fields.get(b"minor", b"0")
    if version == (b"1", b"0"):
        return SparseMap(_read_lines(next_block), records.number(fields.get(b"realsize", b"")))
    if version[0] != b"0":
        raise ValueError("a sparse format that is not known here")
    size = records.number(fields.get(b"size", fields.get(b"realsize", b"")))
    if b"map" in fields:
        texts = fields[b"map"].split(b",") if fields[b"map"] else []
    else:
        texts = [value for keyword, value in found if keyword[len(records.SPARSE) :] in (b"offset", b"numbytes")]
    _check_count(len(texts) // 2)
    return SparseMap([records.number(text) for text in texts], size)


def _read_lines(next_block: Callable[[], bytes]) -> array[int]:
    """The numbers of a 1.0 map; whole blocks are read."""
    numbers = array("Q")
    wanted = -1
    rest = b""
    while wanted < 0 or len(numbers) < wanted:
        if len(rest) > _DIGITS_MAX:
            raise ValueError("a sparse map with a line that is too long")
        *lines, rest = (rest + next_block()).split(b"\n")
        for line in lines:
            value = records.number(line)
            if wanted < 0:
                _check_count(value)
                wanted = 2 * value
            elif len(numbers) < wanted:
                numbers.append(value)
    return numbers


def _check_count(count: int) -> None:
    if count > _ENTRIES_MAX:
        raise ValueError(f"a sparse map of more than {_ENTRIES_MAX} pieces")


def build(ranges: Iterable[tuple[int, int]]) -> bytes:
    """A 1.0 map of (offset, length), padded to whole blocks."""
    numbers = [number for pair in ranges for number in pair]
    text = b"".join(b"%d\n" % number for number in (len(numbers) // 2, *numbers))
    return text + bytes(-len(text) % BLOCK_BYTES)
