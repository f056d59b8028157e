"""Requests about faults on demand: rules of them last as long as the process that has the home open."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from cowfs.faults.plan import Rule
from cowfs.faults.rules import FaultReport
from cowfs.home.opened.open_home import OpenHome
from cowfs.home.requests.request import Request


class Faults(msgspec.Struct, frozen=True):
    """Rules, in the order in which they are looked at, each with its counters."""

    faults: list[FaultReport]


class AddFaults(Request[Faults], frozen=True, tag="add_faults"):
    """See `cowfs.Home.add_faults`."""

    rules: list[Rule]

    changes_reads: ClassVar[bool] = True

    def run(self, home: OpenHome) -> Faults:
        return Faults(home.faults.add(self.rules))


class ListFaults(Request[Faults], frozen=True, tag="list_faults"):
    """See `cowfs.Home.list_faults`."""

    only_reads = True

    def run(self, home: OpenHome) -> Faults:
        return Faults(home.faults.rules.reports() if home.fault_count else [])


class ClearFaults(Request[Faults], frozen=True, tag="clear_faults"):
    """See `cowfs.Home.clear_faults`."""

    names: tuple[str, ...] = ()

    changes_reads: ClassVar[bool] = True

    def run(self, home: OpenHome) -> Faults:
        return Faults(home.faults.clear(self.names) if self.names or home.fault_count else [])
