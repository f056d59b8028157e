"""The log: what a volume that was not unmounted shows once its log is replayed. Nothing is written: it is in memory.

replay          what changed, by what the log holds
transactions    committed transactions, in order, of records
records         the records between tail and head
overlay         a device with parts that are shown otherwise

What is under way in the log as an intent is completed by the kernel at its next mount. Those that give back space or
keep its indexes do not change what files show, and are left.

Source: Linux fs/xfs/xfs_log_recover.c, xfs_buf_item_recover.c, xfs_inode_item_recover.c as to the rules of order.
"""
