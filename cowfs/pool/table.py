"""Table lines of the thin-pool and thin targets, as typed values and back.

    <start> <length> thin-pool <metadata dev> <data dev> <block size> <low water> [<nfeat> <feat>...]
    <start> <length> thin <pool dev> <dev id> [<external origin dev>]

Lengths and the block size are in sectors, the low water mark in data blocks. Source: the kernel's thin-pool v1.22.0.
"""

from __future__ import annotations

from typing import Final

import msgspec

from cowfs.errors import InvalidRequest
from cowfs.units import MAX_THIN_ID, DataBlocks, Sectors, ThinId, is_data_block_size

# In the order in which the kernel prints them back.
_FEATURES: Final = (
    "skip_block_zeroing",
    "ignore_discard",
    "no_discard_passdown",
    "read_only",
    "error_if_no_space",
)
_MAX_FEATURE_ARGUMENTS: Final = 4


class PoolTable(msgspec.Struct, frozen=True):
    """What a thin-pool target is asked to be; the five flags are those requested, not those in force."""

    length_sectors: Sectors
    metadata_device: str
    data_device: str
    block_sectors: Sectors
    low_water_blocks: int = 0
    skip_block_zeroing: bool = False
    ignore_discard: bool = False
    no_discard_passdown: bool = False
    read_only: bool = False
    error_if_no_space: bool = False

    @property
    def data_blocks(self) -> DataBlocks:
        return DataBlocks(self.length_sectors // self.block_sectors)

    def check(self) -> None:
        """Raises InvalidRequest where the kernel would refuse to load this table whatever the devices."""
        if not is_data_block_size(self.block_sectors):
            raise InvalidRequest(
                f"a data block of {self.block_sectors} sectors is not possible; "
                "take a multiple of 128 sectors (64K) from 128 (64K) to 2097152 (1G)"
            )
        if self.metadata_device == self.data_device:
            raise InvalidRequest(f"metadata and data are the same device, {self.data_device}; give two devices")
        if self.length_sectors <= 0 or self.low_water_blocks < 0:
            raise InvalidRequest("the pool length must be positive and the low water mark not negative")

    def format(self) -> str:
        """The line as `dmsetup table` prints it, with the kernel's trailing space."""
        names = [name for name in _FEATURES if getattr(self, name)]
        return (
            f"0 {self.length_sectors} thin-pool {self.metadata_device} {self.data_device} {self.block_sectors} "
            f"{self.low_water_blocks} {' '.join([str(len(names)), *names])} "
        )

    def replace(self, **changes: object) -> PoolTable:
        return msgspec.structs.replace(self, **changes)

    @classmethod
    def parse(cls, text: str) -> PoolTable:
        """Raises InvalidRequest for anything the kernel's constructor refuses."""
        words = text.split()
        try:
            start, length, target, metadata, data, block, low_water = words[:7]
            if target != "thin-pool" or int(start) != 0:
                raise ValueError
            features = _parse_features(words[7:])
            table = cls(
                length_sectors=Sectors(int(length)),
                metadata_device=metadata,
                data_device=data,
                block_sectors=Sectors(int(block)),
                low_water_blocks=int(low_water),
                **dict.fromkeys(features, True),
            )
        except ValueError:
            raise InvalidRequest(f"'{text}' is not a thin-pool table line") from None
        table.check()
        return table


def _parse_features(words: list[str]) -> list[str]:
    if not words:
        return []
    count = int(words[0])
    names = [word.lower() for word in words[1 : 1 + count]]
    if not 0 <= count <= _MAX_FEATURE_ARGUMENTS or len(names) != count or set(names) - set(_FEATURES):
        raise ValueError(words)
    return names


class ThinTable(msgspec.Struct, frozen=True):
    """What a thin target is asked to be."""

    length_sectors: Sectors
    pool_device: str
    thin_id: ThinId
    external_origin: str | None = None

    def format(self) -> str:
        origin = "" if self.external_origin is None else f" {self.external_origin}"
        return f"0 {self.length_sectors} thin {self.pool_device} {self.thin_id}{origin}"

    @classmethod
    def parse(cls, text: str) -> ThinTable:
        """Raises InvalidRequest for anything the kernel's constructor refuses."""
        words = text.split()
        try:
            start, length, target, pool, thin_id = words[:5]
            if target != "thin" or int(start) != 0 or len(words) > 6 or not 0 <= int(thin_id) <= MAX_THIN_ID:
                raise ValueError
            origin = words[5] if len(words) == 6 else None
            return cls(Sectors(int(length)), pool, ThinId(int(thin_id)), origin)
        except ValueError:
            raise InvalidRequest(f"'{text}' is not a thin table line") from None
