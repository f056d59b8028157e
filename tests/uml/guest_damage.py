"""What the kernel reads of damaged volumes: `python -m tests.uml.guest_damage DIRECTORY`.

Of each image in it, mounted read-only, one line of JSON: what every directory lists, and what every name leads to; null
where the kernel does not mount it.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
from pathlib import Path


def look(directory: bytes) -> dict[str, object]:
    """Names by the path of their directory, and what is at each path: a number is the kernel's error."""
    listed: dict[str, list[str] | int] = {}
    found: dict[str, str | int] = {}
    todo = [b"."]
    while todo:
        path = todo.pop()
        try:
            names = os.listdir(os.path.join(directory, path))
        except OSError as error:
            listed[os.fsdecode(path)] = error.errno or 0
            continue
        listed[os.fsdecode(path)] = sorted(map(os.fsdecode, names))
        for name in names:
            below = os.path.join(path, name)
            found[os.fsdecode(below)] = what = look_at(os.path.join(directory, below))
            if what == "directory" and len(below) < 100:
                todo.append(below)
    return {"listed": listed, "found": found}


def look_at(path: bytes) -> str | int:
    try:
        about = os.lstat(path)
        if stat.S_ISDIR(about.st_mode):
            return "directory"
        if stat.S_ISLNK(about.st_mode):
            return "link " + os.fsdecode(os.readlink(path))
        if stat.S_ISREG(about.st_mode):
            with open(path, "rb") as file:
                return f"file of {about.st_size} bytes, {hashlib.sha256(file.read(1 << 22)).hexdigest()}"
    except OSError as error:
        return error.errno or 0
    return f"mode {about.st_mode:o}"


def main(images: Path) -> None:
    target = Path("/run/volume")
    target.mkdir(exist_ok=True)
    for image in sorted(images.iterdir()):
        mounting = ["mount", "-t", "ext4", "-o", "loop,ro,errors=continue", str(image), str(target)]
        is_mounted = subprocess.run(mounting, check=False, capture_output=True).returncode == 0
        print(json.dumps({"name": image.name, "tree": look(os.fsencode(target)) if is_mounted else None}), flush=True)
        if is_mounted:
            subprocess.run(["umount", target], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
