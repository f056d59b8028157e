"""The dependency graph, asserted from the source text, and the rules that keep the engine deterministic.

                  cli                    the commands
                   │
      benchmarks  docker   testing    pytest_plugin    engines side by side; for Docker; the test kit; for pytest
                   │          └──────┬──────┘             uml: a kernel in a process
                  oci             crashes                 images in registries and archives; the crash explorer
                   └───┬─────────────┘
                     home                one open home: Python API, requests, executor, the process that serves
                   ┌───┴───┬──────┐
                layers     │    faults   what fails on demand, on disks and in the requests of a mount
                   │       │      │
                volumes    │      │      file systems of devices, shared by their users
                   │       ├──────┘
                devices   fuse           names, records, transactions; views of a mount
                   │       │
              ext4 xfs   mounts          the file systems in devices, xfs for reading; the system's mounts
                   └───┬───┘  copying    trees of files between the host and devices
                   │ recording  │        what happens to a disk and its files, in order
                   filetree ────┘        files and directories by inode number: the interface between the three
                       │
                pool   thinmeta          the interface of backends; dm-thin's on-disk format
                 └───┬───┘  disk_images  files that hold a disk: raw, qcow2, what qemu-img reads
                     │ traces in_place   what a disk is asked, kept and replayed; standing before a device
                 blockdev ────┘          devices of bytes: files, nodes, memory
         ┌──────┬────┴───┬────────┐
      forking errors   units   ranges

Arrows point down only. `cowfs` never imports a backend.
"""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
SOURCES = sorted([*(REPOSITORY / "cowfs").rglob("*.py"), *(REPOSITORY / "backends").rglob("*.py")])

FOUNDATION = {"ending", "errors", "error_record", "forking", "steps", "units", "version"}
BACKEND_MAY_IMPORT = {"pool", "thinmeta", "blockdev", "forking", "units", "errors"}

MAY_IMPORT: dict[str, set[str]] = {
    "ending": set(),
    "errors": set(),
    "error_record": {"errors"},
    "forking": {"errors"},
    "janitor": {"forking"},
    "units": set(),
    "debian_packages": {"errors"},
    "steps": set(),
    "version": set(),
    "ranges": set(),
    "blockdev": FOUNDATION,
    "in_place": FOUNDATION | {"blockdev"},
    "traces": FOUNDATION | {"blockdev"},
    "pool": FOUNDATION | {"blockdev"},
    "thinmeta": FOUNDATION | {"blockdev"},
    "new_files": {"errors"},
    "disk_images": FOUNDATION | {"blockdev"},
    "filetree": {"blockdev"},
    "recording": FOUNDATION | {"blockdev", "filetree"},
    "mounts": FOUNDATION | {"blockdev", "filetree"},
    "copying": FOUNDATION | {"filetree"},
    "ext4": FOUNDATION | {"blockdev", "pool", "ranges", "filetree"},
    "xfs": FOUNDATION | {"blockdev", "filetree"},
    "fuse": FOUNDATION | {"blockdev", "pool", "filetree", "mounts"},
    "devices": FOUNDATION | {"blockdev", "pool", "thinmeta", "filetree", "ext4"},
    "volumes": FOUNDATION | {"blockdev", "in_place", "pool", "filetree", "recording", "ext4", "xfs", "devices"},
    "layers": FOUNDATION | {"blockdev", "pool", "ranges", "thinmeta", "filetree", "ext4", "devices", "volumes"},
    "uml": FOUNDATION | {"debian_packages"},
    "faults": FOUNDATION | {"blockdev", "fuse"},
    "home": FOUNDATION
    | {
        "blockdev",
        "pool",
        "thinmeta",
        "disk_images",
        "new_files",
        "filetree",
        "recording",
        "copying",
        "mounts",
        "ext4",
        "fuse",
        "devices",
        "volumes",
        "layers",
        "faults",
        "in_place",
        "traces",
    },
    "crashes": FOUNDATION | {"blockdev", "filetree", "recording", "home"},
    "benchmarks": FOUNDATION | {"blockdev", "pool", "traces", "mounts", "fuse", "devices", "home"},
    "oci": FOUNDATION | {"new_files", "devices", "layers", "home"},
    "docker": FOUNDATION | {"blockdev", "pool", "fuse", "devices", "layers", "home", "oci"},
    "containerd": FOUNDATION | {"pool", "fuse", "devices", "layers", "home"},
    "cowfs": FOUNDATION | {"blockdev", "pool", "thinmeta", "ext4", "devices", "home"},  # the Python API
    "testing": FOUNDATION
    | {
        "cowfs",
        "blockdev",
        "pool",
        "thinmeta",
        "filetree",
        "recording",
        "ext4",
        "faults",
        "devices",
        "layers",
        "home",
        "crashes",
        "uml",
        "debian_packages",
    },
    "pytest_plugin": FOUNDATION
    | {"cowfs", "janitor", "pool", "devices", "mounts", "recording", "faults", "home", "crashes"},
    "cli": FOUNDATION
    | {
        "cowfs",
        "janitor",
        "blockdev",
        "pool",
        "thinmeta",
        "disk_images",
        "copying",
        "mounts",
        "new_files",
        "ext4",
        "fuse",
        "faults",
        "devices",
        "layers",
        "home",
        "crashes",
        "benchmarks",
        "oci",
        "docker",
        "containerd",
        "traces",
        "uml",
    },
}

