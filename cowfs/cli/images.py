"""The commands import and export."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cowfs.cli import output
from cowfs.cli.settings import DEVICE, PATH, SIZE, Settings
from cowfs.units import format_size

if TYPE_CHECKING:
    from cowfs.home.images import Format


@click.command("import")
@click.argument("file", type=PATH)
@click.argument("name")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["raw", "qcow2", "vmdk", "vdi", "vhdx", "tar", "directory"]),
    help="What FILE is. [default: by its first bytes]",
)
@click.option("--size", type=SIZE, help="Size of a device made of files. [default: that of the base device]")
@click.option("--follow-backing", is_flag=True, help="Also read the other files that an image refers to.")
@click.pass_obj
def import_command(
    settings: Settings, file: str, name: str, kind: Format | None, size: int | None, follow_backing: bool
) -> None:
    """Make the new device NAME of FILE, all of it or nothing.

    FILE is the image of a disk (raw, qcow2, vmdk, vdi or vhdx) with whatever is on it, or a tar archive or a directory,
    whose files are put into an empty ext4. Zeros take no space of the pool.

    Formats other than raw are read by qemu-img. An image that refers to other files, such as a backing file, is refused
    unless --follow-backing is given, since whoever made the image chose those files.
    """
    with settings.open_home() as home, output.progress(f"importing {file}") as progress:
        made = home.import_image(
            file, name, format=kind, size_bytes=size, follow_backing=follow_backing, progress=progress
        )
    if settings.as_json:
        output.print_json(made)
        return
    for problem in made.problems:
        output.print_line(f"cowfs: not copied: {problem}")
    print(f"made {made.name}: id {made.id}, {format_size(made.size_bytes)}, {format_size(made.mapped_bytes)} mapped")


@click.command("export")
@click.argument("name", type=DEVICE)
@click.argument("file", type=PATH)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["raw", "qcow2", "tar"]),
    help="What to write. [default: by the end of FILE: .qcow2, .tar, else raw]",
)
@click.option("--force", is_flag=True, help="Replace FILE where it exists.")
@click.pass_obj
def export_command(settings: Settings, name: str, file: str, kind: Format | None, force: bool) -> None:
    """Write the device NAME to the new FILE, as it is now, mounted or not.

    A raw disk has holes for what is zeros; qcow2 is written by qemu-img; a tar archive holds the files, with owners,
    extended attributes and nanoseconds, and FILE is there when it is complete.
    """
    with settings.open_home() as home, output.progress(f"exporting {name}") as progress:
        written = home.export_image(name, file, format=kind, force=force, progress=progress)
    if settings.as_json:
        output.print_json(written)
    else:
        sizes = f"{format_size(written.size_bytes)}, {format_size(written.data_bytes)} of data"
        print(f"wrote {output.printable(file)}: {sizes}")
