"""What can be wrong with a user's file, and with what an earlier run of it left."""

from __future__ import annotations


class DefinitionError(ValueError):
    """A processor can't be defined like this; the message says what is wrong and what would be right."""


class LoadError(Exception):
    """A user's file can't be used; the message is one line: file, line, what is wrong, what to do."""


class StateError(Exception):
    """The state that an earlier definition left doesn't fit this one; the message says what to do."""
