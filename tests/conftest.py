"""What holds for every test."""

from __future__ import annotations

import signal

# A shell that runs the tests in its background has this signal ignored, and whatever they start would ignore it, too.
signal.signal(signal.SIGINT, signal.default_int_handler)
