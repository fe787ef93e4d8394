"""The crowd of clients `crowd.c` from Python: started, told what to do, and ended.

It is a program of its own, in C: ten thousand clients in Python would be what is measured.
"""

from __future__ import annotations

import select
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

import orjson

from bench.load import BUILD, LoadError, build

SOURCE: Final = Path(__file__).with_name("crowd.c")
PATIENCE: Final = 90.0
"""Seconds beside those that a command says it takes."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one command, and what was counted since the one before. Times in s, latencies in ms.

    What the latencies are of: of `connect`, `storm` and `churn` the time from connecting to CONNACK, of `stay` that
    from PINGREQ to PINGRESP, of `fan` that from the publish to each client's delivery.
    """

    seconds: float
    ready: int
    """Clients that are connected now; of those who only open a connection, such connections."""
    connects: int
    refused: int
    closed: int
    """Connections that the broker has ended, or that have broken."""
    pings: int
    pongs: int
    received: int
    p50: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True)
class Manner:
    """How clients behave. Times in s.

    `kind`: `client`; `silent`, which never sends a byte; `half`, which sends half a CONNECT; `drip-connect` and
    `drip-publish`, which send one byte a second of a CONNECT, or of a PUBLISH. All but a client are back at once where
    the broker closes their connection. `expiry`: 0 is MQTT 3.1.1 with a clean session, otherwise it is MQTT 5 and a
    session that lasts. `width`: how many are on their way to a CONNACK at a time.
    """

    kind: str = "client"
    keep_alive: int = 30
    ping: float = 10.0
    expiry: int = 0
    width: int = 200
    prefix: str = "crowd"
    """Of client identifiers, and of topics."""
    user: str = ""
    password: str = ""

    def options(self) -> list[str]:
        """The program's command line."""
        options: dict[str, object] = {
            "kind": self.kind,
            "keep-alive": self.keep_alive,
            "ping": self.ping,
            "expiry": self.expiry,
            "width": self.width,
            "prefix": self.prefix,
        }
        if self.user:
            options |= {"user": self.user, "password": self.password}
        return [part for name, value in options.items() for part in (f"--{name}", str(value))]


class Crowd:
    """A crowd that behaves in one manner, for as long as the `with` lasts. Each command blocks until it is done.

    Raises:
        LoadError: the program can't be compiled, or what it was told can't be done.
    """

    def __init__(self, port: int, manner: Manner, directory: Path = BUILD) -> None:
        program = build(directory, SOURCE)
        self._process = subprocess.Popen(
            [str(program), "--port", str(port), *manner.options()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            bufsize=0,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()

    def connect(self, clients: int) -> Answer:
        """Have so many clients connected."""
        return self._do(f"connect {clients}")

    def subscribe(self) -> Answer:
        """Have each of them subscribe to the same topics."""
        return self._do("subscribe")

    def stay(self, seconds: float) -> Answer:
        """Ping, and take what comes."""
        return self._do(f"stay {seconds}", seconds)

    def fan(self) -> Answer:
        """Have one publish a message that all get."""
        return self._do("fan")

    def feed(self, seconds: float, rate: float, size: int) -> Answer:
        """Have one publish to all, so many messages a second of so many bytes."""
        return self._do(f"feed {seconds} {rate} {size}", seconds)

    def deafen(self) -> Answer:
        """Have all but the first read nothing more."""
        return self._do("deafen")

    def churn(self, seconds: float, rate: float) -> Answer:
        """Connect and take leave, so many times a second; 0: as often as it goes."""
        return self._do(f"churn {seconds} {rate}", seconds)

    def storm(self) -> Answer:
        """Break every connection, and connect all at once."""
        return self._do("storm")

    def kill(self) -> None:
        """End it with SIGKILL, where it has not ended; the system closes its connections."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def _do(self, command: str, seconds: float = 0) -> Answer:
        self._tell(command)
        return self._answer(seconds)

    def _tell(self, command: str) -> None:
        stdin = _pipe(self._process.stdin)
        try:
            stdin.write(f"{command}\n".encode())
            stdin.flush()
        except BrokenPipeError:
            raise self._failure() from None

    def _answer(self, seconds: float) -> Answer:
        stdout = _pipe(self._process.stdout)
        ready, _, _ = select.select([stdout], [], [], seconds + PATIENCE)
        line = stdout.readline() if ready else b""
        if not line:
            raise self._failure()
        return Answer(**orjson.loads(line))

    def _failure(self) -> LoadError:
        self._process.kill()
        said = _pipe(self._process.stderr).read().decode(errors="replace").strip()
        return LoadError(said or "crowd: no answer")


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe
