"""What the kernel itself does for a home.

devices   mounts of devices
layers    mounts of layers
faults    faults below a pool of the kernel
"""
