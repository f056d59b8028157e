"""The commands import and export."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from cowfs.cli import output
from cowfs.cli.settings import DEVICE, PATH, SIZE, Settings
from cowfs.errors import UsageError, command_line
from cowfs.units import format_size

if TYPE_CHECKING:
    from cowfs.disk_images.formats import Format
    from cowfs.home.requests.disks import Imported


@click.command("import")
@click.argument("file", type=PATH)
@click.argument("name", required=False)
@click.option("--chain", is_flag=True, help="FILE is a directory from 'export --chain'; its devices keep their names.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["raw", "qcow2", "vmdk", "vdi", "vhdx", "tar", "directory"]),
    help="What FILE is. [default: by its first bytes]",
)
@click.option("--size", type=SIZE, help="Size of a device made from files. [default: that of the base device]")
@click.option("--follow-backing", is_flag=True, help="Also read the other files that an image refers to.")
@click.pass_obj
def import_command(
    settings: Settings,
    file: str,
    name: str | None,
    chain: bool,
    kind: Format | None,
    size: int | None,
    follow_backing: bool,
) -> None:
    """Create the device NAME from FILE, completely or not at all.

    FILE is the image of a disk (raw, qcow2, vmdk, vdi or vhdx) with whatever is on it, or a tar archive or a directory,
    whose files are put into an empty ext4. Zeros take no space of the pool.

    vmdk, vdi, vhdx and compressed qcow2 images are read by qemu-img. An image that refers to other files, such as a
    backing file, is refused unless --follow-backing is given, since the maker of the image chose those files.

    FILE may be -, standard input, with --format raw or tar. Data from a pipe is first collected in an unnamed file in
    the home.

    With --chain, all devices that 'export --chain' wrote are created; they share blocks as in the home that they came
    from.
    """
    if chain == (name is not None) or (chain and (kind or size or follow_backing)):
        raise UsageError("import takes FILE NAME, or --chain DIR alone, whose devices have names")
    if file == "-" and name is not None:
        _say_made(settings, _import_stdin(settings, name, kind, size, follow_backing))
        return
    if name is None:
        with settings.open_home() as home, output.progress(f"importing {file}") as progress:
            devices = home.import_chain(file, progress=progress)
        _say_imported(settings, devices)
        return
    with settings.open_home() as home, output.progress(f"importing {file}") as progress:
        made = home.import_image(
            file, name, format=kind, size_bytes=size, follow_backing=follow_backing, progress=progress
        )
    _say_made(settings, made)


def _import_stdin(
    settings: Settings, name: str, kind: Format | None, size_bytes: int | None, follow_backing: bool
) -> Imported:
    from cowfs.devices.on_disk.files import HomeFiles
    from cowfs.devices.on_disk.making import require_home
    from cowfs.home.api.layers import as_file

    if kind not in ("raw", "tar") or follow_backing:
        raise UsageError("say by --format whether standard input is raw or tar; write any other image to a file first")
    if sys.stdin.isatty():
        raise UsageError(
            "standard input is a terminal; give a file or a pipe: "
            f"{command_line('cowfs', 'import', '-', name, '--format', kind)} < FILE"
        )
    require_home(HomeFiles(os.path.abspath(settings.home_path)))
    # The home stays free until all is here: the command that writes it may need it.
    with (
        as_file(sys.stdin.buffer, settings.home_path, is_held=False, called="standard input") as file,
        settings.open_home() as home,
    ):
        return home.import_stream(file, name, format=kind, size_bytes=size_bytes)


def _say_made(settings: Settings, made: Imported) -> None:
    for problem in made.problems:
        output.print_line(f"cowfs: not copied: {problem}")
    if settings.as_json:
        output.print_json(made)
    else:
        _say_imported(settings, [made])


def _say_imported(settings: Settings, devices: list[Imported]) -> None:
    if settings.as_json:
        output.print_json(devices)
        return
    for made in devices:
        sizes = f"{format_size(made.size_bytes)}, {format_size(made.mapped_bytes)} mapped"
        print(f"made {output.printable(made.name)}: id {made.id}, {sizes}")


@click.command("export")
@click.argument("name", type=DEVICE)
@click.argument("file", type=PATH)
@click.option("--chain", is_flag=True, help="Write NAME and its descendants to the new directory FILE.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["raw", "qcow2", "tar"]),
    help="What to write. [default: by the suffix of FILE: .qcow2, .tar, else raw; those of other formats are refused]",
)
@click.option("--force", is_flag=True, help="Replace FILE where it exists.")
@click.pass_obj
def export_command(settings: Settings, name: str, file: str, chain: bool, kind: Format | None, force: bool) -> None:
    """Write the device NAME to the new FILE, as it is now, mounted or not.

    Raw disks and qcow2 images omit zeros; a tar archive holds the files, with owners, extended attributes and times in
    nanoseconds. FILE appears when it is complete and durable. When FILE is -, a tar archive is written to standard
    output.

    With --chain the device and all its descendants are written, each with only the blocks that it does not share with
    its parent; 'import --chain' creates the devices again, in this home or another one.
    """
    if chain:
        if kind or force:
            raise UsageError("--chain writes a new directory; leave out --format and --force")
        with settings.open_home() as home, output.progress(f"exporting {name}") as progress:
            exported = home.export_chain(name, file, progress=progress)
        if settings.as_json:
            output.print_json(exported)
        else:
            print(f"wrote {output.printable(file)}: {', '.join(device.name for device in exported.devices)}")
        return
    if file == "-":
        if kind not in (None, "tar") or settings.as_json or force:
            raise UsageError("only a tar archive goes to standard output, without --json and --force; name a FILE")
        with (
            settings.open_home() as home,
            output.progress(f"exporting {name}"),
            output.archive_out(None, f"{command_line('cowfs', 'export', name, '-')} > FILE") as out,
        ):
            home.export_archive(name, out.write)
        return
    with settings.open_home() as home, output.progress(f"exporting {name}") as progress:
        written = home.export_image(name, file, format=kind, force=force, progress=progress)
    if settings.as_json:
        output.print_json(written)
    else:
        sizes = f"{format_size(written.size_bytes)}, {format_size(written.data_bytes)} of data"
        print(f"wrote {output.printable(file)}: {sizes}")
