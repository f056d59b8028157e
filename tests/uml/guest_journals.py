"""The kernel mounts volumes with a journal to replay, and leaves some: `python -m tests.uml.guest_journals DIRECTORY`.

Of each image `ours-*` it prints the tree that it finds, one line of JSON each; then it works on the image `theirs`, and
copies it to `theirs-N` in the middle of that, each time with what was synced before.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

COPIES = 4


def tree(directory: Path) -> dict[str, str]:
    """Every name below a directory, with what is there."""
    found = {}
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        if path.is_symlink():
            found[name] = f"link {os.readlink(path)}"
        elif path.is_dir():
            found[name] = "directory"
        else:
            found[name] = f"file {hashlib.sha256(path.read_bytes()).hexdigest()}"
    return found


@contextlib.contextmanager
def mounted(image: Path, *options: str) -> Iterator[Path]:
    target = Path("/run/volume")
    target.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "ext4", "-o", ",".join(["loop", *options]), image, target], check=True)
    try:
        yield target
    finally:
        subprocess.run(["umount", target], check=True)


def work(directory: Path, rng: random.Random) -> None:
    """Operations of all kinds, and everything of them synced, but not written to its place."""
    for number in range(60):
        folder = directory / f"folder-{rng.randrange(8)}"
        folder.mkdir(exist_ok=True)
        (folder / f"file-{rng.randrange(40)}").write_bytes(rng.randbytes(rng.choice([10, 3000, 30_000])))
        files = sorted(path for path in directory.rglob("file-*") if path.is_file())
        if number % 3 == 0:
            rng.choice(files).unlink()
        elif number % 3 == 1:
            rng.choice(files).rename(folder / f"file-moved-{number}")
        else:
            with contextlib.suppress(FileExistsError):
                (folder / f"file-link-{number}").hardlink_to(rng.choice(files))
    os.sync()
    with (directory / "last").open("ab") as file:
        file.write(b"one more\n")
        file.flush()
        os.fsync(file.fileno())


def main(images: Path, seed: str) -> None:
    for image in sorted(images.glob("ours-*")):
        with mounted(image) as directory:
            print(json.dumps({"name": image.name, "tree": tree(directory)}), flush=True)
    rng = random.Random(seed)
    with mounted(images / "theirs") as directory:
        for number in range(COPIES):
            work(directory, rng)
            shutil.copyfile(images / "theirs", images / f"theirs-{number}")
            print(json.dumps({"name": f"theirs-{number}", "tree": tree(directory)}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
