"""A job file of fio, whose own report is kept whole.

Where the job works is said by two variables, which fio itself replaces: `${DISK}` is a disk of the engine, `${DIR}` a
directory. A job that names neither works in the directory.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
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
_VARIABLE: Final = re.compile(r"\$\{(?!DISK\}|DIR\})")
_MADE_ANEW: Final = "func=unlink"
_JOB: Final = re.compile(r"^\s*\[(?!global\])", re.MULTILINE)
_PERCENTILES: Final = "1:5:10:20:25:30:40:50:60:70:75:80:90:95:99:99.5:99.9:99.95:99.99"
_IOPS: Final = given("requests", "1/s", lower_is_better=False)


class FioJob:
    """Args: path: the job file; size_bytes: of the disk, or of the device that the directory is in."""

    expectation = ""
    x_unit = ""
    warms_up = False

    def __init__(self, path: str, *, size_bytes: int, environment: Mapping[str, str]) -> None:
        """Raises UsageError: it cannot be read or is refused, or names its own place; MissingRequirement."""
        try:
            self._text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise UsageError(f"the job file {path} cannot be read: {reason}") from error
        self.name = os.path.basename(path)
        self._on_disk = "${DISK}" in self._text
        self._require_own_place(path)
        program = find_tool("fio")
        if program is None:
            raise MissingRequirement("fio is not installed", remedy="sudo apt-get install fio")
        self._program = program
        self._size_bytes = size_bytes
        self._environment = environment
        self._require_understood(path)
        self.title = f"How does the fio job {self.name} run?"
        self.needs = Offer.DISK if self._on_disk else Offer.TREE

    def _require_own_place(self, path: str) -> None:
        """Raises UsageError: it would work at the same place for every engine, or beside the engine's."""
        for key, value in _PATH.findall(self._text):
            names = value.split(":")
            is_fixed = any(os.path.isabs(name) for name in names) or "/dev/" in value or _VARIABLE.search(value)
            if is_fixed or any(".." in name.split("/") for name in names):
                raise UsageError(
                    f"the job file {path} has '{key}={value}', which is the same place for every engine, or may be; "
                    "write ${DISK} or ${DIR}, or leave it out"
                )
        if self._on_disk and "${DIR}" in self._text:
            raise UsageError(f"the job file {path} names both ${{DISK}} and ${{DIR}}; a job works in one of them")

    def _require_understood(self, path: str) -> None:
        """Raises UsageError: fio refuses the job file, or it has no job."""
        if not _JOB.search(self._text):
            raise UsageError(f"the job file {path} has no job; a job begins with its name in brackets, as in [read]")
        with tempfile.TemporaryDirectory(prefix="cowfs-bench-fio-") as directory:
            done = self._fio(directory, Path(directory, "place"), "--parse-only")
        if done.returncode:
            said = _said(done)
            raise UsageError(f"fio refuses the job file {path}: {said[0] if said else 'it does not say why'}")

    def _fio(self, directory: str, place: Path, *words: str) -> subprocess.CompletedProcess[str]:
        """Run the job, from a file in a separate directory."""
        job = os.path.join(directory, "job")
        head = ["[global]", f"percentile_list={_PERCENTILES}", *([] if self._on_disk else ["directory=${DIR}"])]
        Path(job).write_text("\n".join([*head, self._text]), encoding="utf-8")
        return subprocess.run(
            [self._program, *words, job],
            env=dict(self._environment) | {"DISK" if self._on_disk else "DIR": os.fspath(place)},
            cwd=directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

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
        with tempfile.TemporaryDirectory(prefix="fio-", dir=contender.directory.parent) as directory:
            report = os.path.join(directory, "report")
            size_bytes = _size_of_file(place)
            with meter.line("all jobs", THROUGHPUT) as work:
                done = self._fio(directory, place, "--output-format=json", f"--output={report}", "--eta=never")
                if _size_of_file(place) != size_bytes or (done.returncode and _MADE_ANEW in done.stderr):
                    raise CowfsError(f"a job of {self.name} is larger than the disk; give a larger --size")
                if done.returncode:
                    raise FioFailed(self.name, contender.name, done.returncode, _said(done))
                work.fio = _decoded(report, self.name)
                lines = dict(_lines(work.fio))
                work.requests = sum(line.requests for line in lines.values())
                work.read_bytes = sum(line.read_bytes for line in lines.values())
                work.written_bytes = sum(line.written_bytes for line in lines.values())
            for name, line in lines.items():
                meter.add(name, _IOPS, line)


def _said(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]


def _size_of_file(place: Path) -> int | None:
    """Of a disk that is a regular file. fio removes one that is smaller than the job, and makes it anew."""
    with suppress(FileNotFoundError):
        found = place.stat()
        return found.st_size if stat.S_ISREG(found.st_mode) else None
    return None


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
    if None in found:  # the job has its own list
        return None
    return Latency(*(nanoseconds / 1000 for nanoseconds in (clat["min"], *found, clat["max"])))
