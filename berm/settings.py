"""Every setting of a node: one table of names, defaults, bounds and one line of help each.

The rules:

1. What is written here is the only place where a setting is defined: `config/berm.toml`, `docs/settings.md` and the
   texts of errors are made from it.
2. Settings are read once, checked whole, and never change afterwards. What isn't known is refused, never ignored.
3. A value has the type that TOML gave it: nothing is converted, so `port = "1883"` is an error.
4. Sizes are in bytes, times in seconds.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from broker.mqtt.errors import ProtocolError
from broker.mqtt.topic import SHARE, validate_filter

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30
TIB: Final = 1 << 40
LARGEST_PACKET: Final = 268_435_460
"""Bytes of the largest packet that MQTT can express: five of fixed header and a full Remaining Length."""
LARGEST_INBOUND: Final = LARGEST_PACKET - 64 * KIB
"""Bytes of a packet that can be taken: what a subscriber gets may have properties that the publisher's had not."""
FOREVER: Final = 0xFFFFFFFF
"""A session expiry interval that never ends, in s."""

SOCKET_PATH: Final = 107
"""Bytes of a unix socket's path at most, on Linux."""

KEY_SOURCES: Final = ("file", "env", "command")
"""What the operator's key for encryption can come from."""

SEARCHED: Final = (Path("berm.toml"), Path("/etc/berm/berm.toml"))
"""Where the configuration file is looked for when none is named, first to last."""


class SettingsError(Exception):
    """The settings can't be used; `problems` has one line for each reason, and so has the message."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class Allowed:
    """What a value may be, in words, where its type and bounds don't say it."""

    words: str


@dataclass(frozen=True, slots=True)
class Unset:
    """What is used where the setting is not given, in words, where the default can't be written down."""

    words: str


def _check_filter(value: str) -> str:
    try:
        validate_filter(value)
    except ProtocolError as error:
        raise ValueError(str(error)) from None
    if value.startswith(SHARE):
        raise ValueError("a shared subscription; give the filter behind it")
    return value


def _check_name(value: str) -> str:
    if not value or len(value.encode()) > 255 or not value.isprintable() or any(each in value for each in "/+#"):
        raise ValueError("not a name")
    return value


def _check_prefix(value: str) -> str:
    if any(each in value for each in "+#\0"):
        raise ValueError("it has a wildcard or U+0000 in it")
    return value


def _check_text(value: str) -> str:
    if "\0" in value:
        raise ValueError("it has U+0000 in it")
    return value


def _check_mount_point(value: str) -> str:
    if value.startswith("$"):
        raise ValueError("topics that begin with $ are the server's")
    if len(value.encode()) > 1024:
        raise ValueError("it has more than 1,024 bytes")
    return value


def _check_network(value: str) -> str:
    ip_network(value)
    return value


def _check_mode(value: str) -> str:
    if not re.fullmatch("0?[0-7]{3}", value):
        raise ValueError("not a mode")
    return value


def _check_client_ids(value: str) -> str:
    from broker.auth import check_pattern  # few nodes ask for it

    if value and (problem := check_pattern(value)) is not None:
        raise ValueError(problem)
    return value


def _check_path(value: str) -> str:
    if (
        not value.startswith("/")
        or not value.isascii()
        or not value.isprintable()
        or any(each in value for each in " ?#")
    ):
        raise ValueError("not the path of a URL")
    return value


def check_key_source(value: str) -> str:
    """The value, if it says where a key for encryption is.

    Raises:
        ValueError: it does not.
    """
    kind, _, rest = value.partition(":")
    if kind not in KEY_SOURCES or not rest.strip():
        raise ValueError("it does not say where a key is")
    if kind == "command":
        shlex.split(rest)
    return value


def _check_age(value: str) -> str:
    if not re.fullmatch("0?|[1-9][0-9]{0,5}[smhdwy]", value):
        raise ValueError("not an age")
    return value


def _host_name() -> str:
    return socket.gethostname() or "berm"


