"""The commands of the group trace: record, show, convert."""

from __future__ import annotations

import shutil
import subprocess
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import click

from cowfs.cli import output, signals
from cowfs.cli.settings import DEVICE, PATH, SECONDS, Settings
from cowfs.errors import HomeError, UsageError
from cowfs.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cowfs.traces.formats import FormatName
    from cowfs.traces.requests import TracedRequest
    from cowfs.traces.summary import TraceSummary

_COMMAND_NOT_FOUND: Final = 127
_KILLED: Final = 128


@click.command("record")
@click.argument("name", type=DEVICE)
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND...]")
@click.option("--output", "-o", "path", metavar="FILE", type=PATH, required=True, help="The new file of the trace.")
@click.option("--for", "seconds", metavar="SECONDS", type=SECONDS, help="End the trace after so many seconds.")
@click.option("--force", is_flag=True, help="Write over FILE where it exists.")
@click.pass_obj
def record_command(
    settings: Settings, name: str, command: tuple[str, ...], path: str, seconds: float | None, force: bool
) -> int:
    """Record in FILE the requests to the mounted device NAME: reads, writes, discards and flushes, with their times.

    Of a mounted file tree these are the requests of ext4 to its disk, of a mount with --raw those to the disk. A read
    that the kernel answers from its cache is not a request.

    Ends at Ctrl-C, after --for SECONDS, when COMMAND has ended, or when the device is unmounted. With COMMAND the exit
    status is that of COMMAND. After a kill, the trace up to that moment can be read. 'cowfs bench FILE' replays a
    trace.

    The word record can be left out: cowfs trace NAME -o FILE.
    """
    from cowfs.new_files import is_special
    from cowfs.traces.formats import open_trace
    from cowfs.traces.summary import summarize

    if command and seconds is not None:
        raise UsageError("--for and COMMAND exclude each other; a trace ends with one of them")
    if command and shutil.which(command[0]) is None:
        output.print_line(f"cowfs: there is no program '{command[0]}'")
        return _COMMAND_NOT_FOUND
    status = 0
    with settings.open_home() as home, home.trace(name, path, force=force) as recording:
        if command:
            status = _run(command)
        else:
            how = "Ctrl-C ends the trace" if seconds is None else f"for {seconds:g} s, or until Ctrl-C"
            output.print_line(f"cowfs: recording the requests of {name}; {how}")
            with suppress(KeyboardInterrupt):
                recording.ended.wait(seconds)
    if is_special(path):
        return status
    found = summarize(open_trace(path))
    if settings.as_json:
        output.print_json(found)
    elif not command:
        print(f"recorded {found.requests} requests in {found.seconds:.1f} s: {output.printable(path)}")
    _warn(found)
    if not found.is_whole:
        raise HomeError(
            f"the process that served '{name}' ended before the trace; what is in {path} can be used up to there"
        )
    return status


def _run(command: tuple[str, ...]) -> int:
    """The exit status of a command, as a shell has it. Ctrl-C reaches it by the terminal, SIGTERM through us."""
    try:
        process = subprocess.Popen(command)
    except OSError as error:
        output.print_line(f"cowfs: {command[0]} cannot be run: {error.strerror}")
        return _COMMAND_NOT_FOUND
    while True:
        try:
            status = process.wait()
        except KeyboardInterrupt as signal:
            if isinstance(signal, signals.Ended):
                process.terminate()
        else:
            return status if status >= 0 else _KILLED - status


def _warn(found: TraceSummary) -> None:
    if found.lost:
        output.print_line(
            f"cowfs: {found.lost} requests are not in {found.path}, which was written too slowly for them"
        )


