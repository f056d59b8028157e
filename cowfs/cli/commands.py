"""Which commands there are: their groups, their sections in the help, and a line about each. Declare a new one here.

The word order is `cowfs GROUP COMMAND`: a noun, then what to do with it, as in `cowfs pool resize`. What users do with
devices every day needs no group: `cowfs resize web 20G`.

A command is the function `COMMAND_command` of the module named here, which is imported when the command runs. A former
name is a hidden alias of the same command: it is neither listed nor completed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias


class Command(NamedTuple):
    """A command: the module with its function, its line in the help, and the top-level name that it once had."""

    module: str
    summary: str
    former: str = ""


class GroupOfCommands(NamedTuple):
    """Commands behind one word: the group's line in the help, its own help, and its commands.

    `default` is the command that is meant where the word after the group names none.
    """

    summary: str
    help: str
    commands: Mapping[str, Command]
    default: str = ""


Section: TypeAlias = Mapping[str, Command | GroupOfCommands]

_POOL: Final = GroupOfCommands(
    "Show, enlarge, check and repair the pool of a home.",
    """The pool of a home, which all its devices share: its space and its metadata.

    \b
      cowfs --home H pool usage               where the space is
      cowfs --home H pool resize --data-size 200G
      cowfs --home H pool check               recount the metadata
      cowfs --home H pool dump > pool.xml     the metadata as XML
    """,
    {
        "usage": Command("pool", "Show which devices use the space of the pool.", former="usage"),
        "resize": Command("pool", "Enlarge the pool.", former="pool-resize"),
        "set": Command("pool", "Set what writes do when the pool is full."),
        "check": Command("pool", "Check the pool's metadata by a full recount, or repair it.", former="check"),
        "dump": Command("pool", "Write the pool's metadata as XML.", former="dump"),
        "restore": Command("pool", "Replace the pool's metadata by the contents of an XML file.", former="restore"),
        "delta": Command("pool", "Write the differences between two devices as XML.", former="delta"),
    },
)
_LAYER: Final = GroupOfCommands(
    "Create, mount, pack and unpack container layers.",
    """Layers: devices whose files are a directory, with archives of what they changed.

    \b
      cowfs --home H layer create base-image
      cowfs --home H layer apply base-image < image.tar
      cowfs --home H layer create mine base-image
      cowfs --home H layer get mine           mounts it and prints the path of its files
      cowfs --home H layer changes mine base-image
      cowfs --home H layer diff mine base-image > mine.tar
      cowfs --home H layer pull debian:12 --name web
      cowfs --home H layer push web registry.example.org/team/web:1
    """,
    {
        "create": Command("layers", "Create a layer: a snapshot of another layer, or an empty one."),
        "remove": Command("layers", "Remove layers."),
        "exists": Command("layers", "Test whether a layer exists: exit status 0 or 1."),
        "list": Command("layers", "List the layers, one per line."),
        "metadata": Command("layers", "Show which device holds a layer."),
        "get": Command("layers", "Mount a layer and print the path of its files."),
        "put": Command("layers", "Release a layer that 'layer get' mounted."),
        "changes": Command("layers", "List what a layer changed, as 'docker diff' does."),
        "diff": Command("layers", "Write a tar archive of what a layer changed."),
        "apply": Command("layers", "Unpack a tar archive into a layer, completely or not at all."),
        "size": Command("layers", "Print the size of the files that a layer added or modified."),
        "pull": Command("layer_images", "Pull an image from a registry, as layers."),
        "push": Command("layer_images", "Push a layer and all layers below it to a registry, as an image."),
        "import": Command("layer_images", "Import images from archives of 'docker save' and OCI layouts."),
        "export": Command("layer_images", "Write a layer and all layers below it as an image."),
    },
)
_DOCKER: Final = GroupOfCommands(
    "Serve a home to Docker, or read images and containers of an old daemon.",
    """Docker: the home as a storage driver of its daemon, and the images and containers that a daemon with the
    devicemapper driver left, read without it.

    \b
      cowfs --home H docker plugin --socket /run/docker/plugins/cowfs.sock
      cowfs --home /var/lib/docker docker images
      cowfs --home /var/lib/docker docker save web:1 > web.tar
      cowfs --home /var/lib/docker docker save --all DIR
    """,
    {
        "plugin": Command("docker", "Serve Docker's graph-driver plugin protocol.", former="docker-plugin"),
        "info": Command("docker", "Show the driver's lines of 'docker info'.", former="info"),
        "images": Command("stored", "List the images that a daemon left."),
        "ps": Command("stored", "List the containers that a daemon left."),
        "tree": Command("stored", "Show the layers that a daemon left, with their images and containers."),
        "inspect": Command("stored", "Show all details of an image or a container."),
        "history": Command("stored", "Show how an image was made."),
        "export": Command("stored", "Write the files of a container as a tar archive."),
        "save": Command("stored", "Write images with their original ids, or everything."),
        "cp": Command("stored", "Copy files out of a container or an image."),
        "du": Command("stored", "Show the space of images and containers."),
    },
)
_DM: Final = GroupOfCommands(
    "Send device-mapper messages, print tables and status lines.",
    """The device mapper's view of the pool and its devices, in the formats of dmsetup.""",
    {
        "message": Command("dm", "Send a message to the pool, as 'dmsetup message' does.", former="message"),
        "table": Command("dm", "Print table lines, as 'dmsetup table' does.", former="table"),
        "status": Command("dm", "Print status lines, as 'dmsetup status' does.", former="dmstatus"),
    },
)
_FAULTS: Final = GroupOfCommands(
    "Inject faults into a mounted device, for tests.",
    """Fault injection, for tests: what a program does when a disk fails, is full, is slow, or tears a write.

    They are in force on a mounted home until they are cleared, or until the mount ends.

    \b
      cowfs --home H mount web /mnt
      cowfs --home H faults add web error write --path '*.wal' --errno EIO --after 3 --times 1
      cowfs --home H faults list              the faults in force, with their counters
      cowfs --home H faults clear
    """,
    {
        "add": Command("faults", "Add a fault: where, which operations, when, and with what effect."),
        "list": Command("faults", "List the faults in force, with their counters."),
        "clear": Command("faults", "Clear faults."),
    },
)
_TRACE: Final = GroupOfCommands(
    "Record the requests to a device; show and convert traces.",
    """Traces: the requests that a mounted device gets, in order, with their times.

    \b
      cowfs --home H trace web -o t.trace              until Ctrl-C
      cowfs --home H trace web -o t.trace -- make -C /mnt
      cowfs trace show t.trace                         in figures; --requests lists them
      cowfs trace convert t.trace t.iolog              for 'fio --read_iolog'
      cowfs trace convert sda.blktrace.0 t.trace
    """,
    {
        "record": Command("traces", "Record the requests of a mounted device; the word can be left out."),
        "show": Command("traces", "Show a trace in figures, or its requests."),
        "convert": Command("traces", "Convert a trace to or from fio's and blktrace's formats."),
    },
    default="record",
)

