"""The command doctor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from cowfs.cli import output
from cowfs.cli.settings import Settings
from cowfs.errors import MissingRequirement

if TYPE_CHECKING:
    from cowfs.home.machine import Ability


@click.command("doctor")
@click.option(
    "--need",
    "needs",
    type=click.Choice(["pool", "fuse", "dm"]),
    multiple=True,
    help="Check only the needs of homes in user space (pool), of mounts (fuse), or of homes on dm-thin (dm).",
)
@click.pass_obj
def doctor_command(settings: Settings, needs: tuple[str, ...]) -> int:
    """Check what this machine supports for this user, and say how to fix what is missing.

    Exit status 3 when something is missing that creating and mounting a home needs, or that --need names; anything
    else that is missing is only shown. --need may be given more than once.
    """
    from cowfs.cli.uml import boot_uml
    from cowfs.home.machine import Need, examine

    wanted = Need(0)
    for need in needs:
        wanted |= Need[need.upper()]
    abilities = list(_shown(examine(boot_uml, wanted or None), quiet=settings.as_json))
    if settings.as_json:
        output.print_json(abilities)
    lacking = [ability for ability in abilities if ability.needed and not ability.works]
    return MissingRequirement.exit_code if lacking else 0


def _shown(abilities: Iterator[Ability], *, quiet: bool) -> Iterator[Ability]:
    """Each as soon as it was tried: some take seconds."""
    for ability in abilities:
        if not quiet:
            mark = "ok " if ability.works else "NO " if ability.needed else "-  "
            help_text = f"; try: {ability.remedy}" if ability.remedy else ""
            print(output.printable(f"{mark} {ability.name}: {ability.detail}{help_text}"), flush=True)
        yield ability
