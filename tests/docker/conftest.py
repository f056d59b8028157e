"""Docker 20.10 in guests."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import pytest

from cowfs.errors import MissingRequirement
from cowfs.uml import UmlKernel
from tests.kit import docker_engine
from tests.kit.guests import run_in_guest

STEP_SECONDS = 600  # an image is built, loaded and run in one


@pytest.fixture(scope="module")
def steps_of(tmp_path_factory: pytest.TempPathFactory, uml_kernel: UmlKernel) -> Callable[[str], dict[str, Any]]:
    """What the steps of `guest_docker` came to in a guest, by name."""
    try:
        docker_engine.require()
    except MissingRequirement as error:
        pytest.skip(str(error))
    if os.geteuid() != 0:
        pytest.skip("dockerd needs files of its own owners, which only root can make; run: sudo make test")
    directory = tmp_path_factory.mktemp("docker")

    def run(driver: str) -> dict[str, Any]:
        words = ["tests.docker.guest_docker", driver, directory / driver]
        done = run_in_guest(uml_kernel, *words, memory_bytes=2 << 30, step_seconds=STEP_SECONDS)
        assert done.returncode == 0, f"{driver}: {done.stderr}"
        return dict(map(json.loads, done.stdout.splitlines()))

    return run
