"""The commands about a home and its devices: init, create, snapshot, list, status, inspect, remove."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import click

from cowfs.cli import output
from cowfs.cli.settings import DEVICE, MINIMUM_FREE, PATH, SIZE, WAIT, Settings
from cowfs.cli.tables import Column, Table, refuse_for_json
from cowfs.devices.on_disk.names import BASE
from cowfs.errors import CowfsError, UsageError
from cowfs.units import format_size

if TYPE_CHECKING:
    from cowfs.devices.on_disk.options import MinimumFree
    from cowfs.devices.reports import DeviceRow, DeviceUse, HomeReport, MountedView


@click.command("init")
@click.option("--data-size", type=SIZE, default="100G", show_default=True, help="Size of the pool's data file, sparse.")
@click.option(
    "--metadata-size", type=SIZE, default="2G", show_default=True, help="Size of the pool's metadata file, sparse."
)
@click.option("--block-size", type=SIZE, default="64K", show_default=True, help="Unit of sharing, a multiple of 64K.")
@click.option("--base-size", type=SIZE, default="10G", show_default=True, help="Size of the base device.")
@click.option(
    "--min-free",
    type=MINIMUM_FREE,
    default="10%",
    show_default=True,
    help="Space to keep free: a percentage, or a size of data.",
)
@click.option(
    "--no-space",
    type=click.Choice(["queue", "error"]),
    default="queue",
    show_default=True,
    help="What writes do when the pool is full: wait for space, or fail at once.",
)
@click.option(
    "--no-space-timeout",
    type=WAIT,
    metavar="SECONDS",
    help="How long writes wait for space; 0: without limit. [default: 60; with dmthin, as the kernel's module says]",
)
@click.option(
    "--data-device", metavar="DEV", type=PATH, default="", help="Block device for the pool's data, used completely."
)
@click.option(
    "--metadata-device",
    metavar="DEV",
    type=PATH,
    default="",
    help="Block device for the pool's metadata, used completely.",
)
@click.option("--thin-pool", metavar="NAME", default="", help="Existing kernel pool that was never used.")
@click.option("--force", is_flag=True, help="Overwrite existing data on the devices.")
@click.pass_obj
def init_command(
    settings: Settings,
    data_size: int,
    metadata_size: int,
    block_size: int,
    base_size: int,
    min_free: MinimumFree,
    no_space: str,
    no_space_timeout: float | None,
    data_device: str,
    metadata_device: str,
    thin_pool: str,
    force: bool,
) -> None:
    """Create a home, in a new or empty directory.

    The home contains a pool and one device, base, with an empty ext4; every other device begins as a snapshot of base.
    The files are sparse: only what is written occupies space. A home whose initialisation was interrupted is
    initialised again.

    When less than --min-free of the pool is free, devices cannot be created; close to the limit there are warnings.
    When --min-free is a size, it is the limit of the data, and that of the metadata is 10%.

    Sizes are bytes or carry K, M, G, T or P, powers of 1024.

    The pool may be elsewhere: on one or two block devices, which must be empty unless --force is given, or an
    existing kernel pool (with --backend dmthin), which is used and never removed. The home records where.
    """
    from cowfs.devices.on_disk.options import HomeOptions, PoolSource
    from cowfs.home.opened.opening import open_here
    from cowfs.home.opened.spec import HomeSpec, Make

    options = HomeOptions(
        data_size_bytes=data_size,
        metadata_size_bytes=metadata_size,
        block_bytes=block_size,
        base_size_bytes=base_size,
        min_free_percent=min_free.percent,
        min_free_bytes=min_free.data_bytes,
        error_if_no_space=no_space == "error",
        no_space_timeout_seconds=no_space_timeout,
        source=PoolSource(data_device, metadata_device, thin_pool),
        overwrite=force,
    )
    home = settings.home_path
    with output.steps() as progress:
        spec = HomeSpec(
            home,
            settings.backend,
            storage_options=settings.storage_options,
            make=Make.ALWAYS,
            options=options,
            progress=progress,
        )
        with open_here(spec) as made:
            status = made.devices.reports.status()
    base_size, data_size = status.base_size_bytes, status.data_total_bytes
    output.answer(
        {"home": str(home), "base_size_bytes": base_size, "data_size_bytes": data_size},
        f"made {home}: {format_size(data_size)} of data, base of {format_size(base_size)}",
        as_json=settings.as_json,
    )


_COUNT_MAX: Final = 100_000  # all names are in memory at once

COUNT: Final = click.option(
    "--count", type=click.IntRange(1, _COUNT_MAX), help="Number of devices; {} in the name becomes 1, 2, 3 ..."
)


@click.command("create")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--parent", metavar="ORIGIN", type=DEVICE, help="The device to snapshot. [default: base]")
@click.option("--size", type=SIZE, help="Size of the device, at least the parent's. [default: the parent's]")
@COUNT
@click.pass_obj
def create_command(
    settings: Settings, names: tuple[str, ...], parent: str | None, size: int | None, count: int | None
) -> None:
    """Create the device NAME: a snapshot of base, or of ORIGIN. The time does not depend on the data in ORIGIN.

    With several names, or --count as in "create --count 200 'web-{}'", all devices are created in one commit, or none.
    """
    _create(settings, names, count, parent=parent, size_bytes=size)


@click.command("snapshot")
@click.argument("origin", type=DEVICE)
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@COUNT
@click.pass_obj
def snapshot_command(settings: Settings, origin: str, names: tuple[str, ...], count: int | None) -> None:
    """Create the device NAME as a snapshot of ORIGIN, which may be mounted and busy.

    With several names, or --count as in "snapshot --count 200 web 'web-{}'", all snapshots are of the same moment and
    created in one commit, or none.
    """
    _create(settings, names, count, parent=origin)


def _create(
    settings: Settings,
    names: tuple[str, ...],
    count: int | None,
    *,
    parent: str | None,
    size_bytes: int | None = None,
) -> None:
    if count is not None:
        if len(names) > 1 or names[0].count("{}") != 1:
            raise UsageError("--count needs one name with {} for the number, as in: --count 200 'web-{}'")
        names = tuple(names[0].replace("{}", str(number)) for number in range(1, count + 1))
    is_one = len(names) == 1 and count is None
    with settings.open_home() as home:
        if is_one:
            made = [home.create(names[0], parent=parent, size_bytes=size_bytes)]
        else:
            made = home.create_many(names, parent=parent, size_bytes=size_bytes)
    if settings.as_json:
        output.print_json(made[0] if is_one else made)
        return
    for created in made:
        shown = f"snapshot of {created.parent}" if created.parent else "without a parent"
        print(f"made {created.name}: id {created.id}, {format_size(created.size_bytes)}, {output.printable(shown)}")
    for warning in made[0].warnings:
        output.print_line(f"cowfs: warning: {warning}")


def _size(size_bytes: int | None) -> str:
    return "?" if size_bytes is None else format_size(size_bytes)


def _name(row: DeviceRow) -> str:
    return f"{row.name} (deleted)" if row.deleted else row.name


_DEVICES: Final[Table[DeviceRow]] = Table(
    (
        Column("NAME", _name),
        Column("ID", lambda row: str(row.id), lambda row: row.id),
        Column("SIZE", lambda row: _size(row.size_bytes), lambda row: row.size_bytes),
        Column("MAPPED", lambda row: _size(row.mapped_bytes), lambda row: row.mapped_bytes),
        Column("EXCLUSIVE", lambda row: _size(row.exclusive_bytes), lambda row: row.exclusive_bytes),
        Column("PARENT", lambda row: row.parent or "-"),
        Column("CONTENTS", lambda row: row.contents or "-", usual=("ext4", "-")),
        Column("MOUNTED", lambda row: " ".join(row.mounted) or "-"),
        Column("SNAPSHOT", lambda row: row.snapshot or "-", usual=("-",)),
    ),
    lambda row: row.name,
)


@click.command("list")
@_DEVICES.options
@click.option("--tree", is_flag=True, help="Show each device below its parent.")
@click.pass_obj
def list_command(
    settings: Settings, patterns: tuple[str, ...], columns: str | None, sort: str | None, reverse: bool, tree: bool
) -> None:
    """List the devices: their mapped and exclusive space, and where they are mounted.

    With PATTERN, as in 'snap-*', only devices whose names match one of them.

    MAPPED is the space of all blocks of a device, shared ones included; EXCLUSIVE is the space that removing it frees.
    A dash means that the parent is unknown or was removed. A deleted device was removed while it was busy; it is freed
    on last close.

    The column CONTENTS (what the disk holds) is shown when a disk is known to hold something other than ext4; the
    column SNAPSHOT (containerd's key, the kind, and the number of its child snapshots) when there are snapshots of
    containerd.
    """
    if tree and (columns or sort or reverse):
        raise UsageError("a tree has neither columns nor another order; leave out --tree, or --columns and --sort")
    refuse_for_json(settings.as_json, columns)
    with settings.open_home() as home:
        rows = _DEVICES.ordered(_DEVICES.chosen(home.devices(), patterns), sort, reverse=reverse)
    if settings.as_json:
        output.print_json(rows)
    elif tree:
        _print_tree(rows)
    else:
        _DEVICES.print(rows, columns)


def _print_tree(rows: list[DeviceRow]) -> None:
    by_name = {row.name: row for row in rows}
    children: dict[str, list[str]] = {row.name: [] for row in rows}
    roots = []
    for row in rows:
        if row.parent in by_name and row.parent is not None:
            children[row.parent].append(row.name)
        else:
            roots.append(row.name)

    def describe(name: str) -> str:
        row = by_name[name]
        where = f", mounted at {' '.join(row.mounted)}" if row.mounted else ""
        where += f", containerd's {row.snapshot}" if row.snapshot else ""
        return f"{_name(row)}  {_size(row.exclusive_bytes)} of {_size(row.mapped_bytes)} exclusive{where}"

    output.print_tree(roots, children.__getitem__, describe)


@click.command("status")
@click.option("--io", "with_io", is_flag=True, help="Show the counters of the pool and its devices, too.")
@click.pass_obj
def status_command(settings: Settings, with_io: bool) -> None:
    """Show the state and the space of the home and its pool, its mounts, and the process that holds its lock.

    With --io also how often, and how much, each device was read, written and discarded since the process that holds the
    home opened it; the blocks that were provisioned, and copied because they were shared; and how many bytes were
    written for each byte that was asked to be (write amplification). A figure that the backend does not know is shown
    as -.
    """
    with settings.open_home() as home:
        report = home.status()
        counters = home.io() if with_io else None
    if settings.as_json:
        output.print_json(report if counters is None else {**output.as_object(report), "io": counters})
        return
    _print_status(report)
    if counters is not None:
        from cowfs.cli.counters import print_io

        print_io(counters)


def _print_status(report: HomeReport) -> None:
    needs = ", needs check: run 'pool check --repair'" if report.needs_check else ""
    snapshot = report.metadata_snapshot_block
    output.print_fields(
        [
            ("Home", report.home),
            ("Lock holder", f"process {report.holder_pid}" if report.holder_pid else "none"),
            *(
                ("Mounted", f"{view.device or 'every device'} at {view.mount_point}, {_view(view)}")
                for view in report.views
            ),
            ("Faults", f"{report.faults} in force, see 'faults list'" if report.faults else ""),
            ("Backend", report.backend),
            ("Pool", report.pool),
            ("Mode", f"{report.mode.replace('_', ' ')}{needs}"),
            ("When full", output.when_full(report.no_space, report.no_space_timeout_seconds)),
            ("Transaction", str(report.transaction_id)),
            ("Block size", format_size(report.block_bytes)),
            ("Data", _used(report.data_used_bytes, report.data_total_bytes)),
            ("Metadata", _used(report.metadata_used_bytes, report.metadata_total_bytes)),
            ("Kept free", _kept_free(report)),
            ("Metadata snapshot", "" if snapshot is None else f"held at block {snapshot}"),
            ("Devices", _devices(report)),
            ("Base device", f"{format_size(report.base_size_bytes)}, UUID {report.base_uuid or 'unknown'}"),
            ("Data file", f"{report.data_file}, {format_size(report.data_file_allocated_bytes)} on disk"),
            ("Metadata file", report.metadata_file),
            ("Disk free", format_size(report.host_free_bytes)),
            ("Orphan thins", ", ".join(map(str, report.orphan_thin_ids))),
            *(("Problem", problem) for problem in report.problems),
            *(("Warning", warning) for warning in report.warnings),
            *(("In use", f"{use.device}, {_use(use)}") for use in report.uses),
        ]
    )


def _kept_free(report: HomeReport) -> str:
    percent = f"{report.min_free_percent} %" if report.min_free_percent else ""
    if report.min_free_bytes is None:
        return percent
    metadata = f", {percent} of metadata" if percent else ""
    return f"{format_size(report.min_free_bytes)} of data{metadata}"


def _devices(report: HomeReport) -> str:
    waiting = f", {report.deleted_devices} of them deleted and still in use" if report.deleted_devices else ""
    return f"{report.devices}{waiting}"


def _view(view: MountedView) -> str:
    kind = {"raw": "disk image", "kernel": "file tree, by the kernel"}.get(view.view, "file tree")
    return f"{kind}, read-only" if view.read_only else kind


def _use(use: DeviceUse) -> str:
    kind = {
        "layer": "mounted as a layer",
        "tree": "mounted as a file tree",
        "raw": "mounted as a disk image",
        "kernel": "mounted by the kernel",
        "node": "active as a node",
        "disk": "open as a disk",
        "writer": "being copied into",
        "reader": "being read as a layer",
        "home": "open in the mount of its home",
    }[use.kind]
    where = f" at {use.where}" if use.where else ""
    since = "" if use.since is None else f", since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(use.since))}"
    return f"{kind}{where}{since}"


def _used(used_bytes: int, total_bytes: int) -> str:
    percent = 100 * used_bytes / total_bytes if total_bytes else 0.0
    return f"{format_size(used_bytes)} of {format_size(total_bytes)} used ({percent:.1f} %)"


@click.command("inspect")
@click.argument("name", type=DEVICE)
@click.pass_obj
def inspect_command(settings: Settings, name: str) -> None:
    """Show all details of the device NAME."""
    from cowfs.cli.counters import io_fields

    with settings.open_home() as home:
        report = home.inspect(name)
        block_bytes = home.status().block_bytes if report.counters else 0
    if settings.as_json:
        output.print_json(report)
        return
    highest = report.highest_mapped_byte
    output.print_fields(
        [
            ("Name", report.name),
            ("Id", str(report.id)),
            ("Size", f"{format_size(report.size_bytes)} ({report.size_bytes} bytes)"),
            ("Mapped", format_size(report.mapped_bytes)),
            ("Exclusive", format_size(report.exclusive_bytes)),
            ("Highest mapped byte", "none" if highest is None else f"{highest:#x}"),
            ("Contents", report.contents or "not known"),
            ("Parent", report.parent or "not known"),
            ("Children", ", ".join(report.children) or "none"),
            ("Created in transaction", str(report.created_transaction_id)),
            ("Created at time", str(report.creation_time)),
            ("Last snapshot at time", str(report.snapshotted_time)),
            ("Active", output.flag(report.active)),
            ("Deleted", "yes, and removed on last close" if report.deleted else ""),
            *(("Mounted", f"{view.mount_point}, {_view(view)}") for view in report.views),
            *(("In use", _use(use)) for use in report.uses),
            *(io_fields(report.counters, block_bytes) if report.counters else ()),
        ]
    )


@click.command("rename")
@click.argument("old", type=DEVICE)
@click.argument("new")
@click.pass_obj
def rename_command(settings: Settings, old: str, new: str) -> None:
    """Give the device OLD the name NEW. Its snapshots stay its snapshots.

    A device that is mounted alone stays mounted, and files in it stay open. While the whole home is mounted at MNT,
    MNT/OLD becomes MNT/NEW at once, unless a file is open there. A device that the kernel has mounted is not renamed.
    """
    with settings.open_home_from_outside() as home:
        renamed = home.rename(old, new)
    output.answer(renamed, f"renamed {renamed.old_name} to {renamed.name}", as_json=settings.as_json)


@click.command("rollback")
@click.argument("name", type=DEVICE)
@click.argument("snapshot", type=DEVICE)
@click.option("--keep", metavar="NEW", help="Keep the present contents, as the device NEW.")
@click.option("--force", is_flag=True, help="Detach what is open in the device.")
@click.pass_obj
def rollback_command(settings: Settings, name: str, snapshot: str, keep: str | None, force: bool) -> None:
    """Give the device NAME the contents and the size that SNAPSHOT has now. The time does not depend on the data.

    SNAPSHOT stays as it is. It is usually a snapshot of NAME, and may be any other device; with base, NAME is as empty
    as a new device. NAME keeps its name, its parent and its snapshots, and has a new thin id; all devices are peers, so
    nothing must be promoted, and newer snapshots stay.

    A mount of NAME, or of the whole home, shows the contents at once. While something is open in NAME, nothing is
    changed and the processes are listed; with --force what they have open is detached: it fails with ESTALE from then
    on.
    """
    with settings.open_home_from_outside() as home:
        done = home.rollback(name, snapshot, keep=keep, force=force)
    if settings.as_json:
        output.print_json(done)
        return
    size = "" if done.size_bytes == done.old_size_bytes else f", {format_size(done.size_bytes)}"
    kept = f"; what it held is in {done.kept}" if done.kept else ""
    as_new = ", as a new device" if done.snapshot == BASE else ""
    print(f"rolled {output.printable(done.name)} back to {output.printable(done.snapshot)}{as_new}{size}{kept}")
    if not done.is_related:
        output.print_line(
            f"cowfs: warning: {done.snapshot} is not related to {done.name}: they share only what base has"
        )


@click.command("activate")
@click.argument("name", type=DEVICE)
@click.option("--read-only", is_flag=True, help="Make a node that can only be read.")
@click.pass_obj
def activate_command(settings: Settings, name: str, read_only: bool) -> None:
    """Create the block device node of the device NAME, and print the path of the node.

    Any tool can use it, until 'cowfs deactivate NAME' or the next boot; it needs no server process. Meanwhile the
    device is in use: it can be snapshotted, but neither mounted otherwise, rolled back nor removed. Backend dmthin
    only.

    \b
      disk=$(cowfs --home H --backend dmthin activate web)
      dd if="$disk" of=web.img bs=1M
      cowfs --home H --backend dmthin deactivate web
    """
    with settings.open_home() as home:
        active = home.activate(name, read_only=read_only)
    output.answer(active, active.node, as_json=settings.as_json)


@click.command("deactivate")
@click.argument("name", type=DEVICE)
@click.pass_obj
def deactivate_command(settings: Settings, name: str) -> None:
    """Remove the node of the device NAME, which 'cowfs activate NAME' made.

    Refused while a process has it open, or it is mounted; the error names the process, if that is known.
    """
    with settings.open_home() as home:
        home.deactivate(name)
    output.answer({"name": name}, f"deactivated {name}", as_json=settings.as_json)


@click.command("remove")
@click.argument("names", nargs=-1, required=True, metavar="NAME...", type=DEVICE)
@click.option("--deferred", is_flag=True, help="Mark a busy device for deletion; it is removed on last close.")
@click.pass_obj
def remove_command(settings: Settings, names: tuple[str, ...], deferred: bool) -> int:
    """Remove devices that are not mounted. Snapshots of a removed device keep the data that they share with it.

    When a device cannot be removed, the others still are; the exit status is then that of the first error.
    """
    removed: list[str] = []
    waiting: list[str] = []
    status = 0
    with settings.open_home_from_outside() as home:
        for name in names:
            try:
                is_gone = home.remove(name, deferred=deferred)
            except CowfsError as error:
                failed = output.print_error(error, as_json=settings.as_json)
                status = status or failed
                continue
            (removed if is_gone else waiting).append(name)
            if not settings.as_json:
                done = "removed {}" if is_gone else "{} is busy; removal deferred until its last close"
                print(done.format(output.printable(name)))
    if settings.as_json:
        output.print_json({"removed": removed, "deferred": waiting})
    return status
