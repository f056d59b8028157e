"""The control socket of a home: other processes ask whoever holds it. Read `protocol.py` first."""
