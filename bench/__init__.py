"""Benchmarks: one question per module, each with the answer that arithmetic expects and the goal it must reach.

What they share is in `rig`.
"""
