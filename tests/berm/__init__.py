"""The node as a whole: its settings, its commands, and how it starts and stops."""
