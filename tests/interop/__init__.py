"""Clients that others have written, and peers that nobody should have written, against a node over real sockets."""
