"""The trees of a home that Docker left, as the kernel shows them: python -m tests.uml.guest_docker_home HOME POINT"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

from cowfs.cli.app import run
from tests.kit.standby import fork_servers_from_here

CLOSED = "not ours to read"


def describe_tree(root: Path) -> dict[str, Any]:
    """By path: kind and mode, owner, links, and the content: a digest, a link's target, a device's number."""
    found = {}
    for directory, names, files in os.walk(root):
        for name in [*names, *files]:
            path = Path(directory, name)
            status = path.lstat()
            content: str | int = status.st_rdev
            if stat.S_ISREG(status.st_mode):
                content = _digest(path)
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            key = str(path.relative_to(root))
            found[key] = [status.st_mode, status.st_uid, status.st_gid, status.st_nlink, status.st_mtime_ns, content]
    return found


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except PermissionError:
        return CLOSED


def cowfs(home: Path, *words: str | Path) -> None:
    status = run(["--home", str(home), "--backend", "dmthin", *map(str, words)])
    assert status == 0, words


def main(home: Path, point: Path) -> None:
    for what in ("list", "dmstatus", "dump"):  # before a mount replays a journal
        cowfs(home, what)
    names = sorted(path.name for path in (home / "metadata").iterdir() if "metadata" not in path.name)
    for name in names:
        cowfs(home, "mount", "--kernel", "--read-only", name, point)
        print(json.dumps({"how": "kernel", "name": name, "tree": describe_tree(point)}))
        cowfs(home, "umount", point)
    cowfs(home, "mount", "--read-only", point)
    for name in sorted(os.listdir(point)):
        print(json.dumps({"how": "view", "name": name, "tree": describe_tree(point / name)}))
    cowfs(home, "umount", point)
    # And on: a layer more, written by the kernel.
    cowfs(home, "snapshot", names[0], "more")
    cowfs(home, "mount", "--kernel", "more", point)
    (point / "rootfs" / "more").write_text("more\n")
    cowfs(home, "umount", point)
    cowfs(home, "check")


if __name__ == "__main__":
    fork_servers_from_here()
    main(Path(sys.argv[1]), Path(sys.argv[2]))
