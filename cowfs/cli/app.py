"""The program `cowfs`: global options, the commands, and what happens to errors.

Commands are loaded when they run, and what they need when they need it: `cowfs --help` and tab completion stay quick.
This package is the only place that reads the environment.

Exit status: 0; 2 for a request that is malformed; 3 where the machine lacks something; 4 pool, 5 home or device,
6 mount, 7 file system, 8 User-Mode Linux; 1 for anything else the system refused; 130 after Ctrl-C, 143 after SIGTERM.
Either asks a server that is ready (`mount --foreground`, `docker plugin`) to end, and then it ends with 0.
A traceback is a defect of cowfs.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NoReturn

import click
from click.core import ParameterSource

from cowfs.cli import output, signals
from cowfs.cli.commands import FORMER_NAMES, SECTIONS, command_words
from cowfs.cli.lazy_group import LazyGroup
from cowfs.cli.outcome import silence_stdout, status_of
from cowfs.cli.settings import HELD_OUTSIDE, PATH, SECONDS, LogOptions, Settings
from cowfs.errors import UsageError
from cowfs.version import VERSION

_WITH_VALUES: Final = ("--storage-opt", "--home", "--backend", "--time-limit", "--log")


@click.group(
    cls=LazyGroup,
    sections=SECTIONS,
    aliases=FORMER_NAMES,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option("--home", metavar="DIR", envvar="COWFS_HOME", type=PATH, help="The home. [env: COWFS_HOME]")
@click.option(
    "--backend", metavar="NAME", default="emulated", show_default=True, help="Backend that implements the pool."
)
@click.option(
    "--storage-opt", metavar="KEY=VALUE", multiple=True, help="Storage driver option, as for dockerd; may be repeated."
)
@click.option("--json", "as_json", is_flag=True, help="Print results and errors as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Show no warnings and no progress, only results and errors.")
@click.option("-v", "--verbose", "verbosity", count=True, help="Show more log messages; -vv shows all.")
@click.option("--log", "log_file", metavar="FILE", type=PATH, help="Append the log to FILE, also that of a server.")
@click.option("--uml", "in_uml", is_flag=True, help="Run the command in User-Mode Linux, with --backend dmthin.")
@click.option("--time-limit", type=SECONDS, metavar="SECONDS", help="With --uml: end the command after this time.")
@click.version_option(VERSION, prog_name="cowfs", message="%(prog)s %(version)s")
@click.pass_context
def cli(
    ctx: click.Context,
    home: str | None,
    backend: str,
    storage_opt: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    verbosity: int,
    log_file: str | None,
    in_uml: bool,
    time_limit: float | None,
) -> None:
    """Thin devices and snapshots in user space, mountable as file trees and disk images.

    A home holds a pool and its devices. These options come before the command; 'cowfs help COMMAND'
    explains one, as in 'cowfs help mount' and 'cowfs help pool resize'.

    \b
      cowfs --home H init                     make a home
      cowfs --home H create web               a device with an empty ext4
      cowfs --home H mount web /mnt           its files, until 'cowfs umount /mnt'
      cowfs --home H snapshot web web-1       at any time, in milliseconds
    """
    words: list[str] = ctx.obj
    from cowfs.cli.log import log_command

    if quiet and verbosity:
        raise UsageError("-q shows less and -v more; leave one of them out")
    log = LogOptions(quiet, verbosity, log_file)
    ctx.obj = settings = Settings(home, backend, as_json, storage_opt, log)
    log_command(log)
    output.shows_progress = not quiet
    if in_uml:
        from cowfs.cli.uml import run_in_uml

        explicit = ctx.get_parameter_source("backend") is ParameterSource.COMMANDLINE
        defaults = [] if explicit else ["--backend", "dmthin"]
        global_options, command = _for_the_guest(words)
        status = run_in_uml(settings, command_words(command), [*defaults, *global_options, *command], time_limit)
        ctx.exit(status)
    if time_limit is not None:
        raise UsageError("--time-limit is for --uml; add that, or leave it out")


def _for_the_guest(words: list[str]) -> tuple[list[str], list[str]]:
    """A command line without the options that bring it into a guest: the global options, and the command's words."""
    kept: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "--time-limit":
            next(rest, None)
        elif word != "--uml" and not word.startswith("--time-limit="):
            if not word.startswith("-"):
                return kept, [word, *rest]
            kept.append(word)
            if word in _WITH_VALUES:
                kept += [value for value in [next(rest, None)] if value is not None]
    return kept, []


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command line and exit."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        signals.interrupt_by_signals()
        _open_standard_streams()
        output.name_standard_output()
        status = run(words)
        signals.outcome_stands()
    except KeyboardInterrupt as error:  # in the moments before and after the command, or a second one
        signals.outcome_stands()
        status = signals.exit_status(error)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        status = silence_stdout()
    except OSError as error:
        silence_stdout()
        if not status:
            status = output.print_error(error, as_json=_asks_for_json(words))
    _end(status)


def _end(status: int) -> NoReturn:
    """End the process; where nothing else runs in it, without taking apart all that was loaded.

    That is a tenth of a short command. What is left to do at an exit is done before: threads that go on and output that
    cannot be written are the interpreter's.
    """
    if threading.active_count() == 1:
        atexit._run_exitfuncs()
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    sys.exit(status)


def _open_standard_streams() -> None:
    """Have something at the three descriptors, on which using it fails, where the parent process closed them.

    Else the next file to be opened, the pool's data perhaps, would be there, and take messages.
    """
    for fd, name, flags in ((0, "stdin", os.O_WRONLY), (1, "stdout", os.O_RDONLY), (2, "stderr", os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, flags)  # the lowest that is free
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(fd, "w" if fd else "r", closefd=False))


def run(words: list[str]) -> int:
    """Run a command line; its exit status."""
    as_json = _asks_for_json(words)
    if os.environ.get(HELD_OUTSIDE):
        from cowfs.devices.on_disk.lock import HomeLock

        HomeLock.notes_holder = False
    return status_of(
        lambda: cli.main(list(words), prog_name="cowfs", standalone_mode=False, obj=words), as_json=as_json
    )


def _asks_for_json(words: list[str]) -> bool:
    """Whether --json comes before the command; asked here for the errors of the command line itself."""
    rest = iter(words)
    for word in rest:
        if word == "--json":
            return True
        if word in _WITH_VALUES:
            next(rest, None)
        elif not word.startswith("-"):
            break
    return False
