"""What happened to a device, or to the files in it, in the one order in which it happened.

recorder     a recording while it is made: entries, operations and marks, in one file
operations   operations on files as they are recorded, and the tree that records them
tree_change  a change of many files at once, made in a tree
journal      writes, discards and flushes, the device that records them, and what a crash leaves of them
unsynced     what was written since the last flush, and what of it a power cut leaves
"""
