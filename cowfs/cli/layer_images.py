"""Layers as images, in the group layer: push, pull, import, export."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cowfs.cli import output
from cowfs.cli.settings import DEVICE, PATH, Settings
from cowfs.errors import HomeBusy, UsageError, command_line
from cowfs.units import format_size

if TYPE_CHECKING:
    from cowfs.home.api.home import Home
    from cowfs.oci.credentials import DockerConfig
    from cowfs.oci.documents import Platform
    from cowfs.oci.found import FoundImage
    from cowfs.oci.incoming import BroughtLayer
    from cowfs.oci.outgoing import ExportedLayer
    from cowfs.oci.pushing import PushedLayer
    from cowfs.steps import Progress

_PLATFORM = click.option(
    "--platform", "platform_text", metavar="OS/ARCH[/VARIANT]", help="Choose the platform. [default: this machine's]"
)
_INSECURE = click.option("--insecure", is_flag=True, help="Use plain HTTP where the registry has no TLS.")
_NAME = click.option("--name", help="Make the layer NAME on top of the image.")
_EPOCH = "SOURCE_DATE_EPOCH"
_FIRST_PATIENCE_SECONDS = 60.0  # another pull may be making layers
_PATIENCE_SECONDS = 600.0
_UNPACKED_TIMES = 64


class _Counter:
    """Adds up what is reported, for a bar."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._done_bytes = 0
        self.total_bytes: int | None = None

    def __call__(self, count_bytes: int) -> None:
        self._done_bytes += count_bytes
        if self._progress is not None:
            self._progress(self._done_bytes, self.total_bytes)


def _platform(text: str | None) -> Platform:
    from cowfs.oci.documents import own_platform, parse_platform

    return own_platform() if text is None else parse_platform(text)


def _require_home(settings: Settings) -> Path:
    """The path of the home. Raises NotAHome before anything is done about an image."""
    from cowfs.devices.on_disk.files import HomeFiles
    from cowfs.devices.on_disk.making import require_home

    require_home(HomeFiles(os.path.abspath(settings.home_path)))
    return settings.home_path


def _ignore(_done_bytes: int, _total_bytes: int) -> None:
    pass


class _Patience:
    """Opens the home, for which it waits, and longer once it has: what was downloaded by then is not given up."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._patience_seconds = _FIRST_PATIENCE_SECONDS

    @contextmanager
    def open(self) -> Iterator[Home]:
        deadline = time.monotonic() + self._patience_seconds
        with ExitStack() as stack:
            while True:
                try:
                    home = stack.enter_context(self._settings.open_home_from_outside())
                except HomeBusy:  # after a wait of some seconds
                    if time.monotonic() >= deadline:
                        raise
                else:
                    break
            self._patience_seconds = _PATIENCE_SECONDS
            yield home


def _docker_config() -> DockerConfig:
    """Docker's configuration, where the credentials for registries are."""
    from cowfs.oci.credentials import DockerConfig

    directory = os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")
    return DockerConfig(Path(directory) / "config.json")


