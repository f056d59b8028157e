"""What a benchmark shows and leaves: each table when it is complete, files of the result, and no directory."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from cowfs.benchmarks import left_behind
from cowfs.benchmarks.report.text import head_lines, question_lines, summary_line
from cowfs.benchmarks.results import Question, Result, encode_result
from cowfs.benchmarks.runner import Watcher
from cowfs.benchmarks.workloads.command import CommandFailed
from cowfs.benchmarks.workloads.fio import FioFailed
from cowfs.cli import output
from cowfs.errors import CowfsError, UsageError
from cowfs.janitor import Janitor

_WIDTH: Final = 100


class Printer(Watcher):
    """Prints each table when it is complete; progress is printed to standard error."""

    def __init__(
        self, bar: output.StepProgress | None = None, *, shows_tables: bool = True, with_details: bool = False
    ) -> None:
        self._bar = bar
        self._shows_tables = shows_tables
        self._with_details = with_details
        self._said: dict[str, list[str]] = {}  # by programs that failed; the table of their question comes before

    def begins(self, result: Result) -> None:
        self._result = result
        self._print(*head_lines(result))

    def progress(self, question: str, contender: str, done: int, total: int) -> None:
        if self._bar is not None:
            self._bar(f"{question}: {contender}", done, total)

    def answered(self, question: Question) -> None:
        lines = question_lines(
            question, is_judged=self._result.is_quiet, width=_width(), with_details=self._with_details
        )
        self._print("", *lines)
        for line in self._said.pop(question.name, []):
            print(output.printable(line), file=sys.stderr)

    def failed(self, question: str, contender: str, error: BaseException) -> None:
        if isinstance(error, CommandFailed | FioFailed):
            self._said.setdefault(question, []).extend(f"{contender}: {line}" for line in error.lines)

    def ends(self) -> None:
        self._print("", summary_line(self._result))

    def _print(self, *lines: str) -> None:
        if self._shows_tables:
            print("\n".join(map(output.printable, lines)), flush=True)


def _width() -> int:
    return shutil.get_terminal_size((_WIDTH, 0)).columns if sys.stdout.isatty() else _WIDTH


@contextmanager
def scratch(parent: str | None) -> Iterator[Path]:
    """A directory of this run, removed at its end."""
    try:
        path = tempfile.mkdtemp(prefix="cowfs-bench-", dir=parent and os.path.abspath(parent))
    except OSError as error:
        raise UsageError(f"--directory {parent}: no directory can be made in it: {error.strerror}") from error
    path = os.path.realpath(path)
    janitor = Janitor(left_behind.__file__, path)
    try:
        yield Path(path)
    finally:
        shutil.rmtree(path, ignore_errors=True)
        janitor.close()


@contextmanager
def outputs(
    json_file: str | None, csv_file: str | None, html_file: str | None, *, inputs: Iterable[str] = ()
) -> Iterator[Callable[[Result], None]]:
    """Opens the files of a result, before the run, and gives what writes it to them; they are complete or not there.

    Args:
        inputs: files that are read, which none of them may replace.

    Raises:
        UsageError: two of them are one file, or one is an input, or a directory; CowfsError: it cannot be made.
    """
    forms: list[tuple[str, Callable[[Result], bytes]]] = []
    if json_file is not None:
        forms.append((json_file, encode_result))
    if csv_file is not None:
        from cowfs.benchmarks.report.table import as_csv

        forms.append((csv_file, lambda result: as_csv(result).encode()))
    if html_file is not None:
        from cowfs.benchmarks.report.page import page

        forms.append((html_file, lambda result: page(result).encode()))
    taken = {os.path.realpath(path): "is read" for path in inputs}
    for path, _ in forms:
        if (use := taken.get(os.path.realpath(path))) is not None:
            raise UsageError(f"{path} cannot be written: it {use} by the same command; name another file")
        taken[os.path.realpath(path)] = "is written"
    with ExitStack() as stack:
        files = []
        for path, encode in forms:
            own = stack.enter_context(ExitStack())
            files.append(_Output(encode, own.enter_context(output.new_output(path)), own))
        yield lambda result: _write(result, files)


class _Output(NamedTuple):
    """A file that has its name when the stack ends well."""

    encode: Callable[[Result], bytes]
    write: Callable[[bytes], None]
    stack: ExitStack


def _write(result: Result, outputs: Iterable[_Output]) -> None:
    """Raises CowfsError: some cannot be written; the others are."""
    problems = []
    for one in outputs:
        data = one.encode(result)
        try:
            with one.stack:
                one.write(data)
        except CowfsError as error:
            problems.append(error)
    if problems:
        raise CowfsError("; ".join(error.message for error in problems), errno=problems[0].errno)
