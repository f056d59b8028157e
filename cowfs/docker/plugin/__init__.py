"""Docker's graph-driver plugin protocol over a home: `cowfs docker plugin` is a storage driver for dockerd."""