Name = Annotated[
    str, AfterValidator(_check_name), Allowed("text of 1 to 255 bytes, printable, without `/`, `+` and `#`")
]
Filter = Annotated[str, AfterValidator(_check_filter), Allowed("a topic filter such as `plant/+/temperature`")]
Prefix = Annotated[str, AfterValidator(_check_prefix), Allowed("text without `+`, `#` and U+0000")]
Text = Annotated[str, AfterValidator(_check_text), Allowed("text without U+0000")]
Host = Annotated[str, Field(min_length=1), Allowed("a host name or an address")]
MountPoint = Annotated[
    str,
    AfterValidator(_check_prefix),
    AfterValidator(_check_mount_point),
    Allowed("text of up to 1,024 bytes without `+`, `#` and U+0000 that does not begin with `$`"),
]
Network = Annotated[str, AfterValidator(_check_network)]
Mode = Annotated[str, AfterValidator(_check_mode), Allowed("three octal digits, such as `0660`")]
URLPath = Annotated[str, AfterValidator(_check_path), Allowed("the path of a URL, such as `/mqtt`")]
File = Annotated[Path, Field(strict=False), Allowed("a path")]
ClientIds = Annotated[
    str, AfterValidator(_check_client_ids), Allowed("text with %u for the user name, and a `*` at its end for anything")
]
Age = Annotated[
    str, AfterValidator(_check_age), Allowed("a number with s, m, h, d, w or y behind it, such as `365d`, or `0`")
]
KeySource = Annotated[
    str,
    AfterValidator(check_key_source),
    Allowed("`file:PATH`, `env:NAME` or `command:PROGRAM ARGUMENT ...`"),
]


def _rate(description: str) -> float:
    field: float = Field(default=0.0, ge=0, le=1e12, allow_inf_nan=False, description=description)
    return field


