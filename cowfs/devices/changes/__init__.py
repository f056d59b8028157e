"""Changes of the device set that happen wholly or not at all.

transactions    making and removing a thin and its record, in moby's order
creation        devices that are snapshots of another one, with the lines about their parents
many            many devices made at once
replacement     new content for a device, and a snapshot of it for reading
renaming        another name for a device
deletions       removing a device, or marking one that is in use
ids             thin ids that are free
"""
