"""What every layer driver does, as a library: a way to open homes in, numbered cases out. No test framework is needed.

    for case in CASES:
        check(case, factory, an_empty_directory)

`factory(directory, storage_options)` opens a home there, or makes it, and returns it as a `Home`. `check` raises
AssertionError where the driver behaves differently, and NotApplicableError where a home has not what a case needs.
`in_process` is the factory for a backend, without any mount.

Modules: `graph` (the generic suite of graph drivers), `store` (containers/storage's additions), `devicemapper` (moby's
own, and its daemon's), `snapshots` (containerd's, as far as they apply), `rules` (of this interface).
"""

from cowfs.testing.cases import NotApplicableError
from cowfs.testing.layers import devicemapper, graph, rules, snapshots, store
from cowfs.testing.layers.files import DirectoryFiles, Entry, Files, TreeFiles
from cowfs.testing.layers.lab import SMALL_OPTIONS, Home, HomeFactory, LayerLab
from cowfs.testing.layers.registry import CASES, LayerCase, check
from cowfs.testing.layers.remote import FileProcess

__all__ = [
    "CASES",
    "SMALL_OPTIONS",
    "DirectoryFiles",
    "Entry",
    "FileProcess",
    "Files",
    "Home",
    "HomeFactory",
    "LayerCase",
    "LayerLab",
    "NotApplicableError",
    "TreeFiles",
    "check",
    "devicemapper",
    "graph",
    "rules",
    "snapshots",
    "store",
]
