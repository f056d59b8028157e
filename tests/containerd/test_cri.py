"""A pod on the snapshotter: containerd's CRI, asked as a kubelet asks it, without a network of its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Account
from tests.containerd.server import with_containerd
from tests.containerd.tiny_image import write_tiny_image
from tests.kit.cri import Kubelet

pytestmark = [pytest.mark.fuse, pytest.mark.slow, pytest.mark.timeout(300)]

FOREVER = ("busybox", "sleep", "3600")
CHANGED_BYTES = 8 << 16
CHANGE = (
    "busybox id -u; busybox dd if=/dev/urandom of=/random bs=64k count=8 2> /dev/null; cat /etc/b; busybox rm /bin/ls"
)


def wait_until(holds: Callable[[], bool]) -> None:
    """What containerd finds out about snapshots each second."""
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_pod_runs_and_leaves_nothing(directory: Path, root_user: Account, debian_registry: str) -> None:
    """Its images are pulled from a registry; a second pod runs beside it, and what kubelet watches is told."""
    image, pause = (f"{debian_registry}/team/{name}:1" for name in ("tiny", "pause"))
    for name, command in ((image, ("sh",)), (pause, FOREVER)):
        archive = write_tiny_image(directory / "image.tar", command=command)
        source, target = f"oci-archive:{archive}", f"docker://{name}"
        root_user.run(["skopeo", "copy", "--insecure-policy", "--dest-tls-verify=false", source, target])
    with (
        with_containerd(root_user, directory, pause_image=pause) as (engine, server),
        Kubelet(engine.socket) as kubelet,
    ):
        kubelet.pull(image)
        logs = directory / "logs"
        logs.mkdir()
        with kubelet.pod("first", logs) as first, kubelet.pod("second", logs) as second:
            containers = [kubelet.run_container(pod, image, FOREVER) for pod in (first, second)]
            for container in containers:
                assert kubelet.exec(container, "sh", "-ec", CHANGE).split() == ["0", "two"]
            wait_until(lambda: kubelet.writable_bytes(containers[0]) >= CHANGED_BYTES)
            wait_until(lambda: kubelet.image_filesystems()[0].used_bytes > CHANGED_BYTES)
            assert [row.mount_point for row in kubelet.image_filesystems()] == [str(server.home)]
        for name in (image, pause):
            kubelet.remove_image(name)
    assert server.log().count("unpacked sha256:") == 3, "the layers of the second image are there"