def _created() -> str:
    """The time that new images have: of SOURCE_DATE_EPOCH, or none, so that the same layers make the same image."""
    from datetime import UTC, datetime

    text = os.environ.get(_EPOCH) or "0"
    if not re.fullmatch(r"[0-9]{1,11}", text):
        raise UsageError(f"{_EPOCH} is {text[:80]!r}; it must be a number of seconds")
    return datetime.fromtimestamp(int(text), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _say(line: str) -> None:
    output.print_line(f"cowfs: {line}")


@click.command("pull")
@click.argument("reference", metavar="REF")
@_NAME
@_PLATFORM
@_INSECURE
@click.pass_obj
def pull_command(
    settings: Settings, reference: str, name: str | None, platform_text: str | None, insecure: bool
) -> None:
    """Get the image REF from a registry: each of its layers becomes a layer of the home.

    \b
      cowfs --home H layer pull debian:12 --name web
      cowfs --home H layer pull registry.example.org/team/db@sha256:...
      cowfs --home H layer pull localhost:5000/web --platform linux/arm64

    REF is [HOST[:PORT]/]REPOSITORY[:TAG][@sha256:DIGEST]. The layers are named by their chain ids, and images share
    those that are the same. An image arrives completely or not at all. A download that was interrupted is resumed, also
    by a later 'layer pull'.

    Credentials are those of Docker: ~/.docker/config.json, with its helper programs; 'docker login' writes them. Where
    'cowfs layer push' has stored the blocks of a layer beside the image, and the layer below it is made from blocks
    too, the layer is made from its blocks, and shares blocks as in the home that it was pushed from.
    """
    from cowfs.oci.reference import parse_reference

    wanted = parse_reference(reference)
    platform = _platform(platform_text)
    from contextlib import closing

    from cowfs.oci.http import Connection
    from cowfs.oci.pulling import pull
    from cowfs.oci.registry import Repository

    path = _require_home(settings)
    scope = f"repository:{wanted.repository}:pull"
    with (
        output.progress(f"pulling {reference}") as progress,
        closing(Connection(wanted.host, scope, _docker_config(), insecure=insecure)) as connection,
    ):
        pulled = pull(
            path,
            _Patience(settings).open,
            Repository(connection, wanted),
            wanted,
            platform,
            name=name,
            report=progress or _ignore,
            say=_say,
        )
    if settings.as_json:
        output.print_json(pulled)
    else:
        _say_brought(f"pulled {wanted} ({pulled.digest})", pulled.layers, pulled.name)


def _say_brought(what: str, layers: list[BroughtLayer], name: str | None) -> None:
    present = sum(layer.state == "present" for layer in layers)
    shared = f", {present} of them present before" if present else ""
    print(output.printable(f"{what}: layers {len(layers)}{shared}"))
    last = name or (layers[-1].id if layers else None)
    if last is not None:
        print(output.printable(f"its files are layer {last}"))


@click.command("push")
@click.argument("layer_id", metavar="ID", type=DEVICE)
@click.argument("reference", metavar="REF")
@click.option("--no-blocks", is_flag=True, help="Push no blocks for other homes beside the image.")
@click.option("--index", "into_index", is_flag=True, help="Put the image into the list of platforms that REF is.")
@_PLATFORM
@_INSECURE
@click.pass_obj
def push_command(
    settings: Settings,
    layer_id: str,
    reference: str,
    no_blocks: bool,
    into_index: bool,
    platform_text: str | None,
    insecure: bool,
) -> None:
    """Push the layer ID and all layers below it to a registry, as the image REF.

    \b
      cowfs --home H layer push web registry.example.org/team/web:1
      cowfs --home H layer push web localhost:5000/web
      cowfs --home H layer push web-arm localhost:5000/web --index --platform linux/arm64

    Layers that came from an image get their original archives, so that the registry has most of them already; the image
    keeps its settings, and, if nothing was changed, its id. Each layer that was made here becomes a layer of the image,
    compressed by gzip. The same layers make the same image each time.

    For other homes of cowfs the blocks of the layers are pushed beside the image, where they can be checked there: of
    layers that cowfs packed, from the lowest one up. Other programs leave them alone. --no-blocks leaves them out.

    With --index REF is a list of images for several platforms: this one takes the place of the one for its platform,
    the others stay. An image that REF was before is one of them.
    """
    from cowfs.oci.reference import parse_reference

    wanted = parse_reference(reference)
    if wanted.digest is not None:
        raise UsageError(f"{reference!r} names a digest, which a push cannot choose; name a tag")
    platform = _platform(platform_text)
    from contextlib import closing

    from cowfs.oci.http import Connection
    from cowfs.oci.pushing import Push
    from cowfs.oci.registry import Repository

    _require_home(settings)
    scope = f"repository:{wanted.repository}:pull,push"
    open_home = settings.open_home_from_outside
    with (
        output.progress(f"pushing {layer_id}") as progress,
        closing(Connection(wanted.host, scope, _docker_config(), insecure=insecure)) as connection,
        Push(open_home, Repository(connection, wanted), wanted, progress or _ignore, _say, created=_created()) as push,
    ):
        pushed = push.push(layer_id, platform, with_blocks=not no_blocks, into_index=into_index)
    _say_new_archives(pushed.layers)
    blocks = ", with the blocks of its layers for other homes" if pushed.blocks else ""
    index = f"; for {pushed.platform} in the list {pushed.index}" if pushed.index else ""
    output.answer(
        pushed,
        f"pushed {pushed.reference}@{pushed.digest}: layers {len(pushed.layers)}, "
        f"{format_size(pushed.uploaded_bytes)} uploaded{blocks}{index}",
        as_json=settings.as_json,
    )


def _say_new_archives(layers: list[PushedLayer] | list[ExportedLayer]) -> None:
    for layer in layers:
        if layer.why_new:
            _say(f"layer {layer.name} was packed anew, so its id and that of the image are new: {layer.why_new}")


@click.command("import")
@click.argument("file", type=PATH)
@_NAME
@click.option("--image", "tag", metavar="TAG", help="Import only this image.")
@_PLATFORM
@click.pass_obj
def import_command(settings: Settings, file: str, name: str | None, tag: str | None, platform_text: str | None) -> None:
    """Import images from FILE: each of their layers becomes a layer of the home.

    \b
      docker save web:1 > web.tar
      cowfs --home H layer import web.tar --name web
      cowfs --home H layer import layout/            an OCI layout, as of 'skopeo copy ... oci:layout'
      cowfs --home H layer import rootfs.tar.gz      the archive of a single layer

    FILE is an archive of 'docker save', an OCI layout as a directory or a tar archive, or the archive of one layer,
    compressed by gzip or not. The layers are named by their chain ids, and images share those that are the same. An
    image arrives completely or not at all.
    """
    from cowfs.oci.archives import open_images
    from cowfs.oci.incoming import Incoming

    platform = _platform(platform_text)
    home_path = _require_home(settings)
    with settings.open_home_from_outside() as home:
        limit = _UNPACKED_TIMES * home.status().base_size_bytes
    incoming = Incoming(home_path, settings.open_home_from_outside, _say)
    if name is not None:
        incoming.require_new(name)  # before the file is read
    with (
        output.progress(f"importing {file}") as progress,
        open_images(file, platform, limit_bytes=limit, scratch=home_path) as images,
    ):
        chosen = _chosen(images, tag, name, file)
        brought = [incoming.bring(image, name=name, report=_Counter(progress)) for image in chosen]
    if settings.as_json:
        output.print_json(brought)
        return
    for one in brought:
        _say_brought(f"imported {', '.join(one.tags) or one.image_id or file}", one.layers, one.name)


def _chosen(images: list[FoundImage], tag: str | None, name: str | None, file: str) -> list[FoundImage]:
    names = ", ".join(", ".join(image.tags) or "one without a tag" for image in images[:20])
    if tag is not None:
        chosen = [image for image in images if any(_is_called(other, tag) for other in image.tags)]
        if len(chosen) != 1:
            count = "no image" if not chosen else f"{len(chosen)} images"
            raise UsageError(f"there is {count} {tag!r} in {file}; there are: {names}")
        return chosen
    if name is not None and len(images) > 1:
        raise UsageError(
            f"{file} holds {len(images)} images, and --name is for one of them; choose it by --image: {names}"
        )
    return images


def _is_called(tag: str, wanted: str) -> bool:
    return tag == wanted or re.sub(r"^(docker\.io/)?(library/)?", "", tag) in (wanted, f"{wanted}:latest")


@click.command("export")
@click.argument("layer_id", metavar="ID", type=DEVICE)
@click.option("-t", "--tag", "tags", multiple=True, metavar="NAME:TAG", help="Name of the image.")
@click.option("-o", "--output", "file", type=PATH, help="The new archive to write. [default: standard output]")
@click.option("--oci", "layout", metavar="DIR", type=PATH, help="Write an OCI layout to the new directory DIR instead.")
@_PLATFORM
@click.pass_obj
def export_command(
    settings: Settings,
    layer_id: str,
    tags: tuple[str, ...],
    file: str | None,
    layout: str | None,
    platform_text: str | None,
) -> None:
    """Write the layer ID and all layers below it as an image, for 'docker load' and OCI tools.

    \b
      cowfs --home H layer export web -t web:1 | docker load
      cowfs --home H layer export web -t web:1 --oci layout

    The image is what 'layer push' makes of the layer.
    """
    from cowfs.oci.blobs import ArchiveBlobs, DirectoryBlobs, ImageLayout
    from cowfs.oci.outgoing import Outgoing

    if file is not None and layout is not None:
        raise UsageError("--output and --oci exclude each other")
    names = [_tag(tag) for tag in tags]
    platform = _platform(platform_text)
    file, layout = (None if path is None else os.path.abspath(path) for path in (file, layout))
    with settings.open_home_from_outside() as home, output.progress(f"exporting {layer_id}") as progress:
        outgoing = Outgoing(home, _created())
        outgoing.chain(layer_id)  # before anything of an archive is written: there is such a layer
        counter = _Counter(progress)
        if layout is not None:
            from cowfs.new_files import new_directory

            with new_directory(layout) as directory:
                target = ImageLayout(DirectoryBlobs(Path(directory)))
                exported = outgoing.export(layer_id, target, names, platform, counter)
        else:
            with output.archive_out(file, f"{command_line('cowfs', 'layer', 'export', layer_id)} > FILE") as out:
                target = ImageLayout(ArchiveBlobs(out, file or "standard output"))
                exported = outgoing.export(layer_id, target, names, platform, counter)
    _say_new_archives(exported.layers)
    if file is not None or layout is not None:
        size = format_size(sum(layer.size_bytes for layer in exported.layers))
        names_text = ", ".join(names) or layer_id
        output.answer(exported, f"exported {names_text}: {exported.image_id}, {size}", as_json=settings.as_json)


def _tag(text: str) -> str:
    """A tag as Docker keeps it. Raises UsageError."""
    from cowfs.oci.reference import parse_reference

    reference = parse_reference(text)
    if reference.digest is not None:
        raise UsageError(f"{text!r} names a digest; a tag is NAME:TAG")
    if not reference.is_public:
        return f"{reference.host}/{reference.repository}:{reference.tag}"
    return f"{reference.repository.removeprefix('library/')}:{reference.tag}"
