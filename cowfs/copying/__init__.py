"""Copying trees of files, between the host and a file tree and between two file trees, without a mount.

    host, tree     both sources and sinks: of the host's files, and of a `FileTree`
    sinks          what both sinks do: where a copy is put, what is passed over, what is reported
    paths          a path in a tree, resolved within its root
    records        what travels from a source to a sink: a tree, depth first, as records and as bytes

A source yields records, a sink takes them one by one; neither knows the other. So the source may be in another process
than the sink. What cannot be read or made is reported, and the rest is copied.
"""