@click.command("show")
@click.argument("file", type=PATH)
@click.option("--requests", is_flag=True, help="List the requests, one a line; with --json, one object a line.")
@click.pass_obj
def show_command(settings: Settings, file: str, requests: bool) -> None:
    """Show the trace FILE in figures. FILE is of cowfs, an iolog of fio, or a binary trace of blktrace.

    Of several files of blktrace, NAME.blktrace.0 and so on, name one; all are read.
    """
    from cowfs.traces.formats import open_trace
    from cowfs.traces.summary import summarize

    trace = open_trace(file)
    if requests:
        (_print_objects if settings.as_json else _print_requests)(trace.requests())
        if not trace.end.is_whole:
            output.print_line(f"cowfs: {file} is cut off after this")
        return
    found = summarize(trace)
    if settings.as_json:
        output.print_json(found)
        return
    began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found.began)) if found.began else ""
    size = "" if found.device_size_bytes is None else format_size(found.device_size_bytes)
    output.print_fields(
        [
            ("Trace", f"{found.path} ({found.format})"),
            ("Device", f"{found.device}{f', {size}' if size else ''}"),
            ("Began", began),
            ("Length", f"{found.seconds:.3f} s"),
            ("Requests", str(found.requests)),
            ("Reaches to", format_size(found.furthest_bytes)),
            ("Lost", str(found.lost) if found.lost else ""),
            ("End", "" if found.is_whole else "cut off"),
        ]
    )
    if not found.kinds:
        return
    print()
    output.print_table(
        ["KIND", "REQUESTS", "SIZE", "SMALLEST", "LARGEST", "SEQUENTIAL", "SYNC"],
        [
            [
                kind,
                str(one.requests),
                *map(format_size, (one.size_bytes, one.smallest_bytes, one.largest_bytes)),
                f"{100 * one.sequential // one.requests}%",
                str(one.sync),
            ]
            if kind != "flush"
            else [kind, str(one.requests), "", "", "", "", ""]
            for kind, one in found.kinds.items()
        ],
        right=frozenset(range(1, 7)),
    )


def _print_requests(requests: Iterator[TracedRequest]) -> None:
    from cowfs.traces.requests import KIND_NAMES

    print(f"{'SECONDS':>14}  {'KIND':7}  {'OFFSET':>16}  {'LENGTH':>10}  SYNC")
    for time_ns, kind, offset, length, sync in requests:
        print(
            f"{time_ns // 10**9:>7}.{time_ns % 10**9 // 1000:06}  {KIND_NAMES[kind]:7}  {offset:>16}  {length:>10}"
            + ("  sync" if sync else "")
        )


def _print_objects(requests: Iterator[TracedRequest]) -> None:
    import msgspec

    from cowfs.traces.requests import KIND_NAMES

    for time_ns, kind, offset, length, sync in requests:
        line = {"time_ns": time_ns, "kind": KIND_NAMES[kind], "offset": offset, "length": length, "sync": sync}
        print(msgspec.json.encode(line).decode())


@click.command("convert")
@click.argument("source", type=PATH)
@click.argument("target", type=PATH)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["trace", "iolog", "iolog3", "blktrace"]),
    help="What TARGET is to be. [default: by its suffix: .trace, .iolog (version 2), .blktrace.0]",
)
@click.option(
    "--file", "file_name", metavar="PATH", default="", help="The file that an iolog names. [default: the device]"
)
@click.option("--force", is_flag=True, help="Replace TARGET where it exists.")
@click.pass_obj
def convert_command(
    settings: Settings, source: str, target: str, kind: FormatName | None, file_name: str, force: bool
) -> None:
    """Convert the trace SOURCE, of any format, to TARGET.

    fio replays an iolog on the file that it names, or on another one with --replay_redirect. It has no writes that are
    durable at once: they become a write and a datasync. blkparse reads TARGET by the name before .blktrace.0.
    """
    from cowfs.new_files import new_file
    from cowfs.traces.formats import format_of, open_trace, write_trace

    kind = kind or format_of(target)
    trace = open_trace(source)
    with new_file(target, force=force, hint=", or replace it with --force") as file:
        write_trace(trace, file, kind, file_name=file_name)
    if not trace.end.is_whole:
        output.print_line(f"cowfs: {source} is cut off at its end, and so is {target}")
    output.answer(
        {"source": source, "target": target, "format": kind, "is_whole": trace.end.is_whole},
        f"converted {source} ({trace.kind}) to {target} ({kind})",
        as_json=settings.as_json,
    )
