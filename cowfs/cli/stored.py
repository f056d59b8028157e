"""What a daemon stored, in the group docker: images, ps, tree, inspect, history, du, export, save, cp.

The commands read the daemon's directory and change nothing in it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cowfs.cli import output
from cowfs.cli.settings import PATH, Settings
from cowfs.errors import CowfsError, UsageError, command_line
from cowfs.units import format_size

if TYPE_CHECKING:
    from cowfs.docker.stored.reports import LayerNode
    from cowfs.docker.stored.saving import SavedImage
    from cowfs.docker.stored.store import DockerStore, Image
    from cowfs.home.api.home import Home

_ID_DIGITS = 12
_COMMAND_CHARACTERS = 40
_UNKNOWN = "?"


def _store(settings: Settings) -> DockerStore:
    """The daemon's directory that --home names. Unreadable parts are named on standard error when they are needed."""
    from cowfs.docker.stored.place import require_place
    from cowfs.docker.stored.store import DockerStore

    return DockerStore(require_place(settings.named_path))


@contextmanager
def _home(settings: Settings, store: DockerStore, *, for_files: bool = True) -> Iterator[Home]:
    """The daemon's devicemapper home, of which nothing is changed."""
    from cowfs.home.api.home import open_home

    if for_files:
        store.require_readable_files()
    options = settings.storage_options
    with open_home(
        store.place.home, backend=settings.backend, storage_options=options, read_only=True, untouched=True
    ) as home:
        yield home


def _say_unreadable(store: DockerStore) -> None:
    for line in store.unreadable:
        output.print_line(f"cowfs: cannot be read: {line}")


# ------------------------------------------------------------------ lists


@click.command("images")
@click.option("-a", "--all", "everything", is_flag=True, help="Also images without a name that others were built from.")
@click.option("--digests", is_flag=True, help="Show the digests by which images were pulled.")
@click.pass_obj
def images_command(settings: Settings, everything: bool, digests: bool) -> None:
    """List the images of a daemon that no longer runs, with their names and sizes.

    \b
      cowfs --home /var/lib/docker docker images

    --home is the daemon's directory, or the directory 'devicemapper' in it, or a copy of it on any medium.
    """
    from cowfs.docker.stored import reports

    store = _store(settings)
    rows = reports.listed_images(store, everything=everything)
    if settings.as_json:
        output.print_json(rows)
    else:
        table = []
        for row in rows:
            for tag in row.tags or ["<none>:<none>"]:
                repository, _, version = tag.rpartition(":")
                cells = [repository, version, row.id[:_ID_DIGITS], _date(row.created), _size(row.size_bytes)]
                if digests:
                    found = [text.partition("@")[2] for text in row.digests if text.partition("@")[0] == repository]
                    cells.insert(2, ", ".join(found) or "-")
                table.append(cells)
        header = ["REPOSITORY", "TAG", *["DIGEST"] * digests, "IMAGE ID", "CREATED", "SIZE"]
        output.print_table(header, table, right=frozenset({len(header) - 1}))
    _say_unreadable(store)


@click.command("ps")
@click.pass_obj
def ps_command(settings: Settings) -> None:
    """List the containers of a daemon that no longer runs, in the state that it recorded last."""
    from cowfs.docker.stored import reports

    store = _store(settings)
    rows = [reports.container_row(container) for container in store.containers.values()]
    if settings.as_json:
        output.print_json(rows)
    else:
        table = [
            [
                row.id[:_ID_DIGITS],
                row.image or row.image_id[:_ID_DIGITS],
                _cut(row.command),
                _date(row.created),
                f"exited ({row.exit_code}) {_date(row.finished or '')}" if row.state == "exited" else row.state,
                row.name,
            ]
            for row in rows
        ]
        output.print_table(["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATE", "NAME"], table)
    _say_unreadable(store)


@click.command("tree")
@click.pass_obj
def tree_command(settings: Settings) -> None:
    """Show the layers as a tree, with the images and containers that end in each."""
    from cowfs.docker.stored import reports

    store = _store(settings)
    nodes = reports.tree(store)
    if settings.as_json:
        output.print_json(nodes)
    else:
        _print_tree(nodes)
    _say_unreadable(store)


def _print_tree(nodes: list[LayerNode], indent: str = "", depth: int = 0) -> None:
    for number, node in enumerate(nodes, 1):
        is_last = number == len(nodes)
        branch, below = ("└─ ", "   ") if is_last else ("├─ ", "│  ")
        if not depth:
            branch = below = ""
        names = [f"image {name}" for name in node.images] + [f"container {name}" for name in node.containers]
        text = f"{node.chain_id.removeprefix('sha256:')[:_ID_DIGITS]}  {format_size(node.size_bytes)}"
        print(output.printable("  ".join([f"{indent}{branch}{text}", ", ".join(names)]).rstrip()))
        _print_tree(node.layers, indent + below, depth + 1)


