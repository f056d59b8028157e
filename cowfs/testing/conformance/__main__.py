"""The conformance suite as a command, for places without a test framework, such as a guest:

    python -m cowfs.testing.conformance --backend dmthin [--json] [--only NUMBER]... DIRECTORY

One line for each behaviour as it ends; exit status 1 when one failed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from cowfs.pool import load_backend
from cowfs.testing.conformance import BEHAVIOURS, check
from cowfs.testing.running import run_cases


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cowfs.testing.conformance", description=__doc__)
    parser.add_argument("directory", help="where devices are made")
    parser.add_argument("--backend", required=True)
    parser.add_argument("--json", action="store_true", help="one JSON object a line: id, result, reason, seconds")
    parser.add_argument("--only", action="append", metavar="NUMBER", help="these behaviours")
    options = parser.parse_args(arguments)
    backend = load_backend(options.backend)
    wanted = [behaviour for behaviour in BEHAVIOURS if not options.only or behaviour.number in options.only]
    cases = {behaviour.id: partial(check, behaviour, backend) for behaviour in wanted}
    return run_cases(cases, options.directory, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
