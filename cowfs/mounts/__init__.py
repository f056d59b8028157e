"""Mounts as the system has them, of any server.

mountinfo       the mount table, and the names of our own mounts
mountpoint      what a mount needs, usable mount points, unmounting
build_needs     what pip needs to compile pyfuse3
copies          mounts that another mount namespace has copied
nodes           block devices in /sys, and which of them are mounted
processes       which processes have something open in a mount
kernel_mount    mount(2) of a block device
mounted_tree    a `cowfs.filetree.FileTree` over a mount of the kernel's
"""