@click.command("inspect")
@click.argument("name")
@click.pass_obj
def inspect_command(settings: Settings, name: str) -> None:
    """Show all details of an image or a container: its layers, their devices, and the daemon's document."""
    from cowfs.docker.stored import names, reports

    store = _store(settings)
    output.print_json(reports.details(store, names.find(store, name)))


@click.command("history")
@click.argument("image")
@click.pass_obj
def history_command(settings: Settings, image: str) -> None:
    """Show the steps by which an image was made, the newest first."""
    from cowfs.docker.stored import names, reports

    store = _store(settings)
    rows = reports.history(store, names.find_image(store, image))
    if settings.as_json:
        output.print_json(rows)
        return
    table = [
        [
            (row.layer or "").removeprefix("sha256:")[:_ID_DIGITS] or "-",
            _date(row.created),
            _size(row.size_bytes),
            row.created_by.removeprefix("/bin/sh -c #(nop) ").strip() or row.comment,
        ]
        for row in rows
    ]
    output.print_table(["LAYER", "CREATED", "SIZE", "MADE BY"], table, right=frozenset({2}))


@click.command("du")
@click.pass_obj
def du_command(settings: Settings) -> None:
    """Show the space of images and containers: what each shares with others, and what it alone has.

    SIZE, SHARED and UNIQUE count the files of layers, as 'docker system df -v' does; for a container SHARED is its
    image, and UNIQUE what it wrote. EXCLUSIVE is what its own devices alone occupy in the pool.
    """
    from cowfs.docker.stored import reports

    store = _store(settings)
    with _home(settings, store, for_files=False) as home:
        usage = home.usage()
    rows = reports.space(store, usage)
    if settings.as_json:
        output.print_json({"rows": rows, "pool": usage.totals})
    else:
        table = [
            [
                row.kind,
                row.name,
                row.id[:_ID_DIGITS],
                _size(row.size_bytes) if row.kind == "image" else "-",
                *(format_size(size) for size in (row.shared_bytes, row.unique_bytes, row.exclusive_bytes)),
            ]
            for row in rows
        ]
        header = ["KIND", "NAME", "ID", "SIZE", "SHARED", "UNIQUE", "EXCLUSIVE"]
        output.print_table(header, table, right=frozenset({3, 4, 5, 6}))
        used, total = format_size(usage.totals.data_used_bytes), format_size(usage.totals.data_total_bytes)
        print(f"the pool has {used} of {total} in use")
    _say_unreadable(store)


# ------------------------------------------------------------------ out


@click.command("export")
@click.argument("container")
@click.option("-o", "--output", "file", type=PATH, help="The new file to write. [default: standard output]")
@click.pass_obj
def export_command(settings: Settings, container: str, file: str | None) -> None:
    """Write the files of a container as a tar archive, as 'docker export' does.

    \b
      cowfs --home /var/lib/docker docker export web > web.tar
    """
    from cowfs.docker.stored import names

    store = _store(settings)
    found = names.find_container(store, container)
    with (
        _home(settings, store) as home,
        output.progress(f"exporting {container}") as progress,
        output.archive_out(file, f"{command_line('cowfs', 'docker', 'export', container)} > FILE") as out,
    ):
        written = 0

        def take(piece: bytes) -> None:
            nonlocal written
            out.write(piece)
            written += len(piece)
            if progress is not None:
                progress(written, None)

        home.export_archive(names.device_of(store, found), take, sparse=False)


@click.command("save")
@click.argument("images", nargs=-1, metavar="[IMAGE]...")
@click.option("-o", "--output", "file", type=PATH, help="The new archive to write. [default: standard output]")
@click.option("--oci", "layout", metavar="DIR", type=PATH, help="Write an OCI layout to the new directory DIR instead.")
@click.option(
    "--all", "all_to", metavar="DIR", type=PATH, help="Write all images and containers to the new directory DIR."
)
@click.option("--new-ids", is_flag=True, help="Pack the files anew where an original layer cannot be made; ids change.")
@click.pass_obj
def save_command(
    settings: Settings, images: tuple[str, ...], file: str | None, layout: str | None, all_to: str | None, new_ids: bool
) -> None:
    """Write images as 'docker save' does, with their original ids, for 'docker load' and OCI tools.

    \b
      cowfs --home /var/lib/docker docker save web:1 db > images.tar
      cowfs --home /var/lib/docker docker save web:1 --oci layout
      cowfs --home /var/lib/docker docker save --all rescued

    Each layer is made again byte by byte, and checked by its digest. Where the daemon's recipe for a layer is missing,
    its files are packed anew, and the ids of the images on it are new; a message says so. With --new-ids that is also
    done where a recipe is damaged or a file is no longer what it was.

    With --all, the directory has 'images' (an OCI layout that 'docker load' reads too: tar -C DIR/images -c . |
    docker load), the archive and the settings of each container in 'containers', and 'rescued.json'. What cannot be
    read is listed at the end, and the exit status is 1.
    """
    if (all_to is not None) == bool(images):
        raise UsageError("save takes images, as in 'cowfs docker save web:1', or --all DIR for everything")
    if sum(option is not None for option in (file, layout, all_to)) > 1 or (all_to is not None and new_ids):
        raise UsageError("--output, --oci and --all exclude each other; --all packs anew where that is needed")
    if all_to is not None:
        _save_all(settings, all_to)
        return
    from cowfs.docker.stored.saving import ImageSaver
    from cowfs.new_files import new_directory
    from cowfs.oci.blobs import ArchiveBlobs, DirectoryBlobs

    store = _store(settings)
    chosen = _chosen(store, images)
    with _home(settings, store) as home, output.progress("saving") as progress:
        if layout is not None:
            with new_directory(os.path.abspath(layout)) as directory:
                saver = ImageSaver(
                    store, home, DirectoryBlobs(Path(directory)), allow_new_ids=new_ids, progress=progress
                )
                saved = [saver.save(image, tags) for image, tags in chosen]
                saver.finish()
        else:
            with output.archive_out(file, f"{command_line('cowfs', 'docker', 'save', *images)} > FILE") as out:
                blobs = ArchiveBlobs(out, file or "standard output")
                saver = ImageSaver(store, home, blobs, allow_new_ids=new_ids, progress=progress)
                saved = [saver.save(image, tags) for image, tags in chosen]
                saver.finish()
    _say_new_ids(saved)
    if file is not None or layout is not None:
        _say_saved(settings, saved)