# The rooms of a part, its folders and modules: from the floor up, each with those below that it may import. A part
# without an "__init__" here loads none of its rooms at first.
ROOMS: dict[str, dict[str, set[str]]] = {
    "ext4": {
        "format": set(),
        "library": {"format"},
        "space": {"format", "library"},
        "files": {"format", "library", "space"},
        "names": {"format", "library", "space", "files"},
        "journal": {"format", "library", "space", "files"},
        "tools": {"format", "library", "space", "journal"},
        "volume": {"format", "library", "space", "files", "names", "journal"},
    },
    "xfs": {
        "signature": set(),
        "format": {"signature"},
        "files": {"format"},
        "log": {"format", "files"},
        "read_only": set(),
        "volume": {"format", "files", "log", "read_only"},
    },
    "devices": {
        "reports": set(),
        "on_disk": {"reports"},
        "uses": {"reports"},
        "active": {"reports", "on_disk", "uses"},
        "cloning": {"reports", "on_disk"},
        "pools": {"reports", "on_disk"},
        "changes": {"reports", "on_disk", "active", "pools"},
        "base": {"on_disk", "active", "pools", "changes"},
        "recovery": {"reports", "on_disk", "active", "pools", "changes", "base"},
        "reporting": {"reports", "on_disk", "active", "pools", "base"},
        "injected": {"on_disk", "base"},
        "deviceset": {
            "reports",
            "on_disk",
            "active",
            "cloning",
            "pools",
            "changes",
            "base",
            "recovery",
            "reporting",
            "injected",
            "uses",
        },
        "opening": {"on_disk", "pools", "base", "injected", "deviceset"},
    },
    "disk_images": {
        "formats": set(),
        "qcow2_format": set(),
        "qcow2_reading": {"qcow2_format"},
        "qcow2_writing": {"qcow2_format"},
        "qemu_img": set(),
        "disk": {"formats", "qcow2_reading", "qemu_img"},
        "writing": {"formats", "qcow2_writing", "disk"},
    },
    "mounts": {
        "mountinfo": set(),
        "build_needs": set(),
        "mountpoint": {"mountinfo", "build_needs"},
        "copies": {"mountinfo"},
        "nodes": {"mountinfo"},
        "kernel_mount": {"nodes"},
        "processes": set(),
        "mounted_tree": set(),
    },
    "fuse": {
        "stacks": set(),
        "ending": {"stacks"},
        "callers": set(),
        "greeting": set(),
        "request_wait": {"greeting"},
        "background": set(),
        "left_alone": set(),
        "translate": {"request_wait", "greeting", "left_alone"},
        "raw_view": {"translate"},
        "tree_view": {"translate", "callers", "greeting"},
        "open_devices": {"tree_view"},
        "in_use": set(),
        "kernel_cache": {"translate", "tree_view", "open_devices", "request_wait", "in_use"},
        "device_mount": {"translate", "kernel_cache", "in_use"},
        "home_view": {"greeting", "translate", "tree_view", "open_devices", "kernel_cache"},
        "server": {"translate", "request_wait", "ending"},
    },
    "faults": {
        "plan": set(),
        "rules": {"plan"},
        "effects": {"plan", "rules"},
        "disk": {"plan", "rules", "effects"},
        "names": set(),
        "requests": {"plan", "rules", "effects", "names"},
        "api": {"plan", "rules"},
    },
    "home": {
        "trial_mount": set(),
        "kernel": set(),
        "opened": {"kernel"},
        "snapshot_keys": set(),
        "requests": {"opened", "snapshot_keys"},
        "executor": {"opened", "requests"},
        "control": {"requests", "executor"},
        "session": {"opened", "requests", "executor", "control"},
        "maintenance": {"session"},
        "recovery": {"opened", "session"},
        "own_session": {"opened", "requests", "executor", "session"},
        "serving": {"opened", "requests", "executor", "control", "session", "own_session"},
        "api": {"opened", "requests", "control", "session", "own_session", "serving", "maintenance"},
        "machine": {"opened", "serving"},
    },
    "benchmarks": {
        "figures": set(),
        "machine": set(),
        "results": {"figures", "machine"},
        "accounting": set(),
        "left_behind": set(),
        "engines": {"results", "accounting", "left_behind"},
        "meter": {"results", "accounting", "engines"},
        "workloads": {"results", "engines", "meter"},
        "unanswered": {"results"},
        "runner": {"figures", "machine", "results", "engines", "meter", "workloads", "unanswered"},
        "comparison": {"figures", "results"},
        "report": {"figures", "results", "comparison"},
    },
    "traces": {
        "requests": set(),
        "file": {"requests"},
        "iolog": {"requests"},
        "blktrace": {"requests"},
        "formats": {"requests", "file", "iolog", "blktrace"},
        "tracer": {"requests", "file"},
        "summary": {"requests"},
        "replay": {"requests"},
    },
    "oci": {
        "reference": set(),
        "documents": set(),
        "tar_split": set(),
        "compression": {"documents"},
        "blobs": {"documents", "tar_split"},
        "credentials": {"reference"},
        "http": {"reference", "credentials"},
        "registry": {"reference", "documents", "http"},
        "notes": {"documents"},
        "found": {"documents"},
        "archives": {"documents", "compression", "blobs", "found"},
        "downloads": {"documents"},
        "remote": {"reference", "documents", "registry", "found", "downloads"},
        "packing": {"tar_split", "compression", "notes"},
        "incoming": {"documents", "tar_split", "compression", "notes", "found", "packing"},
        "outgoing": {"documents", "compression", "blobs", "notes", "packing"},
        "block_deltas": {"documents", "compression", "http", "registry", "remote"},
        "pulling": {"reference", "documents", "registry", "downloads", "remote", "incoming", "block_deltas"},
        "platform_lists": {"documents", "registry"},
        "pushing": {
            "reference",
            "documents",
            "compression",
            "registry",
            "outgoing",
            "block_deltas",
            "platform_lists",
        },
    },
    "docker": {"plugin": set(), "stored": set()},
    "containerd": {
        "messages": set(),
        "grpc": set(),
        "filters": set(),
        "store": {"messages"},
        "places": {"messages"},
        "calls": {"grpc"},
        "pauses": set(),
        "refusals": {"messages", "grpc"},
        "reads": {"messages", "grpc", "filters", "store", "places", "calls", "refusals"},
        "snapshots": {"messages", "grpc", "store", "places", "calls", "pauses", "refusals", "reads"},
        "front": {"grpc", "calls"},
        "client": {"messages", "grpc"},
        "blobs": {"messages", "grpc", "client"},
        "diff": {"messages", "grpc", "store", "calls", "refusals", "snapshots", "client", "blobs"},
        "serve": {"store", "places", "snapshots", "diff", "front"},
    },
    "pool": {
        "message": set(),
        "status": set(),
        "table": set(),
        "interface": {"status", "table"},
        "refusals": {"status", "table"},
        "counters": {"interface"},
        "registry": {"interface"},
        "__init__": {"message", "status", "table", "interface", "refusals", "counters", "registry"},
    },
    "thinmeta": {
        "findings": set(),
        "format": set(),
        "counts": {"format"},
        "recount": {"format"},
        "walk": {"format"},
        "builder": {"format", "recount", "walk"},
        "check_space_maps": {"findings", "format", "recount", "walk"},
        "check_trees": {"findings", "format", "recount", "walk"},
        "store": {"format", "counts"},
        "btree": {"format", "store"},
        "check": {"findings", "format", "recount", "walk", "check_space_maps", "check_trees"},
        "repair_roots": {"findings", "format", "walk", "check_trees"},
        "usage": {"findings", "format", "recount", "walk", "check_trees"},
        "xml": {"format", "walk", "builder"},
        "delta": {"format", "walk", "xml"},
        "mapping": {"format", "btree"},
        "repair": {"findings", "format", "walk", "builder", "check_trees", "check", "repair_roots"},
        "space_maps": {"format", "counts", "store", "btree"},
        "metadata": {"format", "store", "btree", "mapping", "space_maps"},
        "__init__": {"format", "mapping", "metadata"},
    },
    "recording": {
        "journal": set(),
        "operations": set(),
        "unsynced": set(),
        "recorder": {"journal", "operations"},
        "tree_change": {"operations"},
    },
    "copying": {
        "paths": set(),
        "records": set(),
        "sinks": {"records"},
        "host": {"records", "sinks"},
        "tree": {"paths", "records", "sinks"},
    },
    "layers": {
        "interface": set(),
        "lvm_config": set(),
        "trees": set(),
        "archive": {"interface"},
        "changes": {"interface"},
        "direct_lvm": {"lvm_config"},
        "options": {"lvm_config"},
        "roots": {"interface"},
        "info": {"options"},
        "driver": {"interface", "trees", "archive", "changes", "options", "roots", "info"},
        "__init__": {"interface"},
    },
    "uml": {
        "init": set(),
        "kernel": set(),
        "processor": set(),
        "processor_state": set(),
        "guest": {"init", "kernel", "processor", "processor_state"},
        "__init__": {"kernel", "guest"},
    },
    "crashes": {
        "history": set(),
        "naming": {"history"},
        "planning": {"history"},
        "shrinking": {"history"},
        "disk": {"history", "naming"},
        "files": {"history", "naming"},
        "making": {"history", "disk", "files"},
        "explorer": {"history", "naming", "planning", "shrinking", "disk", "files", "making"},
        "running": set(),
        "program": {"history", "naming", "running", "shrinking", "explorer"},
        "report": {"history", "program"},
    },
    "testing": {
        "blockdev": set(),
        "cases": set(),
        "clock": set(),
        "judges": set(),
        "model": set(),
        "script": set(),
        "crash": {"blockdev", "judges", "model"},
        "generator": {"model", "script"},
        "running": {"cases"},
        "conformance": {"cases", "clock", "judges", "running"},
        "differential": {"clock", "judges", "script", "generator", "conformance"},
        "layers": {"cases", "judges", "running", "conformance"},
        "verify": {"differential"},
    },
    "pytest_plugin": {
        "clock": set(),
        "failures": set(),
        "faults": set(),
        "golden": set(),
        "guests": set(),
        "left_behind": set(),
        "mounted": set(),
        "plain_imports": set(),
        "wishes": set(),
        "crashes": {"failures"},
        "in_guest": {"guests"},
        "needs": {"wishes"},
        "options": {"guests"},
        "session": {"failures", "golden", "left_behind", "mounted", "wishes", "needs"},
        "fixtures": {"clock", "mounted", "wishes", "session"},
        "__init__": {"clock", "mounted", "plain_imports", "crashes", "faults", "fixtures", "options"},
    },
    "cli": {
        "commands": set(),
        "completion": set(),
        "output": set(),
        "settings": set(),
        "signals": set(),
        "cloning": {"output", "settings"},
        "comparing": {"output", "settings"},
        "counters": {"output", "settings"},
        "crashes": {"output", "settings"},
        "dm": {"output", "settings"},
        "faults": {"output", "settings"},
        "files": {"output", "settings"},
        "images": {"output", "settings"},
        "layer_images": {"output", "settings"},
        "log": {"output", "settings"},
        "outcome": {"output", "signals"},
        "recovery": {"output", "settings"},
        "space": {"output", "settings"},
        "stored": {"output", "settings"},
        "suggestions": {"commands"},
        "tables": {"output"},
        "traces": {"output", "settings", "signals"},
        "uml": {"output", "settings"},
        "batch": {"output", "settings", "signals", "outcome"},
        "bench_output": {"output"},
        "bench": {"output", "settings", "uml", "bench_output"},
        "devices": {"output", "settings", "counters", "tables"},
        "doctor": {"output", "settings", "uml"},
        "help": {"suggestions"},
        "lazy_group": {"commands", "signals", "suggestions"},
        "pool": {"output", "settings", "tables"},
        "serving": {"settings", "log"},
        "app": {"commands", "output", "settings", "signals", "log", "outcome", "uml", "lazy_group"},
        "docker": {"output", "settings", "serving"},
        "mounting": {"output", "settings", "signals", "serving"},
        "snapshotter_config": {"settings"},
        "snapshotter": {"settings", "serving", "snapshotter_config"},
        "layers": {"output", "settings", "mounting"},
        "manual": {"lazy_group", "app"},
        "__init__": {"app"},
    },
}

