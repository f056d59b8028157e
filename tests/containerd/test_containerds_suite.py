"""containerd's own suite of tests for snapshotters: as root, as root of a user namespace, and on the kernel's pool.

The suites of 1.6 and 1.7 always run, that of 2.1 where it was compiled (`tests.kit.containerd_suite`). The test of 128
layers, longer than all others together, runs once, as root, in the newest suite that is compiled; with
COWFS_TEST_LONG=1 everywhere.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cowfs.errors import MissingRequirement
from cowfs.uml import find_kernel, run_captured
from tests.conftest import REPOSITORY, Account
from tests.containerd.run_suite import WITHOUT_128_LAYERS
from tests.kit.containerd_suite import SUITES
from tests.kit.user_namespace import FIRST

SECONDS = 600
RELEASES = [release for release, suite in SUITES.items() if release in ("1.6", "1.7") or suite.program.exists()]
CHOSEN = "" if os.environ.get("COWFS_TEST_LONG") else WITHOUT_128_LAYERS
WITH_128_LAYERS = [release for release in RELEASES if release == "1.6" or SUITES[release].program.exists()][-1]
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/root"}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(SECONDS + 60)]


@pytest.fixture(params=RELEASES)
def release(request: pytest.FixtureRequest) -> str:
    """One whose suite is compiled."""
    try:
        SUITES[request.param].require()
    except MissingRequirement as error:
        pytest.skip(f"{error.message}; run: {error.remedy}")
    return str(request.param)


def words(release: str, directory: Path, backend: str, *rounds: str) -> list[str]:
    program = [sys.executable, "-m", "tests.containerd.run_suite"]
    return [*program, release, str(directory), backend, *rounds]


@pytest.mark.fuse
def test_twice_in_a_row_on_one_home(release: str, root_user: Account, needs_fuse: None) -> None:
    first = "" if release == WITH_128_LAYERS else CHOSEN
    root_user.run(words(release, root_user.directory, "emulated", first, CHOSEN), cwd=REPOSITORY, timeout=SECONDS)


@pytest.fixture
def own_directory(root_user: Account, ordinary_user: Account) -> Iterator[Path]:
    """Of the root of a user namespace, who sees the checkout as every ordinary user does."""
    made = Path(tempfile.mkdtemp(prefix="rootless-"))
    made.chmod(0o755)
    os.chown(made, FIRST, FIRST)
    yield made
    shutil.rmtree(made)


@pytest.mark.fuse
def test_without_root(release: str, own_directory: Path, root_user: Account, needs_fuse: None) -> None:
    inside = words(release, own_directory, "emulated", CHOSEN)
    namespace = [sys.executable, "-m", "tests.kit.user_namespace"]
    environment = {"HOME": str(own_directory)}
    root_user.run([*namespace, *inside], cwd=REPOSITORY, env=environment, timeout=SECONDS)


def test_on_the_kernels_pool(release: str) -> None:
    try:
        kernel = find_kernel()
    except MissingRequirement as error:
        pytest.skip(str(error))
    done = run_captured(
        words(release, Path("/run"), "dmthin", CHOSEN),
        kernel=kernel,
        cwd=REPOSITORY,
        env=ENVIRONMENT,
        memory_bytes=1 << 30,
        timeout_seconds=SECONDS,
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
