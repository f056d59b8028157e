"""How long does it take to bring a disk in and out, beside copying the file and converting it with qemu-img?

1 GiB with data in a tenth of it, which the kernel has cached. Expected: `import` reads what is no hole and writes it
once, as `cp --sparse=always` does, whether the image is raw or qcow2, and `export` the same; both end when the data is
on the disk, which cp and qemu-img leave to the kernel: so they are measured with a `sync --data` of their file, too. A
command also starts Python and opens the home, as `list` does, which is measured alone.
"""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cowfs
from bench.rig.harness import Bench, timed
from bench.rig.installed import install

MIB = 1 << 20


def run(bench: Bench) -> None:
    program = install(bench.directory / "installed") / "cowfs"
    size_mib = bench.size(1024, 64)
    home, disk, image = bench.directory / "home", bench.directory / "disk.raw", bench.directory / "disk.qcow2"

    def run_command(*words: object) -> None:
        _run(program, "--home", home, *words)

    _make_disk(disk, size_mib)
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", disk, image], check=True)
    run_command("init", "--data-size", "8G", "--metadata-size", "32M", "--base-size", "64M")
    run_command("import", disk, "kept")

    def in_by_command(source: Path) -> float:
        seconds = timed(lambda: run_command("import", source, "disk"))
        run_command("remove", "disk")
        return seconds

    def in_by_python(source: Path) -> float:
        with cowfs.open_home(home) as opened:
            seconds = timed(lambda: opened.import_image(source, "disk"))
            opened.remove("disk")
        return seconds

    def out_by_command(target: Path) -> float:
        target.unlink(missing_ok=True)
        return timed(lambda: run_command("export", "kept", target))

    def out_by_python(target: Path) -> float:
        target.unlink(missing_ok=True)
        with cowfs.open_home(home) as opened:
            return timed(lambda: opened.export_image("kept", target))

    def by_peer(words: list[object], target: Path, synced: bool) -> float:
        def both() -> None:
            _run(*words, target)
            if synced:
                _run("sync", "--data", target)

        target.unlink(missing_ok=True)
        return timed(both)

    cp: list[object] = ["cp", "--sparse=always", disk]
    convert: list[object] = ["qemu-img", "convert", "-O"]
    questions: dict[str, tuple[Callable[[Path], float], Callable[[Path], float], Path, list[object], str]] = {
        "raw in": (in_by_command, in_by_python, disk, cp, "raw"),
        "raw out": (out_by_command, out_by_python, bench.directory / "out.raw", cp, "raw"),
        "qcow2 in": (in_by_command, in_by_python, image, [*convert, "raw", image], "raw"),
        "qcow2 out": (out_by_command, out_by_python, bench.directory / "out.qcow2", [*convert, "qcow2", disk], "qcow2"),
    }
    for question, (by_command, by_python, file, peer, kind) in questions.items():
        name, target = str(peer[0]), bench.directory / f"peer.{kind}"
        found = bench.compare(
            question,
            {
                "cowfs, the command": partial(by_command, file),
                "cowfs, in Python": partial(by_python, file),
                f"{name} and sync": partial(by_peer, peer, target, synced=True),
                name: partial(by_peer, peer, target, synced=False),
            },
            unit="s",
        )
        for ours in ("the command", "in Python"):
            goal = f"{question}: {ours} / {name} and sync"
            bench.goal_ratio(goal, found[f"cowfs, {ours}"], found[f"{name} and sync"], at_most=1.3)
    bench.compare(
        "a command that does next to nothing", {"cowfs list": lambda: timed(lambda: run_command("list"))}, unit="s"
    )


def _make_disk(path: Path, size_mib: int) -> None:
    chance = random.Random(1)
    with path.open("wb") as file:
        file.truncate(size_mib * MIB)
        for place in sorted(chance.sample(range(size_mib), size_mib // 10)):
            file.seek(place * MIB)
            file.write(chance.randbytes(MIB))


def _run(*words: object) -> None:
    subprocess.run([str(word) for word in words], check=True, stdout=subprocess.DEVNULL)
