"""Filters, maps and aggregates streams of the log with users' Python functions; each event affects the state once."""

from processors.aggregates import Aggregate
from processors.definition import Definition, Processors
from processors.errors import DefinitionError, LoadError
from processors.event import Event
from processors.message import Message

__all__ = ["Aggregate", "Definition", "DefinitionError", "Event", "LoadError", "Message", "Processors"]
