"""Doing something at the end of a block, whether the block failed or not."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

_log = logging.getLogger(__name__)


class Closing:
    """Base of what the end of a `with` block closes."""

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


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
