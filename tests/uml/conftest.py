"""What the tests in User-Mode Linux share."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

import pytest

from cowfs.errors import UmlError
from cowfs.uml import UmlKernel, run
from tests.conftest import REPOSITORY
from tests.kit.guests import ENVIRONMENT, STEP_SECONDS, run_in_guest

LONG = {name: os.environ[name] for name in ("COWFS_TEST_LONG",) if name in os.environ}


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
                env=ENVIRONMENT | LONG,
                silence_seconds=STEP_SECONDS,
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
    words = [module, "--backend", "dmthin", "--json", *arguments, "/run"]
    done = run_in_guest(kernel, *words, env=ENVIRONMENT | {"TMPDIR": "/run"}, **options)
    found = {one["id"]: one for one in map(json.loads, done.stdout.splitlines())}
    assert found, done.stderr
    return found
