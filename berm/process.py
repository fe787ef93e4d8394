"""What a node sets up in its process as a whole: file descriptors, the interpreter, signals, the service manager."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterable
from typing import Final

SWITCH_INTERVAL: Final = 0.0005
"""Seconds for which the loop may hold the interpreter while the writer wants it."""
SPARE_FILES: Final = 64
"""Descriptors that a node needs beside one for each connection."""

_logger = logging.getLogger("berm.node")


def tune_interpreter() -> None:
    """Let the writer in soon when the loop is busy."""
    sys.setswitchinterval(SWITCH_INTERVAL)


def pause_collector() -> None:
    """What a start makes stays: looking for garbage in it takes longer than making it, with 100,000 sessions."""
    gc.disable()


def tune_collector() -> None:
    """What exists now stays; messages die by their reference counts and need no frequent search for cycles."""
    gc.enable()
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 1000)


def raise_file_limit(connections: int) -> None:
    """Allow as many open files as the system lets this process have; say so where that is too few."""
    wanted = connections + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unbounded = resource.RLIM_INFINITY
    most = max(soft, wanted) if hard == unbounded else hard
    if soft != unbounded and soft < most:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
        except (OSError, ValueError):  # some systems have a bound of their own below the hard limit
            pass
    if soft != unbounded and soft < wanted:
        _logger.warning(
            "this process may open %d files, too few for %d connections (mqtt.max_connections); "
            "raise `ulimit -n`, or LimitNOFILE= of the service, to %d",
            soft,
            connections,
            wanted,
        )


def on_stop_signal(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
    """Call `stop` at the first SIGTERM or SIGINT; a second one ends the process at once, as SIGKILL would."""

    def first(number: signal.Signals) -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)
        _logger.info("%s: stopping", number.name)
        stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, first, number)


def on_reload_signal(loop: asyncio.AbstractEventLoop, reload: Callable[[], None]) -> None:
    """Call `reload` at each SIGHUP."""
    loop.add_signal_handler(signal.SIGHUP, reload)


def say(lines: Iterable[str]) -> None:
    """Print lines for whoever has started the node; nobody has to be there to read them."""
    try:
        print("\n".join(lines), flush=True)
    except OSError:
        # The interpreter flushes stdout once more when it ends, and must not fail at that.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def notify(state: str) -> None:
    """Tell systemd, where it asked to be told (`Type=notify`): `READY=1` or `STOPPING=1`."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
        try:
            manager.sendto(state.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)
        except OSError as error:
            _logger.warning("cannot tell the service manager %s at %s: %s", state, address, error.strerror)
