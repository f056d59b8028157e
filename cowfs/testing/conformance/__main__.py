"""The conformance suite as a command, for places without a test framework, such as a guest:

    python -m cowfs.testing.conformance --backend dmthin [--json] [--only NUMBER]... DIRECTORY

One line for each behaviour as it ends; exit status 1 when one failed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence

from cowfs.errors import MissingRequirement
from cowfs.pool import Backend, load_backend
from cowfs.testing.conformance import BEHAVIOURS, Behaviour, NotApplicableError, check


def try_out(behaviour: Behaviour, backend: Backend, directory: str) -> tuple[str, str]:
    """(`passed`, `failed` or `skipped`, and why)."""
    folder = tempfile.mkdtemp(prefix="conformance-", dir=directory)
    try:
        check(behaviour, backend, folder)
    except (NotApplicableError, MissingRequirement) as reason:
        return "skipped", str(reason)
    except Exception:
        return "failed", traceback.format_exc()
    finally:
        shutil.rmtree(folder)
    return "passed", ""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cowfs.testing.conformance", description=__doc__)
    parser.add_argument("directory", help="where devices are made")
    parser.add_argument("--backend", required=True)
    parser.add_argument("--json", action="store_true", help="one JSON object a line: id, result, reason, seconds")
    parser.add_argument("--only", action="append", metavar="NUMBER", help="these behaviours")
    options = parser.parse_args(arguments)
    backend = load_backend(options.backend)
    results: Counter[str] = Counter()
    for behaviour in BEHAVIOURS:
        if options.only and behaviour.number not in options.only:
            continue
        begin = time.monotonic()
        result, reason = try_out(behaviour, backend, options.directory)
        seconds = round(time.monotonic() - begin, 3)
        results[result] += 1
        if options.json:
            line = json.dumps({"id": behaviour.id, "result": result, "reason": reason, "seconds": seconds})
        else:
            line = f"{result}  {behaviour.id}{f': {reason}' if reason else ''}"
        print(line, flush=True)
    if not options.json:
        print(", ".join(f"{count} {result}" for result, count in sorted(results.items())))
    return 1 if results["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
