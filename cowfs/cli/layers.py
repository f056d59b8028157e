"""The commands of the group layer: what a storage driver does with layers."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import sys
from typing import IO

import click

from cowfs.blockdev import FileDevice, copy_sparse
from cowfs.cli import output
from cowfs.cli.settings import DEVICE, Settings
from cowfs.errors import UsageError


@click.command("create")
@click.argument("layer_id", metavar="ID")
@click.argument("parent", type=DEVICE, required=False)
@click.option("--size", metavar="SIZE", help="Size of the layer, at least its parent's. [default: the parent's]")
@click.pass_obj
def create_command(settings: Settings, layer_id: str, parent: str | None, size: str | None) -> None:
    """Create the layer ID, a snapshot of PARENT or an empty one."""
    with settings.open_home_from_outside() as home:
        home.layers.create(layer_id, parent, {} if size is None else {"size": size})
    output.answer({"id": layer_id, "parent": parent}, as_json=settings.as_json)


@click.command("remove")
@click.argument("layer_ids", metavar="ID...", nargs=-1, required=True, type=DEVICE)
@click.pass_obj
def remove_command(settings: Settings, layer_ids: tuple[str, ...]) -> None:
    """Remove layers. A layer that does not exist is not an error; a busy layer is removed on last close."""
    with settings.open_home_from_outside() as home:
        for layer_id in layer_ids:
            home.layers.remove(layer_id)
    output.answer({"removed": list(layer_ids)}, as_json=settings.as_json)


@click.command("exists")
@click.argument("layer_id", metavar="ID", type=DEVICE)
@click.pass_obj
def exists_command(settings: Settings, layer_id: str) -> int:
    """Test whether the layer ID exists: exit status 0 if it does, 1 if not."""
    with settings.open_home_from_outside() as home:
        exists = home.layers.exists(layer_id)
    output.answer({"id": layer_id, "exists": exists}, as_json=settings.as_json)
    return 0 if exists else 1


@click.command("list")
@click.pass_obj
def list_command(settings: Settings) -> None:
    """List the layers, one per line."""
    with settings.open_home_from_outside() as home:
        ids = list(home.layers.list())
    output.answer(ids, *ids, as_json=settings.as_json)


@click.command("metadata")
@click.argument("layer_id", metavar="ID", type=DEVICE)
@click.pass_obj
def metadata_command(settings: Settings, layer_id: str) -> None:
    """Show which device holds the layer ID."""
    with settings.open_home_from_outside() as home:
        items = home.layers.metadata(layer_id)
    output.answer(items, *(f"{name}: {value}" for name, value in items.items()), as_json=settings.as_json)


@click.command("get")
@click.argument("layer_id", metavar="ID", type=DEVICE)
@click.option("--mount-label", metavar="LABEL", default="", help="SELinux label, for mounts by the kernel.")
@click.pass_obj
def get_command(settings: Settings, layer_id: str, mount_label: str) -> None:
    """Mount the layer ID and print the path of its files. Each 'layer get' needs one 'layer put'.

    A server in the background holds the home until the last 'layer put'.
    """
    from cowfs.cli.mounting import serving_layers

    with serving_layers(settings) as home:
        path = home.layers.get(layer_id, mount_label)
    output.answer({"id": layer_id, "path": path}, path, as_json=settings.as_json)


@click.command("put")
@click.argument("layer_id", metavar="ID", type=DEVICE)
@click.pass_obj
def put_command(settings: Settings, layer_id: str) -> None:
    """Release the layer ID once; the last 'layer put' unmounts it."""
    with settings.open_home_from_outside() as home:
        home.layers.put(layer_id)
    output.answer({"id": layer_id}, as_json=settings.as_json)


@click.command("changes")
@click.argument("layer_id", metavar="ID", type=DEVICE)
@click.argument("parent", type=DEVICE, required=False)
@click.pass_obj
def changes_command(settings: Settings, layer_id: str, parent: str | None) -> None:
    """List what a layer changed against PARENT: C, A or D and a path, as 'docker diff' does."""
    with settings.open_home_from_outside() as home:
        changes = list(home.layers.changes(layer_id, parent))
    output.answer(changes, *(f"{change.kind} {change.path}" for change in changes), as_json=settings.as_json)


@click.command("diff")
@click.argument("layer_id", metavar="ID", type=DEVICE)
@click.argument("parent", type=DEVICE, required=False)
@click.option("--sparse", is_flag=True, help="Omit the holes of sparse files; Docker cannot read such archives.")
@click.pass_obj
def diff_command(settings: Settings, layer_id: str, parent: str | None, sparse: bool) -> None:
    """Write a tar archive of what a layer changed against PARENT, or of all its files.

    Holes of sparse files become zeros. With --sparse they are omitted: 'layer apply', GNU tar and Python read such
    archives, but Docker's layer store cannot.
    """
    if os.isatty(sys.stdout.fileno()):
        raise UsageError(
            "refusing to write a tar archive to a terminal; redirect it, as in 'cowfs layer diff ID > FILE'"
        )
    with settings.open_home_from_outside() as home:
        archive = home.layers.diff(layer_id, parent, sparse=sparse)
    with archive:  # the home is free by now: another command may be reading this
        try:
            _write_archive(archive, sys.stdout.buffer)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OSError(error.errno, error.strerror, "standard output") from error


def _write_archive(archive: IO[bytes], out: IO[bytes]) -> None:
    """Copy an archive; its holes stay holes where `out` is an empty file."""
    fd = out.fileno()
    status = os.fstat(fd)
    appends = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND
    if not stat.S_ISREG(status.st_mode) or status.st_size or os.lseek(fd, 0, os.SEEK_CUR) or appends:
        shutil.copyfileobj(archive, out, 1 << 20)
        out.flush()
        return
    copy_sparse(FileDevice.of_descriptor(os.dup(archive.fileno()), "the archive", read_only=True), fd)
    os.lseek(fd, 0, os.SEEK_END)  # a process that shares the descriptor continues from there


@click.command("apply")
@click.argument("layer_id", metavar="ID", type=DEVICE)
@click.pass_obj
def apply_command(settings: Settings, layer_id: str) -> None:
    """Unpack a tar archive from standard input into a layer, completely or not at all."""
    from cowfs.devices.on_disk.files import HomeFiles
    from cowfs.devices.on_disk.making import require_home
    from cowfs.home.api.layers import as_file

    require_home(HomeFiles(os.path.abspath(settings.home_path)))
    # The home stays free until the archive is here: the command that writes it may need it.
    with (
        as_file(sys.stdin.buffer, settings.home_path, is_held=False, called="standard input") as archive,
        settings.open_home_from_outside() as home,
    ):
        size_bytes = home.layers.apply(layer_id, archive)
    output.answer({"id": layer_id, "size_bytes": size_bytes}, str(size_bytes), as_json=settings.as_json)


@click.command("size")
@click.argument("layer_id", metavar="ID", type=DEVICE)
@click.argument("parent", type=DEVICE, required=False)
@click.pass_obj
def size_command(settings: Settings, layer_id: str, parent: str | None) -> None:
    """Print the bytes of the files that a layer added or modified."""
    with settings.open_home_from_outside() as home:
        size_bytes = home.layers.size(layer_id, parent)
    output.answer({"id": layer_id, "size_bytes": size_bytes}, str(size_bytes), as_json=settings.as_json)
