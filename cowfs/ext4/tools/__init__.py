"""Commands of e2fsprogs, and others, on devices: `commands` runs them; `mkfs`, `fsck`, `growth` say what for."""
