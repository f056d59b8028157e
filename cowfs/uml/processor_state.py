"""User-Mode Linux on processors with large registers (Intel's AMX).

The guest kernel restores the vector registers of a process by PTRACE_SETREGSET(NT_X86_XSTATE). The host takes nothing
but the whole state: 11 008 bytes with AMX. Kernels before 6.13 have a buffer of 2 696 bytes, so that their first
process ends in a panic. What lies in memory behind the buffer may be handed over with it: the header at byte 512 says
which registers follow, and those beyond the buffer are never among them, since a process has to ask for AMX before it
can use it. So one constant in the code is enough: the length of that request, which the host cuts to what it knows.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_CPUINFO: Final = Path("/proc/cpuinfo")
_LARGE_REGISTERS: Final = b"amx_tile"
_LENGTH_BYTES: Final = 2696
_ENLARGED_BYTES: Final = 16384
# movq $LENGTH,-0x8(%rbp); movl $PTRACE_SETREGSET,%edi
_RESTORE: Final = b"\x48\xc7\x45\xf8%b\xbf\x05\x42\x00\x00"


def has_large_registers() -> bool:
    """Whether this machine's processor has registers that the buffer of an older guest kernel does not hold."""
    try:
        return _LARGE_REGISTERS in _CPUINFO.read_bytes()
    except OSError:
        return False


def enlarged(code: bytes) -> bytes:
    """A kernel that hands over more than its buffer where it restores registers; `code` itself where it need not."""
    return code.replace(_restore(_LENGTH_BYTES), _restore(_ENLARGED_BYTES))


def open_enlarged(executable: Path) -> int:
    """A descriptor of such a copy in memory, to be executed as /proc/self/fd/N; the caller closes it."""
    fd = os.memfd_create("linux.uml")
    with open(fd, "wb", closefd=False) as file:
        file.write(enlarged(executable.read_bytes()))
    return fd


def _restore(length_bytes: int) -> bytes:
    return _RESTORE % length_bytes.to_bytes(4, "little")
