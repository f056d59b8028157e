"""Files that hold the image of a disk: where in them its data is, and how they are written.

disk            an image opened for reading: its size, and its data as (offset, bytes), without what is zeros
writing         an image that is written in order, raw or qcow2
formats         which format a file has, by its first bytes
qemu_img        the formats that only qemu's program reads, and qcow2 images that are not plain
qcow2_reading   the tables of a plain qcow2 image, checked
qcow2_writing   a qcow2 image, written from its beginning to its end
qcow2_format    what is where in one
"""
