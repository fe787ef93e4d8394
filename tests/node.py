"""Real processes for tests: a node, killed and started again on the same data, and a mosquitto as the other broker.

Everything listens on 127.0.0.1, on a port that was free. What a process says is kept in files beside its data. Each
process is ended by its own id.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

HOST: Final = "127.0.0.1"
PATIENCE: Final = 30.0
"""Seconds after which something that should have happened won't."""
BERM: Final = (sys.executable, "-m", "berm")

MOSQUITTO: Final = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
"""mosquitto's program; Debian keeps it where only root's PATH leads."""

_LISTENS: Final = re.compile(rb"listens on [a-z]+://[^/\n]*:(\d+)[^( \n]*(?: \((.*)\))?\n")
_SAID: Final = re.compile(rb"the log is .*\n")
_RSS: Final = re.compile(r"^VmRSS:\s+(\d+) kB", re.MULTILINE)


def wait_until(what: str, holds: Callable[[], bool], patience: float = PATIENCE) -> None:
    """Look again and again until `holds`; fail with `what` and not with a hang."""
    deadline = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < deadline, f"still waiting after {patience:g} s: {what}"
        time.sleep(0.01)


def free_port() -> int:
    """A port that nobody listened on a moment ago."""
    with socket.create_server((HOST, 0)) as server:
        port: int = server.getsockname()[1]
    return port


class Node:
    """`berm run` in a process of its own: as often as a test wants, and always on the same data.

    It is started on entering the `with`, or by `start`. Each start has a port that the system chooses. `command` stands
    for `berm`.
    """

    def __init__(
        self,
        directory: Path,
        config: str = "",
        arguments: Sequence[str] = (),
        name: str = "edge",
        command: Sequence[str] = BERM,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.data = directory / "data"
        self.port = 0
        self.ports: dict[str, int] = {}
        """Those of `[[listeners]]`, by name."""
        (directory / "berm.toml").write_text(config)
        port = [] if "[[listeners]]" in config else ["--set", "mqtt.port=0"]
        self._command = [*command, "run", *port, "--set", f"node.name={name}", *arguments]
        self._process: subprocess.Popen[bytes] | None = None
        self._said = b""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()

    def start(self) -> Self:
        """Start it, and wait until it listens."""
        self.spawn()
        self.wait()
        return self

    def spawn(self) -> None:
        """Start it, and don't wait."""
        assert not self.running, "it runs"
        with (self.directory / "stderr").open("ab") as stderr:
            self._process = subprocess.Popen(
                self._command,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
            )
        self._said = b""

    def wait(self) -> None:
        """Wait until it listens."""
        stdout = _stdout(self.process)
        deadline = time.monotonic() + PATIENCE
        while not _SAID.search(self._said):
            ready, _, _ = select.select([stdout], [], [], max(0.0, deadline - time.monotonic()))
            more = os.read(stdout.fileno(), 4096) if ready else b""
            if not more:
                self.kill()
                raise AssertionError(f"the node did not start; it said {self._said!r} and {self.stderr[-2000:]}")
            self._said += more
        found = [(name.decode(), int(port)) for port, name in _LISTENS.findall(self._said)]
        self.port = found[0][1] if found else 0
        self.ports = dict(found)

    def kill(self) -> None:
        """End it with SIGKILL, unless `stop` has ended it."""
        if self._process is not None and not _stdout(self._process).closed:
            self.stop(signal.SIGKILL)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; the exit code, negative where the signal ended it."""
        process = self.process
        process.send_signal(number)
        code = process.wait(PATIENCE)
        with _stdout(process) as stdout:
            self._said += stdout.read()
        return code

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process that was started last."""
        assert self._process is not None, "it was never started"
        return self._process

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def stderr(self) -> str:
        """What it has logged so far, in earlier runs too."""
        return (self.directory / "stderr").read_text(errors="replace")

    def rest_of_stdout(self) -> str:
        """What it has printed after its first line, once it has ended."""
        return self._said.decode().partition("\n")[2]

    @property
    def rss(self) -> int:
        """The memory that it has resident now, in bytes."""
        found = _RSS.search(Path(f"/proc/{self.process.pid}/status").read_text())
        assert found is not None, "it has ended"
        return int(found[1]) * 1024


def _stdout(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdout is not None
    return process.stdout


_MOSQUITTO_CONFIG: Final = """\
listener {port} {host}
allow_anonymous true
persistence false
max_inflight_messages 0
max_queued_messages 0
"""


@contextmanager
def mosquitto(directory: Path, more: str = "") -> Iterator[int]:
    """A mosquitto that keeps whatever it is sent for those who are to get it; the port that it listens on.

    `more` is added to its configuration.
    """
    assert MOSQUITTO is not None, "mosquitto is not installed"
    port = free_port()
    config = directory / "mosquitto.conf"
    config.write_text(_MOSQUITTO_CONFIG.format(port=port, host=HOST) + more)
    with (directory / "mosquitto.log").open("ab") as log:
        process = subprocess.Popen([MOSQUITTO, "-c", str(config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_until("mosquitto listens", lambda: answers(port) or process.poll() is not None)
        assert process.poll() is None, f"mosquitto ended: {Path(log.name).read_text()}"
        yield port
    finally:
        process.terminate()
        process.wait(PATIENCE)


def answers(port: int) -> bool:
    """Whether somebody listens on a port."""
    try:
        socket.create_connection((HOST, port), 1).close()
    except OSError:
        return False
    return True
