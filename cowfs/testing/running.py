"""Running numbered cases as a command, for places without a test framework: a line for each as it ends."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping

from cowfs.errors import MissingRequirement
from cowfs.testing.cases import NotApplicableError


def run_cases(cases: Mapping[str, Callable[[str], None]], directory: str, *, as_json: bool) -> int:
    """Run cases by id, each in an empty directory that is gone afterwards.

    Args:
        as_json: one JSON object a line: id, result (passed, failed or skipped), reason, seconds.

    Returns:
        An exit status: 1 when one failed.
    """
    results: Counter[str] = Counter()
    for case_id, run in cases.items():
        begin = time.monotonic()
        result, reason = try_out(run, directory)
        seconds = round(time.monotonic() - begin, 3)
        results[result] += 1
        if as_json:
            line = json.dumps({"id": case_id, "result": result, "reason": reason, "seconds": seconds})
        else:
            line = f"{result}  {case_id}{f': {reason}' if reason else ''}"
        print(line, flush=True)
    if not as_json:
        print(", ".join(f"{count} {result}" for result, count in sorted(results.items())))
    return 1 if results["failed"] else 0


def try_out(run: Callable[[str], None], directory: str) -> tuple[str, str]:
    """(`passed`, `failed` or `skipped`, and why)."""
    folder = tempfile.mkdtemp(prefix="case-", dir=directory)
    try:
        run(folder)
    except (NotApplicableError, MissingRequirement) as reason:
        return "skipped", str(reason)
    except Exception:
        return "failed", traceback.format_exc()
    finally:
        shutil.rmtree(folder)
    return "passed", ""
