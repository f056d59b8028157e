"""Docker of today with its images and containers in containerd: on the snapshotter, beside containerd's overlayfs.

The same steps (load, run, a build of two stages with a cache, diff, cp, commit, rm, rmi, prune) have to come to the
same trees and the same differences.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Account
from tests.containerd.server import with_containerd
from tests.containerd.tiny_image import CHANGE, write_tiny_image
from tests.kit.containerd_engine import Docker

pytestmark = [pytest.mark.fuse, pytest.mark.slow, pytest.mark.timeout(600)]

OPTIONS = ("dm.loopdatasize=1G", "dm.loopmetadatasize=16M", "dm.basesize=128M")
DOCKERFILE = """\
FROM tiny:1 AS first
RUN --mount=type=cache,target=/cache echo made > /cache/kept && busybox cp /cache/kept /made && busybox rm /bin/ls
FROM tiny:1
COPY --from=first /made /from-first
COPY added /added
RUN --mount=type=cache,target=/cache busybox cat /cache/kept > /from-cache
RUN busybox rm /etc/b && busybox mkdir /etc/b && echo 1 > /etc/b/c && busybox chmod 4711 /added
"""
SHOW = """
busybox find / -xdev | busybox sort | busybox xargs busybox stat -c '%n %f %u %g %t %T'
busybox find / -xdev -type f | busybox sort | busybox xargs busybox sha256sum
busybox cat /big /etc/b/c /from-cache /from-first | busybox md5sum
"""


def run(docker: Docker, image: str, script: str, *options: str) -> str:
    """In a new container without a network."""
    return docker("run", "--network", "none", "--hostname", "box", *options, image, "sh", "-ec", script)


def outcome(docker: Docker, directory: Path) -> dict[str, object]:
    """What the steps come to; at their end nothing is left of them."""
    copied = directory / f"copied-{docker.snapshotter}"
    docker("load", "--input", directory / "image.tar")
    assert docker("info", "--format", "{{.Driver}}").strip() == docker.snapshotter
    found: dict[str, object] = {
        "loaded": run(docker, "tiny:1", SHOW.replace("/etc/b/c /from-cache /from-first", ""), "--rm")
    }
    docker("build", "--network", "none", "--tag", "built", directory / "context")
    found["built"] = run(docker, "built", SHOW, "--rm")
    run(docker, "built", CHANGE.replace("/etc/b", "/etc/d"), "--name", "one")
    docker("cp", directory / "context" / "added", "one:/d/copied")
    docker("cp", "one:/d", copied)
    found["copied"] = {path.name: path.read_text() for path in copied.iterdir()}
    found["diff"] = sorted(docker("diff", "one").splitlines())
    docker("commit", "one", "committed")
    found["committed"] = run(docker, "committed", SHOW, "--rm")
    docker("rm", "one")
    docker("rmi", "committed", "built", "tiny:1")
    docker("builder", "prune", "--all", "--force")
    docker("system", "prune", "--all", "--volumes", "--force")
    return found


def test_containers_and_builds_are_as_with_overlayfs(directory: Path, root_user: Account) -> None:
    write_tiny_image(directory / "image.tar")
    (directory / "context").mkdir()
    (directory / "context" / "added").write_text("added\n")
    (directory / "context" / "Dockerfile").write_text(DOCKERFILE)
    outcomes: dict[str, dict[str, object]] = {}
    with with_containerd(root_user, directory, *OPTIONS) as (engine, server):
        for snapshotter in ("cowfs", "overlayfs"):
            with Docker(engine, snapshotter) as docker:
                outcomes[snapshotter] = outcome(docker, directory)
            left = engine.ctr("-n", docker.namespace, "snapshots", "--snapshotter", snapshotter, "ls")
            assert left.split() == ["KEY", "PARENT", "KIND"]
    assert outcomes["cowfs"] == outcomes["overlayfs"]
    assert outcomes["cowfs"]["copied"] == {"copied": "added\n", "f": "z\n"}
    assert outcomes["cowfs"]["diff"] == sorted(
        ["A /d", "A /d/copied", "A /d/f", "A /etc/d", "A /new", "C /bin", "C /etc", "D /bin/ls"]
    )
    assert "/added 89c9 0 0" in str(outcomes["cowfs"]["committed"]), outcomes["cowfs"]["committed"]
    assert server.log().count("unpacked sha256:") >= 3
