"""Names of devices: what a name may be, and what the file names in a home mean.

A device's record is the file of its name in `metadata/`, so a name must be a plain file name that does not collide
with the home's own files. The base device is `base` here and in file names, and the empty string in transactions.
"""

from __future__ import annotations

import os
from typing import Final

from cowfs.errors import UsageError

BASE: Final = "base"
SET_FILE: Final = "deviceset-metadata"
TRANSACTION_FILE: Final = "transaction-metadata"
MAX_NAME_BYTES: Final = 255
MIGRATED_SUFFIX: Final = ".migrated"
ID_FILE: Final = b"id"  # in the root of a layer that is used: the device's name
TARGET_PREFIX: Final = "docker-"  # of every target of a home


def check_name(name: str) -> None:
    """Raises UsageError when `name` cannot be the name of a new device."""
    problem = _problem(name)
    if problem:
        raise UsageError(f"{name!r} cannot be the name of a device: {problem}; choose another name")


def _problem(name: str) -> str:
    if not name:
        return "it is empty"
    if name in (BASE, SET_FILE, TRANSACTION_FILE):
        return "it is reserved for the home"
    if name.startswith("."):
        return "it starts with a dot"
    if name.endswith(MIGRATED_SUFFIX):
        return f"it ends in '{MIGRATED_SUFFIX}', which marks old files"
    if "/" in name:
        return "it contains a slash"
    if not name.isprintable():
        return "it contains a character that cannot be printed"
    length = len(name.encode())
    if length > MAX_NAME_BYTES:
        return f"it is {length} bytes long, and {MAX_NAME_BYTES} is the most"
    return ""


def is_record_file(file_name: str) -> bool:
    """Whether a file in `metadata/` is the record of a device."""
    return not (
        file_name.startswith(".") or file_name.endswith(MIGRATED_SUFFIX) or file_name in (SET_FILE, TRANSACTION_FILE)
    )


def is_plain_file_name(name: str) -> bool:
    """Whether a name read from a file stays inside `metadata/` and is the record of a device."""
    return bool(name) and "/" not in name and "\0" not in name and is_record_file(name)


def name_to_hash(name: str) -> str:
    """The name as a transaction file has it."""
    return "" if name == BASE else name


def hash_to_name(device_hash: str) -> str:
    return device_hash or BASE


def pool_prefix(home: str) -> str:
    """What moby puts before the names of a home's pool and devices: it says which directory this is."""
    status = os.stat(home)
    major = status.st_dev >> 8 & 0xFFF
    minor = status.st_dev & 0xFF | status.st_dev >> 12 & 0xFFF00
    return f"{TARGET_PREFIX}{major}:{minor}-{status.st_ino}"
