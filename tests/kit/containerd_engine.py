"""containerd and Docker of today, as clients of the snapshotter and as peers: Debian's packages, unpacked as any user.

    python -m tests.kit.containerd_engine      fetches and unpacks them below the virtual environment

containerd 1.7 and Docker 26 are Debian 13's, runc is Debian 12's, which runs with the C library of both. They run on
this machine, as root, below directories of their own and without networks:

    with Containerd(directory, snapshotter_socket) as engine:
        engine.ctr("images", "import", "--snapshotter", "cowfs", "image.tar")
        with Docker(engine, "cowfs") as docker:
            docker("load", "--input", "image.tar")
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Final, NamedTuple, Self

from cowfs.debian_packages import unpack
from cowfs.errors import MissingRequirement

_SHARE: Final = Path(sys.prefix) / "share" / "cowfs"
UNPACKED: Final = _SHARE / "containerd"
RUNC: Final = _SHARE / "runc"
PACKAGES: Final = ("containerd", "docker.io", "docker-cli", "docker-buildx")
RUNC_PACKAGES: Final = ("runc", "busybox-static", "tini")
FETCH_COMMAND: Final = "python -m tests.kit.containerd_engine"
BUSYBOX: Final = RUNC / "bin" / "busybox"
_START_SECONDS: Final = 120.0
_STOP_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.02

_CONFIG: Final = """\
version = 2
root = "{directory}/root"
state = "{directory}/state"
disabled_plugins = [{disabled}]
[grpc]
  address = "{directory}/containerd.sock"
[ttrpc]
  address = "{directory}/containerd.sock.ttrpc"
[proxy_plugins.cowfs]
  type = "snapshot"
  address = "{snapshotter}"
[proxy_plugins.cowfs-diff]
  type = "diff"
  address = "{snapshotter}"
[plugins."io.containerd.service.v1.diff-service"]
  default = [{differs}]
"""
_CRI: Final = "io.containerd.grpc.v1.cri"
_CRI_CONFIG: Final = """\
[proxy_plugins.cowfs.exports]
  root = "{images}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause_image}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  stats_collect_period = 1
  [plugins."io.containerd.grpc.v1.cri".cni]
    conf_dir = "{directory}/cni"
    bin_dir = "{directory}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "cowfs"
