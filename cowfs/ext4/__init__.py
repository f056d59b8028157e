"""ext4 on a block device, in process, without root: `volume.Volume`, a `cowfs.filetree.ServedTree`.

Read from the top; each room imports from those below it alone.

    volume      an open volume: every operation of a file tree, syncing, failing
    tools/      e2fsprogs' commands on devices: making, checking and growing volumes
    journal/    metadata as transactions in ext4's journal, and their replay after a crash
    names/      directories and their hash indexes, renames, what is open without a name
    files/      inodes, block maps and contents of files, extended attributes and access control lists
    space/      free blocks and inode numbers, bitmaps, extent trees and indirect blocks
    library/    libext2fs: superblock, groups, inode tables, and the cache of metadata blocks below it
    format/     numbers, checksums, blocks of entries and of hash indexes, as bytes

Directories, block maps and the journal are our own code; volumes, bitmaps, inodes, attributes and their checksums are
libext2fs's (docs/decisions/0002-own-directories-and-extents.md).
"""
