"""The conformance suite as a command, for places without a test framework, such as a guest:

    python -m cowfs.testing.conformance --backend dmthin [--json] [--only NUMBER]... [--metadata-to D] DIRECTORY

One line for each behaviour as it ends; exit status 1 when one failed. Behaviours that are not for the backend, by
declaration, are left out.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Sequence
from functools import partial

from cowfs.blockdev import BlockDevice, copy_sparse
from cowfs.pool import Backend, load_backend
from cowfs.testing.conformance import BEHAVIOURS, Behaviour, check
from cowfs.testing.running import run_cases


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cowfs.testing.conformance", description=__doc__)
    parser.add_argument("directory", help="where devices are made")
    parser.add_argument("--backend", required=True)
    parser.add_argument("--json", action="store_true", help="one JSON object a line: id, result, reason, seconds")
    parser.add_argument("--only", action="append", metavar="NUMBER", help="these behaviours")
    parser.add_argument(
        "--metadata-to",
        metavar="D",
        help="do not judge the metadata that behaviours leave, but put it here as files `ID.NUMBER`, to be judged "
        "where that is faster",
    )
    options = parser.parse_args(arguments)
    backend = load_backend(options.backend)
    cases = {
        behaviour.id: partial(_try, behaviour, backend, options.metadata_to)
        for behaviour in BEHAVIOURS
        if not behaviour.why_not(backend) and (not options.only or behaviour.number in options.only)
    }
    return run_cases(cases, options.directory, as_json=options.json)


def _try(behaviour: Behaviour, backend: Backend, metadata_to: str | None, directory: str) -> None:
    if metadata_to is None:
        check(behaviour, backend, directory)
        return
    numbers = itertools.count()

    def keep(device: BlockDevice) -> None:
        with open(os.path.join(metadata_to, f"{behaviour.id}.{next(numbers)}"), "xb") as file:
            copy_sparse(device, file.fileno())

    check(behaviour, backend, directory, judge=keep)


if __name__ == "__main__":
    sys.exit(main())
