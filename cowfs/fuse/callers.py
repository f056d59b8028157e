"""What the kernel does not say of who sends a request: groups and capabilities, read from /proc."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Final

from pyfuse3 import RequestContext

_CAP_FSETID: Final = 1 << 4


def without_set_id(mode: int, gid: int, ctx: RequestContext) -> int:
    """What is left of the mode of a file of group `gid` when this caller writes to it or gives it away.

    As `setattr_should_drop_suidgid` of the kernel: the set-group-id bit of a file that its group may not execute means
    something else, and is left to who may set it.
    """
    mode &= ~stat.S_ISUID
    if mode & stat.S_ISGID and (mode & stat.S_IXGRP or not may_keep_setgid(ctx, gid)):
        mode &= ~stat.S_ISGID
    return mode


def may_keep_set_id(ctx: RequestContext) -> bool:
    """Whether set-id bits outlive what this caller writes: root with CAP_FSETID, see `may_keep_setgid`."""
    fields = _status(ctx.pid)
    return ctx.uid == 0 and (fields is None or _has_fsetid(fields))


def may_keep_setgid(ctx: RequestContext, gid: int) -> bool:
    """Whether the set-group-id bit of a file of group `gid` outlives what this caller changes of its mode.

    So it is for members of the group, and for root with CAP_FSETID. Other users do not count as privileged, whatever
    capabilities they have: those may be of a separate user namespace. Of a caller in another PID namespace nothing
    can be read; then its user and group decide.
    """
    if ctx.gid == gid:
        return True
    fields = _status(ctx.pid)
    if fields is None:
        return ctx.uid == 0
    if str(gid) in fields["Groups"].split():
        return True
    return ctx.uid == 0 and _has_fsetid(fields)


def _has_fsetid(fields: dict[str, str]) -> bool:
    return bool(int(fields["CapEff"], 16) & _CAP_FSETID)


def _status(thread_id: int) -> dict[str, str] | None:
    """The fields of a thread's status; None when there is nothing to read."""
    try:
        text = Path(f"/proc/{thread_id}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
