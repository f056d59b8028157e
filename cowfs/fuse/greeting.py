"""The kernel's greeting (FUSE_INIT), answered by libfuse, with what libfuse cannot say.

libfuse 3.14 has no name for FUSE_HANDLE_KILLPRIV_V2, with which the kernel leaves it to the server to take set-id bits
away. Without it the kernel asks for `security.capability` before each write; with it, before the first one since it
learnt the attributes of a file.

`max_background` is how many writes and reads ahead may be under way. libfuse leaves it at the kernel's 12; what is
beyond that waits in a separate queue, which other requests overtake: the times of a file then come before its last
writes.

While libfuse answers, its descriptor of the device is a socket instead. Nothing else uses the device until then.

    Greeting(device, terms)     takes the kernel's request off the device and gives it to libfuse
    answer()                    gives libfuse's answer to the kernel, and the device back to libfuse

The layout is that of <linux/fuse.h>: a header of 40 bytes before a request, of 16 before an answer, then `major minor
max_readahead flags`, 32 bits each, and in the answer `max_background congestion_threshold`, 16 bits each, in the byte
order of the machine.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import Final, NamedTuple

HANDLE_KILLPRIV_V2: Final = 1 << 28
MAX_BACKGROUND: Final = (1 << 16) - 1

_INIT: Final = 26
_OPCODE: Final = struct.Struct("=4xI")
_REQUEST_FLAGS: Final = 40 + 12
_ANSWER_FLAGS: Final = 16 + 12
_ERROR: Final = struct.Struct("=4xi")
_FLAGS: Final = struct.Struct("=I")
_BACKGROUND: Final = struct.Struct("=HH")
_ANSWER_BACKGROUND: Final = _ANSWER_FLAGS + _FLAGS.size
_MAX_BYTES: Final = 1 << 16


class Terms(NamedTuple):
    """What to agree to beside what libfuse agrees to.

    Args:
        flags: where the kernel offers them.
        max_background: 0 leaves it as it is; the kernel gives an ordinary user no more than the system allows.
    """

    flags: int = 0
    max_background: int = 0


class Greeting:
    """Of one session.

    Args:
        device: libfuse's descriptor of the device, on which the kernel's greeting waits.
    """

    def __init__(self, device: int, terms: Terms) -> None:
        request = os.read(device, 1 << 20)
        self._device = device
        self._flags = terms.flags & _flags_of(request)
        self._max_background = terms.max_background
        self._kernel = os.dup(device)
        self._libfuse, replaced = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with replaced:
            os.dup2(replaced.fileno(), device, inheritable=False)
        self._libfuse.send(request)
        self._libfuse.setblocking(False)

    def answer(self) -> None:
        """Call once libfuse has answered."""
        os.dup2(self._kernel, self._device, inheritable=False)
        try:
            answer = bytearray(self._libfuse.recv(_MAX_BYTES))
            if len(answer) >= _ANSWER_BACKGROUND + _BACKGROUND.size and not _ERROR.unpack_from(answer)[0]:
                _FLAGS.pack_into(answer, _ANSWER_FLAGS, _FLAGS.unpack_from(answer, _ANSWER_FLAGS)[0] | self._flags)
                if self._max_background:
                    _BACKGROUND.pack_into(answer, _ANSWER_BACKGROUND, self._max_background, self._max_background)
            os.write(self._kernel, answer)
        finally:
            self._libfuse.close()
            os.close(self._kernel)


def _flags_of(request: bytes) -> int:
    """What the kernel offers: nothing in any other request."""
    if len(request) < _REQUEST_FLAGS + _FLAGS.size or _OPCODE.unpack_from(request)[0] != _INIT:
        return 0
    return int(_FLAGS.unpack_from(request, _REQUEST_FLAGS)[0])