class Section(BaseModel):
    """What all sections have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class NodeSection(Section):
    """Who this node is."""

    name: Annotated[Name, Unset("the host's name")] = Field(
        default_factory=_host_name, description="what the node calls itself towards the cloud", examples=["edge-7"]
    )


class DurabilityRule(Section):
    """How much is kept of which topics, before anything is acknowledged. The first rule that matches wins.

    Where none does: `fsync` for QoS 1 and 2, `os` for QoS 0.
    """

    topic: Filter = Field(description="which topics", examples=["plant/+/debug/#"])
    durability: Literal["fsync", "os", "memory"] = Field(
        description="fsync: survives a power cut; os: survives the death of the process; memory: a ring in RAM",
        examples=["memory"],
    )


class RetentionRule(Section):
    """How long messages of which topics are kept. The first rule that matches counts; where none does, the age above.

    A sealed segment is written anew without what is expired of it, once that is an eighth of its messages.
    """

    filter: Filter = Field(description="which topics", examples=["plant/+/debug/#"])
    age: Age = Field(description="how long their messages are kept; 0: for ever", examples=["1d"])


class RetentionSection(Section):
    """What is kept of history: sealed segments go, the oldest first. What is not sealed yet always stays.

    Without any of this everything is kept, until the disk is full.
    """

    age: Age = Field(default="0", description="how long messages are kept, such as 365d; 0: for ever")
    bytes: int = Field(
        default=0, ge=0, le=1024 * TIB, description="most that all segments together may have, in bytes; 0: no bound"
    )
    min_free: int = Field(
        default=0,
        ge=0,
        le=1024 * TIB,
        description="free bytes of the disk below which the oldest segments go; half of the disk counts at most, and "
        "an eighth more than low_space at least; 0: none goes for that",
    )
    rules: tuple[RetentionRule, ...] = Field(default=(), strict=False, description="ages by topic")


class StorageSection(Section):
    """Where the log is, and how much of it is held in memory."""

    path: File = Field(
        default=Path("data"), description="directory of the log and all other state; relative to the configuration file"
    )
    memory_bytes: int = Field(
        default=12 * MIB,
        ge=64 * KIB,
        le=64 * GIB,
        description="ring of recent events for readers that nearly keep up, and for durability `memory`, in bytes",
    )
    group_bytes: int = Field(
        default=4 * MIB,
        ge=64 * KIB,
        le=GIB,
        description="most that one commit gathers before reading from publishers pauses, in bytes",
    )
    low_space: int = Field(
        default=256 * MIB,
        ge=0,
        le=TIB,
        description="free bytes of the disk below which QoS 0 messages are delivered but not stored; "
        "a quarter of the disk counts at most; 0: never",
    )
    min_space: int = Field(
        default=64 * MIB,
        ge=0,
        le=TIB,
        description="free bytes of the disk below which nothing is stored for publishers: QoS 1 and 2 are refused "
        "(0x97) or wait; an eighth of the disk counts at most; 0: never",
    )
    reserve_bytes: int = Field(
        default=16 * MIB,
        ge=0,
        le=GIB,
        description="room that a file holds for starting and tidying up on a full disk, in bytes; "
        "a sixty-fourth of the disk counts at most; 0: none",
    )
    segment_bytes: int = Field(
        default=64 * MIB,
        ge=0,
        le=GIB,
        description="bytes of messages after which the oldest part of the log is sealed: compressed into a file of its "
        "own and taken out of berm.db; 0: never",
    )
    segment_age: int = Field(
        default=86_400,
        ge=1,
        le=100 * 366 * 86_400,
        description="age of the oldest message after which that is done whatever its bytes, in s",
    )
    check_seconds: float = Field(
        default=1.0,
        ge=0,
        le=3600,
        description="how long a start may look for damage in berm.db, beyond what it reads anyway, in s",
    )
    rules: tuple[DurabilityRule, ...] = Field(default=(), strict=False, description="durability by topic")
    retention: RetentionSection = Field(default_factory=RetentionSection)


class EncryptionSection(Section):
    """Encryption of what is stored. The key is 32 bytes, as such, in hexadecimal or in base64; see `berm keys`.

    It encrypts data keys, which are made by themselves and encrypt everything else.
    """

    key: Annotated[KeySource | None, Unset("nothing is encrypted")] = Field(
        default=None, repr=False, description="where the operator's key is", examples=["file:/etc/berm/key"]
    )
    earlier: Annotated[
        tuple[KeySource, ...],
        Allowed("a list of places such as `file:/etc/berm/key.old`, beside key"),
    ] = Field(
        default=(),
        strict=False,
        repr=False,
        description="where keys of before are; a start that needs one of them encrypts the data keys with key instead",
    )
    new_data_key_days: int = Field(
        default=30,
        ge=0,
        le=3650,
        description="age at which a data key is followed by a new one, in days; 0: only `berm keys rotate` makes one",
    )

    @field_validator("earlier")
    @classmethod
    def check_earlier(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        """Earlier keys are of no use without one to go on with."""
        if value and info.data.get("key", value) is None:
            raise ValueError("there is no key to go on with")
        return value


class BoundsSection(Section):
    """The bounds that clients meet."""

    max_connections: int = Field(default=10_000, ge=1, le=1_000_000, description="connections at a time")
    max_packet_size: int = Field(
        default=MIB, ge=KIB, le=LARGEST_INBOUND, description="largest packet taken from a client, in bytes"
    )
    receive_maximum: int = Field(
        default=1000, ge=1, le=65535, description="QoS 1 and 2 publishes that a client may have unacknowledged"
    )
    max_inflight: int = Field(
        default=1000, ge=1, le=65535, description="QoS 1 and 2 publishes unacknowledged on their way to one client"
    )
    max_keep_alive: int = Field(
        default=0, ge=0, le=65535, description="longest keep alive that a client gets, in s; 0: whatever it asks for"
    )
    topic_alias_maximum: int = Field(default=16, ge=0, le=65535, description="topic aliases that a client may set")
    max_topic_aliases: int = Field(
        default=16, ge=0, le=65535, description="topic aliases set for what a client is sent that takes as many"
    )
    max_session_expiry: int = Field(
        default=30 * 86400,
        ge=0,
        le=FOREVER,
        description=f"longest that the session of an absent client is kept, in s; {FOREVER}: for ever",
    )
    connect_timeout: int = Field(
        default=10, ge=1, le=3600, description="longest wait for CONNECT on a new connection, in s"
    )
    write_buffer: int = Field(
        default=256 * KIB,
        ge=4 * KIB,
        le=GIB,
        description="unsent bytes that one client may have waiting before it is fed from the log instead",
    )
    max_subscriptions: int = Field(default=1000, ge=1, le=1_000_000, description="subscriptions of one client")
    max_qos: Literal[0, 1, 2] = Field(default=2, description="highest QoS at which clients publish and subscribe")
    retain_available: bool = Field(
        default=True, description="whether clients may publish retained messages, and are given those that there are"
    )
    wildcard_subscription_available: bool = Field(default=True, description="whether a topic filter may have + and #")
    subscription_identifier_available: bool = Field(
        default=True, description="whether a subscription may have an identifier"
    )
    shared_subscription_available: bool = Field(default=True, description="whether subscriptions may be shared")
    replay: bool = Field(default=True, description="whether clients may have replayed what is in the log")
    max_replays: int = Field(default=16, ge=1, le=1000, description="replays of one client at a time")
    check_payload_format: bool = Field(
        default=False, description="whether a payload that is said to be UTF-8 and is not is refused"
    )
    reason_strings: bool = Field(
        default=True, description="whether MQTT 5 clients are told in words why something is refused"
    )
    response_topic_prefix: Annotated[Prefix, Unset("nothing")] = Field(
        default="",
        description="what a client that asks is told to begin its response topics with; %c: the client identifier; "
        "%u: the user name",
        examples=["responses/%c/"],
    )
    redirect: Annotated[Literal["use_another_server", "server_moved"] | None, Unset("clients are connected")] = Field(
        default=None,
        description="why nobody is connected any more: each client is told so in answer to its CONNECT",
        examples=["use_another_server"],
    )
    server_reference: Annotated[Text, Unset("none")] = Field(
        default="",
        max_length=1024,
        description="the server that MQTT 5 clients are told of with redirect",
        examples=["broker-2.example.com:1883"],
    )


class AccessSection(Section):
    """Who may connect, and do what with topics. Files that change are read anew, and on SIGHUP.

    A file that can't be used then is told as an error, and the old one goes on.
    """

    anonymous: Annotated[
        bool | None, Unset("true where only this machine reaches the listener and there is no password_file")
    ] = Field(default=None, description="whether clients that do not say who they are may connect", examples=[False])
    password_file: Annotated[File | None, Unset("none")] = Field(
        default=None,
        description="users and what is kept of their passwords, for CONNECT and SCRAM-SHA-256; see `berm passwd`",
        examples=["passwords"],
    )
    client_ids: Annotated[ClientIds, Unset("any")] = Field(
        default="", description="what client identifiers a user may have", examples=["%u-*"]
    )
    acl_file: Annotated[File | None, Unset("everything is allowed")] = Field(
        default=None, description="rules of who may publish, subscribe and receive what", examples=["acl"]
    )
    acl_default: Literal["deny", "allow"] = Field(
        default="deny", description="what holds where no rule of acl_file says anything"
    )


class QuotasSection(Section):
    """How much the clients may ask for; 0: as much as they like. Who is ahead of a rate is made to wait.

    After a pause a second's worth may come at once.
    """

    connect_rate: float = _rate("CONNECTs a second on the listener; those beyond are refused")
    user_connections: int = Field(
        default=0, ge=0, le=1_000_000, description="connections of one user to the listener at a time"
    )
    message_rate: float = _rate(
        "publishes a second of one client; a topic filter in a SUBSCRIBE or UNSUBSCRIBE counts as one"
    )
    byte_rate: float = _rate("bytes a second from one client")
    total_message_rate: float = _rate("the same of all clients of the listener together")
    total_byte_rate: float = _rate("bytes a second from all clients of the listener together")
    topic_levels: int = Field(default=0, ge=0, le=65535, description="levels of a topic name or filter")
    topic_length: int = Field(default=0, ge=0, le=65535, description="bytes of a topic name or filter")


class _MqttAddress(Section):
    host: Annotated[Host, Unset("127.0.0.1 where there are no [[listeners]]")] = Field(
        default="127.0.0.1", description="address to listen on; 0.0.0.0: all of IPv4", examples=["127.0.0.1"]
    )
    port: Annotated[int, Unset("1883 where there are no [[listeners]]")] = Field(
        default=1883, ge=0, le=65535, description="TCP port to listen on; 0: any free one", examples=[1883]
    )


class MqttSection(BoundsSection, _MqttAddress):
    """Where clients connect where there are no `[[listeners]]`: by plain TCP. And the bounds that they meet.

    With `[[listeners]]` the bounds are those that a listener does not set for itself, and `max_connections` is for all
    of them together; `host` and `port` are not allowed then.
    """

    max_sessions: int = Field(
        default=100_000, ge=1, le=100_000_000, description="sessions, of all listeners, that outlive their connections"
    )
    max_retained: int = Field(
        default=0, ge=0, le=100_000_000, description="retained messages; one more is refused, or not retained; 0: any"
    )
    retained_memory: int = Field(
        default=128 << 20, ge=0, le=1 << 40, description="bytes of memory that retained messages may take; 0: any"
    )
    queue_qos0: bool = Field(
        default=False, description="whether a client that was away gets the QoS 0 messages that it missed"
    )
    sys_interval: int = Field(
        default=10,
        ge=0,
        le=86400,
        description="time between two updates of the topics below $SYS/broker/, in s; 0: there are none",
    )
    access: AccessSection = Field(default_factory=AccessSection)
    quotas: QuotasSection = Field(default_factory=QuotasSection)


class TLSSection(Section):
    """TLS on a listener. Files that change are loaded anew, and on SIGHUP; connections go on.

    A file that can't be used then is told as an error, and the old certificate goes on.
    """

    certificate: File = Field(
        description="PEM file of the certificate, and of those between it and its authority", examples=["server.pem"]
    )
    key: File = Field(description="PEM file of its private key, without a password", examples=["server.key"])
    minimum_version: Literal["1.2", "1.3"] = Field(default="1.2", description="oldest version of TLS that is spoken")
    client_ca: Annotated[File | None, Unset("clients are asked for none")] = Field(
        default=None,
        description="PEM file of the authorities of clients' certificates; a certificate that is shown must be good",
        examples=["clients.pem"],
    )
    require_client_certificate: bool = Field(
        default=False, description="whether a client without a certificate is refused"
    )
    crl: Annotated[File | None, Unset("none")] = Field(
        default=None,
        description="PEM file of a revocation list of these authorities; one that has expired refuses everyone",
        examples=["clients.crl"],
    )
    identity: Annotated[Literal["cn", "san"] | None, Unset("the certificate tells nothing")] = Field(
        default=None,
        description="what of a client's certificate tells authentication who it is: cn: the common name; "
        "san: the first DNS name, URI or mail address",
        examples=["cn"],
    )

    @field_validator("require_client_certificate", "crl", "identity")
    @classmethod
    def check_client_ca(cls, value: object, info: ValidationInfo) -> object:
        """Certificates of clients are worth nothing where nobody can check them."""
        if value and info.data.get("client_ca", value) is None:
            raise ValueError("there is no client_ca to check certificates with")
        return value


class WebSocketSection(Section):
    """What a listener of type `websocket` asks of its clients."""

    path: URLPath = Field(default="/mqtt", description="path of the URL that clients ask for")
    origins: Annotated[tuple[str, ...], Allowed("a list of origins such as `https://example.com`")] = Field(
        default=(),
        strict=False,
        description="origins of the web pages whose scripts may connect; none: any. Clients that send no origin, as "
        "most outside of a browser, always may",
    )


class ProxySection(Section):
    """A proxy in front of the listener tells, by the PROXY protocol, version 1 or 2, who the client is.

    With this table each connection must begin with its header; one that does not is closed.
    """

    sources: Annotated[
        tuple[Network, ...], Allowed("a list of addresses and networks such as `10.0.0.0/8`, without host bits")
    ] = Field(
        default=(),
        strict=False,
        description="where proxies are; connections from elsewhere are closed. Empty: anywhere, and then only the "
        "proxy should be able to connect, since what the header says is believed",
    )
    identity: bool = Field(
        default=False,
        description="whether the common name of a client certificate that the proxy has checked tells authentication "
        "who the client is",
    )


class _ListenerAddress(Section):
    name: Name = Field(description="what the log calls it", examples=["devices"])
    type: Literal["tcp", "websocket", "unix"] = Field(
        default="tcp",
        description="tcp and websocket: on a port, with TLS or without; unix: a socket in the file system",
    )
    host: Host = Field(default="127.0.0.1", description="address to listen on; 0.0.0.0: all of IPv4")
    port: Annotated[int | None, Unset("must be given, but for unix")] = Field(
        default=None,
        ge=0,
        le=65535,
        validate_default=True,
        description="port to listen on; 0: any free one",
        examples=[8883],
    )
    path: Annotated[File | None, Unset("must be given for unix")] = Field(
        default=None, validate_default=True, description="unix: the socket's path", examples=["/run/berm/mqtt.sock"]
    )
    mode: Mode = Field(default="0660", description="unix: who may connect, as of a file")
    group: Annotated[str, Unset("that of the process")] = Field(
        default="", description="unix: the group that the socket belongs to", examples=["mqtt"]
    )
    mount_point: MountPoint = Field(
        default="",
        description="put before every topic that clients of the listener name, and taken off those that they receive",
        examples=["site-7/"],
    )

    @field_validator("port", "path")
    @classmethod
    def check_place(cls, value: object, info: ValidationInfo) -> object:
        """A port, or a path."""
        kind = info.data.get("type")
        if kind is None:
            return value
        wanted = (kind == "unix") == (info.field_name == "path")
        if wanted and value is None:
            raise PydanticCustomError("missing", "missing")
        if not wanted and value is not None:
            raise ValueError(f"a listener of type {kind} has none")
        return value

    @field_validator("path")
    @classmethod
    def check_length(cls, value: Path | None) -> Path | None:
        """The system's bound."""
        if value is not None and len(os.fsencode(value)) > SOCKET_PATH:
            raise ValueError(f"longer than the {SOCKET_PATH} bytes that a socket's path may have")
        return value


