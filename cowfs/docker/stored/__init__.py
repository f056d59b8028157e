"""What a Docker daemon stored beside its devicemapper home, read offline: nothing is changed, and no daemon is needed.

From the floor up:

place       where a daemon's directory is, and where its parts are
documents   its JSON documents as structures
store       its images, containers and layers; what of them cannot be read
names       what users call images and containers -> devices
saving      images as OCI layouts (`cowfs.oci.blobs`), with their original ids (`cowfs.oci.tar_split`)
reports     rows, trees and space, for people and programs
nameless    which devices that lost their records hold which layers
rescue      everything that can be read, and a list of what cannot

Sources: moby 20.10, `layer/filestore.go`, `image/fs.go`, `reference/store.go`, `container/container.go` (what the files
mean); vbatts/tar-split, `tar/storage` (recipes); the OCI image specification 1.0 (layouts).
"""
