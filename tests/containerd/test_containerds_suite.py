"""containerd's own suite of tests for snapshotters, built from Debian's package, twice in a row on one home."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, Account
from tests.containerd.grpc_client import GrpcClient
from tests.containerd.server import Server, names

pytestmark = [pytest.mark.fuse, pytest.mark.slow, pytest.mark.timeout(900)]

SOURCES = Path("/usr/share/gocode")
SUITE = SOURCES / "src/github.com/containerd/containerd/snapshots/testsuite"
PROGRAM = """\
package suite

import (
	"context"
	"net"
	"os"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/snapshots"
	"github.com/containerd/containerd/snapshots/proxy"
	"github.com/containerd/containerd/snapshots/testsuite"
	"google.golang.org/grpc"
)

func TestCowfs(t *testing.T) {
	dial := func(_ context.Context, _ string) (net.Conn, error) { return net.Dial("unix", os.Getenv("SNAPSHOTTER")) }
	connection, err := grpc.Dial("cowfs", grpc.WithInsecure(), grpc.WithContextDialer(dial))
	if err != nil {
		t.Fatal(err)
	}
	snapshotter := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(connection), "cowfs")
	testsuite.SnapshotterSuite(t, "cowfs", func(context.Context, string) (snapshots.Snapshotter, func() error, error) {
		return snapshotter, func() error { return nil }, nil
	})
}
"""


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The suite as a program. Go keeps what it has compiled by content, so only the first run compiles all of it."""
    if shutil.which("go") is None or not SUITE.is_dir():
        pytest.skip("needs containerd's suite; run: apt-get install golang-go golang-github-containerd-containerd-dev")
    directory = tmp_path_factory.mktemp("suite")
    source = directory / "src" / "suite"
    source.mkdir(parents=True)
    (source / "suite_test.go").write_text(PROGRAM)
    environment = {
        **os.environ,
        "GO111MODULE": "off",
        "GOPATH": f"{directory}:{SOURCES}",
        "GOFLAGS": "-buildvcs=false",
        "GOCACHE": str(REPOSITORY / ".cache" / "go"),
    }
    program = directory / "suite.test"
    subprocess.run(["go", "test", "-c", "-o", program, "."], cwd=source, env=environment, check=True)
    return program


@pytest.fixture
def server(root_user: Account, needs_fuse: None) -> Iterator[Server]:
    made = Server(root_user)
    yield made
    if made.process is not None and made.process.poll() is None:
        made.stop()


def test_it_passes(suite: Path, server: Server, tmp_path: Path) -> None:
    with server.start() as client:
        for _ in range(2):
            done = subprocess.run(
                [suite, "-test.root", "-test.v"],
                env={**os.environ, "SNAPSHOTTER": str(server.socket), "TMPDIR": str(tmp_path)},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stdout[-4000:]
            assert done.stdout.count("--- PASS: TestCowfs/") == 20
            assert done.stdout.count("--- SKIP: TestCowfs/") == 1  # Rename, which the suite runs on no driver
            remove_all(client)
    assert server.stop() == 0, server.log()
    assert "snapshot-" not in server.cowfs("list")
    assert server.cowfs("pool", "check").startswith("clean")


def remove_all(client: GrpcClient) -> None:
    """As containerd's garbage collection: children first."""
    while left := names(client):
        parents = {info.parent for answer in client.answers("List") for info in answer.info}
        for name in left:
            if name not in parents:
                client.call("Remove", key=name)
