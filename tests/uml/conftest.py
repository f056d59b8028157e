"""What the tests in User-Mode Linux share."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cowfs.errors import UmlError
from cowfs.uml import UmlKernel, run, run_captured
from tests.conftest import REPOSITORY

LONG = {name: os.environ[name] for name in ("COWFS_TEST_LONG",) if name in os.environ}


# For a guest whose checks have their own limit: only one that no longer runs them reaches it.
GUEST_SECONDS = 1500


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test of a guest waits for all checks of the guest."""
    for item in items:
        if item.path.parent == Path(__file__).parent and "results" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(GUEST_SECONDS + 60))


class Results(dict[str, str]):
    """By check: why it failed; empty when it did not."""

    ended = "the program of the checks ended"

    def __missing__(self, name: str) -> str:
        return f"{name} did not end: {self.ended}"


@pytest.fixture(scope="session")
def results_of(uml_kernel: UmlKernel) -> Callable[..., dict[str, str]]:
    """Runs the checks of a module in a guest; what ended before the guest broke off counts."""

    def run_module(module: str, **options: Any) -> dict[str, str]:
        outputs: tuple[list[bytes], list[bytes]] = ([], [])
        results = Results()
        try:
            status = run(
                [sys.executable, "-m", module],
                kernel=uml_kernel,
                cwd=REPOSITORY,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/root"} | LONG,
                timeout_seconds=GUEST_SECONDS,
                stdout=outputs[0].append,
                stderr=outputs[1].append,
                **options,
            )
            results.ended = f"the program of the checks ended with status {status}"
        except UmlError as error:
            results.ended = str(error)
        output, errors = (b"".join(pieces).decode(errors="replace") for pieces in outputs)
        print(errors, end="", file=sys.stderr)
        for line in (json.loads(line) for line in output.splitlines() if line.startswith("{")):
            print(line.get("figure", f"{line.get('seconds')} s {line.get('id')}"))
            if "id" in line:
                results[line["id"]] = line["reason"]
        assert results, f"{results.ended}: {errors}"
        return results

    return run_module


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
