"""What the global options say, and the parameter types that the commands share."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from cowfs.errors import HomeError, UsageError
from cowfs.units import format_size, parse_size

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from cowfs.devices.on_disk.options import MinimumFree
    from cowfs.home.api.home import Home

# In the environment of a guest: the process outside that holds the home for it, and has noted itself.
HELD_OUTSIDE: Final = "COWFS_HELD_OUTSIDE"


_DOCKER_HOME: Final = "devicemapper"


def is_docker_root(path: Path) -> bool:
    """Whether a directory is that of a Docker daemon with the devicemapper driver, such as /var/lib/docker."""
    return os.path.isdir(path / "image" / _DOCKER_HOME) and os.path.isdir(path / _DOCKER_HOME)


class LogOptions(NamedTuple):
    """-q, how often -v, and --log; `cowfs.cli.log` does what they say."""

    quiet: bool = False
    verbosity: int = 0
    file: str | None = None

    @property
    def words(self) -> list[str]:
        """The same options for a command line of our own."""
        file = [] if self.file is None else ["--log", os.path.abspath(self.file)]
        return [*["--quiet"] * self.quiet, *["--verbose"] * self.verbosity, *file]


class Settings(NamedTuple):
    """The global options."""

    home: str | None
    backend: str
    as_json: bool
    storage_options: tuple[str, ...] = ()
    log: LogOptions = LogOptions()

    @property
    def named_path(self) -> Path:
        """The absolute path that --home names. Raises UsageError when none was named."""
        if not self.home:
            raise UsageError("which home? name it before the command, as in 'cowfs --home DIR ...', or set COWFS_HOME")
        return Path(os.path.abspath(self.home))

    @property
    def home_path(self) -> Path:
        """The home's absolute path; of a Docker daemon's directory, the devicemapper home in it."""
        path = self.named_path
        return path / _DOCKER_HOME if is_docker_root(path) else path

    def open_home(self) -> Home:
        """The home; for reading only where it cannot be written: on a read-only disk, or another user's."""
        import msgspec

        from cowfs.home.api.home import Home
        from cowfs.home.opened.runtime import find_runtime_directory
        from cowfs.home.opened.spec import HomeSpec
        from cowfs.home.own_session import OwnSession

        spec = HomeSpec(
            self.home_path,
            self.backend,
            storage_options=self.storage_options,
            runtime_directory=find_runtime_directory(self.home_path, runtime_parents()),
        )
        try:
            return Home(OwnSession(spec))
        except HomeError as error:
            if error.errno not in (errno.EROFS, errno.EACCES):
                raise
            return Home(OwnSession(msgspec.structs.replace(spec, read_only=True)))

    @contextmanager
    def open_home_from_outside(self) -> Iterator[Home]:
        """As `open_home`, for what needs a device that is not in use: the working directory is in none of them."""
        settings = self._replace(home=os.fspath(self.home_path))
        with _elsewhere(), settings.open_home() as home:
            yield home


def runtime_parents() -> tuple[str, ...]:
    """Where the runtime directories of homes may be, the best first: what is not this user's is passed over."""
    named = os.environ.get("XDG_RUNTIME_DIR")
    last = "/run" if os.geteuid() == 0 else os.path.expanduser("~/.cache")
    return (*([named] if named else []), f"/run/user/{os.geteuid()}", last)


@contextmanager
def _elsewhere() -> Iterator[None]:
    """Work in no directory that may be on a mount; afterwards in the former one, if that is still there."""
    try:
        former = os.getcwd()
    except FileNotFoundError:
        former = "/"
    os.chdir("/")
    try:
        yield
    finally:
        with suppress(OSError):
            os.chdir(former)


class SizeType(click.ParamType[int]):
    """A size such as 64K or 10G, more than zero.

    Args:
        least_bytes: what it must be at least, where the command line can know.
    """

    name = "size"

    def __init__(self, least_bytes: int = 1) -> None:
        self._least_bytes = least_bytes

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            size_bytes = parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if size_bytes == 0:
            self.fail(f"size '{value}' is too small; a size is more than 0", param, ctx)
        if size_bytes < self._least_bytes:
            self.fail(f"'{value}' is too small; take at least {format_size(self._least_bytes)}", param, ctx)
        return size_bytes


def device_named(ctx: click.Context | None, name: str) -> str:
    """The device of a container or an image, where the home is a Docker daemon's; else the name as it is."""
    home = None if ctx is None else ctx.find_root().params.get("home")
    if not home:
        return name
    path = Path(os.path.abspath(home))
    root = next((root for root in (path, path.parent) if is_docker_root(root)), None)
    if root is None or path not in (root, root / _DOCKER_HOME):
        return name
    if "/" not in name and os.path.lexists(root / _DOCKER_HOME / "metadata" / name):
        return name
    from cowfs.docker.stored.names import device_of, find
    from cowfs.docker.stored.place import DockerPlace
    from cowfs.docker.stored.store import DockerStore
    from cowfs.errors import UnknownDevice

    store = DockerStore(DockerPlace(root))
    try:
        found = find(store, name)
    except UnknownDevice:
        return name  # what the home says about it
    return device_of(store, found)


class MinimumFreeType(click.ParamType["MinimumFree"]):
    """A share of a pool such as 10%, or a size such as 20G."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> MinimumFree:
        from cowfs.devices.on_disk.options import MinimumFree

        if isinstance(value, MinimumFree):
            return value
        percent = value.removesuffix("%")
        if percent == value:
            return MinimumFree(MinimumFree().percent, SIZE.convert(value, param, ctx))
        if not percent.isascii() or not percent.isdigit():
            self.fail(f"'{value}' is not a percentage; write 10% or a size such as 20G", param, ctx)
        return MinimumFree(int(percent))


class DeviceType(click.ParamType[str]):
    """The name of a device; completed from the records of the home, without opening it.

    In the home of a Docker daemon, the names, tags and ids of its containers and images are names of their devices too.
    """

    name = "device"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return device_named(ctx, str(value))

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        from cowfs.devices.on_disk.names import is_record_file

        home = ctx.find_root().params.get("home")
        try:
            names = os.listdir(os.path.join(home, "metadata")) if home else []
        except OSError:
            names = []
        return [CompletionItem(name) for name in sorted(names) if name.startswith(incomplete) and is_record_file(name)]


PATH = click.Path(readable=False)  # whether it can be used is found out by using it
SIZE = SizeType()
MINIMUM_FREE = MinimumFreeType()
SECONDS = click.FloatRange(min=0, min_open=True)
WAIT = click.FloatRange(min=0)  # seconds, 0 for ever
DEVICE = DeviceType()
