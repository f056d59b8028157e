"""The command bench."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from cowfs.cli import output
from cowfs.cli.settings import PATH, Settings, SizeType
from cowfs.errors import UsageError

if TYPE_CHECKING:
    from cowfs.benchmarks.engines.catalogue import Wanted
    from cowfs.benchmarks.results import Absent, Question, Result
    from cowfs.benchmarks.runner import Run
    from cowfs.benchmarks.workloads.interface import Workload

_ROUNDS: Final = 3
_WIDTH: Final = 100
_JOB: Final = ".fio"


@click.command("bench")
@click.argument("words", nargs=-1, metavar="[QUESTION]... | JOB.fio | compare OLD NEW")
@click.option("--over", metavar="LIST", help="The engines, with commas between. [default: all that work here]")
@click.option("--command", metavar="COMMAND", help="Ask how long COMMAND takes: {dir}, {disk} or {home} is its place.")
@click.option("--rounds", metavar="N", type=click.IntRange(1), default=_ROUNDS, show_default=True, help="Rounds.")
@click.option("--seed", metavar="N", type=int, default=1, show_default=True, help="Seed of what is random.")
@click.option("--size", type=SizeType(), metavar="SIZE", default="1G", show_default=True, help="Size of the devices.")
@click.option("--quick", is_flag=True, help="Small sizes: only shows that it runs.")
@click.option("--directory", metavar="DIR", type=PATH, help="Where to put the files that are measured.")
@click.option("--json", "json_file", metavar="FILE", type=PATH, help="Write the result to FILE.")
@click.option("--list", "lists", is_flag=True, help="List the engines and the questions.")
@click.pass_obj
def bench_command(
    settings: Settings,
    words: tuple[str, ...],
    over: str | None,
    command: str | None,
    rounds: int,
    seed: int,
    size: int,
    quick: bool,
    directory: str | None,
    json_file: str | None,
    lists: bool,
) -> int:
    """Run one workload over several copy-on-write engines, in turns, and say what each write cost.

    Without a QUESTION all of them are asked. Contenders are compared only within one run, on a machine that nobody else
    uses.

    \b
      cowfs bench                                     all questions, all engines that work here
      cowfs bench disk --over emulated,emulated:256K,plain
      cowfs bench --command './load {dir}' --over emulated,plain --rounds 5
    """
    if lists:
        return _list(settings)
    workloads = _workloads(words, command, seed=seed, size_bytes=size, quick=quick)
    wanted, missing = _contenders(over)
    from cowfs.benchmarks.results import write_result
    from cowfs.benchmarks.runner import Run

    with _scratch(directory) as place:
        run = Run(wanted, workloads, place, rounds, seed, missing=missing)
        result = _run(run, shows_tables=not settings.as_json)
    if json_file is not None:
        write_result(result, json_file)
    if settings.as_json:
        output.print_json(result)
    return 1 if any(question.failed for question in result.questions) else 0


def _workloads(words: Sequence[str], command: str | None, *, seed: int, size_bytes: int, quick: bool) -> list[Workload]:
    from cowfs.benchmarks.workloads.catalogue import built_in, choose
    from cowfs.benchmarks.workloads.command import CommandWorkload
    from cowfs.benchmarks.workloads.fio import FioJob

    named = [word for word in words if not word.endswith(_JOB)]
    found: list[Workload] = [
        FioJob(word, size_bytes=size_bytes, environment=os.environ) for word in words if word.endswith(_JOB)
    ]
    if command is not None:
        found.append(CommandWorkload(command, size_bytes=size_bytes, environment=os.environ))
    return [*found, *(choose(named, built_in(seed=seed, quick=quick)) if named or not found else [])]


def _contenders(over: str | None) -> tuple[list[Wanted], list[Absent]]:
    """Those that work here. One that was named and does not work is in the report, as one that was not named is."""
    from cowfs.benchmarks.engines.catalogue import everything, parse_over, usable

    return usable(everything() if over is None else parse_over(over))


@contextmanager
def _scratch(parent: str | None) -> Iterator[Path]:
    """A directory of this run, removed at its end."""
    try:
        path = tempfile.mkdtemp(prefix="cowfs-bench-", dir=parent and os.path.abspath(parent))
    except OSError as error:
        raise UsageError(f"--directory {parent}: no directory can be made in it: {error.strerror}") from error
    try:
        yield Path(os.path.realpath(path))
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _run(run: Run, *, shows_tables: bool) -> Result:
    from cowfs.benchmarks.report.text import head_lines, question_lines, summary_line
    from cowfs.benchmarks.runner import Watcher
    from cowfs.benchmarks.workloads.command import CommandFailed
    from cowfs.benchmarks.workloads.fio import FioFailed

    width = shutil.get_terminal_size((_WIDTH, 0)).columns if sys.stdout.isatty() else _WIDTH

    class Printer(Watcher):
        """Prints tables as they are complete; progress goes to standard error."""

        result: Result

        def begins(self, result: Result) -> None:
            self.result = result
            self._print(*head_lines(result))

        def progress(self, question: str, contender: str, done: int, total: int) -> None:
            if bar is not None:
                bar(f"{question}: {contender}", done, total)

        def answered(self, question: Question) -> None:
            self._print("", *question_lines(question, is_judged=self.result.is_quiet, width=width))

        def failed(self, question: str, contender: str, error: BaseException) -> None:
            if isinstance(error, CommandFailed | FioFailed):
                for line in error.lines:
                    print(output.printable(line), file=sys.stderr)

        def _print(self, *lines: str) -> None:
            if shows_tables:
                print("\n".join(map(output.printable, lines)), flush=True)

    with output.steps() as bar:
        run.watcher = printer = Printer()
        result = run()
    printer._print("", summary_line(result))
    return result


def _list(settings: Settings) -> int:
    """What there is to choose from."""
    from cowfs.benchmarks.engines.catalogue import ENGINES
    from cowfs.benchmarks.workloads.catalogue import built_in

    engines = [
        {"name": one.name, "title": one.title, "works": found.usable, "problem": found.problem, "remedy": found.remedy}
        for one in ENGINES.values()
        for found in [one.look()]
    ]
    questions = [{"name": one.name, "title": one.title} for one in built_in(seed=0, quick=False)]
    if settings.as_json:
        output.print_json({"engines": engines, "questions": questions})
        return 0
    output.print_table(
        ["ENGINE", "WORKS", ""],
        [[str(one["name"]), output.flag(bool(one["works"])), str(one["problem"] or one["title"])] for one in engines],
    )
    print()
    output.print_table(["QUESTION", ""], [[one["name"], one["title"]] for one in questions])
    return 0
