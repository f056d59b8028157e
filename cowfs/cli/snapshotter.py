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
@click.pass_obj
def snapshotter_command(settings: Settings, socket_path: str) -> None:
    """Serve the home to containerd as a snapshotter, until SIGTERM or Ctrl-C.

    \b
      cowfs --home /var/lib/cowfs snapshotter --socket /run/cowfs/snapshotter.sock &
      in containerd's config.toml:
        [proxy_plugins.cowfs]
          type = "snapshot"
          address = "/run/cowfs/snapshotter.sock"

    If the home does not exist yet, it is made as --storage-opt says. The files of all snapshots are in one mount, at
    H/mnt.
    """
    from cowfs.cli.serving import begin_serving
    from cowfs.containerd.serve import SnapshotterRequest, serve_snapshotter
    from cowfs.devices.on_disk.files import HomeFiles

    begin_serving(settings, os.path.realpath(HomeFiles(os.path.abspath(settings.home_path)).mounts))
    options = settings.storage_options
    serve_snapshotter(SnapshotterRequest(settings.home_path, settings.backend, Path(socket_path), options))
