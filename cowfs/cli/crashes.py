"""The commands crash-test and crash-mark."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from cowfs.cli import output
from cowfs.cli.settings import DEVICE, PATH, SECONDS, SIZE, Settings
from cowfs.errors import DeviceExists, HomeBusy, UsageError

if TYPE_CHECKING:
    from cowfs.crashes.program import Outcome
    from cowfs.home.api.home import Home

_DATA_BYTES: Final = 64 << 30  # sparse
_METADATA_BYTES: Final = 256 << 20
_STATES: Final = 1000


@click.command("crash-test")
@click.option(
    "--work",
    metavar="COMMAND",
    required=True,
    help="Command whose writes are recorded; {} is the directory for its files.",
)
@click.option(
    "--check",
    metavar="COMMAND",
    required=True,
    help="What looks at a state: {} is its directory, {marks} the marks, an argument each. Exit status 0: the state is "
    "sound.",
)
@click.option("--states", metavar="N", type=click.IntRange(1), help=f"Try at most N states. [default: {_STATES}]")
@click.option(
    "--all",
    "all_states",
    is_flag=True,
    help="Try all states: after each write, and with many selections of what is lost.",
)
@click.option("--seed", metavar="N", type=int, help="Try the same states as a run that printed the seed N.")
@click.option(
    "--model",
    type=click.Choice(["ext4", "posix"]),
    default="ext4",
    show_default=True,
    help="What a crash may lose: writes of ext4 to its disk, or what any POSIX file system may lose.",
)
@click.option("--device", metavar="NAME", type=DEVICE, help="Begin with the files of this device of the home.")
@click.option("--keep-failing", metavar="NAME", help="Keep the smallest failing state as the device NAME of the home.")
@click.option("--report", metavar="FILE", type=PATH, help="Write what was found to FILE, as one HTML page.")
@click.option("--size", type=SIZE, default="256M", show_default=True, help="Size of the device, without --device.")
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=SECONDS,
    default=60,
    show_default=True,
    help="How long the work may take, and each check.",
)
@click.option("--jobs", metavar="N", type=click.IntRange(1), default=2, show_default=True, help="Checks at a time.")
@click.pass_obj
def crash_test_command(
    settings: Settings,
    work: str,
    check: str,
    states: int | None,
    all_states: bool,
    seed: int | None,
    model: str,
    device: str | None,
    keep_failing: str | None,
    report: str | None,
    size: int,
    timeout: float,
    jobs: int,
) -> int:
    """Find out what a power cut would do to the files of a program.

    Records what the command of --work writes to a new device, creates the states that a crash may have left, and runs
    the command of --check on each. The exit status is 1 if a check failed. A failing state is shrunk to the fewest lost
    writes.

    Both commands are split into words as by a shell, and run without one. The work sets marks for what it has promised
    to be durable: 'cowfs crash-mark TEXT', or a line to the Unix socket $COWFS_CRASH_MARKS, which answers 'ok'. A check
    gets the marks that were set before the crash.

    Without a home (--home or COWFS_HOME) a new one is made for the test and removed at its end.

    \b
    This fails, as nothing was synced before the mark:
      cowfs crash-test --work "sh -c 'echo 1 > {}/n; cowfs crash-mark 1'" \\
          --check "sh -c 'test \\$# = 0 || grep 1 {}/n' sh {marks}" --states 100
    and this passes:
      cowfs crash-test --work "sh -c 'echo 1 > {}/n; sync {}/n {}; cowfs crash-mark 1'" \\
          --check "sh -c 'test \\$# = 0 || grep 1 {}/n' sh {marks}" --states 100
    """
    from cowfs.crashes.explorer import Explorer
    from cowfs.crashes.program import Command, CrashTest

    if states is not None and all_states:
        raise UsageError("--states and --all exclude each other; leave one of them out")
    if not settings.home and (keep_failing or device):
        option = "--keep-failing" if keep_failing else "--device"
        raise UsageError(f"{option} is about a device of a home; name the home: cowfs --home DIR crash-test ...")
    seed = random.randrange(1 << 32) if seed is None else seed  # noqa: S311
    commands = Command.parsed(work, "--work"), Command.parsed(check, "--check")
    with (
        nullcontext() if report is None else output.new_output(report) as write_report,
        _mounted(settings, size) as (home, path),
        Explorer.started(
            home,
            path,
            f"crash-test-{os.getpid()}",
            parent=device,
            model="posix" if model == "posix" else "ext4",
            seed=seed,
        ) as explorer,
        output.progress("trying crash states") as progress,
    ):
        if keep_failing:
            _require_free(home, keep_failing)
        test = CrashTest(explorer, *commands, environment=os.environ, limit_seconds=timeout, jobs=jobs)
        test.record()
        limit = None if all_states else states or _STATES
        outcome = test.run(limit, keep_failing=keep_failing or "", progress=progress)
        if write_report is not None:
            from cowfs.crashes.report import page

            write_report(page(explorer.history, outcome, work=work, check=check).encode())
    if settings.as_json:
        output.print_json(outcome)
    else:
        _print(outcome)
    return 1 if outcome.failed else 0


def _print(outcome: Outcome) -> None:
    tried = f"{outcome.states} states tried, model {outcome.model}, seed {outcome.seed}"
    if not outcome.failed:
        print(f"no failure: {tried}")
        return
    print(f"{outcome.failed} failures: {tried}")
    for failure in outcome.failures:
        print(f"\n{output.printable(failure.description)}")
        print(f"  state {failure.number}, promised: {output.printable(', '.join(failure.marks)) or 'nothing'}")
        for lost in failure.lost:
            print(f"  lost: {output.printable(lost)}")
        for line in failure.output.splitlines()[-5:]:
            print(f"  | {output.printable(line)}")
        if failure.device:
            print(f"  kept as the device {failure.device}")


@contextmanager
def _mounted(settings: Settings, size_bytes: int) -> Iterator[tuple[Home, Path]]:
    """A home that is mounted as a whole: the one that was named, or a new one, removed at the end."""
    from cowfs.devices.on_disk.options import HomeOptions
    from cowfs.home.api.home import open_home

    if settings.home:
        with settings.open_home() as home:
            if home.holder_pid is None:
                with home.mount() as path:
                    yield home, path
                return
            views = [view for view in home.status().views if view.device is None and not view.read_only]
            if not views:
                raise HomeBusy(
                    f"process {home.holder_pid} has the home {home.path} and does not show all of its devices; "
                    "unmount it first"
                )
            yield home, Path(views[0].mount_point)
        return
    options = HomeOptions(
        data_size_bytes=_DATA_BYTES, metadata_size_bytes=_METADATA_BYTES, base_size_bytes=size_bytes, min_free_percent=0
    )
    with (
        tempfile.TemporaryDirectory(prefix="cowfs-crash-test-") as directory,
        open_home(Path(directory, "home"), create=True, options=options, durable=False) as home,
        home.mount() as path,
    ):
        yield home, path


def _require_free(home: Home, name: str) -> None:
    if any(row.name == name for row in home.devices()):
        raise DeviceExists(f"device '{name}' exists already; keep the failing state under another name")


@click.command("crash-mark")
@click.argument("text")
def crash_mark_command(text: str) -> None:
    """Set the mark TEXT: all that was done so far is promised. For the work of 'cowfs crash-test'.

    Returns when the mark is in the recording. It makes nothing durable: what was not synced may be lost all the same,
    and then the check gets the mark of a promise that was not kept.
    """
    from cowfs.crashes.program import MARKS_VARIABLE, send_mark

    path = os.environ.get(MARKS_VARIABLE)
    if not path:
        raise UsageError("there is no crash test to set a mark for; 'cowfs crash-test --work ...' runs what sets marks")
    send_mark(path, text)
