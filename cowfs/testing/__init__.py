"""The shipped test kit, for those who write backends and drivers, and for cowfs' own tests. Nothing here needs pytest.

conformance/     what every pool does, on any backend
layers/          what every layer driver does, on any kind of home
model, script, generator, differential      random pool operations against a model, or on two backends
verify           the emulated pool beside the kernel's: `python -m cowfs.testing.verify`
crash, blockdev, clock                      crashes, devices in memory, a clock; one that fails is in `cowfs.faults`
judges           outside opinions
cases, running   numbered cases, and cases as a command, where there is no test framework

What only cowfs' own tests and benchmarks need is in `tests/kit`.
"""
