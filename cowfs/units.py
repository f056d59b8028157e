"""Units of the field: sectors, data blocks, metadata blocks, and human sizes such as `64K`.

A bare integer never crosses a module boundary without its unit in the name (`size_bytes`, `length_sectors`).
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple, NewType

Sectors = NewType("Sectors", int)
DataBlocks = NewType("DataBlocks", int)
MetaBlocks = NewType("MetaBlocks", int)
ThinId = NewType("ThinId", int)

SECTOR_BYTES: Final = 512
METADATA_BLOCK_BYTES: Final = 4096
METADATA_BLOCK_SECTORS: Final = METADATA_BLOCK_BYTES // SECTOR_BYTES

MIN_DATA_BLOCK_SECTORS: Final = 128  # 64 KiB
MAX_DATA_BLOCK_SECTORS: Final = 2097152  # 1 GiB
MAX_THIN_ID: Final = 2**24 - 1
MAX_SNAPSHOT_TIME: Final = 2**24 - 1
MAX_METADATA_BLOCKS: Final = 255 * 16320  # 15.875 GiB: what one index block can describe


class Extent(NamedTuple):
    """`length` virtual blocks from `vblock`, mapped to as many data blocks from `dblock`."""

    vblock: int
    dblock: int
    length: int


_SIZE = re.compile(r"(\d+)(?:\.(\d+))?\s?([kKmMgGtTpP])?(?:[iI]?[bB])?")
_EXPONENT: Final = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}


def parse_size(text: str) -> int:
    """Bytes meant by a size such as `64K`, `1.5G`, `10GiB` or `512`; suffixes are powers of 1024.

    Raises:
        ValueError: not a size. Zero is a size; callers that need more than zero say so themselves.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"'{text}' is not a size; write a number with an optional K, M, G, T or P, as in 64K")
    whole, fraction, suffix = match.groups()
    unit = 1 << (10 * _EXPONENT[(suffix or "").upper()])
    value = int(whole) * unit
    if fraction:
        value += int(fraction) * unit // 10 ** len(fraction)
    return value


def format_size(size_bytes: int) -> str:
    """A size for people, in powers of 1024 with three significant figures: `64 KiB`, `1.5 GiB`."""
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if abs(value) < 1024 or unit == "PiB":
            break
        value /= 1024
    if unit == "B" or value >= 100:
        return f"{value:.0f} {unit}"
    return f"{value:.3g} {unit}"


def format_decimal_size(size_bytes: int) -> str:
    """A size as Docker shows it, in powers of 1000 with four significant figures: `65.54kB`, `10.74GB`, `0B`."""
    value = float(size_bytes)
    units = iter(("B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"))
    unit = next(units)
    while value >= 1000 and (larger := next(units, "")):
        value, unit = value / 1000, larger
    return f"{value:.4g}{unit}"


def is_data_block_size(block_sectors: int) -> bool:
    """Whether the kernel takes this data block size: 64 KiB..1 GiB, a multiple of 64 KiB."""
    return (
        MIN_DATA_BLOCK_SECTORS <= block_sectors <= MAX_DATA_BLOCK_SECTORS
        and block_sectors % MIN_DATA_BLOCK_SECTORS == 0
    )