"""


def is_unpacked(root: Path = UNPACKED) -> bool:
    programs = ("usr/sbin/dockerd", "usr/bin/docker", "usr/bin/containerd", "usr/bin/ctr")
    return all(os.access(root / program, os.X_OK) for program in programs)


def is_runc_unpacked(root: Path = RUNC) -> bool:
    return all(os.access(root / program, os.X_OK) for program in ("usr/sbin/runc", "bin/busybox"))


def require() -> None:
    """Raises MissingRequirement when the packages were not fetched."""
    if not (is_unpacked() and is_runc_unpacked()):
        raise MissingRequirement("containerd 1.7 is not unpacked", remedy=FETCH_COMMAND)


def fetch() -> None:
    """Download the packages and unpack them; nothing when they are there."""
    if not is_unpacked():
        unpack(PACKAGES, UNPACKED, release="trixie", is_whole=is_unpacked)
    if not is_runc_unpacked():
        unpack(RUNC_PACKAGES, RUNC, release="bookworm", is_whole=is_runc_unpacked)


class Pods(NamedTuple):
    """What a containerd is told of Kubernetes' pods.

    Attributes:
        pause_image: what keeps a pod, and runs for ever.
        images: the directory whose disk has the images.
    """

    pause_image: str
    images: Path


class Containerd:
    """A daemon with its files below one directory.

    Args:
        directory: its path shall be short, since sockets are made in it.
        snapshotter: the socket of `cowfs snapshotter`.
        pods: what a kubelet's pods need; without that, nothing of Kubernetes' is served.
    """

    def __init__(
        self, directory: Path, snapshotter: Path, *, programs: Path = UNPACKED, pods: Pods | None = None
    ) -> None:
        self.directory = directory
        self.socket = directory / "containerd.sock"
        self._snapshotter = snapshotter
        self._pods = pods
        self._daemon: subprocess.Popen[bytes] | None = None
        self._differs: Sequence[str] = ("cowfs-diff", "walking")
        paths = [programs / "usr/bin", programs / "usr/sbin", RUNC / "usr/sbin", RUNC / "usr/bin"]
        self.environment = {
            **os.environ,
            "PATH": os.pathsep.join([*map(str, paths), os.environ.get("PATH", os.defpath)]),
            "CONTAINERD_ADDRESS": str(self.socket),
            "HOME": str(directory),
        }

    def start(self) -> None:
        """Start the daemon and wait until it answers. Raises RuntimeError with the end of its log."""
        self.directory.mkdir(parents=True, exist_ok=True)
        config = self.directory / "config.toml"
        differs = json.dumps(self._differs)[1:-1]
        disabled = f'"{_CRI}"' if self._pods is None else ""
        text = _CONFIG.format(
            directory=self.directory, snapshotter=self._snapshotter, differs=differs, disabled=disabled
        )
        if self._pods is not None:
            text += _CRI_CONFIG.format(directory=self.directory, **self._pods._asdict())
        config.write_text(text)
        with (self.directory / "containerd.log").open("ab") as log:
            self._daemon = subprocess.Popen(
                ["containerd", "--config", config], env=self.environment, stdout=log, stderr=log
            )
        deadline = time.monotonic() + _START_SECONDS
        while not self.socket.exists() or self._run("version").returncode != 0:
            if self._daemon.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"containerd did not start: {self.log_tail()}")
            time.sleep(_POLL_SECONDS)

    def stop(self, *, kill: bool = False) -> None:
        if self._daemon is not None:
            if kill:
                self._daemon.kill()
            _end(self._daemon)
            self._daemon = None

    def restart_with(self, differs: Sequence[str]) -> None:
        """End the daemon, and start it with these differs, in order of preference."""
        self.stop()
        self._differs = differs
        self.start()

    def ctr(self, *arguments: str | Path, stdin: IO[bytes] | None = None) -> str:
        """Run a command of the client; what it prints. Raises RuntimeError with what it complains about."""
        result = self._run(*arguments, stdin=stdin)
        if result.returncode != 0:
            words = " ".join(map(str, arguments))
            raise RuntimeError(f"ctr {words}: {result.stderr.decode(errors='replace').strip()}")
        return result.stdout.decode(errors="replace")

    def _run(self, *arguments: str | Path, stdin: IO[bytes] | None = None) -> subprocess.CompletedProcess[bytes]:
        source = subprocess.DEVNULL if stdin is None else stdin
        return subprocess.run(["ctr", *arguments], env=self.environment, stdin=source, capture_output=True, check=False)

    def log_tail(self) -> str:
        return _warnings(self.directory / "containerd.log")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()


class Docker:
    """A daemon of Docker that keeps its images and containers in a containerd, without networks and firewalls.

    Args:
        snapshotter: of the containerd; what the daemon keeps there is in namespaces of its name.
    """

    def __init__(self, engine: Containerd, snapshotter: str, *, programs: Path = UNPACKED) -> None:
        self.snapshotter = snapshotter
        self.namespace = f"moby-{snapshotter}"
        self._engine = engine
        self._directory = engine.directory / snapshotter
        self._daemon: subprocess.Popen[bytes] | None = None
        self._socket = self._directory / "docker.sock"
        self._plugins = programs / "usr/libexec/docker/cli-plugins"
        settings = {"DOCKER_HOST": f"unix://{self._socket}", "DOCKER_CONFIG": str(self._directory)}
        self._environment = {**engine.environment, **settings}

    def start(self) -> None:
        """Start the daemon and wait until it answers. Raises RuntimeError with the end of its log."""
        self._directory.mkdir()
        (self._directory / "config.json").write_text(json.dumps({"cliPluginsExtraDirs": [str(self._plugins)]}))
        settings = {"features": {"containerd-snapshotter": True}, "storage-driver": self.snapshotter}
        (self._directory / "daemon.json").write_text(json.dumps(settings))
        words: list[str | Path] = ["dockerd", "--config-file", self._directory / "daemon.json"]
        words += ["--containerd", self._engine.socket, "--containerd-namespace", self.namespace]
        words += ["--containerd-plugins-namespace", f"plugins-{self.snapshotter}", "--host", f"unix://{self._socket}"]
        words += ["--data-root", self._directory / "data", "--exec-root", self._directory / "exec"]
        words += ["--pidfile", self._directory / "pid", "--iptables=false", "--ip6tables=false", "--bridge=none"]
        with (self._directory / "dockerd.log").open("wb") as log:
            self._daemon = subprocess.Popen(words, env=self._environment, stdout=log, stderr=log)
        deadline = time.monotonic() + _START_SECONDS
        while not self._socket.exists() or self._run("version").returncode != 0:
            if self._daemon.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"dockerd did not start: {_warnings(self._directory / 'dockerd.log')}")
            time.sleep(_POLL_SECONDS)

    def stop(self) -> None:
        if self._daemon is not None:
            _end(self._daemon)
            self._daemon = None

    def __call__(self, *arguments: str | Path) -> str:
        """Run a command of the client; what it prints. Raises RuntimeError with what it complains about."""
        result = self._run(*arguments)
        if result.returncode != 0:
            words = " ".join(map(str, arguments))
            raise RuntimeError(f"docker {words}: {result.stderr.decode(errors='replace').strip()}")
        return result.stdout.decode(errors="replace")

    def _run(self, *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
        words = ["docker", *arguments]
        return subprocess.run(words, env=self._environment, stdin=subprocess.DEVNULL, capture_output=True, check=False)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()


def _end(daemon: subprocess.Popen[bytes]) -> None:
    daemon.terminate()
    try:
        daemon.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _warnings(log: Path) -> str:
    """The last ones, and errors."""
    lines = log.read_text(errors="replace").splitlines()
    return "\n".join(line for line in lines if "level=info" not in line)[-2000:]


def write_image(path: Path, name: str, layers: Sequence[tuple[bytes, bytes, str]], command: Sequence[str]) -> None:
    """An archive of one image, as `ctr images import` and `docker load` read it.

    Args:
        layers: of each, its tar archive, its blob, and the blob's media type.
    """
    blobs: dict[str, bytes] = {}

    def add(data: bytes) -> dict[str, str | int]:
        digest = hashlib.sha256(data).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = data
        return {"digest": f"sha256:{digest}", "size": len(data)}

    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": list(command), "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(tar).hexdigest()}" for tar, _, _ in layers]},
    }
    described = add(json.dumps(config).encode())
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", **described},
        "layers": [{"mediaType": kind, **add(blob)} for _, blob, kind in layers],
    }
    entry = {
        "mediaType": manifest["mediaType"],
        **add(json.dumps(manifest).encode()),
        "platform": {"architecture": "amd64", "os": "linux"},
        "annotations": {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name.rpartition(":")[2]},
    }
    docker = {
        "Config": f"blobs/sha256/{str(described['digest']).removeprefix('sha256:')}",
        "RepoTags": [name.removeprefix("docker.io/library/")],
        "Layers": [f"blobs/sha256/{hashlib.sha256(blob).hexdigest()}" for _, blob, _ in layers],
    }
    index = {"schemaVersion": 2, "manifests": [entry]}
    files = {
        "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
        "index.json": json.dumps(index).encode(),
        "manifest.json": json.dumps([docker]).encode(),
        **blobs,
    }
    with tarfile.open(path, "w") as archive:
        for file, data in files.items():
            info = tarfile.TarInfo(file)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


if __name__ == "__main__":
    fetch()
    print(UNPACKED)
