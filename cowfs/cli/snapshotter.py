"""The command snapshotter."""

from __future__ import annotations

import os
from pathlib import Path

import click
from click.core import ParameterSource

from cowfs.cli.settings import PATH, Settings
from cowfs.errors import UsageError


@click.command("snapshotter")
@click.option("--socket", "socket_path", metavar="PATH", type=PATH, help="Path of the socket to listen on.")
@click.option(
    "--containerd",
    metavar="PATH",
    type=PATH,
    help="Path of containerd's own socket, from which the diff service reads layers. "
    "[default: /run/containerd/containerd.sock]",
)
@click.option(
    "--block-devices", is_flag=True, help="Each snapshot is a block device, for virtual machines (--backend dmthin)."
)
@click.option(
    "--answer-seconds",
    metavar="SECONDS",
    type=click.FloatRange(0.1, 60.0),
    help="Give a call up that the disk or the kernel holds up so long; containerd waits with its lock held. "
    "[default: 0.8]",
)
@click.option("--config", metavar="FILE", type=PATH, help="Take options from FILE too, in TOML.")
@click.pass_obj
@click.pass_context
def snapshotter_command(
    ctx: click.Context,
    settings: Settings,
    socket_path: str | None,
    containerd: str | None,
    block_devices: bool,
    answer_seconds: float | None,
    config: str | None,
) -> None:
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

    If the home does not exist yet, it is created, by the options of --storage-opt. The files of all snapshots are in
    one mount, at H/mnt.

    A configuration file has the options of this command and those before it as keys: home, backend, storage-opt (a
    list), socket, containerd, log, block-devices, quiet (both true or false), verbose, answer-seconds (both numbers).
    An option of the command line counts before the file's. A service manager may pass the socket (LISTEN_FDS), and
    gets a message when it is served (NOTIFY_SOCKET).
    """
    from cowfs.cli.serving import begin_serving
    from cowfs.cli.snapshotter_config import SnapshotterConfig, read_config
    from cowfs.containerd.front import ANSWER_SECONDS
    from cowfs.containerd.serve import CONTAINERD_SOCKET, SnapshotterRequest, serve_snapshotter
    from cowfs.devices.on_disk.files import HomeFiles
    from cowfs.home.serving.service_manager import passed_listener

    file = SnapshotterConfig() if config is None else read_config(config)
    backend_source = ctx.find_root().get_parameter_source("backend")
    settings = Settings(
        settings.home or file.home,
        settings.backend if backend_source is not ParameterSource.DEFAULT else file.backend or settings.backend,
        settings.as_json,
        (*file.storage_opt, *settings.storage_options),
        settings.log if any(settings.log) else file.log_options,
    )
    begin_serving(settings, os.path.realpath(HomeFiles(os.path.abspath(settings.home_path)).mounts))
    listener = passed_listener(os.environ)
    path = socket_path or file.socket
    if path is None and listener is None:
        raise UsageError("where is the snapshotter to listen? name --socket PATH, or 'socket' in a --config FILE")
    serve_snapshotter(
        SnapshotterRequest(
            settings.home_path,
            settings.backend,
            None if path is None else Path(path),
            Path(containerd or file.containerd or CONTAINERD_SOCKET),
            settings.storage_options,
            block_devices or file.block_devices,
            answer_seconds or file.answer_seconds or ANSWER_SECONDS,
            listener,
            os.environ.pop("NOTIFY_SOCKET", ""),
        )
    )
