"""The commands mount and umount."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

import click

from cowfs.cli import output
from cowfs.cli.settings import DEVICE, PATH, Settings, runtime_parents
from cowfs.cli.signals import outcome_stands
from cowfs.devices.on_disk.names import BASE
from cowfs.errors import CowfsError, HomeBusy, HomeError, MountError, UsageError, command_line

if TYPE_CHECKING:
    from cowfs.home.api.home import Home
    from cowfs.home.serving.mounting import MountRequest

_START_ATTEMPTS: Final = 3


@click.command("mount")
@click.argument("where", nargs=-1, metavar="[NAME] MNT", type=DEVICE)
@click.option("--raw", is_flag=True, help="Show MNT/NAME, a disk image, instead of the files in the device.")
@click.option("--read-only", is_flag=True, help="Mount for reading only.")
@click.option(
    "--write-base", is_flag=True, help="Mount the base device for writing; every later device contains the changes."
)
@click.option(
    "--writeback",
    is_flag=True,
    help="Let the kernel cache writes; a full pool is reported by fsync and close, not by write.",
)
@click.option("--repair", is_flag=True, help="Run e2fsck -y on a damaged file system first, even if data is lost.")
@click.option("--suid", is_flag=True, help="Honour set-user-id and set-group-id bits in the mount; for root only.")
@click.option("--dev", is_flag=True, help="Honour device nodes in the mount; for root only.")
@click.option(
    "--kernel", is_flag=True, help="Let the kernel mount the device (backend dmthin), without a server process."
)
@click.option("--options", metavar="LIST", default="", help="With --kernel: mount options, as in 'noatime,discard'.")
@click.option("--foreground", is_flag=True, help="Serve the mount in this process, until it is unmounted or Ctrl-C.")
@click.option(
    "--until-exit-of", "process", metavar="PID", type=click.IntRange(1), help="Unmount when the process PID has ended."
)
@click.option("--faults", metavar="PLAN", type=PATH, default="", help="Inject the faults of a plan, in TOML.")
@click.option("--as-server", nargs=2, type=(int, str), metavar="REPORT_FD REQUEST", hidden=True)
@click.pass_obj
def mount_command(
    settings: Settings,
    where: tuple[str, ...],
    raw: bool,
    read_only: bool,
    write_base: bool,
    writeback: bool,
    repair: bool,
    suid: bool,
    dev: bool,
    kernel: bool,
    options: str,
    foreground: bool,
    process: int | None,
    faults: str,
    as_server: tuple[int, str] | None,
) -> None:
    """Mount the device NAME on the empty directory MNT; without NAME all devices, each as the directory MNT/NAME.

    Returns when the files can be used, and leaves a server running that holds the home until 'cowfs umount MNT'. The
    other commands work through that server. Its log is cowfs.log in the home, or the FILE of --log.

    A file system that was not cleanly unmounted has its journal replayed first, in the server. e2fsck runs only on a
    file system that has no journal or is marked as damaged, and makes only safe repairs (-p); with --repair, all
    repairs (-y).

    With --until-exit-of PID the mount ends when that process ends, for any reason, as in --until-exit-of $$ in a
    script. Written data is stored in the home, and files that are still open are detached.

    With --kernel the kernel mounts the device's node, with any file system that it supports; no server holds the home.

    With --writeback the kernel caches what programs write, for up to 30 s or until they close or sync the file, and
    many small writes become one. Snapshots, comparisons and unmounting write the cached data back first. When the pool
    is full, fsync and close report the error, and the cached data of that file is lost; without --writeback, write
    reports it.

    With --faults operations fail as the plan says, for tests of programs; see 'cowfs faults add --help'.

    When all devices are mounted, later ones appear and removed ones disappear at once. The base device is not shown.

    The base device is mounted for reading only, since every new device begins as a copy of it; see --write-base.
    """
    from cowfs.home.serving.lease import open_process
    from cowfs.home.serving.mounting import MountRequest, mount

    if as_server is not None:
        report_fd, text = as_server
        _serve_here(settings, MountRequest.from_json(text), report_fd)
        return
    name, mountpoint = _name_and_target(where)
    if write_base and (name != BASE or read_only):
        raise UsageError(f"--write-base is for writing to the base device: mount --write-base {BASE} {mountpoint}")
    if writeback and (raw or read_only):
        raise UsageError("--writeback is for files that are written; leave it out, or --raw and --read-only")
    of_one_device = {"--raw": raw, "--repair": repair, "--kernel": kernel}
    if name is None:
        _refuse(of_one_device, f"is about one device; name it: mount NAME {mountpoint}")
    read_only = read_only or _spares_base(name, write_base=write_base)
    honoured = {"--suid": suid, "--dev": dev}
    if kernel:
        of_a_server = {
            "--raw": raw,
            "--writeback": writeback,
            "--repair": repair,
            "--foreground": foreground,
            "--until-exit-of": process,
            "--faults": faults,
        }
        _refuse(of_a_server, "is for a server, and --kernel leaves everything to the kernel; leave one of them out")
        _refuse(honoured, "is for a server; the kernel honours both without --options nosuid,nodev; leave it out")
        assert name is not None
        _mount_by_kernel(settings, name, mountpoint, options, read_only=read_only)
        return
    if os.geteuid() != 0:
        _refuse(honoured, "is for root only; mount as root, or leave it out")
    _refuse({"--options": options}, "are for the kernel; add --kernel, or leave them out")
    request = MountRequest(
        settings.home_path,
        settings.backend,
        name,
        mountpoint,
        raw=raw,
        read_only=read_only,
        repair=repair,
        storage_options=settings.storage_options,
        suid=suid,
        dev=dev,
        write_base=write_base,
        writeback=writeback,
        lease_fd=None if process is None else open_process(process),
        faults=faults,
    )
    if foreground:
        _serve_here(settings, request)
        return
    if name is None:
        _refuse_device_alone(settings, mountpoint)
    server = mount(request, log_words=settings.log.words, on_ready=outcome_stands)
    if settings.as_json:
        output.print_json({"device": name, "mount_point": os.path.realpath(mountpoint), "holder_pid": server.pid})


def _refuse(options: Mapping[str, object], why: str) -> None:
    """Raises UsageError for the first of these options that was given."""
    for option, value in options.items():
        if value not in (None, False, ""):
            raise UsageError(f"{option} {why}")


def _serve_here(settings: Settings, request: MountRequest, report_fd: int | None = None) -> None:
    from cowfs.cli.serving import begin_serving
    from cowfs.home.serving.mount_server import serve_mount

    target = os.path.realpath(request.target)  # now: a server touches nothing of its own mount
    begin_serving(settings, target)
    on_ready = partial(_say_ready, settings, request.device, target) if report_fd is None else None
    serve_mount(request, report_fd=report_fd, on_ready=on_ready)


def _spares_base(name: str | None, *, write_base: bool) -> bool:
    """Whether the mounted device is the base device without --write-base; prints so."""
    if name != BASE or write_base:
        return False
    output.print_line(
        f"cowfs: mounting {BASE} for reading only, as new devices begin as a copy of it; to change it: --write-base"
    )
    return True


def _mount_by_kernel(settings: Settings, name: str, mountpoint: str, options: str, *, read_only: bool) -> None:
    from cowfs.home.kernel.devices import mount_by_kernel
    from cowfs.home.opened.spec import HomeSpec
    from cowfs.home.requests.devices import OpenNode
    from cowfs.home.session import connect

    spec = HomeSpec(settings.home_path, settings.backend, storage_options=settings.storage_options)
    with connect(spec) as session:
        node = mount_by_kernel(
            session.path,
            name,
            mountpoint,
            lambda: session.call(OpenNode(name)).fd,
            options=options,
            read_only=read_only,
            on_ready=outcome_stands,
        )
    if settings.as_json:
        output.print_json({"device": name, "mount_point": os.path.realpath(mountpoint), "node": node})


@contextmanager
def serving_layers(settings: Settings) -> Iterator[Home]:
    """The home, held by a process that serves its layers; started where there is none, until the last layer is put."""
    refusal: CowfsError | None = None
    for _ in range(
        _START_ATTEMPTS
    ):  # one that was about to end may be met, or one that another command has just started
        with settings.open_home() as home:
            if home.holder_pid is not None:
                yield home
                return
        try:
            _serve_layers(settings)
        except (HomeBusy, MountError) as error:
            if error.errno != errno.EBUSY:
                raise
            refusal = error
    with settings.open_home() as home:
        if home.holder_pid is None:
            raise refusal or HomeError(f"the server of the layers of {home.path} ended before this request; try again")
        yield home


def _serve_layers(settings: Settings) -> None:
    """Start a process that serves the layers of the home until the last of them is put.

    Raises:
        HomeBusy, MountError: another one does, by now.
    """
    from cowfs.home.opened.runtime import make_runtime_directory
    from cowfs.home.opened.storage_options import resolve_settings
    from cowfs.home.serving.mounting import MountRequest, empty_mount_directory, mount, runtime_mount_directory
    from cowfs.layers.options import parse_storage_options

    home = settings.home_path
    by_kernel = resolve_settings(settings.backend, parse_storage_options(settings.storage_options)).kernel_mounts
    directory = None
    if os.access(home, os.W_OK):
        target = empty_mount_directory(home)
    elif by_kernel:
        raise HomeError(
            f"the home {home} cannot be written, and the kernel mounts its layers only for writing",
            errno=errno.EROFS,
        )
    else:
        directory = make_runtime_directory(home, runtime_parents())
        target = runtime_mount_directory(directory)
    request = MountRequest(
        home,
        settings.backend,
        None,
        str(target),
        read_only=directory is not None,
        until_put=True,
        by_kernel=by_kernel,
        storage_options=settings.storage_options,
        runtime_directory=directory,
    )
    mount(request, log_words=settings.log.words)


def _name_and_target(where: tuple[str, ...]) -> tuple[str | None, str]:
    if len(where) == 2:
        return where
    if len(where) != 1:
        raise UsageError(f"mount takes [NAME] MNT, the device and where to mount it, not {len(where)} names")
    return None, where[0]


def _refuse_device_alone(settings: Settings, mountpoint: str) -> None:
    """Raises UsageError where the one word is no directory and names a device: the mount point was left out."""
    if os.path.lexists(mountpoint):
        return
    with settings.open_home() as home:
        if any(row.name == mountpoint for row in home.devices()):
            raise UsageError(
                f"where is device '{mountpoint}' mounted? name an empty directory too, as in: "
                f"{command_line('cowfs', 'mount', mountpoint, 'MNT')}"
            )


def _say_ready(settings: Settings, name: str | None, target: str) -> None:
    if settings.as_json:
        output.print_json({"device": name, "mount_point": target, "holder_pid": os.getpid()})
    else:
        print(f"{name or 'every device'} is mounted at {output.printable(target)}; Ctrl-C unmounts it")
    sys.stdout.flush()


@click.command("umount")
@click.argument("what", required=False, metavar="MNT | NAME", type=DEVICE)
@click.option("--all", "everything", is_flag=True, help="Unmount all mounts of the home.")
@click.option("--lazy", is_flag=True, help="Detach at once; a process with open files in it keeps the server running.")
@click.pass_obj
def umount_command(settings: Settings, what: str | None, everything: bool, lazy: bool) -> int:
    """Unmount MNT, or every mount of the device NAME of the home.

    When this succeeds, all data is written and the home is free, unless the file system at MNT is mounted elsewhere,
    too (mount --bind): then the other mount and the server stay until that mount is unmounted.

    An argument that is a mount point is MNT, any other is NAME; a path can always be written as ./NAME.

    With --all, when a mount cannot be unmounted, the others still are; the exit status is then that of the first
    error.
    """
    if everything == (what is not None):
        raise UsageError("umount takes either MNT or NAME, or --all")
    if what is not None and (_is_mount_point(what) or os.sep in what or not settings.home):
        _unmount(what, lazy=lazy)
        if settings.as_json:
            output.print_json({"unmounted": os.path.realpath(what)})
        return 0
    targets = _mount_points(settings, what)
    if what is not None and not targets:
        reason = "neither a mount point nor a device of the home that is mounted"
        raise MountError("umount", "", what, errno=errno.EINVAL, reason=reason)
    done: list[str] = []
    status = 0
    for target in targets:
        try:
            _unmount(target, lazy=lazy)
        except CowfsError as error:
            failed = output.print_error(error, as_json=settings.as_json)
            status = status or failed
        else:
            done.append(target)
    if settings.as_json:
        output.print_json({"unmounted": done})
    return status


def _unmount(target: str, *, lazy: bool) -> None:
    from cowfs.home.kernel.devices import is_mount_of_home, unmount_by_kernel
    from cowfs.home.serving.end_report import awaiting_end
    from cowfs.mounts.mountinfo import mount_at
    from cowfs.mounts.mountpoint import unmount

    mount = mount_at(target)
    if mount is not None and is_mount_of_home(mount):
        unmount_by_kernel(mount, lazy=lazy)
        return
    if lazy or mount is None:
        copies = unmount(target, lazy=lazy)
    else:
        with awaiting_end(mount) as check_end:
            copies = unmount(target)
            if not copies:
                check_end()
    if copies:
        output.print_line(
            f"cowfs: what was at {target} is still mounted at {copies[0]}, so its server stays; next: "
            f"{command_line('cowfs', 'umount', copies[0])}"
        )


def _is_mount_point(path: str) -> bool:
    from cowfs.mounts.mountinfo import mount_at

    return mount_at(path) is not None


def _mount_points(settings: Settings, name: str | None) -> list[str]:
    """Where a device of the home is mounted, or all that is; by the mount table, which lists dead mounts too.

    The table has the name that a device had when it was mounted, the server of the mount the one that it has now.

    Raises:
        MountError: it is mounted with all the others only.
    """
    from cowfs.error_record import plain_text
    from cowfs.mounts.mountinfo import decode_source, mounts

    with settings.open_home() as opened:
        views = opened.status().views
    served = {view.mount_point: view.device or "" for view in views}
    home = os.path.realpath(settings.home_path)
    sources = [(decode_source(mount.source), mount.target) for mount in mounts() if mount.is_cowfs]
    shown = [
        (served.get(plain_text(target), source[1]), target)
        for source, target in sources
        if source is not None and source[0] == home
    ]
    found = [target for device, target in shown if name is None or device == name]
    found += [view.mount_point for view in views if view.view == "kernel" and name in (None, view.device)]
    whole = [target for device, target in shown if not device]
    if not found and whole and name is not None:
        raise MountError(
            *("umount", name, whole[0]),
            errno=errno.EBUSY,
            reason="it is mounted with every other device of the home; to unmount all: "
            f"{command_line('cowfs', 'umount', whole[0])}",
        )
    return found
