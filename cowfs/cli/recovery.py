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
@click.option("--dry-run", is_flag=True, help="Change nothing; say what would be done.")
@click.option("--delete-orphans", is_flag=True, help="Delete thins that belong to no device, instead of adopting them.")
@click.pass_obj
def recover_command(settings: Settings, dry_run: bool, delete_orphans: bool) -> int:
    """Bring the records of the home and its pool together again, where they say different things.

    \b
    - What a crash left unfinished is finished or undone.
    - Records that cannot be read, or whose thin is gone, are set aside, in cowfs.damaged of the home.
    - A thin that no record names gets its record back where its name can be told, by the file 'id' of a layer or by
      the transaction that made it; else it becomes the device recovered-<id>.
    - A base device that is missing is made anew.

    The home must not be mounted. Exit status 1 when something is left that only a person can decide.
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
