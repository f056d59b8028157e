"""The command that brings a kernel with dm-thin: uml; and other commands inside one."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from cowfs.cli import output
from cowfs.cli.settings import HELD_OUTSIDE, SECONDS, Settings, SizeType
from cowfs.errors import UmlError, UsageError

if TYPE_CHECKING:
    from cowfs.uml import UmlKernel

_MOUNTING: Final = ("mount", "umount")
_TRIAL_SECONDS: Final = 60.0
_LEAST_MEMORY_BYTES: Final = 48 << 20  # found by trying: with less the kernel does not boot


class _UmlCommand(click.Command):
    """Distinguishes `uml install` from `uml -- install`: after `--` everything is the command to run."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["cowfs.uml.install"] = args == ["install"]
        return super().parse_args(ctx, args)


@click.command("uml", cls=_UmlCommand, context_settings={"allow_interspersed_args": False})
@click.option(
    "--memory",
    "memory_bytes",
    type=SizeType(least_bytes=_LEAST_MEMORY_BYTES),
    metavar="SIZE",
    default="512M",
    show_default=True,
    help="Memory of the guest, at least 48M.",
)
@click.option("--timeout", "timeout_seconds", type=SECONDS, metavar="SECONDS", help="End the command after this time.")
@click.argument("words", nargs=-1, required=True, metavar="install | -- COMMAND...", type=click.UNPROCESSED)
@click.pass_context
def uml_command(
    ctx: click.Context, memory_bytes: int, timeout_seconds: float | None, words: tuple[str, ...]
) -> int | None:
    """Run a command on a kernel with dm-thin: User-Mode Linux, a kernel in a process. No root needed.

    The command works on this machine's files with your rights, as the guest's root; its output comes as it is written,
    and its exit status is the result. 'cowfs uml install' unpacks the distribution's package into your cache, where it
    is not installed.

    \b
      cowfs uml -- cowfs --backend dmthin --home H list
      cowfs uml -- sh
    """
    from cowfs.uml import install, run

    if ctx.meta["cowfs.uml.install"]:
        kernel = install(_cache())
        settings: Settings = ctx.obj
        if settings.as_json:
            output.print_json({"kernel": str(kernel.executable), "modules": str(kernel.modules)})
        else:
            print(f"{kernel.executable} with modules in {kernel.modules}")
        return None
    return run(
        words,
        kernel=_kernel(),
        env=_environment(),
        memory_bytes=memory_bytes,
        timeout_seconds=timeout_seconds,
        stdin=sys.stdin.fileno(),
    )


def run_cowfs_in_uml(words: list[str], *, memory_bytes: int) -> int:
    """Run `cowfs WORDS` in a guest, about no home of this machine; its exit status."""
    from cowfs.uml import run

    command = [sys.executable, "-m", "cowfs", *words]
    return run(command, kernel=_kernel(), env=_environment(), memory_bytes=memory_bytes)


def run_in_uml(settings: Settings, named: list[str], words: list[str], timeout_seconds: float | None) -> int:
    """Run `cowfs WORDS`, whose command is `named` (a group and its command are two words), in a guest; its exit status.

    The guest does not see the locks of this machine, so this process holds the home meanwhile.
    """
    from cowfs.uml import run

    command = " ".join(named)
    if command in _MOUNTING:
        raise UsageError(
            f"'{command}' is not possible in User-Mode Linux: a mount there ends with its command and is not seen by "
            "this machine; the same home mounts here with --backend emulated, and 'cowfs uml -- sh' is for work inside"
        )
    if command == "uml":
        raise UsageError("'uml' boots User-Mode Linux without --uml; leave it out")
    with _held(settings, is_new=command == "init"):
        try:
            return run(
                [sys.executable, "-m", "cowfs", *words],
                kernel=_kernel(),
                env=_environment() | {HELD_OUTSIDE: str(os.getpid())},
                timeout_seconds=timeout_seconds,
                stdin=sys.stdin.fileno(),
            )
        except UmlError as error:
            if not error.timed_out:
                raise
            message = f"'cowfs {command}' in User-Mode Linux was ended after {timeout_seconds:g} seconds"
            raise UmlError(message, timed_out=True) from None


@contextmanager
def _held(settings: Settings, *, is_new: bool) -> Iterator[None]:
    """Hold the home that the command line names, if it names one."""
    from cowfs.devices.on_disk.files import HomeFiles
    from cowfs.devices.on_disk.lock import HomeLock
    from cowfs.devices.on_disk.making import require_room_for_home
    from cowfs.home.session import locked

    if not settings.home:
        yield
    elif is_new:
        files = HomeFiles(str(settings.home_path))
        require_room_for_home(files)
        files.make_directory(files.home)
        lock = HomeLock.acquire(files.home)
        try:
            yield
        finally:
            lock.release()
    else:
        with locked(settings.home_path, "a command in User-Mode Linux"):
            yield


def boot_uml() -> str:
    """Boot a guest for a moment; what came up. Raises MissingRequirement, UmlError."""
    from cowfs.uml import run_captured

    kernel = _kernel()
    done = run_captured(["uname", "-r"], kernel=kernel, env=_environment(), timeout_seconds=_TRIAL_SECONDS)
    return f"{kernel.executable} boots Linux {done.stdout.strip()} with dm-thin"


def _kernel() -> UmlKernel:
    from cowfs.uml import find_kernel

    return find_kernel(_cache())


def _cache() -> Path:
    """The user's cache folder, as the XDG base directories say."""
    path = os.environ.get("XDG_CACHE_HOME", "")
    if path and not os.path.isabs(path):
        raise UsageError(f"XDG_CACHE_HOME is '{path}', which is not an absolute path")
    return Path(path or Path("~/.cache").expanduser()) / "cowfs"


def _environment() -> dict[str, str]:
    """Ours; with the folders of system programs on the path, as the guest's root has them."""
    path = os.environ.get("PATH", os.defpath)
    return dict(os.environ) | {"PATH": f"{path}:/usr/local/sbin:/usr/sbin:/sbin"}
