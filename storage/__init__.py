"""The log and everything that is kept beside it: the interface, the loop's side of it, and its engines."""
