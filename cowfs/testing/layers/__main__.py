"""The layer driver's cases as a command, for places without a test framework, such as a guest:

    python -m cowfs.testing.layers --backend dmthin [--served] [--json] [--only NUMBER]... DIRECTORY
    python -m cowfs.testing.layers --backend dmthin --storage-opt dm.fs=xfs ... DIRECTORY

One line for each case as it ends; exit status 1 when one failed. Cases about files at a path are left out in process.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from cowfs.pool import Capability, load_backend
from cowfs.testing.layers import CASES, Home, check
from cowfs.testing.layers.homes import in_process, served
from cowfs.testing.running import run_cases


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cowfs.testing.layers", description=__doc__)
    parser.add_argument("directory", help="where homes are made")
    parser.add_argument("--backend", required=True)
    parser.add_argument("--served", action="store_true", help="homes in processes of their own, mounted through FUSE")
    parser.add_argument("--json", action="store_true", help="one JSON object a line: id, result, reason, seconds")
    parser.add_argument("--storage-opt", action="append", metavar="KEY=VALUE", default=[], help="for every home")
    parser.add_argument("--only", action="append", metavar="NUMBER", help="these cases, such as graph-4")
    options = parser.parse_args(arguments)
    shows_paths = options.served or Capability.KERNEL_NODES in load_backend(options.backend).capabilities
    plain = (served if options.served else in_process)(options.backend)

    def factory(directory: str, storage_options: Sequence[str]) -> Home:
        return plain(directory, [*storage_options, *options.storage_opt])

    cases = {
        case.id: partial(check, case, factory)
        for case in CASES
        if (shows_paths or not case.needs_paths) and (not options.only or case.number in options.only)
    }
    return run_cases(cases, options.directory, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