# A part of another one names the type of the whole, which it is given.
TYPES: dict[tuple[str, ...], set[tuple[str, ...]]] = {("ext4", "library", "descriptors"): {("library", "filesystem")}}
DETERMINISTIC = {"thinmeta", "pool", "blockdev", "cowfs_emulated"}
MAY_IMPORT_TRIO = {"fuse", "faults", "home", "benchmarks", "docker", "containerd", "cli"}
NONDETERMINISTIC_CALLS = {
    ("time", "time"),
    ("time", "time_ns"),
    ("time", "monotonic"),
    ("time", "monotonic_ns"),
    ("time", "sleep"),
    ("datetime", "now"),
    ("os", "urandom"),
    ("uuid", "uuid1"),
    ("uuid", "uuid4"),
    ("random", "random"),
    ("random", "randrange"),
    ("random", "Random"),
    ("secrets", "token_bytes"),
    ("secrets", "token_hex"),
}


def component(path: Path) -> str:
    """The part a file belongs to: `pool` for cowfs/pool/table.py, `cowfs_emulated` for a backend's file."""
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    if parts[0] == "backends":
        return parts[1]
    return {"__init__": "cowfs", "__main__": "cli"}.get(parts[1], parts[1])


class Found(NamedTuple):
    """What the tests below ask of a file, from one reading of its text.

    Args:
        imports: full names of everything imported anywhere, also inside functions and under TYPE_CHECKING.
        clocks: calls of the clock or of chance. A clock as a default argument is passed in; a call to it is not.
        environment: reads of the environment.
        unannotated: public functions that lack an annotation.
    """

    imports: list[str]
    clocks: list[str]
    environment: list[str]
    unannotated: list[str]


