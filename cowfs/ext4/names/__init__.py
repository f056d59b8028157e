"""Names of inodes: `directory` has the blocks, `names` and `renames` the kernel's rules, `orphans` what lost its name."""
