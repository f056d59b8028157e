"""Changes of the device set that happen wholly or not at all.

transactions    making and removing a device: record, message, record, in moby's order
replacement     new content for a device, and a snapshot of it for reading
deletions       devices that are removed when their last user closes them
ids             thin ids that are free
"""
