"""The commands about the files in devices, without a mount: ls, cat, cp."""

from __future__ import annotations

import os
import stat
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click
from click.shell_completion import CompletionItem

from cowfs.cli import output
from cowfs.cli.settings import DEVICE, Settings, device_named
from cowfs.errors import CowfsError, UnknownDevice, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cowfs.copying.sinks import Copied
    from cowfs.home.api.files import FileInfo
    from cowfs.home.api.home import Home
    from cowfs.steps import Progress

_NAMED_MAX: Final = 5
_NANOSECONDS: Final = 10**9
_TIME_CHARACTERS: Final = 19


class DeviceFile(NamedTuple):
    """`NAME:PATH`. Without a path, or with an empty one, it is the root."""

    device: str
    path: str

    def __str__(self) -> str:
        return f"{self.device}:{self.path}"


@contextmanager
def _explaining_colons(home: Home, *files: DeviceFile | str) -> Iterator[None]:
    """What may have been meant where a device is not known, and one with a colon in its name is there."""
    try:
        yield
    except UnknownDevice as error:
        names = [row.name for row in home.devices() if ":" in row.name]
        meant = next((name for name in names for file in files if str(file).startswith(name)), None)
        if meant is None:
            raise
        raise UnknownDevice(
            f"{error.message}; for '{meant}', whose name has a colon, write '{meant}:/PATH', or '{meant}:' for its root"
        ) from error


class DeviceFileType(click.ParamType[DeviceFile]):
    """A file in a device.

    The name ends at the first colon. One that has a colon itself is followed by `:/`, or by a colon and nothing more.
    So are names of Docker's images with a tag; one with a slash is given by its id.
    """

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> DeviceFile:
        if isinstance(value, DeviceFile):
            return value
        before, slash, after = value.partition("/")
        if before.endswith(":"):
            device, path = before[:-1], slash + after
        else:
            device, _, path = value.partition(":")
        if not device or "/" in device:
            self.fail(f"'{value}' names no device; write NAME:PATH, as in web:/etc/hosts", param, ctx)
        return DeviceFile(device_named(ctx, device), path)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(f"{item.value}:") for item in DEVICE.shell_complete(ctx, param, incomplete)]