class ListenerSection(BoundsSection, _ListenerAddress):
    """A place where clients connect. With the first of these, `host` and `port` of `[mqtt]` are not used any more.

    A bound that is not given is that of `[mqtt]`, and so is a table `access` or `quotas`, as a whole.
    """

    tls: TLSSection | None = None
    websocket: WebSocketSection | None = None
    proxy_protocol: ProxySection | None = None
    access: AccessSection | None = None
    quotas: QuotasSection | None = None

    @field_validator("tls", "websocket", "proxy_protocol")
    @classmethod
    def check_layers(cls, value: object, info: ValidationInfo) -> object:
        """What a type has no use for would be ignored."""
        kind = info.data.get("type")
        if kind == "unix" and info.field_name != "proxy_protocol":
            raise ValueError("a listener of type unix has none")
        if kind == "tcp" and info.field_name == "websocket":
            raise ValueError('it is for listeners of type "websocket"')
        return value


class LogSection(Section):
    """What the node tells on stderr."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="least important lines that are written"
    )
    format: Literal["text", "json"] = Field(
        default="text", description="text: a line for people; json: an object on each line, for programs"
    )


class ProcessorSection(Section):
    """A Python file whose functions filter, map and aggregate events."""

    file: File = Field(description="the file; relative to the configuration file", examples=["processors/plant.py"])


class RouteSection(Section):
    """Which topics a bridge forwards. A route is a place in the log: after an outage it goes on where it was."""

    name: Name = Field(
        description="what the route is called; its place in the log is kept by it", examples=["telemetry"]
    )
    topic: Filter = Field(description="which topics", examples=["plant/#"])
    qos: Literal[0, 1] = Field(default=1, description="highest QoS to send at; 1: each event until it is acknowledged")
    prefix: Prefix = Field(default="", description="put before each topic that is sent")
    start: Literal["end", "beginning"] = Field(
        default="end", description="where a route that has never run begins: with what comes, or with all that is kept"
    )


class BridgeSection(Section):
    """A connection to another broker, and what is forwarded over it."""

    name: Name = Field(description="what the bridge is called", examples=["cloud"])
    host: Host = Field(description="the other broker", examples=["broker.example.com"])
    port: int = Field(default=1883, ge=1, le=65535, description="its TCP port")
    version: Literal["5", "3.1.1"] = Field(default="5", description="version of MQTT to speak")
    client_id: Annotated[str, Unset("`<node>-<name>`")] = Field(
        default="", max_length=65535, description="client identifier to connect with", examples=["edge-7-cloud"]
    )
    username: Annotated[str | None, Unset("none")] = Field(
        default=None, description="user name to connect with", examples=["edge"]
    )
    password: Annotated[str | None, Unset("none")] = Field(
        default=None, repr=False, description="password to connect with", examples=["secret"]
    )
    keep_alive: int = Field(default=60, ge=0, le=65535, description="keep alive, in s; 0: none")
    window: int = Field(default=1000, ge=1, le=65535, description="publishes on their way, not yet acknowledged")
    window_bytes: int = Field(
        default=4 * MIB, ge=KIB, le=GIB, description="their size together, in bytes; one may stand out over it"
    )
    max_packet_size: int = Field(
        default=LARGEST_PACKET,
        ge=64,
        le=LARGEST_PACKET,
        description="largest packet that the peer takes, in bytes; an MQTT 5 peer says so itself and can lower it",
    )
    backoff_min: float = Field(
        default=0.5, ge=0.01, le=86400, allow_inf_nan=False, description="shortest pause before connecting again, in s"
    )
    backoff_max: float = Field(
        default=30.0, ge=0.01, le=86400, allow_inf_nan=False, description="longest pause before connecting again, in s"
    )
    routes: tuple[RouteSection, ...] = Field(strict=False, description="what is forwarded")

    @field_validator("password")
    @classmethod
    def check_password(cls, value: str | None, info: ValidationInfo) -> str | None:
        """MQTT 5 takes a password alone, 3.1.1 does not."""
        if value is not None and info.data.get("version") == "3.1.1" and info.data.get("username") is None:
            raise ValueError("MQTT 3.1.1 takes no password without a user name")  # [MQTT-3.1.2-22]
        return value

    @field_validator("backoff_max")
    @classmethod
    def check_backoff(cls, value: float, info: ValidationInfo) -> float:
        """The longest pause is no shorter than the shortest."""
        least = info.data.get("backoff_min", 0)
        if value < least:
            raise ValueError(f"{value:g} s is shorter than backoff_min, {least:g} s")
        return value

    @field_validator("routes")
    @classmethod
    def check_routes(cls, value: tuple[RouteSection, ...]) -> tuple[RouteSection, ...]:
        """A bridge without a route would forward nothing; a route's name is where its place in the log is kept."""
        if not value:  # as a length of the field it would count wrong routes as missing ones
            raise PydanticCustomError("empty", "no routes")
        _refuse_twins("name", (route.name for route in value))
        return value


