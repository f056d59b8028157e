"""What a check found: typed findings, and the report that holds them."""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from cowfs.errors import MetadataCorrupt, PoolError

MAX_FINDINGS: Final = 1000


class Severity(enum.Enum):
    """How bad a finding is."""

    WARNING = "warning"  # a counter lags or a field is odd; nothing that readers or writers rely on
    LEAK = "leak"  # space that nothing uses is marked as used; nothing else is wrong
    ERROR = "error"  # something is lost, unreadable, or would be destroyed by further writing


@dataclass(frozen=True, slots=True)
class Finding:
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


@dataclass(slots=True)
class CheckReport:
    """The outcome of a check.

    `findings` holds the first thousand; `totals` counts all by severity. `counts_complete` is false when damage hid
    references: then counts that are too high look like right ones and are not reported.
    """

    findings: list[Finding] = field(default_factory=list)
    totals: Counter[Severity] = field(default_factory=Counter)
    counts_complete: bool = True
    needs_check: bool = False
    transaction_id: int = 0
    thins: int = 0
    mapped_blocks: int = 0
    metadata_blocks: int = 0
    metadata_used_blocks: int = 0
    data_blocks: int = 0
    data_used_blocks: int = 0

    @property
    def ok(self) -> bool:
        """No error and no leak; there may be warnings."""
        return not self.totals[Severity.ERROR] and not self.totals[Severity.LEAK]

    @property
    def exit_code(self) -> int:
        """0 clean or only warnings, 4 leaks or errors."""
        return 0 if self.ok else PoolError.exit_code

    @property
    def hidden(self) -> int:
        """How many findings are counted but not kept."""
        return self.totals.total() - len(self.findings)

    def add(
        self, severity: Severity, what: str, *, block: int, path: str, expected: object = "", found: object = ""
    ) -> None:
        self.totals[severity] += 1
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(Finding(severity, what, block, path, str(expected), str(found)))

    def add_error(self, error: MetadataCorrupt) -> None:
        self.add(Severity.ERROR, error.detail, block=error.block, path=error.path)

    def summary(self) -> str:
        """One line: clean, or how many of each."""
        counts = [
            f"{self.totals[s]} {s.value}{'s' * (self.totals[s] != 1)}" for s in reversed(Severity) if self.totals[s]
        ]
        text = ", ".join(counts) or "clean"
        return text if self.counts_complete else f"{text}; damage hides references, so leaks were not looked for"
