"""Requests to a home: what one is (`request`), those about devices, layers and space, and how they are decoded."""
