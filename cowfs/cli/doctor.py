"""The command doctor."""

from __future__ import annotations

import click

from cowfs.cli import output
from cowfs.cli.settings import Settings
from cowfs.errors import MissingRequirement


@click.command("doctor")
@click.pass_obj
def doctor_command(settings: Settings) -> int:
    """Try what this machine can do for this user, and say what helps where it cannot.

    Exit status 3 when something is missing that making and mounting a home needs; what else is missing is only told.
    """
    from cowfs.cli.uml import boot_uml
    from cowfs.host.machine import examine

    abilities = examine(boot_uml)
    if settings.as_json:
        output.print_json(abilities)
    else:
        for ability in abilities:
            mark = "ok " if ability.works else "NO " if ability.needed else "-  "
            help_text = f"; try: {ability.remedy}" if ability.remedy else ""
            print(output.printable(f"{mark} {ability.name}: {ability.detail}{help_text}"))
    lacking = [ability for ability in abilities if ability.needed and not ability.works]
    return MissingRequirement.exit_code if lacking else 0
