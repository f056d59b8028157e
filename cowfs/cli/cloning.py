"""The command clone-home."""

from __future__ import annotations

import click

from cowfs.cli import output
from cowfs.cli.settings import PATH, Settings
from cowfs.errors import UsageError
from cowfs.units import format_size


@click.command("clone-home")
@click.argument("where", nargs=-1, metavar="[HOME] NEW", type=PATH)
@click.pass_obj
def clone_home_command(settings: Settings, where: tuple[str, ...]) -> None:
    """Copy the home HOME to the new directory NEW. HOME may be left out where --home or COWFS_HOME names it.

    On a file system with reflinks (btrfs, xfs, bcachefs), the copy shares the blocks of HOME and takes milliseconds at
    any size; elsewhere the data is copied, and holes stay holes. Either home can be changed or removed without the
    other.

    HOME may be in use: the copy is of one moment, and mounted file systems are consistent in it. A copy that fails
    leaves nothing behind; what a killed copy left is replaced by the next copy.

    The pool of the copy is in files, also where that of HOME is on devices. With --backend dmthin, a device that the
    kernel has mounted is copied from a snapshot, and stays in use; the copy works with either backend.
    """
    if len(where) not in (1, 2):
        raise UsageError(f"clone-home takes [HOME] NEW, the home and the directory to make, not {len(where)} names")
    if len(where) == 2:
        settings = settings._replace(home=where[0])
    with settings.open_home() as home, output.progress(f"copying {home.path}"):
        cloned = home.clone(where[-1])
    how = "by reference" if cloned.by_reference else f"{format_size(cloned.allocated_bytes)} of data and metadata"
    output.answer(cloned, f"copied {cloned.origin} to {cloned.home}: {how}", as_json=settings.as_json)
