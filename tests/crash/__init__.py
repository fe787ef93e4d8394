"""SIGKILL at random moments under load, and a ledger of what became of everything that was acknowledged."""
