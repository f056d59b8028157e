"""Debian's docker-registry on its own port."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from cowfs.errors import MissingRequirement

PATIENCE_SECONDS = 60


@contextmanager
def docker_registry(directory: Path) -> Iterator[str]:
    """`HOST:PORT` of a registry that keeps its images in a directory. Raises MissingRequirement where there is none."""
    program = shutil.which("docker-registry")
    if program is None:
        raise MissingRequirement("docker-registry is not installed", remedy="sudo apt-get install docker-registry")
    with closing(socket.socket()) as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    config = directory / "config.yml"
    config.write_text(
        "version: 0.1\nlog: {level: error}\n"
        f"storage: {{filesystem: {{rootdirectory: {directory}/data}}, delete: {{enabled: true}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n"
    )
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen([program, "serve", str(config)], stdout=log, stderr=log)
    try:
        _wait_for(f"http://127.0.0.1:{port}/v2/", process)
        yield f"localhost:{port}"
    finally:
        process.terminate()
        process.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            urllib.request.urlopen(url).close()
        except OSError:
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.02)
        else:
            return
