"""Every numbered behaviour on the kernel's own thin pool, in one boot; each is a test here.

The guest's files live in its memory, so that discards are passed down and large sparse devices cost nothing.
"""

from __future__ import annotations

import json
import sys
from collections import Counter

import pytest

from cowfs.testing.conformance import BEHAVIOURS, Behaviour
from cowfs.uml import UmlKernel, run
from tests.conftest import REPOSITORY

MEMORY_BYTES = 3 << 30
TIMEOUT_SECONDS = 840
MOST_SKIPPED = 24  # those that need other capabilities, or devices and clocks that the kernel does not let us adjust

pytestmark = pytest.mark.timeout(TIMEOUT_SECONDS + 60)


@pytest.fixture(scope="module")
def results(uml_kernel: UmlKernel) -> dict[str, dict[str, str]]:
    """By behaviour: result (passed, failed, skipped) and reason."""
    output: list[bytes] = []
    errors: list[bytes] = []
    run(
        [sys.executable, "-m", "cowfs.testing.conformance", "--backend", "dmthin", "--json", "/run"],
        kernel=uml_kernel,
        cwd=REPOSITORY,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/root", "TMPDIR": "/run"},
        memory_bytes=MEMORY_BYTES,
        timeout_seconds=TIMEOUT_SECONDS,
        stdout=output.append,
        stderr=errors.append,
    )
    found = [json.loads(line) for line in b"".join(output).splitlines()]
    assert len(found) == len(BEHAVIOURS), b"".join(errors).decode()
    return {one["id"]: one for one in found}


@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=lambda behaviour: behaviour.id)
def test_behaviour_of_the_kernel(results: dict[str, dict[str, str]], behaviour: Behaviour) -> None:
    result = results[behaviour.id]
    if result["result"] == "skipped":
        # The reason is declared by the suite; how many there may be is the test below's.
        pytest.skip(result["reason"])
    assert result["result"] == "passed", result["reason"]


def test_most_behaviours_ran(results: dict[str, dict[str, str]]) -> None:
    counts = Counter(result["result"] for result in results.values())
    print(f"dmthin in User-Mode Linux: {dict(counts)} of {len(BEHAVIOURS)} behaviours")
    assert counts["skipped"] <= MOST_SKIPPED
