"""The base device, which every device without a parent is a snapshot of.

base_device     its record, its check, its making
base_ext4       its file system, made by mke2fs
ext4_content    what is in it
base_xfs        its file system, made by mkfs.xfs
"""
