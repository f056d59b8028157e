"""Inodes and what is in them.

inodes, tables      inodes in memory; the inode tables as bytes, for comparing two volumes
file_map            block maps, with the space that they take
data, inline        contents; contents that are in their inode
xattrs, acl         extended attributes, access control lists
guard               what is refused before a change begins
"""
