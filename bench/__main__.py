"""Run programs: python -m bench [--quick] [--part K] [--directory DIR] [--json FILE] [--html FILE] [NAME...]"""

from __future__ import annotations

import argparse
import importlib
import shutil
import sys
import time
from pathlib import Path

from bench.rig.harness import QUICK_ROUNDS, ROUNDS, Bench, question_of
from cowfs.benchmarks.results import Absent, Result
from cowfs.benchmarks.runner import FAILURES, Watcher, begin_result, describe, look_around
from cowfs.cli import output
from cowfs.cli.bench_output import Printer, outputs, scratch
from cowfs.errors import CowfsError

NAMES = (
    "startup",
    "many_devices",
    "engine",
    "chains",
    "snapshot",
    "rollback",
    "golden",
    "pytest_plugin",
    "crashes",
    "images",
    "library",
    "changes",
    "memory",
    "archive",
    "raw",
    "tree",
    "requests",
    "home_view",
    "files",
    "layers",
    "many_layers",
    "docker",
    "control",
    "snapshotter",
)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Run the programs; exit status 1: one failed, or a goal was missed."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which ones: {', '.join(NAMES)} (all)")
    parser.add_argument("--quick", action="store_true", help="small sizes: only shows that they run")
    parser.add_argument("--part", type=int, default=0, help="of tree: 1, small files; 2, one file and whole trees")
    parser.add_argument("--directory", help="where to put the files that are measured")
    parser.add_argument("--json", metavar="FILE", help="write the result to FILE, for 'cowfs bench compare'")
    parser.add_argument("--html", metavar="FILE", help="write a report to FILE, one HTML page")
    parser.add_argument("--csv", metavar="FILE", help="write all rounds to FILE, as CSV")
    options = parser.parse_args()
    unknown = set(options.names) - set(NAMES)
    if unknown:
        parser.error(f"no program {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    if options.part and (options.names != ["tree"] or options.part not in {1, 2}):
        parser.error("--part 1 and --part 2 are of tree")
    try:
        with (
            outputs(options.json, options.csv, options.html) as write,
            scratch(options.directory) as place,
            output.steps() as bar,
        ):
            result = run(options.names or NAMES, place, Printer(bar), quick=options.quick, part=options.part)
            write(result)
    except CowfsError as error:
        parser.exit(1, f"python -m bench: {error}\n")
    questions = result.questions
    missed = any(question.failed or any(goal.is_met is False for goal in question.goals) for question in questions)
    return 1 if missed else 0


def run(names: tuple[str, ...], place: Path, watcher: Watcher, *, quick: bool, part: int) -> Result:
    """Ask the questions of programs, one after the other; one that fails leaves the others as they are."""
    begin = time.monotonic()
    result = begin_result(place, rounds=QUICK_ROUNDS if quick else ROUNDS, seed=1)
    look_around(result)
    watcher.begins(result)
    for name in names:
        module = importlib.import_module(f"bench.{name}")
        question = question_of(name, module, quick=quick, part=part)
        result.questions.append(question)
        directory = place / name
        directory.mkdir()
        try:
            module.run(Bench(directory, question, result, watcher, quick, part))
        except FAILURES as error:
            question.failed.append(Absent(name, describe(error)))
        shutil.rmtree(directory)
        watcher.answered(question)
    result.seconds = time.monotonic() - begin
    watcher.ends()
    return result


if __name__ == "__main__":
    sys.exit(main())
