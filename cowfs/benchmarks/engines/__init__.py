"""Engines: each is found by trying, and makes disks and trees in a separate directory.

interface        what an engine offers, and what a workload uses of it
catalogue        all of them, by name
plain            a file, a directory
homes            cowfs: emulated, dmthin
loops            file systems on loop devices: ext4, xfs, btrfs
served           servers of FUSE: qcow2 by qemu, fuse2fs, the least that pyfuse3 can do
nodes            devices of the kernel and their trees: what pools and lvm share
pools            thins of a pool of the kernel that is there already
lvm              thin volumes of LVM
"""
