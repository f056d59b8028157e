"""What a workload is: a question that is put to each engine, round by round."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeAlias

from cowfs.benchmarks.engines.interface import Contender, Offer
from cowfs.benchmarks.meter import Meter

Measure: TypeAlias = Callable[[Meter], None]


class Workload(Protocol):
    """A question.

    `needs` is what an engine must offer; `parameters` are its sizes and its seed, for the report. `x_unit` names what
    its lines grow with, and is empty where they do not. `warms_up`: where rounds are not prepared anew, one more comes
    first, and is not counted.
    """

    @property
    def name(self) -> str: ...

    @property
    def title(self) -> str:
        """The question, as one sentence."""
        ...

    @property
    def expectation(self) -> str:
        """What arithmetic says."""
        ...

    @property
    def needs(self) -> Offer: ...

    @property
    def parameters(self) -> dict[str, Any]: ...

    @property
    def x_unit(self) -> str: ...

    @property
    def warms_up(self) -> bool: ...

    def prepared(self, contender: Contender) -> AbstractContextManager[Measure]:
        """Make what it needs on one engine, for the length of a block; the function measures one round.

        A failure raises CowfsError or another OSError: the engine is out of this question then, and others go on.
        """
        ...
