"""What is asked of engines.

interface    what a workload is
command      a command of the user's
fio          a job file of fio
disks        requests to a disk; the first write after a snapshot
snapshots    taking and removing them, by size and number; reads through chains of them
large_homes  the same in homes with a terabyte mapped, or ten thousand snapshots
lives        devices that are new, or come and go
trees        programs in a mounted tree; small files after a snapshot
layers       layers of containers, in homes
catalogue    the built-in ones with their sizes
"""
