"""Exceptions between processes: written as a JSON object, raised again as the class they were.

    {"class":"MountError","message":"...","errno":16,"exit_code":6,"fields":{"op":"mount",...}}

The command line prints the same object with --json.
"""

from __future__ import annotations

import os
import traceback
from typing import Any

import msgspec

from cowfs import errors
from cowfs.errors import CowfsError

FieldValue = str | int | float | bool | None


class ErrorRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """An exception as JSON; `class` names one of `cowfs.errors`, and `trace` is set for our own bugs only."""

    kind: str = msgspec.field(name="class")
    message: str
    errno: int
    exit_code: int
    fields: dict[str, FieldValue] = msgspec.field(default_factory=dict)
    trace: str = ""


class HolderBug(RuntimeError):
    """The process that holds the home met a defect in its code; the traceback is in the text."""


def record_error(error: BaseException) -> ErrorRecord:
    """An exception as a record that `restore_error` turns back."""
    if isinstance(error, CowfsError):
        fields = {
            name: plain_text(value) if isinstance(value, str) else value
            for name, value in vars(error).items()
            if isinstance(value, FieldValue)
        }
        return ErrorRecord(type(error).__name__, plain_text(error.message), error.errno or 0, error.exit_code, fields)
    if isinstance(error, OSError) and error.errno:
        text = error.strerror or os.strerror(error.errno)
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        return ErrorRecord(CowfsError.__name__, plain_text(where + text), error.errno, CowfsError.exit_code)
    trace = "".join(traceback.format_exception(error))
    message = plain_text(f"{type(error).__name__}: {error}")
    return ErrorRecord(HolderBug.__name__, message, 0, 1, trace=plain_text(trace))


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


def plain_text(text: str) -> str:
    """A name or path as JSON can carry it: bytes that are not UTF-8 become escapes."""
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")
