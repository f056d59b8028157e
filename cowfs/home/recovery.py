"""Recovering a home as a whole, which no other process may have open meanwhile."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from cowfs.devices.reports import HomeFinding
from cowfs.error_record import plain_text
from cowfs.errors import HomeBusy
from cowfs.home.opened.opening import open_here
from cowfs.home.opened.spec import HomeSpec
from cowfs.home.session import WAIT_SECONDS, alone


class RecoveryReport(msgspec.Struct, frozen=True):
    """What was wrong in a home. With `dry_run`, the actions of the findings are what would be done."""

    dry_run: bool
    findings: list[HomeFinding]

    @property
    def left(self) -> list[HomeFinding]:
        """What nothing can be done about here."""
        return [finding for finding in self.findings if not finding.action]


def recover_home(
    home: Path,
    backend: str,
    *,
    dry_run: bool = False,
    delete_orphans: bool = False,
    wait_seconds: float = WAIT_SECONDS,
) -> RecoveryReport:
    """Bring the records of a home and its pool together again, where they say different things.

    Doing it again finds nothing, except what is left.

    Args:
        dry_run: change nothing, and say what would be done.
        delete_orphans: delete thins that belong to no device, instead of making devices of them.

    Raises:
        HomeBusy: the home is mounted.
        PoolModeError: the pool needs a check first, or failed.
        CowfsError: what opening the home raises, or the pool; it can be run again.
    """
    path = Path(os.path.abspath(home))
    spec = HomeSpec(path, backend, read_only=dry_run, verify=False)
    with alone(path, "recovering", lambda: open_here(spec), wait_seconds=wait_seconds) as opened:
        devices = opened.devices
        mounted = sorted(devices.active.open_nodes())
        if mounted:
            raise HomeBusy(
                f"recovering needs the home {path} to itself, and the kernel uses {', '.join(map(repr, mounted))}; "
                "unmount what 'mount --kernel' mounted"
            )
        findings = devices.recover(delete_orphans=delete_orphans)
    return RecoveryReport(dry_run, [_printable(finding) for finding in findings])


def _printable(finding: HomeFinding) -> HomeFinding:
    """With the paths in it as text that JSON can carry."""
    return msgspec.structs.replace(finding, found=plain_text(finding.found), action=plain_text(finding.action))
