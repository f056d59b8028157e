"""The command `batch`: command lines from a file, one after the other in one process."""

from __future__ import annotations

import io
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, Final

import click
import msgspec

from cowfs.cli import output, signals
from cowfs.cli.outcome import BROKEN_PIPE, status_of
from cowfs.cli.settings import PATH, Settings
from cowfs.error_record import plain_text
from cowfs.errors import UsageError

_REFUSED: Final = ("batch", "uml", "docker", "docker-plugin", "snapshotter", "completion")
_SERVING: Final = {"--foreground", "--as-server"}
_ENDING: Final = frozenset({BROKEN_PIPE, *signals.STATUSES})


class LineResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of a line. `result` is the command's JSON, or its text where it prints no JSON."""

    line: int
    command: str
    exit_status: int
    result: Any = None
    error: Any = None


@click.command("batch")
@click.argument("file", required=False, type=PATH)
@click.option("--keep-going", is_flag=True, help="Go on after a line that failed.")
@click.pass_context
def batch_command(ctx: click.Context, file: str | None, keep_going: bool) -> int:
    """Run the commands in FILE, or in standard input, one per line, in one process.

    \b
      create web
      snapshot web 'before the update'   # words are quoted as in a shell, and # begins a comment
      rollback web 'before the update'

    The global options before 'batch' are for all lines. The first line that fails ends the batch, unless --keep-going
    is given; the exit status is that of the first line that failed. With --json there is one JSON object per line:
    line, command, exit_status, and result or error.
    """
    settings: Settings = ctx.obj
    first_failed = 0
    with _lines(file) as lines:
        for number, line in enumerate(lines, 1):
            status = _run_line(ctx, settings, number, line.strip())
            sys.stdout.flush()
            first_failed = first_failed or status
            if status in _ENDING or (status and not keep_going):
                break
    return first_failed


@contextmanager
def _lines(file: str | None) -> Iterator[Iterator[str]]:
    if file is not None and file != "-":
        with open(file, encoding="utf-8", errors="surrogateescape") as lines:
            yield iter(lines)
        return
    commands = sys.stdin
    with open(os.devnull, encoding="utf-8") as nothing:  # for a command that reads its input
        sys.stdin = nothing
        try:
            yield iter(commands)
        finally:
            sys.stdin = commands


def _run_line(ctx: click.Context, settings: Settings, number: int, line: str) -> int:
    """Run one line; its exit status. An empty one is done."""
    words: list[str] = []

    def run() -> Any:
        words.extend(_split(line))
        return _invoke(ctx, words) if words else 0

    with signals.kept():
        if settings.as_json:
            return _run_for_json(run, number, line, words)
        output.where = f"line {number}: "
        try:
            return status_of(run, as_json=False)
        finally:
            output.where = ""


def _run_for_json(run: Any, number: int, line: str, words: Sequence[str]) -> int:
    said = io.StringIO()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="surrogateescape") as file:  # a descriptor may be used
        with redirect_stdout(file), redirect_stderr(said):
            status = status_of(run, as_json=True)
        file.flush()
        text = os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0)
    error = None
    for line_said in said.getvalue().splitlines():
        if error is None and line_said.startswith('{"error":'):
            error = msgspec.json.decode(line_said, type=dict[str, Any])["error"]
        else:
            print(line_said, file=sys.stderr)
    if words or status:
        done = LineResult(number, plain_text(line), status, _result(text), error)
        print(msgspec.json.encode(done).decode())
    return status


def _result(text: bytes) -> Any:
    if not text:
        return None
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return text.decode(errors="backslashreplace")


def _split(line: str) -> list[str]:
    try:
        return shlex.split(line, comments=True)
    except ValueError as error:
        raise UsageError(f"the line cannot be split into words: {str(error).lower()}") from error


def _invoke(ctx: click.Context, words: list[str]) -> Any:
    root = ctx.find_root()
    if words[0].startswith("-"):
        raise UsageError(f"a line begins with a command, and {words[0]} must come before 'batch', for all lines")
    if words[0] in _REFUSED or not _SERVING.isdisjoint(words):
        raise UsageError(f"'{' '.join(words[:2])}' cannot be a line of a batch; run it outside of the batch")
    group = root.command
    assert isinstance(group, click.Group)
    name, command, arguments = group.resolve_command(root, words)
    assert command is not None
    with command.make_context(name, arguments, parent=root) as line_ctx:
        return command.invoke(line_ctx)
