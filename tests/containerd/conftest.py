"""What the tests of the snapshotter with containerd and Docker share."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cowfs.errors import MissingRequirement
from tests.conftest import Account
from tests.containerd.server import Server
from tests.kit import containerd_engine


@pytest.fixture
def directory(root_user: Account, needs_fuse: None) -> Iterator[Path]:
    """For containerd, which is here: a short path, for sockets."""
    try:
        containerd_engine.require()
    except MissingRequirement as error:
        pytest.skip(f"{error.message}; run: {error.remedy}")
    made = Path(tempfile.mkdtemp(prefix="ctr-"))
    made.chmod(0o711)  # for containers of other users
    yield made
    shutil.rmtree(made)


@pytest.fixture
def server(account: Account, needs_fuse: None) -> Iterator[Server]:
    made = Server(account)
    yield made
    if made.process is not None and made.process.poll() is None:
        made.stop()
