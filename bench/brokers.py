"""Brokers as processes of their own: each in a directory of its own, on a free port, waited for, and ended by its pid.

A broker's settings are those under which it does best in this comparison. No peer writes anything to disk.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

HOST: Final = "127.0.0.1"
EARLIER: Final = "earlier"
"""The name of Berm as it was."""
START_SECONDS: Final = 20
STOP_SECONDS: Final = 20
_PROBE_SECONDS: Final = 0.02
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_LISTENS: Final = "0A"
"""The state, in /proc/net/tcp, of a socket that accepts connections."""


class BrokerError(Exception):
    """A broker isn't installed, doesn't start or has ended; the message has what it said."""


@dataclass(frozen=True, slots=True)
class Kind:
    """How to start one broker: `prepare` writes its settings into a directory and gives the command.

    `missing` says in words why it can't be started here; it is empty where it can.
    """

    name: str
    settings: str
    prepare: Callable[[Path, int], list[str]]
    missing: Callable[[], str]

    def spawn(self, directory: Path, port: int | None = None) -> Broker:
        """Start it in an empty or earlier used directory, without waiting for it.

        Raises:
            BrokerError: it can't be started here.
        """
        if reason := self.missing():
            raise BrokerError(reason)
        directory.mkdir(parents=True, exist_ok=True)
        port = free_port() if port is None else port
        command = self.prepare(directory, port)
        output = directory / "output.txt"
        with output.open("ab") as file:
            # A session of its own: Ctrl-C is for the one who started it, who then ends it in order.
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd=directory, start_new_session=True
            )
        return Broker(self.name, port, output, process)

    def start(self, directory: Path, port: int | None = None) -> Broker:
        """Start it, and wait until it accepts connections.

        Raises:
            BrokerError: it can't be started here, ended, or was not ready within START_SECONDS.
        """
        broker = self.spawn(directory, port)
        try:
            broker.wait()
        except BaseException:
            broker.kill()
            raise
        return broker


@dataclass(slots=True)
class Broker:
    """A broker that runs."""

    name: str
    port: int
    output: Path
    """What it says on standard output and standard error."""
    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        """Its process."""
        return self.process.pid

    def wait(self) -> None:
        """Wait until it accepts connections.

        Raises:
            BrokerError: it ended, or was not ready within START_SECONDS.
        """
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise BrokerError(f"{self.name} ended with code {self.process.returncode}: {tail(self.output)}")
            with suppress(OSError), socket.create_connection((HOST, self.port), 1):
                return
            time.sleep(_PROBE_SECONDS)
        raise BrokerError(f"{self.name} doesn't listen after {START_SECONDS} s: {tail(self.output)}")

    def stop(self) -> int:
        """Ask it to end, and insist after STOP_SECONDS; its exit code, negative where a signal ended it."""
        self.process.terminate()
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        """End it at once with SIGKILL; its exit code."""
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGKILL)
        return self.process.wait()

    def cpu_seconds(self) -> float:
        """Processor time that it has used so far, in user and kernel mode, all threads.

        Raises:
            BrokerError: it has ended.
        """
        fields = self._about("stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def peak_rss(self) -> int:
        """The most memory that it has had resident so far, in bytes.

        Raises:
            BrokerError: it has ended.
        """
        return self._memory("VmHWM:")

    def rss(self) -> int:
        """The memory that it has resident now, in bytes.

        Raises:
            BrokerError: it has ended.
        """
        return self._memory("VmRSS:")

    def connections(self) -> int:
        """How many connections clients have with it now, as the system counts them.

        Raises:
            BrokerError: it has ended.
        """
        held: set[str] = set()
        for link in Path(f"/proc/{self.pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed since it was listed
                held.add(link.readlink().name)
        place = f"{int.from_bytes(socket.inet_aton(HOST), sys.byteorder):08X}:{self.port:04X}"
        found: set[str] = set()  # while connections come and go, the system may list one twice
        for line in self._about("net/tcp").splitlines()[1:]:
            _, local, _, state, _, _, _, _, _, inode, *_ = line.split()
            if local == place and state != _LISTENS and f"socket:[{inode}]" in held:
                found.add(inode)
        return len(found)

    def _memory(self, name: str) -> int:
        for line in self._about("status").splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
        raise self._ended()  # since it was looked at

    def _about(self, file: str) -> str:
        if self.process.poll() is not None:
            raise self._ended()
        return Path(f"/proc/{self.pid}/{file}").read_text()

    def _ended(self) -> BrokerError:
        return BrokerError(f"{self.name} has ended: {tail(self.output)}")


def free_port() -> int:
    """A TCP port of this machine that nobody listens on now."""
    with socket.create_server((HOST, 0)) as server:
        port: int = server.getsockname()[1]
    return port


def tail(output: Path, lines: int = 3) -> str:
    """The last lines of what a broker said, as one line."""
    said = output.read_text(errors="replace").strip().splitlines()[-lines:]
    return " / ".join(said) or "it said nothing"


_BERM: Final = """\
[node]
name = "bench"
[storage]
path = "data"
[mqtt]
host = "{host}"
port = {port}
[log]
level = "warning"
"""

_BERM_MEMORY: Final = """\
[[storage.rules]]
topic = "#"
durability = "memory"
"""

_MOSQUITTO: Final = """\
listener {port} {host}
allow_anonymous true
persistence false
max_inflight_messages 0
max_queued_messages 0
set_tcp_nodelay true
log_type none
sys_interval 0
"""

# No plugin that writes a line for each packet.
_AMQTT: Final = """\
listeners:
  default:
    type: tcp
    bind: {host}:{port}
