"""The commands about the files in devices, without a mount: ls, cat, cp."""

from __future__ import annotations

import errno
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
from cowfs.errors import CopyError, CowfsError, DeviceBusy, FilesystemError, UnknownDevice, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

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
        raise UsageError(f"name a file of '{file.device}', as in 'cowfs cat {file.device}:/etc/hosts'")
    with settings.open_home() as home, _explaining_colons(home, file):
        home.read_file(file.device, file.path, sys.stdout.buffer.write)
    sys.stdout.buffer.flush()


# cp


@click.command("cp")
@click.argument("sources", metavar="SRC...", type=ANY_FILE, nargs=-1, required=True)
@click.argument("target", metavar="DST", type=ANY_FILE)
@click.option("-r", "-R", "--recursive", is_flag=True, help="Copy directories with all below them.")
@click.option("--write-base", is_flag=True, help="Copy into the base device; every later device contains the files.")
@click.pass_obj
def cp_command(
    settings: Settings,
    sources: tuple[DeviceFile | str, ...],
    target: DeviceFile | str,
    recursive: bool,
    write_base: bool,
) -> int:
    """Copy files into a device, out of one, or between two, mounted or not. SRC, DST or both are NAME:PATH.

    \b
      cowfs cp -r ./site web:/var/www      to web:/var/www/site, or as /var/www if there is none
      cowfs cp -r ./site/. web:/var/www    the files of ./site into /var/www
      cowfs cp web:/etc/hosts web:/etc/fstab .
      cowfs cp -r web: db:/backup          the whole of web

    As 'cp -a': owners, modes, times, extended attributes, access control lists, holes and hard links are kept, and
    symbolic links are copied as links. An existing file is replaced, and directories are merged. Paths stay within the
    device, or the layer, whatever '..' and symbolic links in them say. A file of the host whose name has a colon is
    written ./NAME; of a device whose name has one, the path begins with a slash: a:b:/PATH.

    Several sources are copied into the existing directory DST, one after the other.

    For users other than root, files that only root may create on the host (with another owner, or device nodes) are
    left out. A file that cannot be copied is named, the others are copied, and the exit status is 1. A copy into a
    device is committed at its end; one that ends early leaves what came before.
    """
    for source in sources:
        if isinstance(source, str) and isinstance(target, str):
            raise UsageError(
                f"neither '{source}' nor '{target}' is in a device; write one as NAME:PATH, or use the cp of the system"
            )
    if write_base and isinstance(target, str):
        raise UsageError("--write-base is for copying into the base device; leave it out")
    with settings.open_home() as home, output.progress("copying") as show:
        copy = _Copy(home, target, recursive=recursive, write_base=write_base, progress=show)
        if len(sources) == 1:
            copied = copy.one(sources[0])
        else:
            copied = copy.several(sources, None if settings.as_json else _say_problems)
    if settings.as_json:
        output.print_json(copied)
    elif len(sources) == 1:
        _say_problems(copied)
    return CowfsError.exit_code if copied.problem_count or copied.left_out_count else 0


class _Copy:
    """Copies files to one place."""

    def __init__(
        self, home: Home, target: DeviceFile | str, *, recursive: bool, write_base: bool, progress: Progress | None
    ) -> None:
        self._home = home
        self._target = target
        self._recursive = recursive
        self._write_base = write_base
        self._progress = progress
        self._files: dict[bytes, DeviceFile | str] = {}  # by their names in the target

    def one(self, source: DeviceFile | str) -> Copied:
        home, target, recursive, write_base = self._home, self._target, self._recursive, self._write_base
        with _explaining_colons(home, source, target):
            if isinstance(source, str):
                assert isinstance(target, DeviceFile)
                return home.copy_in(
                    source, *target, write_base=write_base, recursive=recursive, progress=self._progress
                )
            if isinstance(target, str):
                return home.copy_out(*source, target, recursive=recursive, progress=self._progress)
            return home.copy_within(*source, *target, write_base=write_base, recursive=recursive)

    def several(self, sources: Sequence[DeviceFile | str], say: Callable[[Copied], None] | None) -> Copied:
        """Copy files into a directory. One that cannot be copied is a problem, and the others are copied.

        Args:
            say: called with what was copied of each source, after it.

        Raises:
            UsageError: the target is not a directory; CowfsError: nothing more can be copied.
        """
        with _explaining_colons(self._home, self._target):
            if not self._is_directory(self._target):
                raise UsageError(
                    f"'{self._target}' is not a directory; several files are copied into a directory that exists"
                )
        copied = _nothing()
        for source in sources:
            try:
                part = self._one_of_several(source)
            except OSError as error:
                if not _is_about_one(error):
                    raise
                part = _nothing(output.describe(error))
            if say is not None:
                say(part)
            copied = _sum(copied, part)
        return copied

    def _is_directory(self, file: DeviceFile | str) -> bool:
        if isinstance(file, str):
            return os.path.isdir(file)
        try:
            next(self._home.list_files(file.device, f"{file.path}/."), None)
        except FilesystemError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                raise
            return False
        return True

    def _one_of_several(self, source: DeviceFile | str) -> Copied:
        """Raises CopyError for a file that would replace one that this command has just copied; directories merge."""
        from cowfs.home.requests.files import name_of

        name = name_of(os.fsencode(source if isinstance(source, str) else source.path))
        before = self._files.get(name)
        if name and before is not None and not self._is_directory(source):
            raise CopyError(f"'{source}' was not copied: it would replace '{before}', which was copied before it")
        copied = self.one(source)
        self._files[name] = source
        return copied


def _is_about_one(error: OSError) -> bool:
    """Whether other files may be copied all the same."""
    if isinstance(error, UsageError):
        return error.errno == errno.EISDIR  # a directory, without -r
    if isinstance(error, CowfsError) and not isinstance(error, FilesystemError | UnknownDevice | DeviceBusy):
        return False
    return error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def _nothing(*problems: str) -> Copied:
    from cowfs.copying.sinks import Copied

    return Copied(0, 0, list(problems), len(problems), [], 0, 0)


def _sum(one: Copied, other: Copied) -> Copied:
    return type(one)(
        one.files + other.files,
        one.size_bytes + other.size_bytes,
        one.problems + other.problems,
        one.problem_count + other.problem_count,
        one.left_out + other.left_out,
        one.left_out_count + other.left_out_count,
        one.attributes_left_out + other.attributes_left_out,
    )


def _say_problems(copied: Copied) -> None:
    """Say what was not copied."""
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
