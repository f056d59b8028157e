"""Status lines of the thin-pool and thin targets, as typed values and back.

    pool   <transaction id> <used md>/<total md> <used data>/<total data> <held root|-> <rw|ro|out_of_data_space>
           <discard_passdown|no_discard_passdown|ignore_discard> <error_if_no_space|queue_if_no_space>
           <needs_check|-> <md low water>        or the single word Fail or Error
    thin   <mapped sectors> <highest mapped sector|->     or Fail or Error

Both are what follows `<start> <length> <target>` in the output of `dmsetup status`. Source: the kernel's
thin-pool v1.22.0 (Linux 6.1).
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from cowfs.errors import InvalidRequest
from cowfs.units import DataBlocks, MetaBlocks, Sectors


class PoolMode(enum.IntEnum):
    """Pool modes, from best to worst. The status line shows `ro` for both READ_ONLY and OUT_OF_METADATA_SPACE."""

    WRITE = 0
    OUT_OF_DATA_SPACE = 1
    OUT_OF_METADATA_SPACE = 2
    READ_ONLY = 3
    FAIL = 4


class DiscardMode(enum.Enum):
    PASSDOWN = "discard_passdown"
    NO_PASSDOWN = "no_discard_passdown"
    IGNORE = "ignore_discard"


class NoSpacePolicy(enum.Enum):
    ERROR = "error_if_no_space"
    QUEUE = "queue_if_no_space"


_MODE_WORDS: Final = {
    PoolMode.WRITE: "rw",
    PoolMode.OUT_OF_DATA_SPACE: "out_of_data_space",
    PoolMode.OUT_OF_METADATA_SPACE: "ro",
    PoolMode.READ_ONLY: "ro",
}
_WORD_MODES: Final = {
    "rw": PoolMode.WRITE,
    "out_of_data_space": PoolMode.OUT_OF_DATA_SPACE,
    "ro": PoolMode.READ_ONLY,
}


class UnreadableStatus(enum.Enum):
    """Stands for the figures of a target that has none."""

    FAIL = "Fail"  # the pool failed: all I/O errors
    ERROR = "Error"  # a value could not be read from the metadata


class PoolStatus(msgspec.Struct, frozen=True):
    """Figures of a working pool; used and total counts are in metadata blocks and data blocks.

    `used_metadata_blocks` includes the hidden reserve, as the kernel's does. `held_root` is the block of the held
    metadata snapshot, None when there is none.
    """

    transaction_id: int
    used_metadata_blocks: MetaBlocks
    total_metadata_blocks: MetaBlocks
    used_data_blocks: DataBlocks
    total_data_blocks: DataBlocks
    held_root: int | None
    mode: PoolMode
    discard: DiscardMode
    no_space: NoSpacePolicy
    needs_check: bool
    metadata_low_water: MetaBlocks

    def format(self) -> str:
        """The status line, with the kernel's trailing space."""
        held = "-" if self.held_root is None else str(self.held_root)
        return (
            f"{self.transaction_id} {self.used_metadata_blocks}/{self.total_metadata_blocks} "
            f"{self.used_data_blocks}/{self.total_data_blocks} {held} {_MODE_WORDS[self.mode]} "
            f"{self.discard.value} {self.no_space.value} {'needs_check' if self.needs_check else '-'} "
            f"{self.metadata_low_water} "
        )

    @classmethod
    def parse(cls, text: str) -> PoolStatus | UnreadableStatus:
        """Read a status line; the words of later kernels after the ninth field are ignored.

        Raises:
            InvalidRequest: not a thin-pool status line.
        """
        words = text.split()
        if len(words) == 1 and words[0] in ("Fail", "Error"):
            return UnreadableStatus(words[0])
        try:
            used_md, total_md = (MetaBlocks(int(n)) for n in words[1].split("/"))
            used_data, total_data = (DataBlocks(int(n)) for n in words[2].split("/"))
            return cls(
                transaction_id=int(words[0]),
                used_metadata_blocks=used_md,
                total_metadata_blocks=total_md,
                used_data_blocks=used_data,
                total_data_blocks=total_data,
                held_root=None if words[3] == "-" else int(words[3]),
                mode=_WORD_MODES[words[4]],
                discard=DiscardMode(words[5]),
                no_space=NoSpacePolicy(words[6]),
                needs_check={"needs_check": True, "-": False}[words[7]],
                metadata_low_water=MetaBlocks(int(words[8])),
            )
        except (ValueError, IndexError, KeyError):
            raise InvalidRequest(f"'{text}' is not a thin-pool status line") from None


class ThinStatus(msgspec.Struct, frozen=True):
    """Figures of one thin device [sectors]; both count blocks past the end of the current table too."""

    mapped_sectors: Sectors
    highest_mapped_sector: Sectors | None

    @classmethod
    def of_blocks(cls, mapped: int, highest: int | None, block_sectors: int) -> ThinStatus:
        """From counts of data blocks: how many are mapped, and the last virtual block that is."""
        end = None if highest is None else Sectors((highest + 1) * block_sectors - 1)
        return cls(Sectors(mapped * block_sectors), end)

    def format(self) -> str:
        highest = "-" if self.highest_mapped_sector is None else str(self.highest_mapped_sector)
        return f"{self.mapped_sectors} {highest}"

    @classmethod
    def parse(cls, text: str) -> ThinStatus | UnreadableStatus:
        """Raises InvalidRequest when this is not a thin status line."""
        words = text.split()
        if len(words) == 1 and words[0] in ("Fail", "Error"):
            return UnreadableStatus(words[0])
        try:
            mapped, highest = words
            return cls(Sectors(int(mapped)), None if highest == "-" else Sectors(int(highest)))
        except ValueError:
            raise InvalidRequest(f"'{text}' is not a thin status line") from None
