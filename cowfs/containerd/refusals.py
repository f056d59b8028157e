"""Errors of a home, and requests that cannot be read, as the ends of calls."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Final

from google.protobuf.message import DecodeError

from cowfs.containerd.grpc import CallError, Code
from cowfs.containerd.messages import message_class
from cowfs.error_record import plain_text
from cowfs.errors import CowfsError, DeviceBusy, DeviceExists, HomeBusy, PoolModeError, UnknownDevice, UsageError

_CODES: Final[tuple[tuple[type[CowfsError], Code], ...]] = (
    (DeviceExists, Code.ALREADY_EXISTS),
    (UnknownDevice, Code.NOT_FOUND),
    (DeviceBusy, Code.FAILED_PRECONDITION),
    (HomeBusy, Code.UNAVAILABLE),
    (PoolModeError, Code.UNAVAILABLE),  # until the pool is repaired, or the home opened again
    (UsageError, Code.INVALID_ARGUMENT),
)


@contextmanager
def as_call_errors(special: Mapping[type[CowfsError], Code] = MappingProxyType({})) -> Iterator[None]:
    """Errors of a home as those of a call. `special` codes go before the usual ones."""
    try:
        yield
    except CowfsError as error:
        codes = [*special.items(), *_CODES]
        code = next((code for known, code in codes if isinstance(error, known)), Code.INTERNAL)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            code = Code.RESOURCE_EXHAUSTED
        raise CallError(code, plain_text(error.message)) from error


def decoded(name: str, data: bytes) -> Any:
    """A message by the name of its type. Raises CallError."""
    try:
        return message_class(name).FromString(data)
    except DecodeError as error:
        raise CallError(Code.INVALID_ARGUMENT, f"not a {name}: {error}") from None
