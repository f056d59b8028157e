"""Images in and out: layers of a home as images of registries, of archives of `docker save`, and of OCI layouts.

From the floor up:

reference      names of images in registries
documents      manifests, indexes and configurations; digests, chain ids, platforms
tar_split      recipes, by which the original archive of a layer is made again
compression    gzip, with a limit on the decompressed size
blobs          directories and archives of content-addressed blobs: OCI layouts that 'docker load' reads too
credentials    who one is to a registry, by Docker's configuration
http           requests to a registry
registry       its manifests, blobs and referrers
notes          what a home knows of the images that its layers came from
found          an image elsewhere: its configuration, and its layers to be read
archives       images in files and directories
downloads      blobs on their way into a home, which a later attempt goes on with
remote         images in registries
packing        the layers of a home as archives: the original ones, or new ones
incoming       images become layers
outgoing       layers become images: archives and layouts
block_deltas   beside an image, the blocks of its layers, for other homes
platform_lists images for several platforms under one tag
pulling        images of registries become layers, and
pushing        layers become images of registries

`http` and the modules above it need the package httpx, and are imported by the commands that reach registries alone.
"""
