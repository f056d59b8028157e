"""A home that both backends use in turn; see `test_dmthin`: python -m tests.uml.guest_both_backends HOME POINT

Prints what it reads, and what each backend tells in the end, as one JSON object.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.kit.standby import fork_servers_from_here
from tests.uml.guest_checks import CONTROL, attached_loops
from tests.uml.guest_commands import Cowfs


def main(home: Path, point: Path) -> None:
    kernel = Cowfs(home)
    ours = kernel.on("emulated")
    file = point / "file"
    kernel("snapshot", "ours", "theirs")
    kernel("mount", "theirs", point)
    file.write_text("written through the kernel\n")
    kernel("snapshot", "theirs", "frozen")
    with file.open("a") as appended:
        appended.write("and more\n")
    kernel("umount", point)
    read = {}
    for cowfs, name in ((ours, "theirs"), (kernel, "frozen")):
        cowfs("mount", name, point)
        read[name] = file.read_text()
        cowfs("umount", point)
    assert not CONTROL.devices()
    assert not attached_loops()
    told = {cowfs.backend: [cowfs(what).out for what in ("list", "dump")] for cowfs in (ours, kernel)}
    kernel("dmstatus")
    ours("check")
    print(json.dumps({"read": read, "told": told}))


if __name__ == "__main__":
    fork_servers_from_here()
    main(Path(sys.argv[1]), Path(sys.argv[2]))
