"""ext4's structures as bytes: `layout` has the numbers, the rest packs and unpacks. Nothing here reads a device."""
