"""Names in a layer archive: paths relative to the layer's root, whiteouts, and what leads out of the layer.

The target of a symbolic link is not such a name, but text that a layer may hold whatever it says, and paths through it
are resolved within the layer's root.

    dir/.wh.NAME          NAME is deleted, with everything below it
    dir/.wh..wh..opq      dir is opaque: nothing of it comes from the layers below
    .wh..wh.plnk/NAME     aufs's files with several names: sources of hard links, no files of the layer
    .wh..wh.*             at the top: other notes of aufs, no files of the layer

A file that has such a name is in the archive under a substitute, `.cowfs-name.wh.NAME`, and a record beside it has
its true path (docs/decisions/0010-names-of-whiteouts.md).

Source: the OCI image specification, layer.md; for what is at the top, moby's pkg/archive.
"""

from __future__ import annotations

import hashlib
from typing import Final

from cowfs.errors import ArchiveError, BreakoutError

WHITEOUT_PREFIX: Final = b".wh."
OPAQUE: Final = b".wh..wh..opq"
NOTE_PREFIX: Final = b".wh..wh."
LINK_SOURCES: Final = b".wh..wh.plnk"
SUBSTITUTE_PREFIX: Final = b".cowfs-name"

_NAME_BYTES_MAX: Final = 255

_SHOWN_MAX: Final = 256


def show(name: bytes) -> str:
    """A name for a message."""
    shown = name if len(name) <= _SHOWN_MAX else name[:_SHOWN_MAX] + b"..."
    return shown.decode(errors="backslashreplace")


def split(name: bytes, entry: bytes) -> list[bytes]:
    """The components of a name in an archive, cleaned; of the root there are none. Absolute names are made relative.

    A name may be as long as its header: longer than a path of the kernel.

    Args:
        name: of an entry, or of the target of a hard link.
        entry: of the entry, for messages.

    Raises:
        BreakoutError: it leads out of the layer.
        ArchiveError: it cannot be a name.
    """
    if b"\0" in name:
        raise ArchiveError("a name with a zero byte in it", entry=show(entry))
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            if not parts:
                raise BreakoutError(f"the name '{show(name)}' leads out of the layer", entry=show(entry))
            parts.pop()
        elif part not in (b"", b"."):
            parts.append(part)
    return parts


def hidden_by(whiteout: bytes, entry: bytes) -> bytes:
    """The name that a whiteout hides, `.wh.` taken away.

    Raises:
        BreakoutError: it is none, so that more than the directory's own would go.
    """
    hidden = whiteout[len(WHITEOUT_PREFIX) :]
    if hidden in (b"", b".", b".."):
        raise BreakoutError("a whiteout of no name in its directory", entry=show(entry))
    return hidden


def is_reserved(name: bytes) -> bool:
    """Whether a name means something else in an archive, so that no file can have it there."""
    return name.startswith(WHITEOUT_PREFIX)


def substitute(path: bytes) -> bytes:
    """The path with another name for each that is reserved: the same each time, and short enough for a file."""
    if WHITEOUT_PREFIX not in path:
        return path
    return b"/".join(_substitute(name) if is_reserved(name) else name for name in path.split(b"/"))


def _substitute(name: bytes) -> bytes:
    whole = SUBSTITUTE_PREFIX + name
    return (
        whole if len(whole) <= _NAME_BYTES_MAX else SUBSTITUTE_PREFIX + b"." + hashlib.sha256(name).hexdigest().encode()
    )
