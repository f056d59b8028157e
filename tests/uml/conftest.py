"""What the tests in User-Mode Linux share."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

import pytest

from cowfs.uml import UmlKernel, run_captured
from tests.conftest import REPOSITORY

LONG = {name: os.environ[name] for name in ("COWFS_TEST_LONG",) if name in os.environ}


@pytest.fixture(scope="session")
def results_of(uml_kernel: UmlKernel) -> Callable[..., dict[str, str]]:
    """Runs the checks of a module in a guest; by check: why it failed, if it did."""

    def run(module: str, timeout_seconds: float = 250, **options: Any) -> dict[str, str]:
        done = run_captured(
            [sys.executable, "-m", module],
            kernel=uml_kernel,
            cwd=REPOSITORY,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/root"} | LONG,
            timeout_seconds=timeout_seconds,
            **options,
        )
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        for line in lines:
            print(line.get("figure", f"{line.get('seconds')} s {line.get('id')}"))
        return {line["id"]: line["reason"] for line in lines if "id" in line}

    return run


def run_suite(kernel: UmlKernel, module: str, *arguments: str, **options: Any) -> dict[str, dict[str, str]]:
    """Run a suite of `cowfs.testing` on the kernel's pools, in one boot and on files in the guest's memory.

    So discards are passed down, and large sparse devices cost nothing.

    Returns:
        By case: result (passed, failed, skipped) and reason.
    """
    done = run_captured(
        [sys.executable, "-m", module, "--backend", "dmthin", "--json", *arguments, "/run"],
        kernel=kernel,
        cwd=REPOSITORY,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/root", "TMPDIR": "/run"},
        **options,
    )
    found = {one["id"]: one for one in map(json.loads, done.stdout.splitlines())}
    assert found, done.stderr
    return found
