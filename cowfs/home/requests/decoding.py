"""Requests as they come over the control socket: all of the modules here, but for those that are local."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from types import ModuleType
from typing import Final

import msgspec

from cowfs.errors import UsageError
from cowfs.home.requests import (
    clock,
    clone,
    comparing,
    counters,
    devices,
    disks,
    ending,
    faults,
    files,
    images,
    layers,
    new_layers,
    power,
    recordings,
    space,
    traces,
)
from cowfs.home.requests.request import AnyRequest, Listing, Request, StreamIn, StreamOut

_MODULES: Final = (
    *(clock, clone, comparing, counters, devices, disks, ending, faults, files, images, layers, new_layers),
    *(power, recordings, space, traces),
)


def _requests_of(module: ModuleType) -> Iterator[type[AnyRequest]]:
    declared = (value for value in vars(module).values() if getattr(value, "__module__", "") == module.__name__)
    for kind in declared:
        if isinstance(kind, type) and issubclass(kind, Request | Listing | StreamIn | StreamOut) and not kind.is_local:
            yield kind


REQUESTS: Final = tuple(request for module in _MODULES for request in _requests_of(module))
_DECODER: Final = msgspec.json.Decoder(typing.Union[(*REQUESTS,)])


def decode_request(line: bytes) -> AnyRequest:
    """Raises UsageError for anything that is not a request."""
    try:
        return _DECODER.decode(line)  # type: ignore[no-any-return]
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise UsageError(f"not a request to a home: {error}") from None
