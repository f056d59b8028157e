"""The shipped test kit, for those who write backends and drivers, and for cowfs' own tests. Nothing here needs pytest.

conformance/     what every pool does, on any backend
layers/          what every layer driver does, on any kind of home
posix            what every mounted file tree does
model, script, generator, differential, verify      random pool operations against a model, or on two backends
crash, blockdev, damage, clock                      crashes, failing devices, damaged metadata, a clock moved by hand
judges, thin_tools, docker_engine                   outside opinions
running          cases as a command, where there is no test framework
"""
