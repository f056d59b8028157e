"""The FUSE front end: pyfuse3 and trio at the edge, everything below them synchronous.

    background    a server in the background, and its readiness
    kernel_cache  having the kernel forget names, without taking away what is mounted below them
    server        the process that serves one mount
    request_wait  how it waits for requests
    translate     what all views share: errors, queueing for space, quiescing
    callers       groups and capabilities of who sends a request
    tree_view, raw_view, home_view      a device's files, a device as a disk, all devices of a home

All before `server` need no pyfuse3.
"""
