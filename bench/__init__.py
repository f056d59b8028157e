"""Programs with our own questions: one per module, with the answer that arithmetic expects and the goals it must reach.

They are measured and reported by what `cowfs bench` is made of (`cowfs.benchmarks`); what is theirs alone is in `rig`.
"""
