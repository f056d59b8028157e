"""The command bench."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import click
from click.core import ParameterSource

from cowfs.cli import output
from cowfs.cli.settings import PATH, Settings, SizeType
from cowfs.errors import CowfsError, MissingRequirement, UsageError

if TYPE_CHECKING:
    from cowfs.benchmarks.comparison import Comparison
    from cowfs.benchmarks.engines.catalogue import Wanted
    from cowfs.benchmarks.results import Absent, Result
    from cowfs.benchmarks.runner import Run
    from cowfs.benchmarks.workloads.interface import Workload
    from cowfs.traces.replay import Pace

_ROUNDS: Final = 5
_LIMIT_SECONDS: Final = 165.0
_JOB: Final = ".fio"
_WORDS: Final = "cowfs.bench.words"
_GUEST_BYTES: Final = 1 << 30
_LOOK_SECONDS: Final = 0.5
_COMPARE: Final = "compare"
_REPORT: Final = "report"
_OPTIONS: Final = {  # those that have a meaning there
    _COMPARE: frozenset({"threshold", "judge_loaded"}),
    _REPORT: frozenset({"details", "json_file", "html_file", "csv_file"}),
    "--list": frozenset({"lists"}),
}
_ORDER: Final = ("worse", "better", "tie", "unjudged")
_RIGHT: Final = frozenset({3, 4, 5})


class _BenchCommand(click.Command):
    """Keeps its words, which `--in-uml` has a guest run."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_WORDS] = list(args)
        return super().parse_args(ctx, args)


@click.command("bench", cls=_BenchCommand)
@click.argument("words", nargs=-1, metavar="[QUESTION]... | JOB.fio | FILE.trace | compare OLD NEW | report RESULT")
@click.option("--over", metavar="LIST", help="The engines, with commas between. [default: all that work here]")
@click.option(
    "--skip-missing", is_flag=True, help="Do without engines of --over that cannot run here, or are asked nothing."
)
@click.option("--command", metavar="COMMAND", help="Ask how long COMMAND takes: {dir}, {disk} or {home} is its place.")
@click.option("--thin-pool", metavar="POOL", help="Have dmthin use this pool of the kernel; only thins are made in it.")
@click.option("--in-uml", is_flag=True, help="Run all of it in User-Mode Linux, a kernel with dm-thin.")
@click.option(
    "--pace",
    type=click.Choice(["fast", "own"]),
    help="With a trace: as fast as possible, or by its times. [default: fast]",
)
@click.option(
    "--rounds",
    metavar="N",
    type=click.IntRange(1),
    help=f"Rounds. [default: {_ROUNDS}, or as many of them as fit into 3 minutes, but 3]",
)
@click.option("--seed", metavar="N", type=int, default=1, show_default=True, help="Seed of what is random.")
@click.option("--size", type=SizeType(), metavar="SIZE", default="1G", show_default=True, help="Size of the devices.")
@click.option("--quick", is_flag=True, help="Small sizes: only shows that it runs.")
@click.option("--full", is_flag=True, help="Large sizes: for half an hour and more.")
@click.option("--directory", metavar="DIR", type=PATH, help="Where to put the files that are measured.")
@click.option("--details", is_flag=True, help="Print all that was measured and counted, not only the figures.")
@click.option("--json", "json_file", metavar="FILE", type=PATH, help="Write the result to FILE.")
@click.option("--html", "html_file", metavar="FILE", type=PATH, help="Write a report to FILE, one HTML page.")
@click.option("--csv", "csv_file", metavar="FILE", type=PATH, help="Write all rounds to FILE, as CSV.")
@click.option("--threshold", metavar="N%", default="10%", show_default=True, help="compare: less than this is a tie.")
@click.option("--judge-loaded", is_flag=True, help="compare: judge runs on a machine that others used, too.")
@click.option("--others", type=float, default=0.0, hidden=True)
@click.option("--list", "lists", is_flag=True, help="List the engines and the questions.")
@click.pass_context
def bench_command(
    ctx: click.Context,
    words: tuple[str, ...],
    over: str | None,
    skip_missing: bool,
    command: str | None,
    pace: Pace | None,
    thin_pool: str | None,
    in_uml: bool,
    rounds: int | None,
    seed: int,
    size: int,
    quick: bool,
    full: bool,
    directory: str | None,
    details: bool,
    json_file: str | None,
    html_file: str | None,
    csv_file: str | None,
    threshold: str,
    judge_loaded: bool,
    others: float,
    lists: bool,
) -> int:
    """Run one workload over several copy-on-write engines, in turns, and say what each write cost.

    Without a QUESTION all of them are asked. Contenders are compared only within one run, on a machine that has
    nothing else to do.

    \b
      cowfs bench                                     all questions, all engines that work here
      cowfs bench disk --over emulated,emulated:256K,plain
      cowfs bench --command './load {dir}' --over emulated,plain --rounds 5
      cowfs bench JOB.fio --html report.html --json new.json
      cowfs bench report new.json                     what it has found, once more
      cowfs bench compare old.json new.json           exit status 1: a line is worse
      cowfs bench t.trace --over emulated,plain       what 'cowfs trace web -o t.trace' recorded
    """
    settings: Settings = ctx.obj
    _require_own_options("--list" if lists else words[0] if words[:1] and words[0] in _OPTIONS else "")
    if lists:
        return _list(settings)
    if words[:1] == (_COMPARE,):
        return _compare(settings, words[1:], threshold, judges_loaded=judge_loaded)
    if html_file is not None:
        _require_charts()
    if quick and full:
        raise UsageError("--quick has small sizes and --full large ones; leave one of them out")
    scale = "QUICK" if quick else "FULL" if full else "STANDARD"
    if words[:1] == (_REPORT,):
        return _report(settings, words[1:], json_file, csv_file, html_file, details=details)
    if in_uml:
        return _run_in_guest(settings, ctx.meta[_WORDS], directory)
    files = [word for word in words if os.path.exists(word)]
    traces, words = _traces(
        tuple(dict.fromkeys(words)), pace, seed=seed, size_bytes=size if _is_given("size") else None
    )
    workloads: list[Workload] = [*traces]
    asks_by_name = bool(words or traces or command is not None)
    if words or command is not None or not traces:
        workloads += _workloads(words, command, seed=seed, size_bytes=size, scale=scale)
    _require_names_of_their_own(workloads)
    wanted, missing = _contenders(over, thin_pool)
    from cowfs.benchmarks.engines.catalogue import parse_over
    from cowfs.benchmarks.runner import Run
    from cowfs.benchmarks.unanswered import unanswered
    from cowfs.cli.bench_output import outputs, scratch

    with outputs(json_file, csv_file, html_file, inputs=files) as write, scratch(directory) as place:
        run = Run(
            *(wanted, workloads, place, rounds or _ROUNDS, seed),
            missing=missing,
            others_processors=others,
            limit_seconds=_LIMIT_SECONDS if rounds is None and scale != "FULL" else math.inf,
            prepares_once=scale == "FULL",
        )
        result = _run(run, shows_tables=not settings.as_json, with_details=details)
        write(result)
    if settings.as_json:
        output.print_json(result)
    problem = unanswered(
        result,
        engines=() if over is None or skip_missing else [one.name for one in parse_over(over)],
        questions=[workload.name for workload in workloads] if asks_by_name else (),
    )
    if problem is not None:
        raise problem
    return 0


