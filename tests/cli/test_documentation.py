"""docs/command-line.md names every field of every answer, and every exit status."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from cowfs import errors
from cowfs.cli.batch import LineResult
from cowfs.cli.commands import FORMER_NAMES, GROUPS
from cowfs.copying.sinks import Copied
from cowfs.crashes.program import Failure, Outcome
from cowfs.devices.reports import (
    ClonedHome,
    DeviceCounters,
    DeviceReport,
    DeviceRow,
    HomeFinding,
    HomeReport,
    IoReport,
    MountedView,
    UsageReport,
    UsageRow,
    UsageTotals,
)
from cowfs.error_record import ErrorRecord
from cowfs.faults.plan import Effect, Rule
from cowfs.faults.rules import FaultReport
from cowfs.home.api.comparing import BlockRange, FileChange
from cowfs.home.api.files import FileInfo
from cowfs.home.machine import Ability
from cowfs.home.recovery import RecoveryReport
from cowfs.home.requests.devices import Created, Renamed, RolledBack, TargetLine
from cowfs.home.requests.disks import Exported, Imported
from cowfs.home.requests.faults import Faults
from cowfs.home.requests.space import Resized, ResizedPool, TrimmedDevice
from cowfs.oci.incoming import Brought, BroughtLayer
from cowfs.oci.outgoing import ExportedImage, ExportedLayer
from cowfs.oci.pulling import Pulled
from cowfs.oci.pushing import Pushed, PushedLayer
from cowfs.pool import PoolCounters, ThinCounters, WriteAmplification
from cowfs.thinmeta.findings import CheckReport, MetadataFinding

TEXT = (Path(__file__).resolve().parent.parent.parent / "docs" / "command-line.md").read_text()


@pytest.mark.parametrize(
    "kind",
    [
        *(
            Ability,
            ClonedHome,
            DeviceCounters,
            Exported,
            Imported,
            IoReport,
            PoolCounters,
            ThinCounters,
            WriteAmplification,
            BlockRange,
            Copied,
            FileChange,
            FileInfo,
            CheckReport,
            Created,
            DeviceReport,
            DeviceRow,
            HomeFinding,
            MetadataFinding,
            HomeReport,
            MountedView,
        ),
        *(RecoveryReport, Renamed, RolledBack, Resized, ResizedPool, TargetLine, TrimmedDevice),
        *(Faults, FaultReport, Rule, *get_args(Effect)),
        *(Outcome, Failure),
        *(LineResult, UsageReport, UsageRow, UsageTotals),
        *(Brought, BroughtLayer, ExportedImage, ExportedLayer, Pulled, Pushed, PushedLayer),
    ],
    ids=lambda kind: kind.__name__,
)
def test_every_field_is_documented(kind: type[msgspec.Struct]) -> None:
    named = set(re.findall(r"`([a-z_]+)`", TEXT))
    assert set(kind.__struct_encode_fields__) <= named


def test_the_error_object_is_documented() -> None:
    (example,) = re.findall(r'\{"error":(\{.*\})\}', TEXT)
    record = msgspec.json.decode(example, type=ErrorRecord)
    assert getattr(errors, record.kind).exit_code == record.exit_code


def test_every_exit_status_is_documented() -> None:
    documented = {int(status) for status in re.findall(r"^\| (\d+) \|", TEXT, re.M)}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.CowfsError)]
    assert {kind.exit_code for kind in kinds} <= documented


def test_every_group_is_documented_with_its_commands() -> None:
    documented = {
        group: re.findall(r"`(\w+)`", commands.split(":")[0])
        for group, commands in re.findall(r"^\| `(\w+)` \| (`.*) \|$", TEXT, re.M)
        if group in GROUPS
    }
    assert documented == {group: list(entry.commands) for group, entry in GROUPS.items()}
    (former,) = re.findall(r"Former names of commands still work.*?exit status 2", TEXT, re.S)
    assert set(FORMER_NAMES) <= set(re.findall(r"`([a-z-]+)`", former))
