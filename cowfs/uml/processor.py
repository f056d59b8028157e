"""A processor for each guest.

A guest has one processor and its kernel traces its processes: the two take turns at every system call and page fault.
On one processor of the host that costs half of what it costs across two.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager


@contextmanager
def claimed_processor() -> Iterator[int | None]:
    """The number of a processor that no other guest has, until the block ends; None when each has one.

    A claim is an abstract socket's address, which ends with its process, however that ends.
    """
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)) as claim:
        for processor in sorted(os.sched_getaffinity(0)):
            try:
                claim.bind(f"\0cowfs-uml-processor-{processor}")
            except OSError:
                continue
            yield processor
            return
        yield None
