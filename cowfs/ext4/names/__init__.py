"""Names of inodes.

directory           blocks of entries, with and without a hash index
names, renames      the rules of a kernel file system
orphans             inodes that lost their last name while open
"""