def _require_names_of_their_own(workloads: Sequence[Workload]) -> None:
    """Raises UsageError: two files have one name, by which lines of results are compared."""
    names = [workload.name for workload in workloads]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two files are called '{name}', and results go by names; rename one of them")


def _require_own_options(action: str) -> None:
    """Raises UsageError: an option was given that says nothing here; `action` is empty for a run."""
    others = frozenset().union(*(options for name, options in _OPTIONS.items() if name != _REPORT))
    for option in click.get_current_context().command.params:
        name = str(option.name)
        if isinstance(option, click.Argument) or not _is_given(name):
            continue
        if name not in _OPTIONS[action] if action else name in others and name != "lists":
            what = f"'cowfs bench {action}'" if action else "a run: it is for 'cowfs bench compare'"
            raise UsageError(f"{option.opts[0]} is not for {what}; leave it out")


def _is_given(option: str) -> bool:
    return click.get_current_context().get_parameter_source(option) is ParameterSource.COMMANDLINE


def _traces(
    words: tuple[str, ...], pace: Pace | None, *, seed: int, size_bytes: int | None
) -> tuple[list[Workload], tuple[str, ...]]:
    """The traces among the words, by their names, and the other words."""
    from cowfs.benchmarks.workloads.replay import ReplayTrace
    from cowfs.traces.formats import named_format

    paths = [word for word in words if named_format(word) is not None]
    if pace is not None and not paths:
        raise UsageError("--pace is for a trace; name one, or leave it out")
    traces: list[Workload] = [
        ReplayTrace(path, pace=pace or "fast", size_bytes=size_bytes, seed=seed) for path in paths
    ]
    return traces, tuple(word for word in words if word not in paths)


def _workloads(words: Sequence[str], command: str | None, *, seed: int, size_bytes: int, scale: str) -> list[Workload]:
    from cowfs.benchmarks.workloads.catalogue import Scale, built_in, choose
    from cowfs.benchmarks.workloads.command import CommandWorkload
    from cowfs.benchmarks.workloads.fio import FioJob

    named = [word for word in words if not word.endswith(_JOB)]
    found: list[Workload] = [
        FioJob(word, size_bytes=size_bytes, environment=os.environ) for word in words if word.endswith(_JOB)
    ]
    if command is not None:
        found.append(CommandWorkload(command, size_bytes=size_bytes, environment=os.environ))
    return [
        *found,
        *(choose(named, built_in(seed=seed, scale=Scale[scale])) if named or not found else []),
    ]


