"""Requests to a home, each operation one.

request      what a request is
decoding     requests as they come over the control socket

devices      devices: made, listed, removed, renamed, rolled back; the home's state; the kernel's words for it
space        sizes, what occupies space, a full pool
counters     what the pool and its devices have done
clone        a copy of the home
layers       the graph driver's operations
new_layers   layers that come from elsewhere, made whole
files        files in devices, without a mount
comparing    what differs between devices
disks        whole disks in and out, as ranges of data
images       devices of archives and of files, and chains of devices
blocks       changes of devices block by block, as bytes
faults       faults on demand
power        a power cut
recordings   recordings of devices, and crash states
traces       traces of what a device is asked
clock        the clock of a test
ending       the end of the process that serves a mount
"""
