"""How do layers on cowfs (emulated) compare with Docker's devicemapper driver, each asked by the same client?

The original is Docker 20.10's own driver, built from Debian's sources into a process that answers the protocol of
graph-driver plugins, as ours does: no daemon is in the figures. Both run in User-Mode Linux, on the same disk, in
turns; ours also outside of it. A start is from nothing until layers can be asked for; as a part of it, the opening of
the home is from when the process listens, since the daemon starts a plugin no more often than itself, and ours is
Python.

Expected: a layer's life costs devicemapper two fsynced files and four commits of the kernel's pool, a device made and
taken down and a mount; ours three such files and two commits, and the mount exists already. Unpacking is a system
call for each step there and one pass over memory here. `changes` there stats every file of two trees, here some blocks
are compared. Opening reads one record for each layer on both sides.
"""

from __future__ import annotations

from bench.rig import moby_driver
from bench.rig.archives import Sizes, tree
from bench.rig.guests import Contender, rounds
from bench.rig.harness import Bench

THEIRS, OURS, OUTSIDE = "devicemapper", "cowfs", "cowfs, outside"
BOUNDS = {
    "life of a layer": 2.0,
    "apply": 2.0,
    "changes": 50.0,
    "start": 2.0,
    "opening of the home": 2.0,
}
MEMORY_MIB = 200


def run(bench: Bench) -> None:
    program = str(moby_driver.build())
    libraries = {"LD_LIBRARY_PATH": str(moby_driver.library_path())}
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
    module = "bench.rig.guest_layers"
    contenders = [
        Contender(THEIRS, module, THEIRS, arguments=[program], environment=libraries),
        Contender(OURS, module, OURS),
        Contender(OUTSIDE, module, OURS, in_guest=False),
    ]
    taken = rounds(bench, sizes, contenders)
    for question, bound in BOUNDS.items():
        theirs = bench.record(question, THEIRS, "s", taken[THEIRS][question])
        for contender in (OURS, OUTSIDE):
            ours = bench.record(question, contender, "s", taken[contender][question])
            bench.goal(f"{question}: {THEIRS} / {contender}", theirs.median / ours.median, at_least=bound)
    for contender in (THEIRS, OURS, OUTSIDE):
        memory = bench.record("peak memory, 50 layers in use", contender, "MiB", taken[contender]["memory"])
        if contender != THEIRS:
            bench.goal(f"peak memory of {contender}, MiB", memory.median, at_most=MEMORY_MIB)