def _contenders(over: str | None, thin_pool: str | None) -> tuple[list[Wanted], list[Absent]]:
    """Those that work here, and those that do not, for the report."""
    from cowfs.benchmarks.engines.catalogue import everything, parse_over, usable, with_thin_pool

    wanted = everything() if over is None else parse_over(over)
    return usable(wanted if thin_pool is None else with_thin_pool(wanted, thin_pool))


def _run_in_guest(settings: Settings, words: Sequence[str], directory: str | None) -> int:
    """The same command in User-Mode Linux, which sees the file systems of this machine through hostfs.

    What others use is not to be seen from there, so it is looked at before.
    """
    from cowfs.benchmarks.machine import busy_processors
    from cowfs.cli.bench_output import scratch
    from cowfs.cli.uml import run_cowfs_in_uml

    with scratch(directory) as place:
        own = [word for word in words if word != "--in-uml"]
        others = f"--others={busy_processors(_LOOK_SECONDS)}"
        command = [*["--json"] * settings.as_json, "bench", *own, others, "--directory", os.fspath(place)]
        return run_cowfs_in_uml(command, memory_bytes=_GUEST_BYTES)


def _run(run: Run, *, shows_tables: bool, with_details: bool) -> Result:
    from cowfs.cli.bench_output import Printer

    with output.steps() as bar:
        run.watcher = Printer(bar, shows_tables=shows_tables, with_details=with_details)
        return run()


def _list(settings: Settings) -> int:
    """What there is to choose from."""
    from cowfs.benchmarks.engines.catalogue import ENGINES
    from cowfs.benchmarks.workloads.catalogue import built_in

    engines = [
        {"name": one.name, "title": one.title, "works": found.usable, "problem": found.problem, "remedy": found.remedy}
        for one in ENGINES.values()
        for found in [one.look()]
    ]
    questions = [{"name": one.name, "title": one.title} for one in built_in(seed=0)]
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


def _report(
    settings: Settings,
    files: Sequence[str],
    json_file: str | None,
    csv_file: str | None,
    html_file: str | None,
    *,
    details: bool,
) -> int:
    """The tables and files of a result that was kept."""
    from cowfs.benchmarks.results import read_result
    from cowfs.cli.bench_output import Printer, outputs

    if len(files) != 1:
        raise UsageError("report of what? give one result, as in 'cowfs bench report RESULT.json --html FILE'")
    result = read_result(files[0])
    with outputs(json_file, csv_file, html_file, inputs=files) as write:
        write(result)
    if settings.as_json:
        output.print_json(result)
        return 0
    printer = Printer(with_details=details)
    printer.begins(result)
    for question in result.questions:
        printer.answered(question)
    printer.ends()
    return 0


def _require_charts() -> None:
    """Before a run rather than after it. Raises MissingRequirement."""
    try:
        import pygal  # noqa: F401
    except ImportError:
        remedy = "pip install 'cowfs-thin[bench]'"
        raise MissingRequirement("pygal, which draws the charts of --html, is not installed", remedy=remedy) from None


def _compare(settings: Settings, files: Sequence[str], threshold: str, *, judges_loaded: bool) -> int:
    """Exit status 1: a line is worse by more than the threshold and more than the spread, an engine that has figures in
    the old result failed in the new one, or nothing was judged.
    """
    from cowfs.benchmarks.comparison import compare
    from cowfs.benchmarks.report.text import figure_text
    from cowfs.benchmarks.results import read_result

    if len(files) != 2:
        raise UsageError("compare what? give two results, as in 'cowfs bench compare OLD.json NEW.json'")
    found = compare(*(read_result(path) for path in files), threshold=_share(threshold), judges_loaded=judges_loaded)
    if settings.as_json:
        output.print_json(found)
        return _verdict(found)
    for note in found.notes:
        print(output.printable(note))
    rows = [
        [
            change.question,
            change.line,
            change.contender,
            f"{figure_text(change.old)} {change.figure.unit}",
            f"{figure_text(change.new)} {change.figure.unit}",
            f"{change.ratio:.2f}",
            change.verdict,
        ]
        for change in sorted(found.changes, key=lambda change: _ORDER.index(change.verdict))
    ]
    output.print_table(["QUESTION", "LINE", "CONTENDER", "OLD", "NEW", "NEW/OLD", "VERDICT"], rows, right=_RIGHT)
    for what, lines in (("old", found.only_in_old), ("new", found.only_in_new)):
        if lines:
            print(f"only in the {what} result: {', '.join(map(output.printable, lines))}")
    for line in found.failed:
        print(f"failed in the new result: {output.printable(line)}")
    return _verdict(found)


def _verdict(found: Comparison) -> int:
    if found.failed:
        return 1
    if not found.is_judged:
        raise CowfsError(
            "nothing was judged, as others used the machine in one of the runs; repeat that run on a quiet machine, "
            "or judge all the same with --judge-loaded"
        )
    return 1 if found.worse else 0


def _share(text: str) -> float:
    try:
        found = float(text.removesuffix("%")) / 100
    except ValueError:
        found = -1.0
    if not 0 <= found < float("inf"):
        raise UsageError(f"--threshold {text} is not a percentage; write 10%")
    return found
