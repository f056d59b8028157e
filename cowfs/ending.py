"""Doing something at the end of a block, whether the block failed or not, without hiding why it did."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_log = logging.getLogger(__name__)


@contextmanager
def ending_with(action: Callable[[], object]) -> Iterator[None]:
    """Do something at the end of a block. Its error is raised, or logged where the block failed already."""
    try:
        yield
    except BaseException:
        try:
            action()
        except Exception as later:
            _log.info("and while closing: %s", str(later) or repr(later))
        raise
    action()
