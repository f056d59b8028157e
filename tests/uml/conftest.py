"""What the tests in User-Mode Linux share."""

from __future__ import annotations

import pytest

from cowfs.errors import MissingRequirement
from cowfs.uml import UmlKernel, find_kernel


@pytest.fixture(scope="session")
def uml_kernel() -> UmlKernel:
    try:
        return find_kernel()
    except MissingRequirement as error:
        pytest.skip(str(error))
