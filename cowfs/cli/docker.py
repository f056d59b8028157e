"""The commands of the group docker: plugin, info."""

from __future__ import annotations

import os
from pathlib import Path

import click

from cowfs.cli import output
from cowfs.cli.settings import PATH, Settings


@click.command("plugin")
@click.option(
    "--socket", "socket_path", metavar="PATH", required=True, type=PATH, help="Path of the socket to listen on."
)
@click.pass_obj
def plugin_command(settings: Settings, socket_path: str) -> None:
    """Serve the home as a storage driver to Docker's daemon, until SIGTERM or Ctrl-C.

    \b
      cowfs --home H docker plugin --socket /run/docker/plugins/cowfs.sock &
      dockerd --experimental --storage-driver cowfs

    If the home does not exist yet, it is created when the daemon starts, by the daemon's storage options. The files of
    all layers are in one mount, at H/mnt.
    """
    from cowfs.cli.serving import begin_serving
    from cowfs.devices.on_disk.files import HomeFiles
    from cowfs.docker.plugin.serve import PluginRequest, serve_plugin

    begin_serving(settings, os.path.realpath(HomeFiles(os.path.abspath(settings.home_path)).mounts))
    options = settings.storage_options
    serve_plugin(PluginRequest(settings.home_path, settings.backend, Path(socket_path), options))


@click.command("info")
@click.pass_obj
def info_command(settings: Settings) -> None:
    """Show what 'docker info' shows of the devicemapper driver."""
    from cowfs.layers.info import status_items

    with settings.open_home() as home:
        info = home.layers.info()
    output.answer(info, *(f"{name}: {value}" for name, value in status_items(info)), as_json=settings.as_json)
