"""A mount that ends with a process: the server waits for that process by a descriptor of it, pidfd_open(2).

The descriptor names one process for good, whatever becomes of its number, and is readable once the process has ended,
with its last thread, by kill -9 too. Processes that were forked from it do not count.
"""

from __future__ import annotations

import os

from cowfs.errors import MissingRequirement, UsageError


def open_process(pid: int) -> int:
    """A descriptor of a process, which the caller closes.

    Raises:
        UsageError: no such process.
        MissingRequirement: the kernel has no such descriptors.
    """
    try:
        return os.pidfd_open(pid)
    except (ProcessLookupError, OverflowError):
        raise UsageError(f"there is no process {pid}, with which a mount could end") from None
    except OSError as error:
        raise MissingRequirement(
            f"the kernel does not let process {pid} be waited for: {error.strerror}",
            remedy="Linux 5.3 or later",
            errno=error.errno,
        ) from error
