"""Access control lists: the VFS's xattr format, ext4's own compact one, text, and what they mean for the mode.

    VFS   (system.posix_acl_*):  u32 version 2; entries of u16 tag, u16 permissions, u32 id (all ones where none)
    ext4  (on disk):             u32 version 1; entries of u16 tag, u16 permissions; u32 id for users and groups only
    text  (setfacl, tar):        user::rwx,user:1000:r--,group::r-x,mask::r-x,other::---

Source: Linux include/uapi/linux/posix_acl_xattr.h, fs/ext4/acl.c, fs/posix_acl.c.
"""

from __future__ import annotations

import errno
import re
import struct
from typing import Final, NamedTuple

from cowfs.ext4.library.filesystem import os_error

ACCESS: Final = b"system.posix_acl_access"
DEFAULT: Final = b"system.posix_acl_default"

_USER_OBJ: Final = 0x01
USER: Final = 0x02
_GROUP_OBJ: Final = 0x04
GROUP: Final = 0x08
_MASK: Final = 0x10
_OTHER: Final = 0x20
_NAMED: Final = (USER, GROUP)
_NO_ID: Final = 0xFFFFFFFF

_VERSION: Final = struct.Struct("<I")
_SHORT: Final = struct.Struct("<HH")
_LONG: Final = struct.Struct("<HHI")

_TAGS: Final = {  # by the word of the text form, and whether it names a user or group
    ("user", False): _USER_OBJ,
    ("user", True): USER,
    ("group", False): _GROUP_OBJ,
    ("group", True): GROUP,
    ("mask", False): _MASK,
    ("other", False): _OTHER,
}
_LONG_WORDS: Final = {"u": "user", "g": "group", "m": "mask", "o": "other"}
_LETTERS: Final = {"r": 4, "w": 2, "x": 1}
_WORDS: Final = {tag: word for (word, _), tag in _TAGS.items()}


class AclEntry(NamedTuple):
    tag: int
    permissions: int
    id: int


def parse(value: bytes) -> list[AclEntry]:
    """The entries of a VFS value, checked.

    Raises:
        OSError: EOPNOTSUPP for another version, EINVAL for anything else that is wrong.
    """
    if len(value) < _VERSION.size or (len(value) - _VERSION.size) % _LONG.size:
        raise os_error(errno.EINVAL)
    if _VERSION.unpack_from(value)[0] != 2:
        raise os_error(errno.EOPNOTSUPP)
    entries = [AclEntry(*fields) for fields in _LONG.iter_unpack(value[_VERSION.size :])]
    _check(entries)
    return entries


def _check(entries: list[AclEntry]) -> None:
    """Ascending tags, one of each kind that must be there, a mask when a user or group is named, no name twice."""
    tags = [entry.tag for entry in entries]
    once = all(tags.count(tag) == 1 for tag in (_USER_OBJ, _GROUP_OBJ, _OTHER)) if entries else True
    named = any(tag in _NAMED for tag in tags)
    order = [(entry.tag, entry.id if entry.tag in _NAMED else 0) for entry in entries]
    valid = (
        once
        and tags == sorted(tags)
        and len(set(order)) == len(order)
        and tags.count(_MASK) <= 1
        and (not named or _MASK in tags)
        and all(entry.permissions <= 7 for entry in entries)
        and set(tags) <= {_USER_OBJ, USER, _GROUP_OBJ, GROUP, _MASK, _OTHER}
    )
    if not valid:
        raise os_error(errno.EINVAL)


def pack(entries: list[AclEntry]) -> bytes:
    """The VFS value of entries."""
    parts = [_LONG.pack(tag, permissions, id_ if tag in _NAMED else _NO_ID) for tag, permissions, id_ in entries]
    return _VERSION.pack(2) + b"".join(parts)


def to_text(entries: list[AclEntry]) -> str:
    """With numbers, separated by commas."""
    return ",".join(
        f"{_WORDS[tag]}:{id_ if tag in _NAMED else ''}:"
        + "".join(letter if permissions & bit else "-" for letter, bit in _LETTERS.items())
        for tag, permissions, id_ in entries
    )