SECTIONS: Final[Mapping[str, Section]] = {
    "Homes": {
        "init": Command("devices", "Create a home."),
        "status": Command("devices", "Show the state and the space of a home and its pool."),
        "metrics": Command("counters", "Print space and counters of a home as OpenMetrics text."),
        "clone-home": Command("cloning", "Copy a home, with reflinks where the file system has them."),
        "recover": Command("recovery", "Reconcile the device records with the pool's metadata."),
        "doctor": Command("doctor", "Check what this machine supports, and say how to fix what is missing."),
    },
    "Devices": {
        "create": Command("devices", "Create a device."),
        "snapshot": Command("devices", "Create a snapshot of a device."),
        "rollback": Command("devices", "Restore a device to the contents of a snapshot."),
        "list": Command("devices", "List the devices."),
        "inspect": Command("devices", "Show all details of one device."),
        "import": Command("images", "Create a device from a disk image, an archive or a directory."),
        "export": Command("images", "Write a device to a file, as a disk image or an archive."),
        "mount": Command("mounting", "Mount a device as a file tree or as a disk image, or mount all devices."),
        "umount": Command("mounting", "Unmount what 'mount' mounted."),
        "activate": Command("devices", "Create the block device node of a device, for any tool (backend dmthin)."),
        "deactivate": Command("devices", "Remove the node that 'activate' created."),
        "resize": Command("space", "Enlarge a device and its file system."),
        "trim": Command("space", "Return unused space of devices to the pool."),
        "rename": Command("devices", "Rename a device."),
        "remove": Command("devices", "Remove devices."),
    },
    "Files in devices": {
        "changes": Command("comparing", "List the paths that differ between two devices."),
        "diff": Command("comparing", "Show the differences between two devices, as 'diff -u' does."),
        "ls": Command("files", "List the files in a device."),
        "cat": Command("files", "Write the content of a file in a device to standard output."),
        "cp": Command("files", "Copy files into a device, out of one, or between two."),
    },
    "Tests of other programs": {
        "crash-test": Command("crashes", "Find out what a power cut would do to the files of a program."),
        "crash-mark": Command("crashes", "Set a mark in the recording of a crash test, from the program under test."),
    },
    "Benchmarks": {
        "bench": Command("bench", "Compare copy-on-write engines by the same workload."),
    },
    "Groups of commands": {
        "pool": _POOL,
        "layer": _LAYER,
        "docker": _DOCKER,
        "dm": _DM,
        "faults": _FAULTS,
        "trace": _TRACE,
    },
    "Other": {
        "snapshotter": Command("snapshotter", "Serve a home to containerd as a snapshotter."),
        "batch": Command("batch", "Run the commands in a file, one per line."),
        "uml": Command("uml", "Run a command on a kernel with dm-thin, in User-Mode Linux."),
        "help": Command("help", "Show the help of a command."),
        "completion": Command("completion", "Print the completion script for a shell."),
    },
}
GROUPS: Final = {
    name: entry
    for section in SECTIONS.values()
    for name, entry in section.items()
    if isinstance(entry, GroupOfCommands)
}
FORMER_NAMES: Final = {
    command.former: (group, name)
    for group, entry in GROUPS.items()
    for name, command in entry.commands.items()
    if command.former
}


def command_words(words: Sequence[str]) -> list[str]:
    """The words of a command line, from the command on, that name the command: one, or a group and its command."""
    return list(words[: 2 if words and words[0] in GROUPS else 1])
