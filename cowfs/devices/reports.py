"""What is reported of a home and its devices, each report declared once: it crosses the control socket as it is, and
is the JSON of the command line.

    HomeReport, DeviceRow, DeviceReport     the commands `status`, `list`, `inspect`
    UsageReport                             the command `usage`
    MountedView, DeviceUse                  parts of these: mounts, and what is in use
    ClonedHome                              the command `clone-home`
    HomeFinding                             one thing that was wrong in a home

Names and paths are text that JSON can carry (`cowfs.error_record.plain_text`). What a check of the metadata found is in
`cowfs.thinmeta.findings`, what the layer driver reports in `cowfs.layers.info`, what changes answer beside their
requests.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from cowfs.pool import PoolCounters, ThinCounters, WriteAmplification

UseKind: TypeAlias = Literal["layer", "tree", "raw", "kernel", "node", "disk", "writer", "reader", "home"]
FindingKind: TypeAlias = Literal[
    "damaged_file",
    "unfinished_change",
    "deleted_device",
    "missing_thin",
    "orphan_thin",
    "conflict",
    "base",
    "foreign_pool",
    "stale_transaction",
]


class MountedView(msgspec.Struct, frozen=True):
    """A device that is shown at a mount point: by the holder as `tree` or `raw`, or by the `kernel`.

    The view `home` shows every device, each in a directory of its name below the mount point; `device` is null then.
    """

    device: str | None
    mount_point: str
    view: str
    read_only: bool


class DeviceCounters(msgspec.Struct, frozen=True):
    """What was asked of a device since the pool was opened, and what that took."""

    name: str
    id: int
    counters: ThinCounters


class IoReport(msgspec.Struct, frozen=True):
    """What a pool and its devices have done since the pool was opened, by the process that holds the home.

    A figure that the backend cannot tell is left out. `devices` are those that were in use, by name.
    """

    block_bytes: int
    pool: PoolCounters
    write_amplification: WriteAmplification
    devices: list[DeviceCounters]


class DeviceUse(msgspec.Struct, frozen=True):
    """One use of a device.

    `kind` is `tree`, `raw` or `kernel` for a device mounted alone, `home` for one open in a mount of the whole home,
    `layer` for one mounted as a layer, `reader` for one whose files are being read or compared, `writer` for one that
    files are being copied into, `disk` for one open in a Python program. `where` is its path, null where it has none.
    `since` is in seconds since 1970, null where it is not known.
    """

    device: str
    kind: UseKind
    where: str | None
    since: float | None


class HomeReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """The figures of a home. Those of its pool are zero and `mode` is fail where the pool has none.

    `backend`, `holder_pid`, `views` and `uses` are empty in a report of the device set itself.
    `mode` is one of write, out_of_data_space, out_of_metadata_space, read_only and fail; `no_space` is queue or error.
    `holder_pid` is null where no process held the home before the request. `data_file_allocated_bytes` is what the data
    file occupies of its file system, `host_free_bytes` what that has left: a sparse pool can promise more. `problems`
    are what the last opening found and what is wrong with the pool now, in words; `warnings` say what space is running
    out. `uses` is left out where no device is in use. `faults` is how many rules of faults are in force, left out where
    there are none.
    """

    home: str
    backend: str
    holder_pid: int | None
    views: list[MountedView]
    pool: str
    mode: str
    no_space: str
    no_space_timeout_seconds: float | None
    needs_check: bool
    transaction_id: int
    block_bytes: int
    data_used_bytes: int
    data_total_bytes: int
    metadata_used_bytes: int
    metadata_total_bytes: int
    min_free_percent: int
    min_free_bytes: int | None
    metadata_snapshot_block: int | None
    devices: int
    deleted_devices: int
    base_size_bytes: int
    base_uuid: str
    data_file: str
    data_file_allocated_bytes: int
    metadata_file: str
    host_free_bytes: int
    orphan_thin_ids: list[int]
    problems: list[str]
    warnings: list[str]
    uses: list[DeviceUse] = []
    faults: int = 0


class DeviceRow(msgspec.Struct, frozen=True, omit_defaults=True):
    """A device in a list. `exclusive_bytes` is what removing it gives back; `parent` is null where it is not known.

    Both figures are null where the pool has none. `deleted`: it is marked for deletion, and removed when its last user
    ends. `mounted`: where it is shown. `contents`: what the disk holds, left out where it is ext4; null where that
    cannot be read. `snapshot`: which one of containerd's it is, left out where it is none.
    """

    name: str
    id: int
    size_bytes: int
    mapped_bytes: int | None
    exclusive_bytes: int | None
    parent: str | None
    deleted: bool
    mounted: list[str]
    contents: str | None = "ext4"
    snapshot: str | None = None


class DeviceReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """Everything about one device; the two times are values of the pool's snapshot counter, not of a clock.

    `exclusive_bytes` lie in blocks that no other device maps. `views` and `uses` are empty in a report of the device
    set itself; `uses` is left out where the device is not in use. `counters`
    are left out where it was not in use since the pool was opened. `contents` is as in a list.
    """

    name: str
    id: int
    size_bytes: int
    mapped_bytes: int
    exclusive_bytes: int
    highest_mapped_byte: int | None
    parent: str | None
    children: list[str]
    created_transaction_id: int
    creation_time: int
    snapshotted_time: int
    active: bool
    deleted: bool
    views: list[MountedView]
    uses: list[DeviceUse] = []
    counters: ThinCounters | None = None
    contents: str | None = "ext4"


class UsageRow(msgspec.Struct, frozen=True):
    """What a thin occupies. `name` is null for an orphan thin.

    Of its `mapped_bytes`, the `shared_bytes` are other thins' too. Removing it gives back `exclusive_bytes` of data and
    `metadata_bytes` of metadata.
    """

    name: str | None
    id: int
    mapped_bytes: int
    shared_bytes: int
    exclusive_bytes: int
    metadata_bytes: int


class UsageTotals(msgspec.Struct, frozen=True):
    """Of a whole pool: `mapped_bytes` is what its thins hold, each counted alone, and `saved_bytes` what sharing saves.

    `data_used_bytes` are the exclusive and the shared ones, those once.
    """

    mapped_bytes: int
    exclusive_bytes: int
    shared_bytes: int
    saved_bytes: int
    data_used_bytes: int
    data_total_bytes: int
    metadata_used_bytes: int
    metadata_total_bytes: int


class UsageReport(msgspec.Struct, frozen=True):
    """What occupies a pool: devices by name, then orphan thins."""

    thins: list[UsageRow]
    totals: UsageTotals


class ClonedHome(msgspec.Struct, frozen=True):
    """A copy of a home.

    `by_reference`: its pool shares the blocks of the disk with the pool of `origin` until either is written.
    `allocated_bytes`: what the files of its pool occupy, shared or not.
    """

    home: str
    origin: str
    by_reference: bool
    allocated_bytes: int


class HomeFinding(msgspec.Struct, frozen=True):
    """One thing that was wrong in a home. `action` is what was done about it, in words; empty when nothing was."""

    kind: FindingKind
    found: str
    action: str
    device: str | None = None
    thin_id: int | None = None
