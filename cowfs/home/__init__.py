"""One home, many processes: the Python API, and what stands behind it when another process holds the home.

home, layers     the Python API: `Home`, its `Layers`
session          reaching a home: opened here (`Host`), or the process that holds it asked over its socket
requests/        what can be asked of a home, each question a typed struct that runs where the home is held
control/         the holder's socket: protocol, client, server
serving/         the process that serves a mount, and how it is started in the background
kernel/          devices and layers that the kernel mounts by itself, from block device nodes
driven_home      a home opened as a layer driver's storage options say
maintenance      check, repair, dump, restore and delta of the pool's metadata; recovery: of the home's records
machine          what this machine can do
"""
