"""A storage driver for Docker's daemon.

serve      the process
protocol   requests of the daemon, translated into requests to a home
http       HTTP on a Unix socket, as far as the daemon uses it
"""
