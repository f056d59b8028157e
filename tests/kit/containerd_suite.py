"""containerd's own suite of tests for snapshotters, as a program that tests the snapshotter behind a socket.

    python -m tests.kit.containerd_suite 1.7 2.1      fetches what these releases need, and compiles their suites

The suite of 1.6 is in a package of the system, and is compiled where it is first asked for. Those of other releases
come from packages of newer Debians with their compiler, 65 MB each, which are unpacked for that as any user.

    SNAPSHOTTER=SOCKET TMPDIR=DIRECTORY PROGRAM -test.root -test.v
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cowfs.debian_packages import unpack
from cowfs.errors import MissingRequirement

_SHARE: Final = Path(sys.prefix) / "share" / "cowfs"
_SUITES: Final = _SHARE / "containerd-suites"
_CACHE: Final = Path(__file__).parents[2] / ".cache" / "go"
_FETCH_COMMAND: Final = "python -m tests.kit.containerd_suite"
_PACKAGES: Final = (
    *("github-containerd-containerd", "github-containerd-continuity", "github-containerd-errdefs"),
    *("github-containerd-log", "github-containerd-ttrpc", "github-containerd-typeurl", "github-davecgh-go-spew"),
    *("github-gogo-protobuf", "github-golang-protobuf-1-5", "github-google-go-cmp", "github-moby-sys"),
    *("github-opencontainers-go-digest", "github-opencontainers-image-spec", "github-pmezard-go-difflib"),
    *("github-sirupsen-logrus", "github-stretchr-testify", "golang-x-net", "golang-x-sync", "golang-x-sys"),
    *("golang-x-text", "google-genproto", "google-grpc", "google-protobuf", "gopkg-yaml.v3"),
)
# Without optimization, as a suite computes for less time than its compiler would; Go's own library is there compiled.
_COMPILED_QUICKLY: Final = [f"-gcflags={path}/...=-N -l" for path in ("github.com", "google.golang.org", "golang.org")]

_PROGRAM: Final = """\
package suite

import (
	"context"
	"net"
	"os"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/{snapshots}"
	"github.com/containerd/containerd/{snapshots}/proxy"
	"github.com/containerd/containerd/{snapshots}/testsuite"
	"google.golang.org/grpc"
)

func TestCowfs(t *testing.T) {{
	dial := func(_ context.Context, _ string) (net.Conn, error) {{ return net.Dial("unix", os.Getenv("SNAPSHOTTER")) }}
	connection, err := grpc.{dial}("passthrough:///cowfs", grpc.WithInsecure(), grpc.WithContextDialer(dial))
	if err != nil {{
		t.Fatal(err)
	}}
	snapshotter := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(connection), "cowfs")
	testsuite.SnapshotterSuite(t, "cowfs", func(context.Context, string) (snapshots.Snapshotter, func() error, error) {{
		return snapshotter, func() error {{ return nil }}, nil
	}})
}}
"""


@dataclass(frozen=True)
class Suite:
    """Of a release of containerd.

    Args:
        debian: the release of Debian with its sources; empty for the system's own.
        compiler: the version of Go there.
        passed, skipped: how many tests the suite has; those it runs on no driver are skipped.
    """

    release: str
    debian: str
    compiler: str
    passed: int
    skipped: int
    snapshots: str = "snapshots"
    dial: str = "Dial"
    more_packages: tuple[str, ...] = ()

    @property
    def program(self) -> Path:
        return _SUITES / f"{self.release}.test"

    @property
    def _root(self) -> Path:
        return _SHARE / f"containerd-{self.release}-sources" if self.debian else Path("/")

    def require(self) -> Path:
        """The program. Raises MissingRequirement where it must be fetched first, or the system has no compiler."""
        if not self.program.exists():
            if self.debian:
                raise MissingRequirement(
                    f"the suite of containerd {self.release} is not compiled", remedy=f"{_FETCH_COMMAND} {self.release}"
                )
            self._compile()
        return self.program

    def fetch(self) -> None:
        """Download, unpack and compile what is not there yet."""
        if self.debian and not self.program.exists():
            packages = [f"golang-{name}-dev" for name in (*_PACKAGES, *self.more_packages)]
            packages += [f"golang-{self.compiler}-go", f"golang-{self.compiler}-src"]
            unpack(packages, self._root, release=self.debian, is_whole=self._has_sources)
            self._compile()
            shutil.rmtree(self._root)

    def _has_sources(self, root: Path) -> bool:
        return (root / "usr/share/gocode/src/github.com/containerd/containerd" / self.snapshots / "testsuite").is_dir()

    def _compile(self) -> None:
        """Go keeps what it has compiled by its content."""
        environment = {**os.environ, "GO111MODULE": "off", "GOFLAGS": "-buildvcs=false", "GOCACHE": str(_CACHE)}
        compiler = "go"
        if self.debian:
            environment["GOROOT"] = str(self._root / f"usr/lib/go-{self.compiler}")
            compiler = f"{environment['GOROOT']}/bin/go"
        if shutil.which(compiler) is None or not self._has_sources(self._root):
            packages = "golang-go golang-github-containerd-containerd-dev"
            raise MissingRequirement("containerd's suite is not here", remedy=f"apt-get install {packages}")
        _SUITES.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=_SUITES) as name:
            source = Path(name) / "src" / "suite"
            source.mkdir(parents=True)
            (source / "suite_test.go").write_text(_PROGRAM.format(snapshots=self.snapshots, dial=self.dial))
            environment["GOPATH"] = f"{name}:{self._root / 'usr/share/gocode'}"
            made = Path(name) / "suite.test"
            command = [compiler, "test", *_COMPILED_QUICKLY, "-c", "-o", str(made), "."]
            subprocess.run(command, cwd=source, env=environment, check=True)
            made.rename(self.program)


SUITES: Final = {
    suite.release: suite
    for suite in (
        Suite("1.6", "", "", passed=20, skipped=1),
        Suite("1.7", "trixie", "1.24", passed=21, skipped=0),
        Suite(
            "2.1",
            "sid",
            "1.26",
            passed=21,
            skipped=0,
            snapshots="v2/core/snapshots",
            dial="NewClient",
            more_packages=("github-containerd-containerd-api",),
        ),
    )
}


if __name__ == "__main__":
    for word in sys.argv[1:]:
        SUITES[word].fetch()
        print(SUITES[word].require())
