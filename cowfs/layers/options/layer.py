"""The options of one layer: its size."""

from __future__ import annotations

from collections.abc import Mapping

from cowfs.errors import UsageError
from cowfs.layers.options import values
from cowfs.units import SECTOR_BYTES, format_decimal_size


def parse_layer_options(options: Mapping[str, str] | None) -> int | None:
    """The size in bytes that a layer shall have, whole sectors; None, also for a size of 0, is its parent's.

    Raises:
        UsageError: a key other than `size`, all of them named; a value that is not a size.
    """
    options = options or {}
    unknown = sorted(key for key in options if key.lower() != "size")
    if unknown:
        raise UsageError(f"Unknown option {', '.join(key.lower() for key in unknown)}")
    sizes = [values.parse_size(value) for value in options.values()]
    return sizes[-1] // SECTOR_BYTES * SECTOR_BYTES or None if sizes else None


def check_layer_size(size_bytes: int, parent_bytes: int) -> None:
    """Raises UsageError when a layer would be smaller than what it is a snapshot of."""
    if size_bytes < parent_bytes:
        raise UsageError(f"devmapper: Container size cannot be smaller than {format_decimal_size(parent_bytes)}")
