"""The process that serves a home: a mount of it, its control socket, and the services beside them."""
