"""The command snapshotter."""

from __future__ import annotations

import os
from pathlib import Path

import click

from cowfs.cli.settings import PATH, Settings


@click.command("snapshotter")
@click.option(
    "--socket", "socket_path", metavar="PATH", required=True, type=PATH, help="Path of the socket to listen on."
)
@click.option(
    "--containerd",
    metavar="PATH",
    default="/run/containerd/containerd.sock",
    show_default=True,
    type=PATH,
    help="Path of containerd's own socket, from which the diff service reads layers.",
)
@click.pass_obj
def snapshotter_command(settings: Settings, socket_path: str, containerd: str) -> None:
    """Serve the home to containerd as a snapshotter, until SIGTERM or Ctrl-C.

    \b
      cowfs --home /var/lib/cowfs snapshotter --socket /run/cowfs/snapshotter.sock &
      in containerd's config.toml:
        [proxy_plugins.cowfs]
          type = "snapshot"
          address = "/run/cowfs/snapshotter.sock"
        [proxy_plugins.cowfs-diff]
          type = "diff"
          address = "/run/cowfs/snapshotter.sock"
        [plugins."io.containerd.service.v1.diff-service"]
          default = ["cowfs-diff", "walking"]

    If the home does not exist yet, it is made as --storage-opt says. The files of all snapshots are in one mount, at
    H/mnt.
    """
    from cowfs.cli.serving import begin_serving
    from cowfs.containerd.serve import SnapshotterRequest, serve_snapshotter
    from cowfs.devices.on_disk.files import HomeFiles

    begin_serving(settings, os.path.realpath(HomeFiles(os.path.abspath(settings.home_path)).mounts))
    options = settings.storage_options
    request = SnapshotterRequest(settings.home_path, settings.backend, Path(socket_path), Path(containerd), options)
    serve_snapshotter(request)
