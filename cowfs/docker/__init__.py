"""Docker: the home as a storage driver of its daemon, and the homes that its own devicemapper driver left.

plugin   the graph-driver plugin protocol: `cowfs docker plugin` is a storage driver for dockerd
stored   images and containers in a directory of dockerd, read offline
"""
