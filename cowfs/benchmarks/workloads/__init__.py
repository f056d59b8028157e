"""What is asked of engines.

interface    what a workload is
command      a command of the user's
disks        requests to a disk; the first write after a snapshot; reads through chains
"""