class Settings(Section):
    """All settings of a node."""

    node: NodeSection = Field(default_factory=NodeSection)
    storage: StorageSection = Field(default_factory=StorageSection)
    encryption: EncryptionSection = Field(default_factory=EncryptionSection)
    mqtt: MqttSection = Field(default_factory=MqttSection)
    listeners: tuple[ListenerSection, ...] = Field(default=(), strict=False)
    log: LogSection = Field(default_factory=LogSection)
    processors: tuple[ProcessorSection, ...] = Field(default=(), strict=False)
    bridges: tuple[BridgeSection, ...] = Field(default=(), strict=False)

    @field_validator("listeners")
    @classmethod
    def check_listeners(cls, value: tuple[ListenerSection, ...], info: ValidationInfo) -> tuple[ListenerSection, ...]:
        """Each place once, and none that is only half meant."""
        _refuse_twins("name", (listener.name for listener in value))
        _refuse_twins("port", (f"{each.host}:{each.port}" if each.port else each.name for each in value))
        _refuse_twins("path", (str(each.path) if each.path else each.name for each in value))
        mqtt = info.data.get("mqtt")
        if value and isinstance(mqtt, MqttSection):
            for key in sorted({"host", "port"} & mqtt.model_fields_set):
                words = f"it is of no use beside [[listeners]]; make it a listener of its own, and leave out mqtt.{key}"
                raise PydanticCustomError("surplus", "{words}", {"words": words, "of": ("mqtt", key)})
        return value

    @field_validator("processors")
    @classmethod
    def check_processors(cls, value: tuple[ProcessorSection, ...]) -> tuple[ProcessorSection, ...]:
        """A file that ran twice would count each event twice."""
        _refuse_twins("file", (str(processor.file) for processor in value))
        return value

    @field_validator("bridges")
    @classmethod
    def check_bridges(cls, value: tuple[BridgeSection, ...]) -> tuple[BridgeSection, ...]:
        """A bridge's name is part of where its routes' places in the log are kept."""
        _refuse_twins("name", (bridge.name for bridge in value))
        return value


