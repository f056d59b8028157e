"""The kernel's ext4 on plain disks with what a crash left: `python -m tests.uml.guest_crash_states DIRECTORY`.

The directory has the disk `base` as it was before, all that was written in `written`, and in `states.json` the entries
(operation, offset, length, place in `written`) and the states: how many entries had happened, and which were lost, in
which sectors. Of each state it prints the tree that the kernel shows, one line of JSON each.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from tests.uml.guest_journals import mounted, tree

SECTOR_BYTES = 512


def replay(disk: Path, written: bytes, entries: list[tuple[str, int, int, int]], lost: dict[str, list[int]]) -> None:
    """Write to a disk what was not lost, sector by sector."""
    with disk.open("r+b") as file:
        for number, (_, offset, length, place) in enumerate(entries):
            gone = lost.get(str(number))
            at = offset
            while at < offset + length:
                end = min(offset + length, (at // SECTOR_BYTES + 1) * SECTOR_BYTES)
                if gone is None or (gone and at // SECTOR_BYTES not in gone):
                    file.seek(at)
                    piece = written[place + at - offset : place + end - offset] if place >= 0 else bytes(end - at)
                    file.write(piece)
                at = end


def main(directory: Path) -> None:
    known = json.loads((directory / "states.json").read_text())
    written = (directory / "written").read_bytes()
    for number, (events, lost) in enumerate(known["states"]):
        disk = directory / "disk"
        shutil.copyfile(directory / "base", disk)
        replay(disk, written, known["entries"][:events], lost)
        with mounted(disk) as target:
            print(json.dumps({"state": number, "tree": tree(target)}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
