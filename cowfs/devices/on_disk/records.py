"""What the files of a home contain.

Three kinds of file are moby's, byte for byte in meaning and key names, so that a home can be used by both:

    metadata/<name>                  DeviceFile       {"device_id":2,"size":...,"transaction_id":2,"initialized":...}
    metadata/deviceset-metadata      SetFile          {"next_device_id":1,"BaseDeviceUUID":...}
    metadata/transaction-metadata    TransactionFile  {"open_transaction_id":12,"device_hash":"...","device_id":7}

What cowfs adds is in separate files beside `metadata/`, and a home without them is a home too:

    cowfs.json                       HomeFile         format version, and pool settings that the pool does not store
    cowfs.parents                    ParentLine       one line per device made here: what it was a snapshot of
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from cowfs.units import MAX_THIN_ID, SECTOR_BYTES

HOME_FORMAT: Final = "cowfs home"
HOME_VERSION: Final = 1
MAX_DEVICE_BYTES: Final = 1 << 60  # what ext4 can address, 1 EiB
_MAX_U64: Final = 2**64 - 1


class DeviceFile(msgspec.Struct, frozen=True):
    """`transaction_id` is the pool transaction that made the device; only the base is ever `initialized`.

    moby writes down the size that was asked for, 1.3G say, and makes the device of the whole sectors in it: these are
    `size`.
    """

    device_id: int
    size: int
    transaction_id: int = 0
    initialized: bool = False
    deleted: bool = False

    def __post_init__(self) -> None:
        _check_thin_id(self.device_id)
        if not SECTOR_BYTES <= self.size <= MAX_DEVICE_BYTES:
            raise ValueError(f"size {self.size} is not in {SECTOR_BYTES}..{MAX_DEVICE_BYTES}")
        msgspec.structs.force_setattr(self, "size", self.size - self.size % SECTOR_BYTES)
        if not 0 <= self.transaction_id <= _MAX_U64:
            raise ValueError(f"transaction_id {self.transaction_id} is not in 0..{_MAX_U64}")


class SetFile(msgspec.Struct, frozen=True):
    next_device_id: int = 0
    base_uuid: str = msgspec.field(name="BaseDeviceUUID", default="")
    base_filesystem: str = msgspec.field(name="BaseDeviceFilesystem", default="")


class TransactionFile(msgspec.Struct, frozen=True):
    open_transaction_id: int
    device_hash: str
    device_id: int

    def __post_init__(self) -> None:
        _check_thin_id(self.device_id)


class ReplacementFile(msgspec.Struct, frozen=True, omit_defaults=True):
    """Thin `new_id` is a snapshot, and may take the place of `old_id`, the thin of device `name`.

    Where the former content is kept, this is the device `kept`, a snapshot of `old_id` as thin `kept_id`.

    See `cowfs.devices.changes.replacement`.
    """

    name: str
    old_id: int
    new_id: int
    kept: str = ""
    kept_id: int | None = None

    def __post_init__(self) -> None:
        for thin_id in self.thin_ids:
            _check_thin_id(thin_id)

    @property
    def thin_ids(self) -> tuple[int, ...]:
        return (self.old_id, self.new_id) if self.kept_id is None else (self.old_id, self.new_id, self.kept_id)


class MakingFile(msgspec.Struct, frozen=True):
    """Devices that are made together, from a pool at `transaction_id`: each name's thin, in order.

    See `cowfs.devices.changes.many`.
    """

    transaction_id: int
    thin_ids: dict[str, int]

    def __post_init__(self) -> None:
        for thin_id in self.thin_ids.values():
            _check_thin_id(thin_id)


class ImportingFile(msgspec.Struct, frozen=True):
    """Devices whose content is complete, and whose records may still be marked for deletion: the thin of each name.

    See `cowfs.devices.changes.importing`.
    """

    thin_ids: dict[str, int]

    def __post_init__(self) -> None:
        for thin_id in self.thin_ids.values():
            _check_thin_id(thin_id)


class OldRecordsFile(msgspec.Struct, frozen=True):
    """All records in one file, as moby had them before 2014."""

    devices: dict[str, DeviceFile] = msgspec.field(name="Devices")


class HomeFile(msgspec.Struct, frozen=True):
    """The defaults are moby's, for a home that it left.

    `data_device`, `metadata_device` and `thin_pool` are those of `PoolSource`, where it is given.
    `no_space_timeout_seconds` is None for the backend's own.
    """

    format: str = HOME_FORMAT
    version: int = HOME_VERSION
    low_water_blocks: int = 32768
    skip_block_zeroing: bool = True
    error_if_no_space: bool = False
    no_discard_passdown: bool = False
    min_free_percent: int = 10
    min_free_bytes: int | None = None
    base_size_bytes: int = 10 << 30
    data_device: str = ""
    metadata_device: str = ""
    thin_pool: str = ""
    no_space_timeout_seconds: float | None = None


class ParentLine(msgspec.Struct, frozen=True, omit_defaults=True):
    """Says nothing about a device of the same name whose creating transaction is another one.

    `is_layer` is None where it is not known: lines have it only since layers and other devices are distinguished.
    """

    name: str
    transaction_id: int
    parent: str
    is_layer: bool | None = None


class Identity(NamedTuple):
    """What a file system says of itself.

    `name` is what its file `id` holds, None where there is none; `is_empty`: there is nothing in it.
    """

    uuid: str
    size_bytes: int
    name: str | None = None
    is_empty: bool = False


class DeviceRecord(msgspec.Struct, frozen=True):
    """One device of a home. `parent` is None where it is not known or no longer there.

    `is_layer`: it was made as a layer, or from one; None where that is not known.
    """

    name: str
    device_id: int
    size_bytes: int
    transaction_id: int
    parent: str | None = None
    initialized: bool = False
    deleted: bool = False
    is_layer: bool | None = None

    @property
    def length_sectors(self) -> int:
        return self.size_bytes // SECTOR_BYTES


def _check_thin_id(thin_id: int) -> None:
    if not 0 <= thin_id <= MAX_THIN_ID:
        raise ValueError(f"device id {thin_id} is not in 0..{MAX_THIN_ID}")
