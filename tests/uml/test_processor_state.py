"""Guests on processors whose registers are larger than the guest kernel's buffer for them."""

from __future__ import annotations

import os
import sys

import pytest

from cowfs.uml import UmlKernel, guest, run_captured
from cowfs.uml.processor_state import enlarged, open_enlarged

# Threads that are preempted in vector instructions: a register that is not restored makes a wrong sum.
HASH_IN_THREADS = """
import hashlib, zlib
from concurrent.futures import ThreadPoolExecutor
data = bytes(range(256)) * 4096
def sums(_):
    return {(hashlib.sha256(data).hexdigest(), zlib.crc32(bytearray(data))) for _ in range(20)}
with ThreadPoolExecutor(4) as threads:
    print(len(set().union(*threads.map(sums, range(4)))))
"""


def test_one_constant_of_the_kernel_changes(uml_kernel: UmlKernel) -> None:
    before = uml_kernel.executable.read_bytes()
    after = enlarged(before)
    different = [index for index, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]]
    assert len(after) == len(before)
    assert len(different) in (0, 2)  # none: a kernel that asks the host how large the registers are
    assert enlarged(after) == after


def test_the_copy_is_in_memory_and_is_the_kernel(uml_kernel: UmlKernel) -> None:
    fd = open_enlarged(uml_kernel.executable)
    try:
        assert os.pread(fd, 4, 0) == b"\x7fELF"
        assert os.fstat(fd).st_size == uml_kernel.executable.stat().st_size
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


def test_registers_stay_with_their_thread(uml_kernel: UmlKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest, "has_large_registers", lambda: True)
    result = run_captured([sys.executable, "-c", HASH_IN_THREADS], kernel=uml_kernel, check=True, timeout_seconds=60)
    assert result.stdout == "1\n"
