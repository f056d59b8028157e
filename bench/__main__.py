"""Run benchmarks: python -m bench [--quick] [--part K] [--directory DIR] [--results DIR] [NAME...]"""

from __future__ import annotations

import argparse
import importlib
import inspect
import sys
from pathlib import Path

from bench.rig.harness import Bench, scratch, write_result

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
        prog="python -m bench", description="Run the benchmarks; exit status 1: a goal was missed."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which ones: {', '.join(NAMES)} (all)")
    parser.add_argument("--quick", action="store_true", help="small sizes: only shows that they run")
    parser.add_argument("--part", type=int, default=0, help="of tree: 1, small files; 2, one file and whole trees")
    parser.add_argument("--directory", help="where to put the files that are measured")
    parser.add_argument("--results", type=Path, default=Path("bench/results"), help="where to put the JSON")
    options = parser.parse_args()
    unknown = set(options.names) - set(NAMES)
    if unknown:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    if options.part and (options.names != ["tree"] or options.part not in {1, 2}):
        parser.error("--part 1 and --part 2 are of tree")
    missed = 0
    for name in options.names or NAMES:
        module = importlib.import_module(f"bench.{name}")
        print(f"{name}\n{inspect.cleandoc(module.__doc__ or '')}\n", flush=True)
        with scratch(options.directory) as directory:
            bench = Bench(name, directory, options.quick, options.part)
            bench.introduce()
            module.run(bench)
        if not options.quick:
            print(f"  written to {write_result(bench, options.results)}")
        print(flush=True)
        missed += sum(goal.met is False for goal in bench.goals)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
