"""Which blocks are free, and which a file has.

allocator, bitmaps      free blocks and inode numbers; bitmaps, checked before they are believed
block_map               the blocks of a file, in memory
extents, indirect       how a block map is stored
"""
