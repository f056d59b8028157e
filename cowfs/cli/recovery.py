"""The command recover."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click
import msgspec

from cowfs.cli import output
from cowfs.cli.settings import Settings
from cowfs.errors import CowfsError, NotAHome

if TYPE_CHECKING:
    from cowfs.devices.reports import HomeFinding
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
      or from the transaction that made it; otherwise it becomes the device recovered-<id>. In a Docker daemon's
      directory that is renamed when its files are those of a layer whose device is missing.
    - A missing base device is created again.

    The home must not be mounted. Exit status 1 when something is left that needs a decision of yours.
    """
    from cowfs.home.recovery import recover_home

    report = recover_home(settings.home_path, settings.backend, dry_run=dry_run, delete_orphans=delete_orphans)
    if not dry_run:
        report = msgspec.structs.replace(report, findings=[*report.findings, *_name_layers(settings)])
    if settings.as_json:
        output.print_json(report)
    else:
        _print_report(report)
    return CowfsError.exit_code if report.left else 0


def _name_layers(settings: Settings) -> Iterator[HomeFinding]:
    """Rename devices that recovery has named to the names in the records of a Docker daemon, where there are any."""
    from cowfs.devices.reports import HomeFinding
    from cowfs.docker.stored.nameless import find_layers
    from cowfs.docker.stored.place import require_place
    from cowfs.docker.stored.store import DockerStore, short
    from cowfs.home.api.home import open_home

    try:
        store = DockerStore(require_place(settings.home_path))
    except NotAHome:
        return
    home, options = store.place.home, settings.storage_options
    with open_home(home, backend=settings.backend, storage_options=options, read_only=True) as opened:
        layers = find_layers(store, opened)
    if not layers:
        return
    with open_home(home, backend=settings.backend, storage_options=options) as opened:
        for device, thin_id, layer in layers:
            opened.rename(device, layer.device)
            found = f"device {device!r} holds the files of layer {short(layer.diff_id)}"
            yield HomeFinding("orphan_thin", found, f"renamed to {layer.device!r}", layer.device, thin_id)


def _print_report(report: RecoveryReport) -> None:
    for finding in report.findings:
        action = finding.action or "left as it is"
        if report.dry_run and finding.action:
            action = f"would be {action}"
        print(output.printable(f"{finding.found}: {action}"))
    if not report.findings:
        print("nothing to recover")
