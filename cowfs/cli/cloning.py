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

    On a disk that can (btrfs, xfs, bcachefs), the copy refers to the blocks of HOME and takes milliseconds whatever the
    size; else what HOME holds is copied, and its holes stay holes. Either home can be changed or removed without the
    other.

    HOME may be in use: the copy is of one moment, and mounted file systems are consistent in it. Nothing is left of a
    copy that fails; one that was killed is replaced by the next one.

    The pool of the copy is in files, also where that of HOME is on devices. With --backend dmthin, a snapshot of what
    the kernel has mounted is copied, so that its users go on; the copy works with either backend.
    """
    if len(where) not in (1, 2):
        raise UsageError(f"clone-home takes [HOME] NEW, the home and the directory to make, not {len(where)} names")
    if len(where) == 2:
        settings = settings._replace(home=where[0])
    with settings.open_home() as home, output.progress(f"copying {home.path}"):
        cloned = home.clone(where[-1])
    how = "by reference" if cloned.by_reference else f"{format_size(cloned.allocated_bytes)} of data and metadata"
    output.answer(cloned, f"copied {cloned.origin} to {cloned.home}: {how}", as_json=settings.as_json)