@cache
def found_in(path: Path) -> Found:
    found = Found([], [], [], [])
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        match node:
            case ast.Import():
                found.imports.extend(alias.name for alias in node.names)
            case ast.ImportFrom():
                assert node.level == 0, f"{path}:{node.lineno}: relative import; write the full name"
                full = [f"{node.module}.{alias.name}" for alias in node.names]
                found.imports.extend(name if is_module(name) else str(node.module) for name in full)
            case ast.Call(func=ast.Attribute(value=ast.Name(id=module), attr=name)):
                if (module, name) in NONDETERMINISTIC_CALLS:
                    found.clocks.append(f"line {node.lineno}: {module}.{name}()")
            case ast.Attribute(value=ast.Name(id="os"), attr="environ" | "environb" | "getenv"):
                found.environment.append(f"line {node.lineno}: os.{node.attr}")
            case ast.FunctionDef() | ast.AsyncFunctionDef() if not node.name.startswith("_"):
                if (bare := unannotated(node)) or node.returns is None:
                    found.unannotated.append(f"line {node.lineno}: {node.name}({', '.join(bare)})")
    return found


def unannotated(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    given = function.args
    arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    return [a.arg for a in arguments if a is not None and a.annotation is None and a.arg not in {"self", "cls"}]


@cache
def is_module(name: str) -> bool:
    path = REPOSITORY.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").exists()


def imported_components(path: Path) -> set[str]:
    found = set()
    for name in found_in(path).imports:
        parts = name.split(".")
        if parts[0] == "cowfs":
            found.add(parts[1] if len(parts) > 1 else "cowfs")
        elif parts[0].startswith("cowfs_"):
            found.add(parts[0])
    return found - {component(path)}


def show(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def test_the_declared_graph_has_no_cycle() -> None:
    list(graphlib.TopologicalSorter(MAY_IMPORT).static_order())


def test_sources_are_found() -> None:
    """Guards the tests below against looking at nothing."""
    assert {"cowfs_emulated", *MAY_IMPORT} - {"version"} <= {component(path) for path in SOURCES}


def test_imports_point_down_only() -> None:
    unknown = {show(path) for path in SOURCES if not is_backend(path) and component(path) not in MAY_IMPORT}
    assert not unknown, "these belong to parts that the graph of this file does not know"
    require_none({show(path): imported_components(path) - may_import(path) for path in SOURCES})


def is_backend(path: Path) -> bool:
    return component(path).startswith("cowfs_")


def may_import(path: Path) -> set[str]:
    return BACKEND_MAY_IMPORT if is_backend(path) else MAY_IMPORT[component(path)]


def require_none(found: Mapping[str, Collection[str]]) -> None:
    """Fails with what was found in which file."""
    assert not {path: sorted(items) for path, items in found.items() if items}


@pytest.mark.parametrize("part", ROOMS)
def test_the_rooms_of_a_part_form_no_circle(part: str) -> None:
    floors = list(ROOMS[part])
    assert list(graphlib.TopologicalSorter(ROOMS[part]).static_order())
    assert all(floors.index(below) < floors.index(room) for room, allowed in ROOMS[part].items() for below in allowed)


@pytest.mark.parametrize("depth", [1, None], ids=["rooms", "files"])
@pytest.mark.parametrize("part", sorted(MAY_IMPORT))
def test_what_a_part_consists_of_forms_no_circle(part: str, depth: int | None) -> None:
    """From the imports as they are, also where the graph of this file has no rooms."""
    arrows: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for path in SOURCES:
        if component(path) == part:
            name = path.relative_to(REPOSITORY / "cowfs").with_suffix("").parts[1:][:depth]
            inside = [tuple(found.split(".")[2:]) for found in found_in(path).imports if is_of(part, found)]
            arrows[name] = (
                {place_of(part, module)[:depth] for module in inside} - {name} - TYPES.get((part, *name), set())
            )
    assert list(graphlib.TopologicalSorter(arrows).static_order()) or not arrows


def is_of(part: str, module: str) -> bool:
    return module.startswith(f"cowfs.{part}.")


def place_of(part: str, module: tuple[str, ...]) -> tuple[str, ...]:
    """The file of a module, which is another one where the module is a folder."""
    return module if REPOSITORY.joinpath("cowfs", part, *module).with_suffix(".py").exists() else (*module, "__init__")


@pytest.mark.parametrize("part", ROOMS)
def test_imports_between_rooms_point_down_only(part: str) -> None:
    files = [path for path in SOURCES if path.is_relative_to(REPOSITORY / "cowfs" / part)]
    unknown = {show(path) for path in files if room_of(path) not in {"__init__", *ROOMS[part]}}
    assert not unknown, "these are in rooms that the graph of this file does not know"
    found = {}
    for path in files:
        names = [name.split(".") for name in found_in(path).imports]
        rooms = {name[2] for name in names if name[:2] == ["cowfs", part] and len(name) > 2} - {room_of(path)}
        found[show(path)] = rooms - ROOMS[part].get(room_of(path), set())
    require_none(found)


def room_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).with_suffix("").parts[2]


def test_trio_and_fuse_stay_at_the_edge() -> None:
    inside = [path for path in SOURCES if component(path) not in MAY_IMPORT_TRIO]
    edges = {"trio", "pyfuse3"}
    require_none({show(path): [n for n in found_in(path).imports if n.split(".")[0] in edges] for path in inside})


def test_the_engine_takes_time_and_chance_from_its_caller() -> None:
    require_none({show(path): found_in(path).clocks for path in SOURCES if component(path) in DETERMINISTIC})


def test_only_the_command_line_reads_the_environment() -> None:
    others = [path for path in SOURCES if component(path) not in {"cli", "testing"}]
    require_none({show(path): found_in(path).environment for path in others})


def test_public_functions_are_annotated() -> None:
    require_none({show(path): found_in(path).unannotated for path in SOURCES})


def test_the_engine_starts_without_trio_and_fuse() -> None:
    """The pool engine works where no compiler and no libfuse are, and commands start quickly."""
    code = (
        "import sys, cowfs, cowfs_emulated, cowfs.pool, cowfs.thinmeta, cowfs.devices, cowfs.ext4, cowfs.cli\n"
        "sys.exit(' '.join({'trio', 'pyfuse3'} & set(sys.modules)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr


def test_no_file_names_the_machine_it_was_made_on() -> None:
    """Paths of a checkout have no place in the project: neither this one's nor its neighbours'."""
    listed = subprocess.run(
        ["git", "-c", f"safe.directory={REPOSITORY}", "ls-files", "-z"],
        cwd=REPOSITORY,
        capture_output=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    directories = {REPOSITORY, Path.home(), *filter(Path.is_dir, REPOSITORY.parent.iterdir())}
    places = {f"{place}/".encode() for place in directories if str(place).count("/") > 1}
    assert f"{REPOSITORY}/".encode() in places or REPOSITORY.parent == Path("/")
    guilty = [
        name.decode()
        for name in listed.stdout.split(b"\0")
        if name and (REPOSITORY / name.decode()).is_file()
        if any(place in (REPOSITORY / name.decode()).read_bytes() for place in places)
    ]
    assert not guilty


@pytest.mark.parametrize("room", ["devices", "docker", "home"])
def test_each_module_is_named_where_its_room_says_what_it_holds(room: str) -> None:
    for init in (REPOSITORY / "cowfs" / room).rglob("__init__.py"):
        said = ast.get_docstring(ast.parse(init.read_text())) or ""
        words = set(re.findall(r"\w+", said))
        modules = {path.stem for path in init.parent.glob("*.py")} - {"__init__"}
        rooms = {path.parent.name for path in init.parent.glob("*/__init__.py")}
        assert modules | rooms <= words, init
