"""The brokers whose data is put at risk, each with the settings under which it keeps the most.

All are told to keep everything for a client that is away, without a bound, as far as they have
settings for that.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from bench.brokers import HOST, Kind, berm_command, mosquitto

DATA: Final = "data"
"""The directory, in that of a broker, where it keeps what must last."""
USER: Final = "crash"
"""Under which clients connect: amqtt keeps nothing for those without a name."""

# Segments are small, so that the sealing of one is interrupted too.
_BERM: Final = """\
[node]
name = "crash"
[storage]
path = "{data}"
segment_bytes = 32_768
[mqtt]
host = "{host}"
port = {port}
"""

# More than max_inflight_messages that are sent again at QoS 2, by MQTT 3.1.1, end the connection, and cost messages.
# Root is given up for a user who could not write here, unless it is told otherwise.
_MOSQUITTO: Final = """\
listener {port} {host}
allow_anonymous true
persistence true
persistence_location {data}/
autosave_interval 1
autosave_on_changes true
max_inflight_messages 0
max_queued_messages 0
"""
_MOSQUITTO_ROOT: Final = "user root\n"

_AMQTT: Final = """\
listeners:
  default:
    type: tcp
    bind: {host}:{port}
plugins:
  amqtt.plugins.authentication.AnonymousAuthPlugin:
    allow_anonymous: false
  amqtt.contrib.persistence.SessionDBPlugin:
    connection: sqlite+aiosqlite:///{data}/amqtt.db
    clear_on_shutdown: false
"""


def _write(directory: Path, name: str, template: str, port: int) -> Path:
    data = directory / DATA
    data.mkdir(exist_ok=True)
    path = directory / name
    path.write_text(template.format(host=HOST, port=port, data=data))
    return path


def berm(command: Sequence[str] = ()) -> Kind:
    """Berm; `command` stands for `berm` where it is another."""

    def prepare(directory: Path, port: int) -> list[str]:
        config = _write(directory, "berm.toml", _BERM, port)
        return [*command, "run", "--config", str(config)] if command else berm_command(config)

    return Kind(
        "berm",
        "defaults, but for segment_bytes 32,768, so that there is sealing to be interrupted",
        prepare,
        lambda: "",
    )


def _prepare_mosquitto(directory: Path, port: int) -> list[str]:
    more = _MOSQUITTO_ROOT if os.getuid() == 0 else ""
    return [mosquitto() or "mosquitto", "-c", str(_write(directory, "mosquitto.conf", _MOSQUITTO + more, port))]


def _no_mosquitto() -> str:
    return "" if mosquitto() else "mosquitto is not installed (on Debian: apt-get install mosquitto)"


def _prepare_amqtt(directory: Path, port: int) -> list[str]:
    return [
        sys.executable,
        "-m",
        "amqtt.scripts.broker_script",
        "-c",
        str(_write(directory, "amqtt.yaml", _AMQTT, port)),
    ]


def _no_amqtt() -> str:
    lacking = [name for name in ("amqtt", "sqlalchemy", "aiosqlite", "greenlet") if find_spec(name) is None]
    return (
        f"amqtt's persistence needs {', '.join(lacking)} (pip install amqtt 'sqlalchemy[asyncio]' aiosqlite)"
        if lacking
        else ""
    )


MOSQUITTO: Final = Kind(
    "mosquitto",
    "persistence true, autosave_interval 1, autosave_on_changes true, max_inflight_messages 0, max_queued_messages 0",
    _prepare_mosquitto,
    _no_mosquitto,
)
AMQTT: Final = Kind(
    "amqtt",
    "amqtt.contrib.persistence.SessionDBPlugin on sqlite+aiosqlite, clear_on_shutdown false; clients with a user name",
    _prepare_amqtt,
    _no_amqtt,
)


def version(kind: Kind) -> str:
    """Which version of a broker that is not missing will be run."""
    program = mosquitto()
    if kind is not MOSQUITTO or program is None:
        return metadata.version(kind.name)
    said = subprocess.run([program, "-h"], capture_output=True, text=True, check=False, timeout=30).stdout
    return said.partition("version ")[2].partition("\n")[0]


KINDS: Final = {kind.name: kind for kind in (berm(), MOSQUITTO, AMQTT)}
"""By name, in the order of the table."""
