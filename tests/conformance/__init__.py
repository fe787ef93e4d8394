"""Whether the tests name every clause of the specification that the source claims to obey."""
