"""What is on the disk, as bytes. Big endian throughout, except the checksums and most of the log.

acl             access control lists as xfs stores them
inode           inodes
extents         extent records, and the blocks and roots of their trees
headers         what identifies a block of metadata: magic, owner, place, checksum
superblock      geometry and features
"""
