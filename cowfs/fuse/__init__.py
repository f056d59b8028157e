"""The FUSE front end: pyfuse3 and trio at the edge, everything below them synchronous.

    mountinfo     mount tables, and the names of our own mounts
    mountpoint    what a mount needs, usable mount points, unmounting
    background    a server in the background, and its readiness
    server        the process that serves one mount
    request_wait  how it waits for requests
    translate     what all views share: errors, queueing for space, quiescing
    tree_view, raw_view, home_view      a device's files, a device as a disk, all devices of a home

The first three need no pyfuse3.
"""