def from_text(text: str) -> list[AclEntry]:
    """The entries of a text, separated by commas or lines.

    Raises:
        OSError: EINVAL for what is not a list, EOPNOTSUPP for a name without a number, which cannot be looked up here.
    """
    lines = [line.partition("#")[0].strip() for line in text.replace(",", "\n").splitlines()]
    entries = sorted(_text_entry(line) for line in lines if line)
    _check(entries)
    return entries


def _text_entry(line: str) -> AclEntry:
    """`word:who:letters`, or with the id of a name as a fourth field."""
    fields = [field.strip() for field in line.split(":")]
    if len(fields) not in (3, 4):
        raise os_error(errno.EINVAL)
    word, who, letters = fields[:3]
    tag = _TAGS.get((word, bool(who))) or _TAGS.get((_LONG_WORDS.get(word, ""), bool(who)))
    if tag is None or not set(letters) <= {*_LETTERS, "-"}:
        raise os_error(errno.EINVAL)
    permissions = sum(bit for letter, bit in _LETTERS.items() if letter in letters)
    if not who:
        return AclEntry(tag, permissions, _NO_ID)
    number = "".join(fields[3:]) or who
    if re.fullmatch("[0-9]{1,10}", number) is None:
        raise os_error(errno.EOPNOTSUPP)
    if int(number) >= _NO_ID:
        raise os_error(errno.EINVAL)
    return AclEntry(tag, permissions, int(number))


def to_disk(entries: list[AclEntry]) -> bytes:
    parts = [
        _LONG.pack(tag, permissions, id_) if tag in _NAMED else _SHORT.pack(tag, permissions)
        for tag, permissions, id_ in entries
    ]
    return _VERSION.pack(1) + b"".join(parts)


def from_disk(value: bytes) -> list[AclEntry]:
    """Raises OSError (EINVAL) for what is not a list."""
    if len(value) < _VERSION.size or _VERSION.unpack_from(value)[0] != 1:
        raise os_error(errno.EINVAL)
    entries, offset = [], _VERSION.size
    try:
        while offset < len(value):
            tag, permissions = _SHORT.unpack_from(value, offset)
            if tag in _NAMED:
                entries.append(AclEntry(*_LONG.unpack_from(value, offset)))
                offset += _LONG.size
            else:
                entries.append(AclEntry(tag, permissions, _NO_ID))
                offset += _SHORT.size
    except struct.error:
        raise os_error(errno.EINVAL) from None
    return entries


def mode_of(entries: list[AclEntry], mode: int) -> tuple[int, bool]:
    """The mode whose permissions a list gives, and whether the mode alone says all that the list says."""
    permissions = {entry.tag: entry.permissions for entry in entries if entry.tag not in _NAMED}
    group = permissions.get(_MASK, permissions.get(_GROUP_OBJ, 0))
    bits = permissions.get(_USER_OBJ, 0) << 6 | group << 3 | permissions.get(_OTHER, 0)
    return mode & ~0o777 | bits, len(entries) <= 3


def with_mode(entries: list[AclEntry], mode: int) -> list[AclEntry]:
    """The list after chmod: owner, other, and the mask (or else the group) follow the mode."""
    has_mask = any(entry.tag == _MASK for entry in entries)
    bits = {_USER_OBJ: mode >> 6 & 7, _OTHER: mode & 7, _MASK if has_mask else _GROUP_OBJ: mode >> 3 & 7}
    return [entry._replace(permissions=bits.get(entry.tag, entry.permissions)) for entry in entries]


def inherited(default: list[AclEntry], mode: int) -> tuple[list[AclEntry], int]:
    """The access list and mode of a new file, from its directory's default list and the wanted mode."""
    has_mask = any(entry.tag == _MASK for entry in default)
    bits = {_USER_OBJ: mode >> 6 & 7, _OTHER: mode & 7, _MASK if has_mask else _GROUP_OBJ: mode >> 3 & 7}
    entries = [entry._replace(permissions=entry.permissions & bits.get(entry.tag, 7)) for entry in default]
    return entries, mode_of(entries, mode)[0]
