"""xfs on a block device, for reading, in process, without root: `volume.XfsVolume`, a `cowfs.filetree.ServedTree`.

Read from the top; each room imports from those below it alone.

    volume      an open volume: every question to a file tree
    read_only   EROFS to everything that changes something
    files/      inodes, extents, contents, directories and extended attributes
    format/     superblock, headers with checksums, inodes and extents, as bytes
    signature   whether a device holds xfs, for those who load the rest only then

Versions 4 and 5 of the format, without a realtime device. All bytes are checked before they are believed: what is
damaged raises a FilesystemError (EUCLEAN) that names the structure and its place.

Source: "XFS Algorithms & Data Structures", 3rd edition, of the kernel's xfs-documentation.
"""