class AnyFileType(DeviceFileType):
    """A file in a device, or of the host: what has no colon, or a slash before it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and (":" not in value or "/" in value.partition(":")[0]):
            return value
        return super().convert(value, param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        files = [CompletionItem(incomplete, type="file")]
        return [*super().shell_complete(ctx, param, incomplete), *files]


DEVICE_FILE = DeviceFileType()
ANY_FILE = AnyFileType()


# ls


@click.command("ls")
@click.argument("file", metavar="NAME[:PATH]", type=DEVICE_FILE, required=False)
@click.option("-l", "--long", is_flag=True, help="Show mode, links, owner, group, size and time too.")
@click.pass_obj
def ls_command(settings: Settings, file: DeviceFile | None, long: bool) -> None:
    """List the files in a directory of the device or layer NAME, mounted or not. Without PATH its root.

    All names are listed, in the order of their bytes; with -l, question marks stand for what is damaged. Owners and
    groups are numbers: the device's names are not the host's. A symbolic link at the end of PATH is followed, except
    with -l.
    """
    if file is None:
        raise UsageError("ls lists files, so name a device, as in 'cowfs ls web:/etc'; 'cowfs list' lists the devices")
    with settings.open_home() as home, _explaining_colons(home, file):
        found: list[FileInfo] = []
        try:
            found.extend(home.list_files(file.device, file.path, follow=not long))
        finally:  # what can be read of a damaged directory
            _print_files(settings, found, long=long)


def _print_files(settings: Settings, found: list[FileInfo], *, long: bool) -> None:
    if settings.as_json:
        output.print_json([_as_json(info) for info in found])
    elif long:
        _print_long(found)
    else:
        for info in found:
            print(output.printable(info.name))


def _as_json(info: FileInfo) -> dict[str, object]:
    import msgspec

    from cowfs.error_record import plain_text

    target = None if info.target is None else plain_text(info.target)
    return {**msgspec.structs.asdict(info), "name": plain_text(info.name), "target": target}


def _print_long(found: list[FileInfo]) -> None:
    rows = [
        (stat.filemode(info.mode)[0] + "?" * 9, *"????", "?".ljust(_TIME_CHARACTERS), output.printable(info.name))
        if info.problem
        else (
            stat.filemode(info.mode),
            str(info.links),
            str(info.uid),
            str(info.gid),
            _size(info),
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(info.mtime_ns // _NANOSECONDS)),
            output.printable(info.name if info.target is None else f"{info.name} -> {info.target}"),
        )
        for info in found
    ]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(5)]
    for mode, links, uid, gid, size, when, name in rows:
        figures = (text.rjust(width) for text, width in zip((links, uid, gid, size), widths[1:], strict=True))
        print(" ".join((mode, *figures, when, name)))


def _size(info: FileInfo) -> str:
    if stat.S_ISCHR(info.mode) or stat.S_ISBLK(info.mode):
        return f"{os.major(info.device)},{os.minor(info.device)}"
    return str(info.size_bytes)


# cat


@click.command("cat")
@click.argument("file", metavar="NAME:PATH", type=DEVICE_FILE)
@click.pass_obj
def cat_command(settings: Settings, file: DeviceFile) -> None:
    """Write the content of a file in the device or layer NAME to standard output, mounted or not."""
    if settings.as_json:
        raise UsageError("cat writes the bytes of a file, which JSON cannot hold; leave out --json")
    if not file.path:
        raise UsageError(f"which file of '{file.device}'? name it, as in 'cowfs cat {file.device}:/etc/hosts'")
    with settings.open_home() as home, _explaining_colons(home, file):
        home.read_file(file.device, file.path, sys.stdout.buffer.write)
    sys.stdout.buffer.flush()


# cp


@click.command("cp")
@click.argument("source", metavar="SRC", type=ANY_FILE)
@click.argument("target", metavar="DST", type=ANY_FILE)
@click.option("-r", "-R", "--recursive", is_flag=True, help="Copy directories with all below them.")
@click.option("--write-base", is_flag=True, help="Copy into the base device; every later device contains the files.")
@click.pass_obj
def cp_command(
    settings: Settings, source: DeviceFile | str, target: DeviceFile | str, recursive: bool, write_base: bool
) -> int:
    """Copy files into a device, out of one, or between two, mounted or not. SRC, DST or both are NAME:PATH.

    \b
      cowfs cp -r ./site web:/var/www      to web:/var/www/site, or as /var/www if there is none
      cowfs cp -r ./site/. web:/var/www    the files of ./site into /var/www
      cowfs cp web:/etc/hosts .
      cowfs cp -r web: db:/backup          the whole of web

    As 'cp -a': owners, modes, times, extended attributes, access control lists, holes and hard links are kept, and
    symbolic links are copied as links. An existing file is replaced, and directories are merged. Paths stay within the
    device, or the layer, whatever '..' and symbolic links in them say. A file of the host whose name has a colon is
    written ./NAME; of a device whose name has one, the path begins with a slash: a:b:/PATH.

    What only root may make on the host (owners of others, device nodes) is left out for other users. A file that cannot
    be copied is named, the others are copied, and the exit status is 1. A copy into a device is committed at its end;
    one that ends early leaves what came before.
    """
    if isinstance(source, str) and isinstance(target, str):
        raise UsageError(
            f"neither '{source}' nor '{target}' is in a device; write one as NAME:PATH, or use the cp of the system"
        )
    if write_base and isinstance(target, str):
        raise UsageError("--write-base is for copying into the base device; leave it out")
    with (
        settings.open_home() as home,
        _explaining_colons(home, source, target),
        output.progress("copying") as show,
    ):
        copied = _copy(home, source, target, recursive, write_base, show)
    if settings.as_json:
        output.print_json(copied)
    return _report(copied, as_json=settings.as_json)


def _copy(
    home: Home,
    source: DeviceFile | str,
    target: DeviceFile | str,
    recursive: bool,
    write_base: bool,
    show: Progress | None,
) -> Copied:
    if isinstance(source, str):
        assert isinstance(target, DeviceFile)
        return home.copy_in(source, *target, write_base=write_base, recursive=recursive, progress=show)
    if isinstance(target, str):
        return home.copy_out(*source, target, recursive=recursive, progress=show)
    return home.copy_within(*source, *target, write_base=write_base, recursive=recursive)


def _report(copied: Copied, *, as_json: bool) -> int:
    """Say what was not copied; the exit status."""
    if not as_json:
        for problem in copied.problems:
            output.print_line(f"cowfs: {problem}")
        if (hidden := copied.problem_count - len(copied.problems)) > 0:
            output.print_line(f"cowfs: and {hidden} more files were not copied")
        if copied.left_out_count:
            named = ", ".join(copied.left_out[:_NAMED_MAX])
            more = ", ..." if copied.left_out_count > _NAMED_MAX else ""
            output.print_line(
                f"cowfs: {copied.left_out_count} special files were left out, which only root may make: {named}{more}"
            )
        if copied.attributes_left_out:
            output.print_line(
                f"cowfs: warning: {copied.attributes_left_out} extended attributes were not kept: the destination does "
                "not take them, or only from root"
            )
    return CowfsError.exit_code if copied.problem_count or copied.left_out_count else 0
