"""How long does it take to bring a disk in and out, beside copying the file and converting it with qemu-img?

1 GiB with data in a tenth of it, which the kernel has cached. Expected: `import` reads what is no hole and writes it
once more, as `cp --sparse=always` does, and its process starts Python; an image in another format is converted to a raw
file first, so it is written twice.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from functools import partial
from pathlib import Path

from bench.rig.harness import Bench, timed

MIB = 1 << 20


def run(bench: Bench) -> None:
    size_mib = bench.size(1024, 64)
    home, disk, image = bench.directory / "home", bench.directory / "disk.raw", bench.directory / "disk.qcow2"
    _make_disk(disk, size_mib)
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", disk, image], check=True)
    _cowfs(home, "init", "--data-size", "8G", "--metadata-size", "32M", "--base-size", "64M")
    _cowfs(home, "import", disk, "kept")

    def brought_in(source: Path) -> float:
        seconds = timed(lambda: _cowfs(home, "import", source, "disk"))
        _cowfs(home, "remove", "disk")
        return seconds

    def brought_out(name: str) -> float:
        return timed(lambda: _cowfs(home, "export", "--force", "kept", bench.directory / name))

    def copied() -> float:
        return timed(lambda: _run("cp", "--sparse=always", disk, bench.directory / "copy.raw"))

    def converted(source: Path, kind: str) -> float:
        return timed(lambda: _run("qemu-img", "convert", "-O", kind, source, bench.directory / f"converted.{kind}"))

    for question, ours, theirs, name in (
        ("raw in", partial(brought_in, disk), copied, "cp --sparse=always"),
        ("raw out", partial(brought_out, "out.raw"), copied, "cp --sparse=always"),
        ("qcow2 in", partial(brought_in, image), partial(converted, image, "raw"), "qemu-img convert"),
        ("qcow2 out", partial(brought_out, "out.qcow2"), partial(converted, disk, "qcow2"), "qemu-img convert"),
    ):
        found = bench.compare(question, {"cowfs": ours, name: theirs}, unit="s")
        bench.goal_ratio(f"{question}: cowfs / {name}", found["cowfs"], found[name], at_most=1.3)


def _make_disk(path: Path, size_mib: int) -> None:
    chance = random.Random(1)
    with path.open("wb") as file:
        file.truncate(size_mib * MIB)
        for place in chance.sample(range(size_mib), size_mib // 10):
            os.pwrite(file.fileno(), chance.randbytes(MIB), place * MIB)


def _cowfs(home: Path, *words: object) -> None:
    _run(sys.executable, "-m", "cowfs", "--home", home, *words)


def _run(*words: object) -> None:
    subprocess.run([str(word) for word in words], check=True, stdout=subprocess.DEVNULL)
