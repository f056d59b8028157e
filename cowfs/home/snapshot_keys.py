"""Which devices of a home are containerd's snapshots, for who lists or changes devices by hand.

`HOME/cowfs.snapshots` is written by `cowfs.containerd.store` alone; it is only read here, also while that is open.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final, NamedTuple

from cowfs.errors import DeviceBusy, command_line

_log = logging.getLogger(__name__)

FILE_NAME: Final = "cowfs.snapshots"
DEVICE_PREFIX: Final = "snapshot-"
_KINDS: Final = {1: "view", 2: "active", 3: "committed"}
COMMITTED: Final = _KINDS[3]
_ROWS: Final = """
    select device, key, kind, (select count(*) from snapshots as child where child.parent = snapshots.key)
    from snapshots where owns_device
"""
_ROW: Final = f"{_ROWS} and device = ?"


class SnapshotKey(NamedTuple):
    """A snapshot, by its device: its key as containerd has it, its kind, and how many snapshots are made of it."""

    key: str
    kind: str
    children: int

    def __str__(self) -> str:
        made = f", {self.children} made of it" if self.children else ""
        return f"{self.key} ({self.kind}{made})"


def snapshot_keys(home: Path, device: str | None = None) -> dict[str, SnapshotKey]:
    """Snapshots by device, of all or of one; none where the file is not there, or cannot be read."""
    path = home / FILE_NAME
    if not path.exists():
        return {}
    import sqlite3
    from contextlib import closing

    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            rows = (database.execute(_ROWS) if device is None else database.execute(_ROW, (device,))).fetchall()
    except (sqlite3.Error, OSError) as error:
        _log.warning("cannot read %s: %s", path, error)
        return {}
    return {device: SnapshotKey(key, _KINDS.get(kind, "unknown"), children) for device, key, kind, children in rows}


def require_no_snapshot(home: str | os.PathLike[str], device: str, purpose: str, *, kind: str | None = None) -> None:
    """Raises DeviceBusy for a device that is a snapshot of containerd.

    Args:
        purpose: what it would be, such as `removed`.
        kind: only one of this kind is refused; of any when None.
    """
    if not device.startswith(DEVICE_PREFIX):
        return
    found = snapshot_keys(Path(home), device).get(device)
    if found is None or kind not in (None, found.kind):
        return
    namespace, _, rest = found.key.partition("/")
    key = rest.partition("/")[2] or found.key
    raise DeviceBusy(
        f"device '{device}' is containerd's snapshot {found}, so it cannot be {purpose}; containerd removes it with "
        "its image or container, or by: "
        f"{command_line('ctr', '-n', namespace, 'snapshots', '--snapshotter', 'cowfs', 'rm', key)}"
    )
