"""Every case of the layer driver on the kernel's own thin pool, in one boot; each is a test here."""

from __future__ import annotations

import pytest

from cowfs.testing.layers import CASES, LayerCase
from cowfs.uml import UmlKernel
from tests.uml.conftest import run_suite

MEMORY_BYTES = 2 << 30


@pytest.fixture(scope="module")
def results(uml_kernel: UmlKernel) -> dict[str, dict[str, str]]:
    return run_suite(uml_kernel, "cowfs.testing.layers", memory_bytes=MEMORY_BYTES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_case_on_the_kernel(results: dict[str, dict[str, str]], case: LayerCase) -> None:
    result = results[case.id]
    if result["result"] == "skipped":  # a judge is not installed
        pytest.skip(result["reason"])
    assert result["result"] == "passed", result["reason"]
