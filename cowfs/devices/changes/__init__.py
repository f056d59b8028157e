"""Changes of the device set that happen wholly or not at all.

guard           what a change asks first
transactions    making and removing a thin and its record, in moby's order
creation        devices that are snapshots of another one, with the lines about their parents
many            many devices made at once
replacement     new content for a device
snapshots       reading a device as it is now, while its users go on
device_imports  devices with content that is written into them
importing       completing these, all or none
renaming        another name for a device
deletions       removing a device, or marking one that is in use
ids             thin ids that are free
"""
