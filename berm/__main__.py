"""`python -m berm` is `berm`."""

from __future__ import annotations

from berm.cli import main

main()
