"""The FUSE front end: pyfuse3 and trio at the edge, everything below them synchronous.

    mountinfo     mount tables, and the names of our own mounts
    mountpoint    what a mount needs, usable mount points, unmounting
    mount         a server in the background, and its readiness
    server        the process that serves one mount
    request_wait  how it waits for requests
    translate     what all views share: errors, queueing for space, quiescing
    raw, tree     the two views

Only the last five need pyfuse3.
"""