plugins:
  amqtt.plugins.authentication.AnonymousAuthPlugin:
    allow_anonymous: true
"""


def berm_command(config: Path) -> list[str]:
    """The command that runs a node of this checkout."""
    return [sys.executable, "-m", "berm", "run", "--config", str(config)]


def _write(path: Path, template: str, port: int) -> Path:
    path.write_text(template.format(host=HOST, port=port))
    return path


def _prepare_berm(directory: Path, port: int) -> list[str]:
    return berm_command(_write(directory / "berm.toml", _BERM, port))


def earlier(tree: Path, words: str) -> Kind:
    """Berm as its sources are in a directory, run by this interpreter; `words` say which it is."""

    def prepare(directory: Path, port: int) -> list[str]:
        return ["env", f"PYTHONPATH={tree}", *_prepare_berm(directory, port)]

    return Kind(EARLIER, words, prepare, _nothing)


def _prepare_berm_memory(directory: Path, port: int) -> list[str]:
    return berm_command(_write(directory / "berm.toml", _BERM + _BERM_MEMORY, port))


def _prepare_mosquitto(directory: Path, port: int) -> list[str]:
    return [mosquitto() or "mosquitto", "-c", str(_write(directory / "mosquitto.conf", _MOSQUITTO, port))]


def _prepare_amqtt(directory: Path, port: int) -> list[str]:
    config = _write(directory / "amqtt.yaml", _AMQTT, port)
    return [sys.executable, "-m", "amqtt.scripts.broker_script", "-c", str(config)]


def mosquitto() -> str | None:
    """The mosquitto broker's program; Debian keeps it where only root's PATH leads."""
    return shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def _nothing() -> str:
    return ""


def _no_mosquitto() -> str:
    return "" if mosquitto() else "mosquitto is not installed (on Debian: apt-get install mosquitto)"


def _no_amqtt() -> str:
    return "" if find_spec("amqtt") else "amqtt is not installed (pip install amqtt)"


BERM: Final = Kind(
    "berm", "defaults: QoS 1 and 2 fsynced before they are acknowledged, QoS 0 stored too", _prepare_berm, _nothing
)
BERM_MEMORY: Final = Kind("berm-memory", 'one rule: topic "#", durability "memory"', _prepare_berm_memory, _nothing)
MOSQUITTO: Final = Kind(
    "mosquitto",
    "no persistence, no limit of inflight and queued messages, TCP_NODELAY, no log, no $SYS",
    _prepare_mosquitto,
    _no_mosquitto,
)
AMQTT: Final = Kind("amqtt", "in memory; no plugin but anonymous login", _prepare_amqtt, _no_amqtt)

KINDS: Final = {kind.name: kind for kind in (BERM, BERM_MEMORY, MOSQUITTO, AMQTT)}
"""Every broker that can be compared, by name, in the order of the table."""
