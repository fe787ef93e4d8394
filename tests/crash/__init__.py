"""SIGKILL and power cuts at random moments under load, and an account of what became of all that was acknowledged."""
