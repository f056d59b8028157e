"""The Python API of a home: what programs and the command line call, here or through the holder.

home               `open_home` and `Home`
layers             its `Layers`
files              copies of files between the host and devices
images, archives   disk images, directories and archives that become devices, and devices that become such
chains             a device and its descendants, in a directory
comparing          what differs between devices
recordings         its `Recordings`
trace_files        traces in files
"""
