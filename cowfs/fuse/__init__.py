"""The FUSE front end: pyfuse3 and trio at the edge, everything below them synchronous.

background              a server in the background, and its readiness
server                  the process that serves one mount
ending, stacks          how it comes to its end; what it did, for its log
request_wait            how it waits for requests
left_alone              threads that wait for the kernel
greeting                what the kernel and the server agree on at first
translate               what all views share: errors, queueing for space, quiescing
callers                 groups and capabilities of the process that sends a request
tree_view, raw_view     a device's files, a device as a disk
home_view               all devices of a home
open_devices            which of their volumes are open
kernel_cache            what the kernel has cached of them
device_mount            one device, whose content becomes another while it is mounted
in_use                  the errors for a device that something has open
"""
