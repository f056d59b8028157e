"""What travels over the control socket of a home: one JSON value a line, each line bounded.

    server   {"cowfs":1,"pid":4711,"version":"0.1.0"}      once, when a client connects
    client   {"op":"create","name":"web"}                  a request, its fields as in `operations`
    server   {"piece":...}                                 none or more, for operations that answer a sequence
    server   {"result":...}  or  {"error":{...}}           the end of the answer; the next request may follow

A result that is an open file travels beside its line as SCM_RIGHTS. Errors keep their class, errno, exit code and
fields, so that a caller cannot tell a remote error from a local one.
"""

from __future__ import annotations

import os
import traceback
from typing import Any, Final

import msgspec

from cowfs import errors
from cowfs.errors import CowfsError

PROTOCOL_VERSION: Final = 1
SOCKET_NAME: Final = "cowfs.sock"
MAX_REQUEST_BYTES: Final = 64 << 10
MAX_REPLY_BYTES: Final = 1 << 20

FieldValue = str | int | float | bool | None


class Greeting(msgspec.Struct, frozen=True):
    """The first line of a server."""

    cowfs: int
    pid: int
    version: str


class ErrorRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """An exception as JSON; `class` names one of `cowfs.errors`, and `trace` is set for our own bugs only."""

    kind: str = msgspec.field(name="class")
    message: str
    errno: int
    exit_code: int
    fields: dict[str, FieldValue] = msgspec.field(default_factory=dict)
    trace: str = ""


class Reply(msgspec.Struct, omit_defaults=True):
    """One line of an answer; exactly one of the three is set."""

    result: msgspec.Raw | None = None
    piece: msgspec.Raw | None = None
    error: ErrorRecord | None = None


class HolderBug(RuntimeError):
    """The process that holds the home met a defect of its own; its traceback is in the text."""


def record_error(error: BaseException) -> ErrorRecord:
    """An exception as a record that `restore_error` turns back."""
    if isinstance(error, CowfsError):
        fields = {name: value for name, value in vars(error).items() if isinstance(value, FieldValue)}
        return ErrorRecord(type(error).__name__, error.message, error.errno or 0, error.exit_code, fields)
    if isinstance(error, OSError) and error.errno:
        text = error.strerror or os.strerror(error.errno)
        where = f": {os.fsdecode(error.filename)}" if error.filename is not None else ""
        return ErrorRecord(CowfsError.__name__, text + where, error.errno, CowfsError.exit_code)
    trace = "".join(traceback.format_exception(error))
    return ErrorRecord(HolderBug.__name__, f"{type(error).__name__}: {error}", 0, 1, trace=trace)


def restore_error(record: ErrorRecord) -> Exception:
    """The exception a record was made from; a class unknown here becomes a plain CowfsError with the same exit code."""
    if record.trace:
        return HolderBug(f"{record.message}\n{record.trace}")
    found: Any = getattr(errors, record.kind, None)
    known = isinstance(found, type) and issubclass(found, CowfsError)
    kind: type[CowfsError] = found if known else CowfsError
    # The constructors build their texts from parts; this one is finished already.
    error = kind.__new__(kind)
    OSError.__init__(error, record.errno, record.message)
    for name, value in record.fields.items():
        if name.isidentifier() and not name.startswith("_"):
            setattr(error, name, value)
    if not known:
        error.exit_code = record.exit_code  # type: ignore[misc]
    return error
