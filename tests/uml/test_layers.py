"""Every case of the layer driver on the kernel's own thin pool, in one boot; each is a test here."""

from __future__ import annotations

import json
import sys
from collections import Counter

import pytest

from cowfs.testing.layers import CASES, Case
from cowfs.uml import UmlKernel, run
from tests.conftest import REPOSITORY

MEMORY_BYTES = 2 << 30
TIMEOUT_SECONDS = 840
NEED_PATHS = 3  # cases that need files at a path

pytestmark = pytest.mark.timeout(TIMEOUT_SECONDS + 60)


@pytest.fixture(scope="module")
def results(uml_kernel: UmlKernel) -> dict[str, dict[str, str]]:
    """By case: result (passed, failed, skipped) and reason."""
    output: list[bytes] = []
    errors: list[bytes] = []
    run(
        [sys.executable, "-m", "cowfs.testing.layers", "--backend", "dmthin", "--json", "/run"],
        kernel=uml_kernel,
        cwd=REPOSITORY,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/root", "TMPDIR": "/run"},
        memory_bytes=MEMORY_BYTES,
        timeout_seconds=TIMEOUT_SECONDS,
        stdout=output.append,
        stderr=errors.append,
    )
    found = [json.loads(line) for line in b"".join(output).splitlines()]
    assert len(found) == len(CASES), b"".join(errors).decode()
    return {one["id"]: one for one in found}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_case_on_the_kernel(results: dict[str, dict[str, str]], case: Case) -> None:
    result = results[case.id]
    if result["result"] == "skipped":
        pytest.skip(result["reason"])
    assert result["result"] == "passed", result["reason"]


def test_most_cases_ran(results: dict[str, dict[str, str]]) -> None:
    counts = Counter(result["result"] for result in results.values())
    print(f"dmthin in User-Mode Linux: {dict(counts)} of {len(CASES)} cases")
    assert counts["skipped"] <= NEED_PATHS