def _refuse_twins(key: str, values: Iterable[str]) -> None:
    seen: set[str] = set()
    for index, value in enumerate(values):
        if value in seen:
            raise PydanticCustomError("twin", "{words}", {"words": "it is given twice", "at": (index, key)})
        seen.add(value)


Raw = dict[str, object]
"""Tables as tomllib gives them."""


def find(path: Path | None) -> Path | None:
    """The configuration file to read: the one named, or the first of `SEARCHED` that exists, or none."""
    return path or next((each for each in SEARCHED if each.exists()), None)


def load(path: Path | None, overrides: Sequence[str] = ()) -> Settings:
    """The settings in a TOML file, or the defaults where there is none, with `section.name=value` overrides on top.

    The value of an override is TOML; what is no TOML value is taken as text. Relative paths in the file are relative
    to its directory, those in overrides to the working directory.

    Raises:
        SettingsError: the file can't be read or isn't TOML, or a setting is unknown, missing or wrong.
    """
    text = "" if path is None else _read(path)
    raw: Raw = {} if path is None else _parse(path, text)
    if path is not None:
        _anchor(raw, path.parent)
    given: dict[tuple[str | int, ...], str] = {}
    for override in overrides:
        keys, tables = _parse_override(override)
        given[keys] = override
        _merge(raw, tables)
    try:
        settings = Settings.model_validate(raw)
    except ValidationError as error:
        from berm.explain import explain  # only a wrong setting needs it

        raise SettingsError(explain(error, path, text, given)) from None
    return _complete(settings)


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except FileNotFoundError:
        raise SettingsError([f"{path}: there is no such file"]) from None
    except OSError as error:
        raise SettingsError([f"{path}: cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise SettingsError([f"{path}:{line}: not UTF-8: {error.reason}"]) from None


def _parse(path: Path, text: str) -> Raw:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        problem, _, place = str(error).rpartition(" (at ")
        if place.startswith("line "):
            line = place.removeprefix("line ").partition(",")[0]
        else:  # it says "end of document"
            line = str(len(text.splitlines()))
        raise SettingsError([f"{path}:{line}: not TOML: {problem}"]) from None


def _parse_override(override: str) -> tuple[tuple[str, ...], Raw]:
    key, equals, value = override.partition("=")
    keys = tuple(part.strip() for part in key.split("."))
    if not equals or not all(keys):
        raise SettingsError([f"--set {override}: not a setting and its value; write section.name=value"])
    value = value.strip()
    try:
        parsed: object = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError as error:
        if value[:1] in ("", "[", "{", "'", '"'):
            problem = str(error).partition(" (at ")[0]
            raise SettingsError([f"--set {override}: the value is not TOML: {problem}"]) from None
        parsed = value
    tables: Raw = {keys[-1]: parsed}
    for each in reversed(keys[:-1]):
        tables = {each: tables}
    return keys, tables


def _merge(into: Raw, tables: Mapping[str, object]) -> None:
    for key, value in tables.items():
        old = into.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            _merge(old, value)
        else:
            into[key] = value


def _anchor(raw: Raw, base: Path) -> None:
    """Make the paths in a file relative to its directory. What isn't as expected is left for validation to refuse."""
    storage = raw.setdefault("storage", {})
    tables: list[tuple[object, str, object]] = [(storage, "path", StorageSection.model_fields["path"].default)]
    tables += [(table, "file", None) for table in _listed(raw, "processors")]
    tables += _access_files(raw.get("mqtt"))
    for listener in _listed(raw, "listeners"):
        tables.append((listener, "path", None))
        tls = listener.get("tls") if isinstance(listener, dict) else None
        tables += [(tls, key, None) for key in ("certificate", "key", "client_ca", "crl")]
        tables += _access_files(listener)
    for table, key, default in tables:
        if isinstance(table, dict):
            value = table.get(key, default)
            if isinstance(value, str | Path):
                table[key] = str(base / value)
    encryption = raw.get("encryption")
    if isinstance(encryption, dict):
        if "key" in encryption:
            encryption["key"] = _anchor_key(encryption["key"], base)
        if isinstance(earlier := encryption.get("earlier"), list):
            encryption["earlier"] = [_anchor_key(each, base) for each in earlier]


def _anchor_key(source: object, base: Path) -> object:
    if isinstance(source, str) and source.startswith("file:") and source != "file:":
        return f"file:{base / source.removeprefix('file:')}"
    return source


def _access_files(table: object) -> list[tuple[object, str, object]]:
    access = table.get("access") if isinstance(table, dict) else None
    return [(access, key, None) for key in ("password_file", "acl_file")]


def _listed(raw: Raw, key: str) -> list[object]:
    found = raw.get(key)
    return found if isinstance(found, list) else []


def _complete(settings: Settings) -> Settings:
    """Fill in what one setting takes from another."""
    names = (*BoundsSection.model_fields, "access", "quotas")
    common = {name: getattr(settings.mqtt, name) for name in names}
    listeners = tuple(
        each.model_copy(update={name: value for name, value in common.items() if name not in each.model_fields_set})
        for each in settings.listeners
    )
    bridges = tuple(
        bridge if bridge.client_id else bridge.model_copy(update={"client_id": f"{settings.node.name}-{bridge.name}"})
        for bridge in settings.bridges
    )
    return settings.model_copy(update={"bridges": bridges, "listeners": listeners})
