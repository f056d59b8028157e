"""The control socket of a home: other processes send requests to its holder. Read `protocol.py` first."""
