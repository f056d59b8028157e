"""Where a layer's files are in its volume: the directory `rootfs`, beside the file `id`."""

from __future__ import annotations

import errno
import stat
from typing import Final

from cowfs.devices.on_disk.names import ID_FILE
from cowfs.errors import FilesystemError
from cowfs.filetree import ROOT_INODE, FileTree
from cowfs.layers.interface import LayerRoot

ROOTFS: Final = b"rootfs"
_ROOTFS_MODE: Final = 0o755
_ID_MODE: Final = 0o600


def find_root(tree: FileTree) -> LayerRoot:
    """The root of a layer; inode 0 when the layer was never used."""
    try:
        attributes = tree.lookup(ROOT_INODE, ROOTFS)
    except FileNotFoundError:
        return LayerRoot(tree, 0)
    if not stat.S_ISDIR(attributes.mode):
        raise FilesystemError("'rootfs' in the layer is not a directory; remove the layer", errno=errno.ENOTDIR)
    return LayerRoot(tree, attributes.inode)


def looks_like_layer(tree: FileTree) -> bool:
    """Whether a volume of which nothing else is known holds a layer: `rootfs`, or nothing yet."""
    names = {entry.name: entry.mode for entry in tree.list_directory(ROOT_INODE)}
    return stat.S_ISDIR(names.get(ROOTFS, 0)) or not names.keys() - {b".", b"..", b"lost+found"}


def ensure_root(tree: FileTree, owner: tuple[int, int], *, keep_owner: bool = False) -> LayerRoot:
    """The root of a layer, made when it is not there.

    Args:
        owner: uid and gid of the root directory; set also on an existing one, as moby does.
        keep_owner: leave an existing one as it is.
    """
    uid, gid = owner
    root = find_root(tree)
    if not root.inode:
        return LayerRoot(tree, tree.make_directory(ROOT_INODE, ROOTFS, _ROOTFS_MODE, uid, gid).inode)
    attributes = tree.attributes(root.inode)
    if not keep_owner and (attributes.uid, attributes.gid) != owner:
        tree.set_attributes(root.inode, uid=uid, gid=gid)
    return root


def write_layer_id(tree: FileTree, layer_id: str, owner: tuple[int, int]) -> None:
    """Write the layer's id file, by which recovery finds the layer's name.

    A snapshot comes with its parent's name; unlike moby, who changes a layer writes it anew.
    """
    content = layer_id.encode()
    try:
        inode = tree.lookup(ROOT_INODE, ID_FILE).inode
    except FileNotFoundError:
        inode = tree.make_node(ROOT_INODE, ID_FILE, stat.S_IFREG | _ID_MODE, *owner).inode
    if tree.read(inode, 0, len(content) + 1) != content:
        tree.set_attributes(inode, size_bytes=0)
        tree.write(inode, 0, content)
