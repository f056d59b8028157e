"""Requests about traces of what a device is asked."""

from __future__ import annotations

from cowfs.errors import UsageError
from cowfs.home.opened.open_home import OpenHome
from cowfs.home.requests.request import OpenFile, Request
from cowfs.steps import Steps


class StartTrace(Request[OpenFile], frozen=True, tag="start_trace"):
    """Record the requests that the disk of a device in use gets from now on; those of ext4 where files are mounted.

    The answer is the reading end of a pipe with the bytes of a trace, see `cowfs.traces.file`. The trace ends with
    `end_trace`, when no process has that end any more, or with the process that has the home.

    Raises:
        UnknownDevice.
        DeviceBusy: it is traced already.
        UsageError: nothing uses it here, so that it gets no requests; or the kernel does, which can trace it itself.
    """

    device: str

    def run(self, home: OpenHome) -> OpenFile:
        record = home.devices.record(self.device)
        if (
            any(use.kind == "kernel" for use in home.uses_of(self.device))
            or self.device in home.devices.active.open_nodes()
        ):
            raise UsageError(
                f"device '{self.device}' is used by the kernel, which sends it the requests itself; record them by "
                "blktrace, and read what it wrote with: cowfs trace convert"
            )
        if self.device not in home.devices.active and not home.views_of(record):
            raise UsageError(f"device '{self.device}' is not in use, so it gets no requests to trace; mount it first")
        return OpenFile(home.traces.begin(self.device))


class EndTrace(Request[None], frozen=True, tag="end_trace"):
    """End the trace of a device; its reader finds the rest, and the end. Raises UnknownDevice: there is none."""

    device: str

    def run(self, home: OpenHome) -> Steps[None]:
        return home.traces.end(self.device)
