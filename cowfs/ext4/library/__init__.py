"""libext2fs and what is below it.

libext2fs, libext2fs_abi    its declarations, and their parsed form
filesystem                  one open volume of the library: geometry, superblock, inodes, marks
descriptors                 the group descriptors, checked before they are believed
channel, metadata_cache     what the library reads and writes through
block_runs                  runs of blocks
"""
