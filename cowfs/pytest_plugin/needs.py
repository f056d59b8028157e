"""Tests that this machine cannot run: skipped, or failed where --cow-require says that they must run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cowfs.errors import MissingRequirement


@contextmanager
def required(config: pytest.Config, need: str) -> Iterator[None]:
    """Skip the test where the block finds something missing, naming it and the command that provides it.

    Args:
        need: `fuse` or `dm`; one that is required fails the test.
    """
    try:
        yield
    except MissingRequirement as missing:
        if need in config.option.cow_require:
            pytest.fail(f"{missing.message} (--cow-require={need})", pytrace=False)
        pytest.skip(missing.message)
