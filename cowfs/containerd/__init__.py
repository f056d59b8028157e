"""A home as a snapshotter of containerd: its proxy-plugin protocol, gRPC on a Unix socket.

From the floor up:

messages    the protocol's messages
grpc        gRPC's server half over HTTP/2: requests of one message, answers of one or several
calls       a call between the thread of the clients and that of the engine
pauses      which calls are in hand, and the pauses between them, for what can wait
front       the thread of the clients
refusals    errors of a home as the ends of calls
filters     the filters of List
client      gRPC's client half, for containerd's own services
blobs       the blobs of containerd's content store
store       which snapshots there are, in a small database in the home
places      how the files of snapshots are reached: as directories, or each as a block device
reads       what is answered from the store's memory
snapshots   the other methods, over the store and the home's layers
diff        the diff service: layers into snapshots, and out of them
serve       the process behind `cowfs snapshotter`

A snapshot is a layer of the home. Its device has a name of ours; the keys of containerd are in the store. A commit is
a new snapshot of the active one's device, which is removed as soon as nothing uses it: so a committed snapshot never
changes, not even through a mount that was made before.

Sources: containerd 1.7 and 2.1,
`api/services/{snapshots,diff,content,leases,introspection}/v1`, `core/snapshots/snapshotter.go` (what each method
means), `core/snapshots/storage/bolt.go` (its errors), `pkg/filters` (the language of filters); gRPC over HTTP/2.
"""
