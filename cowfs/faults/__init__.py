"""Faults on demand: a plan of rules, and what carries it out on disks and on the requests of a mount.

plan        what a rule says: where, which operations, when, and with what effect; read from TOML
rules       the rules in force: which of them an operation meets, with their counters
effects     what the effects of a rule do to an operation
disk        a block device that fails by rules, around another one or in the place of its methods
names       the paths of the inodes that the kernel asks about
requests    a hook where the requests of a mount are handled
api         `Faults`: a test's words for rules

Nothing here runs, nor is any of it loaded, before a rule is added; when the last one is cleared, everything is as it
was before.
"""
