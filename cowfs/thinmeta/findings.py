"""What a check found: findings while it runs, and its report."""

from __future__ import annotations

import enum
from collections import Counter
from typing import Final

import msgspec

from cowfs.errors import MetadataCorrupt, PoolError

MAX_FINDINGS: Final = 1000


class Severity(enum.Enum):
    """How bad a finding is."""

    WARNING = "warning"  # a counter lags or a field is odd; nothing that readers or writers rely on
    LEAK = "leak"  # space that nothing uses is marked as used; nothing else is wrong
    ERROR = "error"  # something is lost, unreadable, or would be destroyed by further writing


class MetadataFinding(msgspec.Struct, frozen=True):
    """One thing that is not as it must be.

    Args:
        what: the thing and what is wrong with it.
        block: the metadata block that holds it.
        path: how the superblock leads to that block.
        expected, found: where the finding is a difference between two values.
    """

    severity: Severity
    what: str
    block: int
    path: str
    expected: str = ""
    found: str = ""

    def __str__(self) -> str:
        difference = f": found {self.found}, expected {self.expected}" if self.expected else ""
        return f"{self.severity.value}: metadata block {self.block} ({self.path}): {self.what}{difference}"


class CheckReport(msgspec.Struct, frozen=True):
    """What a check found; it is the JSON of the command line.

    `clean` is true without leaks and errors, `repaired` when a repair made it so. `summary` is one line: clean, or how
    many findings of each severity. `findings` holds the first thousand, and `hidden_findings` counts the others.
    `losses` are what the repair could not keep; the findings are those before it. `given_back_bytes` is what the file
    of the pool's data occupied in blocks that are free, and the repair gave back to the disk below.
    """

    clean: bool = True
    repaired: bool = False
    summary: str = "clean"
    findings: list[MetadataFinding] = []
    hidden_findings: int = 0
    needs_check: bool = False
    transaction_id: int = 0
    thins: int = 0
    mapped_blocks: int = 0
    metadata_used_blocks: int = 0
    metadata_blocks: int = 0
    data_used_blocks: int = 0
    data_blocks: int = 0
    losses: list[str] = []
    given_back_bytes: int = 0

    @property
    def exit_code(self) -> int:
        """0 clean or only warnings, 4 leaks or errors."""
        return 0 if self.clean else PoolError.exit_code


class Findings:
    """The findings of a check that runs. The first thousand are kept, all are counted.

    `counts_complete` is false when damage hid references: then counts that are too high look like right ones and are
    not reported.
    """

    def __init__(self) -> None:
        self.counts_complete = True
        self._kept: list[MetadataFinding] = []
        self._totals: Counter[Severity] = Counter()

    def add(
        self, severity: Severity, what: str, *, block: int, path: str, expected: object = "", found: object = ""
    ) -> None:
        self._totals[severity] += 1
        if len(self._kept) < MAX_FINDINGS:
            self._kept.append(MetadataFinding(severity, what, block, path, str(expected), str(found)))

    def add_error(self, error: MetadataCorrupt) -> None:
        self.add(Severity.ERROR, error.detail, block=error.block, path=error.path)

    def report(self) -> CheckReport:
        """The report, whose figures are still zero."""
        return CheckReport(
            clean=not self._totals[Severity.ERROR] and not self._totals[Severity.LEAK],
            summary=self._summary(),
            findings=self._kept,
            hidden_findings=self._totals.total() - len(self._kept),
        )

    def _summary(self) -> str:
        counts = [
            f"{self._totals[s]} {s.value}{'s' * (self._totals[s] != 1)}" for s in reversed(Severity) if self._totals[s]
        ]
        text = ", ".join(counts) or "clean"
        return text if self.counts_complete else f"{text}; damage hides references, so leaks were not looked for"
