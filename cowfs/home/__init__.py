"""One home, many processes: the Python API, and how it works when another process holds the home.

Read from the top; each room imports from those below it alone.

    machine             what this machine can do; trial_mount is a program that it runs
    api                 the Python API: `open_home`, `Home`; what its methods do that more than one request:
      layers              its `Layers`
      files               copies of files between the host and devices
      images, archives    disk images, directories and archives that become devices, and the other way round
      chains              a device and its descendants, in a directory
      comparing           what differs between devices
      recordings          its `Recordings`; trace_files: traces in files
    serving/            the process that serves a mount, and how it is started in the background
    own_session         the session behind the Python API: for several threads, and while this process has a mount
    maintenance         check, repair, dump, restore and delta of the pool's metadata
    recovery            of the home's records
    session             reaching a home: opened here, or the process that holds it asked over its socket
    control/            the holder's socket: protocol, client, server
      unix_socket         a socket that its owner alone can reach; passed_file: files that come over one
    executor            running requests on a home that this process holds, for all who ask
    requests/           what can be asked of a home: for each operation a typed struct, with its documentation
      snapshot_keys       which devices are containerd's snapshots
    opening, open_home  making and opening a home in this process, as a `HomeSpec` says, and what that gives
      storage_options     what a layer driver's options say of that; backend_facts: what they can be here
      faults              the faults of an open home; device_traces: its traces; stand_ins: what they put before devices
      virtual_clock       its clock, where that is a test's
    kernel/             devices and layers that the kernel mounts, from block device nodes
    runtime             the directory in which a home that cannot be written is served
    service_manager     what a service and the service manager that started it tell each other
    spec                which home, and how it is to be opened
"""
