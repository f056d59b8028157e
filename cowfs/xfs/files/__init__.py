"""Files of an open volume, by inode.

attributes      extended attributes, with access control lists among them
directories     names
contents        contents of regular files, targets of symbolic links
maps            which blocks of the device hold which blocks of a file
inodes          inodes by number
counts          free space and inodes
blocks          reading of metadata, and the caches
"""
