"""A job file of fio, whose own report is kept whole.

Where the job works is said by two variables, which fio itself replaces: `${DISK}` is a disk of the engine, `${DIR}` a
directory. A job that names neither works in the directory.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from cowfs.benchmarks.engines.interface import Contender, Offer
from cowfs.benchmarks.engines.tools import find_tool, version_of
from cowfs.benchmarks.meter import THROUGHPUT, Meter, Work, given
from cowfs.benchmarks.results import Latency
from cowfs.benchmarks.workloads.interface import Measure
from cowfs.errors import CowfsError, MissingRequirement, UsageError

_DEVICE: Final = "fio"
_DIRECTIONS: Final = ("read", "write", "trim")
_PATH: Final = re.compile(r"^\s*(filename|directory)\s*=\s*(.*?)\s*$", re.MULTILINE)
_PERCENTILES: Final = "1:5:10:20:25:30:40:50:60:70:75:80:90:95:99:99.5:99.9:99.95:99.99"
_IOPS: Final = given("requests", "1/s", lower_is_better=False)


class FioJob:
    """Args: path: the job file; size_bytes: of the disk, or of the device that the directory is in."""

    expectation = ""
    x_unit = ""
    warms_up = False

    def __init__(self, path: str, *, size_bytes: int, environment: Mapping[str, str]) -> None:
        """Raises UsageError: it cannot be read, or names a place of its own; MissingRequirement: there is no fio."""
        try:
            self._text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise UsageError(f"the job file {path} cannot be read: {reason}") from error
        for key, value in _PATH.findall(self._text):
            if os.path.isabs(value) or "/dev/" in value:
                raise UsageError(
                    f"the job file {path} has '{key}={value}', which is the same place for every engine; "
                    "write ${DISK} or ${DIR}, or leave it out"
                )
        program = find_tool("fio")
        if program is None:
            raise MissingRequirement("fio is not installed", remedy="sudo apt-get install fio")
        self._program = program
        self._size_bytes = size_bytes
        self._environment = environment
        self._on_disk = "${DISK}" in self._text
        self.name = os.path.basename(path)
        self.title = f"How does the fio job {self.name} run?"
        self.needs = Offer.DISK if self._on_disk else Offer.TREE

    @property
    def parameters(self) -> dict[str, Any]:
        return {"job": self._text, "size_bytes": self._size_bytes, "fio": version_of("fio")}

    @contextmanager
    def prepared(self, contender: Contender) -> Iterator[Measure]:
        """Each round begins with a new device."""

        def measure(meter: Meter) -> None:
            contender.create(_DEVICE, self._size_bytes)
            try:
                with contender.disk(_DEVICE) if self._on_disk else contender.tree(_DEVICE) as place:
                    self._run(place, contender, meter)
            finally:
                contender.remove(_DEVICE)

        yield measure

    def _run(self, place: Path, contender: Contender, meter: Meter) -> None:
        with tempfile.TemporaryDirectory(prefix="cowfs-bench-fio-") as directory:
            job, report = os.path.join(directory, "job"), os.path.join(directory, "report")
            variables = {"DISK": os.fspath(place)} if self._on_disk else {"DIR": os.fspath(place)}
            head = ["[global]", f"percentile_list={_PERCENTILES}", *([] if self._on_disk else ["directory=${DIR}"])]
            Path(job).write_text("\n".join([*head, self._text]), encoding="utf-8")
            command = [self._program, "--output-format=json", f"--output={report}", "--eta=never", job]
            with meter.line("all jobs", THROUGHPUT) as work:
                done = subprocess.run(
                    command,
                    env=dict(self._environment) | variables,
                    cwd=directory,
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    text=True,
                    check=False,
                )
                if done.returncode:
                    said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
                    raise FioFailed(self.name, contender.name, done.returncode, said)
                work.fio = _decoded(report, self.name)
                lines = dict(_lines(work.fio))
                work.requests = sum(line.requests for line in lines.values())
                work.read_bytes = sum(line.read_bytes for line in lines.values())
                work.written_bytes = sum(line.written_bytes for line in lines.values())
            for name, line in lines.items():
                meter.add(name, _IOPS, line)


class FioFailed(CowfsError):
    """`lines` is what fio said."""

    def __init__(self, job: str, contender: str, status: int, lines: list[str]) -> None:
        first = next((line for line in lines if "error" in line.lower() or "err=" in line), lines[0] if lines else "")
        super().__init__(f"fio ended with status {status} for {job} on {contender}: {first or 'it said nothing'}")
        self.lines = lines[-20:]


def _decoded(report: str, job: str) -> dict[str, Any]:
    data = Path(report).read_bytes()
    try:
        found: dict[str, Any] = msgspec.json.decode(data[data.index(b"{") :], type=dict[str, Any])
    except (ValueError, msgspec.DecodeError) as error:
        raise CowfsError(f"what fio reported of {job} cannot be read: {error}") from error
    return found


def _lines(report: dict[str, Any]) -> Iterator[tuple[str, Work]]:
    """A line for each job and direction in which it did something."""
    jobs = report.get("jobs", [])
    for number, job in enumerate(jobs):
        same = [other["jobname"] for other in jobs[: number + 1]].count(job["jobname"])
        name = job["jobname"] if same == 1 else f"{job['jobname']} ({same})"
        for direction in _DIRECTIONS:
            done = job.get(direction, {})
            if not done.get("total_ios"):
                continue
            is_read = direction == "read"
            size = int(done["io_bytes"])
            yield (
                f"{name}: {direction}",
                Work(
                    requests=int(done["total_ios"]),
                    read_bytes=size if is_read else 0,
                    written_bytes=size if direction == "write" else 0,
                    seconds=done["runtime"] / 1000,
                    latency=_latency(done.get("clat_ns", {})),
                    value=float(done["iops"]),
                ),
            )


def _latency(clat: dict[str, Any]) -> Latency | None:
    percentiles = clat.get("percentile")
    if not percentiles:
        return None

    found = [percentiles.get(f"{percent}.000000") for percent in (25, 50, 75, 90, 95, 99)]
    if None in found:  # the job has a list of its own
        return None
    return Latency(*(nanoseconds / 1000 for nanoseconds in (clat["min"], *found, clat["max"])))
