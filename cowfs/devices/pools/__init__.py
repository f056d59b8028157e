"""The pool under a home: where it is, how it grows, and what it can still do.

pool_source     the home's own files, devices, or a pool of the kernel that another program made
pool_files      the pool in the home's own files: making and checking them
pool_growth     more data or metadata blocks
signatures      what is on a device already, as wipefs sees it
health          what a damaged or full pool still allows
no_space        what writes to a full pool do
free_space      what must stay free, and warnings before it is reached
figures         what each device occupies
contents        what a disk holds
"""
