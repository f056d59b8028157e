"""Every numbered behaviour on the kernel's own thin pool, in one boot; each is a test here.

The guest leaves each pool's metadata behind, and the judges look at it here, where a process costs a tenth.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from cowfs.errors import MissingRequirement
from cowfs.pool import load_backend
from cowfs.testing.conformance import BEHAVIOURS, Behaviour
from cowfs.testing.judges import require_clean_file
from cowfs.uml import UmlKernel
from tests.uml.conftest import run_suite

MEMORY_BYTES = 3 << 30
BACKEND = load_backend("dmthin")


@pytest.fixture(scope="module")
def results(uml_kernel: UmlKernel, fast_directory: Path) -> dict[str, dict[str, str]]:
    return run_suite(
        uml_kernel,
        "cowfs.testing.conformance",
        f"--metadata-to={fast_directory}",
        memory_bytes=MEMORY_BYTES,
    )


@pytest.mark.parametrize(
    "behaviour",
    [behaviour for behaviour in BEHAVIOURS if not behaviour.why_not(BACKEND)],
    ids=lambda behaviour: behaviour.id,
)
def test_behaviour_of_the_kernel(
    results: dict[str, dict[str, str]],
    behaviour: Behaviour,
    fast_directory: Path,
    counted: Callable[[str, str], None],
) -> None:
    result = results[behaviour.id]
    assert result["result"] == "passed", result["reason"]
    counted("dmthin in User-Mode Linux", BACKEND.name)
    for path in fast_directory.glob(f"{behaviour.id}.*"):
        try:
            require_clean_file(path)
        except MissingRequirement as reason:
            pytest.skip(str(reason))


def test_the_guest_left_metadata_to_judge(results: dict[str, dict[str, str]], fast_directory: Path) -> None:
    judged = {re.sub(r"\.\d+$", "", path.name) for path in fast_directory.iterdir()}
    unjudged = set(results) - judged
    # Those that refuse to open a pool, or damage it.
    assert len(unjudged) < len(results) / 5, sorted(unjudged)
