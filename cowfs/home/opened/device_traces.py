"""The traces of an open home that are being recorded, and their stand-ins before the devices."""

from __future__ import annotations

import time
from typing import Final

from cowfs.devices.deviceset import DeviceSet
from cowfs.errors import DeviceBusy, UnknownDevice
from cowfs.home.opened.stand_ins import StandIns
from cowfs.in_place import Make
from cowfs.steps import Steps
from cowfs.traces.requests import TraceHeader
from cowfs.traces.tracer import Tracer

_PURPOSE: Final = "traces"


class HomeTraces:
    """At most one trace of each device. A device without one costs what it did."""

    def __init__(self, devices: DeviceSet, stand_ins: StandIns) -> None:
        self._devices = devices
        self._stand_ins = stand_ins
        self._tracers: dict[str, Tracer] = {}

    def begin(self, name: str) -> int:
        """Begin to record; the descriptor that the trace is read from, which the caller closes.

        Raises:
            UnknownDevice; DeviceBusy: it is traced already.
        """
        record = self._devices.record(name)
        if name in self._tracers:
            raise DeviceBusy(f"device '{name}' is traced already; end that trace first")
        header = TraceHeader(name, record.size_bytes, time.time())
        fd, tracer = Tracer.begun(header, clock=time.monotonic_ns, on_end=lambda: self._forget(name))
        self._tracers[name] = tracer
        self._refresh()
        return fd

    def end(self, name: str) -> Steps[None]:
        """End a trace. Raises UnknownDevice: there is none."""
        tracer = self._tracers.get(name)
        if tracer is None:
            raise UnknownDevice(f"device '{name}' is not traced")
        self._forget(name)
        yield from tracer.end()

    def close(self) -> None:
        """End all traces, without waiting for their readers."""
        for name, tracer in list(self._tracers.items()):
            self._forget(name)
            tracer.close()

    def _forget(self, name: str) -> None:
        self._tracers.pop(name, None)
        self._refresh()

    def _refresh(self) -> None:
        self._stand_ins.want(_PURPOSE, self._tracing if self._tracers else None)

    def _tracing(self, name: str) -> Make | None:
        tracer = self._tracers.get(name)
        return None if tracer is None else tracer.device
