"""The kernel mounts volumes of every kind: `python -m tests.uml.guest_features DIRECTORY`.

Of each image `ours-*` it prints the tree that it finds; in each image `theirs-*` it makes one, and prints it. One line
of JSON each: `name`, `tree`, and in place of the tree why the kernel does not mount the image.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

from tests.uml.guest_journals import mounted, tree


def make_tree(top: Path) -> None:
    """What ext4 keeps in different ways, by size and kind."""
    for size in (0, 1, 60, 61, 100, 140, 3000, 70_000):
        (top / f"file-{size}").write_bytes((b"%d bytes, " % size * 10_000)[:size])
    with (top / "sparse").open("wb") as file:
        file.truncate(900_000)
        file.seek(500_000)
        file.write(b"data")
    for count in (0, 3, 9, 400):
        directory = top / f"directory-{count}"
        directory.mkdir()
        for number in range(count):
            (directory / f"n{number}").write_bytes(b"%d" % number)
    for number in range(0, 9, 2):
        (top / "directory-9" / f"n{number}").unlink()
    for length in (1, 59, 60, 150, 700):
        (top / f"link-{length}").symlink_to(("t/" * length)[:length])  # no name in it is too long
    for size in (1, 50, 300):
        path = top / f"attributes-{size}"
        path.write_bytes(b"small")
        os.setxattr(path, "user.x", b"x" * size)
    os.mknod(top / "device", stat.S_IFCHR | 0o600, os.makedev(300, 70_000))
    os.link(top / "file-60", top / "again")


def main(images: Path) -> None:
    for image in sorted(images.iterdir()):
        line: dict[str, object] = {"name": image.name}
        try:
            with mounted(image) as directory:
                if image.name.startswith("theirs-"):
                    make_tree(directory)
                os.sync()
                (directory / "device").unlink(missing_ok=True)
                line["tree"] = tree(directory)
        except subprocess.CalledProcessError as error:
            line["error"] = str(error)
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