def _chosen(store: DockerStore, images: Sequence[str]) -> list[tuple[Image, list[str]]]:
    """The images of these names, each with the tags that it was named by, or all of its own where that was its id."""
    from cowfs.docker.stored.names import find_image, tag_of

    chosen: dict[str, tuple[Image, list[str]]] = {}
    for name in images:
        image = find_image(store, name)
        tag = tag_of(image, name)
        tags = chosen.setdefault(image.id, (image, []))[1]
        tags.extend(other for other in (image.tags if tag is None else [tag]) if other not in tags)
    return list(chosen.values())


def _save_all(settings: Settings, all_to: str) -> None:
    from cowfs.docker.stored.rescue import rescue
    from cowfs.new_files import new_directory

    store = _store(settings)
    with (
        _home(settings, store) as home,
        new_directory(os.path.abspath(all_to), is_private=True) as directory,  # settings have passwords
        output.steps() as progress,
    ):
        rescued = rescue(store, home, Path(directory), progress)
    _say_new_ids(rescued.images)
    if settings.as_json:
        output.print_json(rescued)
    else:
        print(f"wrote {output.printable(all_to)}: images {len(rescued.images)}, containers {len(rescued.containers)}")
    for line in rescued.unreadable:
        output.print_line(f"cowfs: cannot be read: {line}")
    if number := len(rescued.unreadable):
        what = "1 thing" if number == 1 else f"{number} things"
        raise CowfsError(f"{what} could not be read; all else is in {all_to}, this list in rescued.json")


def _say_saved(settings: Settings, saved: list[SavedImage]) -> None:
    if settings.as_json:
        output.print_json(saved)
        return
    for image in saved:
        size = format_size(sum(layer.size_bytes for layer in image.layers))
        print(output.printable(f"saved {', '.join(image.tags) or image.id[:_ID_DIGITS]}: sha256:{image.id}, {size}"))


def _say_new_ids(saved: list[SavedImage]) -> None:
    for image in saved:
        if not image.is_original:
            why = next(layer.why_new for layer in image.layers if layer.why_new)
            name = ", ".join(image.tags) or image.original_id[:_ID_DIGITS]
            output.print_line(
                f"cowfs: image {name} has the new id sha256:{image.id}, since a layer was packed anew: {why}"
            )


@click.command("cp")
@click.argument("source", metavar="NAME:PATH")
@click.argument("target", metavar="DST", type=PATH)
@click.pass_obj
def cp_command(settings: Settings, source: str, target: str) -> None:
    """Copy a file or a directory out of a container or an image.

    \b
      cowfs --home /var/lib/docker docker cp web:/etc/nginx .

    The name ends at the last ':/' but for the registry's port, as in registry:5000/web:1:/etc/nginx.
    """
    from cowfs.docker.stored import names

    name, slash, path = source.rpartition(":/")
    if not slash or not name:
        raise UsageError(f"'{source}' names no file in a container or an image; write NAME:PATH, as in web:/etc/hosts")
    store = _store(settings)
    device = names.device_of(store, names.find(store, name))
    with _home(settings, store) as home, output.progress(f"copying {source}") as progress:
        copied = home.copy_out(device, f"/{path}", target, progress=progress)
    for problem in copied.problems:
        output.print_line(f"cowfs: not copied: {problem}")
    if settings.as_json:
        output.print_json(copied)


# ------------------------------------------------------------------ words


def _date(text: str) -> str:
    """A time of a daemon's document, to the second."""
    return text[:19].replace("T", " ") or "-"


def _size(size_bytes: int | None) -> str:
    return _UNKNOWN if size_bytes is None else format_size(size_bytes)


def _cut(text: str) -> str:
    return text if len(text) <= _COMMAND_CHARACTERS else text[: _COMMAND_CHARACTERS - 1] + "…"
