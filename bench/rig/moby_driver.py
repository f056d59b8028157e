"""Docker 20.10's own devicemapper driver without its daemon: a plugin's process, built from Debian's sources.

python -m bench.rig.moby_driver      fetches the sources, builds it below the virtual environment, prints where
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from cowfs.debian_packages import unpack
from cowfs.errors import MissingRequirement
from tests.kit import docker_engine

SOURCES: Final = Path(__file__).with_name("devicemapper_plugin")
UNPACKED: Final = Path(sys.prefix) / "share" / "cowfs" / "docker-sources"
PROGRAM: Final = UNPACKED / "devicemapper-plugin"
PACKAGES: Final = (
    "libdevmapper-dev",
    *(
        f"golang-{name}-dev"
        for name in (
            "github-containerd-containerd",
            "github-containerd-continuity",
            "github-docker-docker",
            "github-docker-go-connections",
            "github-docker-go-units",
            "github-klauspost-compress",
            "github-moby-locker",
            "github-moby-sys",
            "github-opencontainers-go-digest",
            "github-opencontainers-image-spec",
            "github-opencontainers-runc",
            "github-opencontainers-selinux",
            "github-pkg-errors",
            "github-sirupsen-logrus",
            "github-vbatts-tar-split",
            "golang-x-net",
            "golang-x-sync",
            "golang-x-sys",
        )
    ),
)
_GRAPHDRIVER: Final = Path("usr/share/gocode/src/github.com/docker/docker/daemon/graphdriver")
# Debian leaves out the package by which a driver would find plugins of its own.
_NO_PLUGINS: Final = """package graphdriver

import "github.com/docker/docker/pkg/plugingetter"

func lookupPlugin(name string, pg plugingetter.PluginGetter, config Options) (Driver, error) {
	return nil, ErrNotSupported
}
"""


def library_path() -> Path:
    """Where libdevmapper is, with which the program runs."""
    return next(docker_engine.UNPACKED.glob("lib/*-linux-gnu"))


def build() -> Path:
    """The program; made when it is not there yet.

    Raises:
        MissingRequirement: no Go, no gcc, or nothing to download the sources from.
    """
    docker_engine.fetch()
    unpack_once()
    if PROGRAM.exists():
        return PROGRAM
    for tool in ("go", "gcc"):
        if shutil.which(tool) is None:
            raise MissingRequirement(f"{tool} is not installed", remedy="apt-get install golang-go gcc")
    (UNPACKED / "no_plugins.go").write_text(_NO_PLUGINS)
    overlay = UNPACKED / "overlay.json"
    replaced = str(UNPACKED / _GRAPHDRIVER / "plugin.go")
    overlay.write_text(json.dumps({"Replace": {replaced: str(UNPACKED / "no_plugins.go")}}))
    environment = {
        **os.environ,
        "GO111MODULE": "off",
        "GOFLAGS": "",
        "GOPATH": str(UNPACKED / "usr/share/gocode"),
        "GOCACHE": str(UNPACKED / "cache"),
        "CGO_CFLAGS": f"-I{UNPACKED / 'usr/include'}",
        "CGO_LDFLAGS": f"-L{library_path()} -l:libdevmapper.so.1.02.1",
        "PKG_CONFIG": "/bin/true",  # the flags are those above
    }
    command = ["go", "build", "-overlay", str(overlay), "-o", str(PROGRAM), "."]
    subprocess.run(command, cwd=SOURCES, env=environment, check=True)
    return PROGRAM


def unpack_once() -> None:
    if not _is_unpacked(UNPACKED):
        unpack(PACKAGES, UNPACKED, release="bookworm", is_whole=_is_unpacked)


def _is_unpacked(root: Path) -> bool:
    return (root / _GRAPHDRIVER / "devmapper").is_dir()


if __name__ == "__main__":
    print(build())
