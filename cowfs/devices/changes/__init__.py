"""Changes of the device set that happen wholly or not at all.

transactions    making and removing a device: record, message, record, in moby's order
replacement     new content for a device, and a snapshot of it for reading
renaming        another name for a device
deletions       devices that are removed when their last user closes them
ids             thin ids that are free
"""
