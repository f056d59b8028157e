"""The crash explorer for programs: what a crash at any moment would leave of a program's files, opened and checked.

program      programs that write and check, and their marks: what `cowfs crash-test` runs
running      such programs while they run
report       what was found, as one HTML page
explorer     records what happens to a device, makes the states, opens them
making       a state as a device of the home
shrinking    a failing state with the fewest lost writes
planning     which states are tried
disk         what a crash leaves of what ext4 writes: the model `ext4`
files        what a crash leaves of operations on files, in any POSIX file system: the model `posix`
history      what both have in common: what was written, when it was durable, a state
naming       what was lost in words: files and offsets
"""
