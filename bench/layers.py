"""How do layers on cowfs (emulated) compare with Docker's devicemapper driver, each asked by the same client?

The original is Docker 20.10's own driver, built from Debian's sources into a process that answers the protocol of
graph-driver plugins, as ours does: no daemon is in the figures. Both run in User-Mode Linux, on the same disk, in
turns; ours also outside of it. A start is from nothing until layers can be asked for; as a part of it, the opening of
the home is from when the process listens, since the daemon starts a plugin no more often than itself, and ours is
Python.

Expected: a layer's life costs devicemapper two fsynced files and four commits of the kernel's pool, a device made and
taken down and a mount; ours three such files and two commits, and the mount is there already. Unpacking is a system
call for each step there and one pass over memory here. `changes` there stats every file of two trees, here some blocks
are compared. Opening reads one record for each layer on both sides.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from dataclasses import asdict

from bench import moby_driver
from bench.guest_docker import Sizes, tree
from bench.harness import Bench

THEIRS, OURS, OUTSIDE = "devicemapper", "cowfs", "cowfs, outside"
MEMORY = "3G"
BOUNDS = {
    "life of a layer": 2.0,
    "apply": 2.0,
    "changes": 50.0,
    "start": 2.0,
    "opening of the home": 2.0,
}
MEMORY_MIB = 200


def run(bench: Bench) -> None:
    if os.geteuid() != 0:
        raise SystemExit("this benchmark needs root, for files of other owners")
    program = str(moby_driver.build())
    # As an installed package is.
    subprocess.run([sys.executable, "-m", "compileall", "-q", "cowfs", "backends", "bench"], check=True)
    sizes = Sizes(
        rounds=bench.size(3, 1),
        layer_files=bench.size(8000, 200),
        layer_bytes=bench.size(80 << 20, 2 << 20),
        tree_files=bench.size(100_000, 1000),
        layers=bench.size(1000, 10),
    )
    tree(bench.directory, "small.tar", 10, 1 << 16)
    tree(bench.directory, "layer.tar", sizes.layer_files, sizes.layer_bytes)
    tree(bench.directory, "tree.tar", sizes.tree_files, sizes.tree_files * 16)

    def work(phase: str, contender: str) -> dict[str, list[float]]:
        place = [] if contender is OUTSIDE else [sys.executable, "-m", "cowfs", "uml", "--memory", MEMORY, "--"]
        libraries = f"LD_LIBRARY_PATH={moby_driver.library_path()}"
        directory = str(bench.directory / contender.replace(", ", "-"))
        driver = THEIRS if contender is THEIRS else OURS
        words = [phase, driver, directory, json.dumps(asdict(sizes)), program]
        command = [*place, "env", libraries, sys.executable, "-m", "bench.guest_layers", *words]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        found: dict[str, list[float]] = json.loads(done.stdout)
        return found

    contenders = (THEIRS, OURS, OUTSIDE)
    taken: dict[str, dict[str, list[float]]] = {contender: defaultdict(list) for contender in contenders}
    for contender in contenders:
        work("fill", contender)
    for turn in range(sizes.rounds):
        for contender in contenders if turn % 2 == 0 else reversed(contenders):
            for question, values in work("measure", contender).items():
                taken[contender][question] += values
            print(f"    round {turn + 1}: {contender}, load {os.getloadavg()[0]:.1f}", flush=True)
    for question, bound in BOUNDS.items():
        theirs = bench.record(question, THEIRS, "s", taken[THEIRS][question])
        for contender in (OURS, OUTSIDE):
            ours = bench.record(question, contender, "s", taken[contender][question])
            bench.goal(f"{question}: {THEIRS} / {contender}", theirs.median / ours.median, at_least=bound)
    for contender in contenders:
        memory = bench.record("peak memory, 50 layers got", contender, "MiB", taken[contender]["memory"])
        if contender is not THEIRS:
            bench.goal(f"peak memory of {contender}, MiB", memory.median, at_most=MEMORY_MIB)
