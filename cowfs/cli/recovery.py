"""The command recover."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cowfs.cli import output
from cowfs.cli.settings import Settings
from cowfs.errors import CowfsError

if TYPE_CHECKING:
    from cowfs.home.recovery import RecoveryReport


@click.command("recover")
@click.option("--dry-run", is_flag=True, help="Change nothing; show what would be done.")
@click.option("--delete-orphans", is_flag=True, help="Delete orphan thins instead of creating device records for them.")
@click.pass_obj
def recover_command(settings: Settings, dry_run: bool, delete_orphans: bool) -> int:
    """Reconcile the device records of the home with its pool's metadata, where they contradict each other.

    \b
    - Changes that a crash interrupted are finished or undone.
    - Records that cannot be read, or whose thin is missing, are moved to cowfs.damaged in the home.
    - An orphan thin, which no record names, gets its record back if its name is known from the file 'id' of a layer
      or from the transaction that made it; otherwise it becomes the device recovered-<id>.
    - A missing base device is created again.

    The home must not be mounted. Exit status 1 when something is left that needs a decision of yours.
    """
    from cowfs.home.recovery import recover_home

    report = recover_home(settings.home_path, settings.backend, dry_run=dry_run, delete_orphans=delete_orphans)
    if settings.as_json:
        output.print_json(report)
    else:
        _print_report(report)
    return CowfsError.exit_code if report.left else 0


def _print_report(report: RecoveryReport) -> None:
    for finding in report.findings:
        action = finding.action or "left as it is"
        if report.dry_run and finding.action:
            action = f"would be {action}"
        print(output.printable(f"{finding.found}: {action}"))
    if not report.findings:
        print("nothing to recover")
