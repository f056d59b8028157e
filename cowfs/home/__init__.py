"""One home, many processes: the Python API, and how it works when another process holds the home.

Read from the top; each room imports from those below it alone. The folders say what is in them.

    machine             what this machine can do; trial_mount is a program that it runs
    api/                the Python API: `open_home`, `Home` and what its methods do that more than one request
    serving/            the process that serves a mount, and how it is started in the background
    own_session         the session behind the Python API: for several threads, and while this process has a mount
    maintenance         check, repair, dump, restore and delta of the pool's metadata
    recovery            of the home's records
    session             reaching a home: opened here, or the process that holds it asked over its socket
    control/            the holder's socket: protocol, client, server
    executor            running requests on a home that this process holds, for all who ask
    requests/           what can be asked of a home: for each operation a typed struct, with its documentation
    snapshot_keys       which devices are containerd's snapshots
    opened/             making and opening a home in this process, and what that gives
    kernel/             devices and layers that the kernel mounts, from block device nodes
"""
