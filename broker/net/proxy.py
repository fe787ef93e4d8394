"""The PROXY protocol, versions 1 and 2: who is really at the other end, as a proxy in front of the listener tells it.

Source: HAProxy's proxy-protocol.txt of 2020-03-05. The rules:

1. A listener either expects the header, on every connection, or knows nothing of it: nothing is guessed (section 2).
2. The header comes first, once, in one of two forms: a line of text (version 1), or a signature and binary (version 2).
   What follows it belongs to the next layer, byte for byte, however the header and it were cut into reads.
3. `LOCAL` and `UNKNOWN` mean that the proxy speaks for itself: a health check. The socket's own address counts.
4. Whatever the bytes are, the worst that comes of them is a `ProxyError`. What is kept while the header is incomplete
   is at most LONGEST bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
"""How version 2 begins."""
LONGEST: Final = 16 << 10
"""Bytes of a header at most: version 2 can carry a client's whole certificate."""
_LONGEST_LINE: Final = 107
"""Bytes of a header of version 1 at most, its CRLF included."""
_V1: Final = b"PROXY "
_IPV4, _IPV6, _UNIX = 1, 2, 3
_ADDRESSES: Final = {_IPV4: 12, _IPV6: 36, _UNIX: 216}
"""Bytes that the addresses of a family take."""
_CRC32C, _SSL = 0x03, 0x20
_SSL_CN: Final = 0x22
_BY_CONNECTION, _BY_SESSION = 0x02, 0x04

Network = IPv4Network | IPv6Network


class ProxyError(Exception):
    """The peer has not said who is behind it, or not as it should."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Who a proxy says is behind it.

    `host` is empty where the proxy speaks for itself, and the path of the client's socket where that is a unix socket.
    `common_name` is that of a client certificate which the proxy has verified; empty where there was none.
    """

    host: str = ""
    port: int = 0
    common_name: str = ""


@dataclass(frozen=True, slots=True)
class ProxyOptions:
    """What a listener believes. `sources`: where proxies are; none: anywhere. `identity`: whether a proxy tells who the
    client is, beside where."""

    sources: tuple[Network, ...] = ()
    identity: bool = False


class ProxyLayer:
    """Takes the header off the bytes that come first."""

    STRETCH = 1 << 20

    __slots__ = ("_buffer", "_options", "ended", "error", "origin", "work")

    def __init__(self, options: ProxyOptions) -> None:
        self.ended = False
        self.error = ""
        self.work = 1
        self.origin: Origin | None = None
        """Known once the header is complete."""
        self._options = options
        self._buffer = b""

    def trusts(self, host: str) -> bool:
        """Whether a header is taken from this address."""
        return not self._options.sources or contains(self._options.sources, host)

    @property
    def unfinished(self) -> int:
        """Bytes of a header that is not whole."""
        return len(self._buffer)

    def receive(self, data: bytes) -> bytes:
        """What came after the header."""
        if self.origin is not None:
            return data
        if self.error:
            return b""
        self._buffer += data
        try:
            found = parse(self._buffer)
        except ProxyError as error:
            self.error = str(error)
            return b""
        if found is None:
            return b""
        origin, length = found
        self.origin = origin if self._options.identity else replace(origin, common_name="")
        rest, self._buffer = self._buffer[length:], b""
        return rest

    def send(self, data: bytes) -> bytes:
        """The same bytes: nothing is put around what goes to a proxy."""
        return data

    def take(self) -> bytes:
        """Nothing."""
        return b""

    def close(self) -> bytes:
        """Nothing."""
        return b""


def parse(data: bytes) -> tuple[Origin, int] | None:
    """What a header that begins these bytes says, and its length; None: more is needed.

    Raises:
        ProxyError: these bytes don't begin with a header.
    """
    if data.startswith(SIGNATURE):
        return _parse_v2(data)
    if data.startswith(_V1):
        return _parse_v1(data)
    if SIGNATURE.startswith(data) or _V1.startswith(data):
        return None
    raise ProxyError("no PROXY protocol header")


def contains(networks: tuple[Network, ...], host: str) -> bool:
    """Whether an address is in one of these networks. IPv4 that comes over an IPv6 socket counts as IPv4."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return any((mapped or address) in network for network in networks)


def _parse_v1(data: bytes) -> tuple[Origin, int] | None:
    line, end, _ = data[:_LONGEST_LINE].partition(b"\r\n")
    if not end:
        if len(data) >= _LONGEST_LINE:
            raise ProxyError(f"a PROXY protocol header of more than {_LONGEST_LINE} bytes")
        return None
    length = len(line) + 2
    words = line.split(b" ")
    if words[1] == b"UNKNOWN":
        return Origin(), length
    kind = {b"TCP4": IPv4Address, b"TCP6": IPv6Address}.get(words[1])
    if kind is None or len(words) != 6:
        raise ProxyError("a PROXY protocol header that names no TCP4, TCP6 or UNKNOWN connection")
    try:
        source, _ = kind(words[2].decode()), kind(words[3].decode())
    except ValueError:
        raise ProxyError("a PROXY protocol header whose address is none") from None
    port = _port(words[4])
    _port(words[5])
    return Origin(str(source), port), length


def _port(word: bytes) -> int:
    if not word.isdigit() or len(word) > 5 or int(word) > 65535:
        raise ProxyError("a PROXY protocol header whose port is none")
    return int(word)


def _parse_v2(data: bytes) -> tuple[Origin, int] | None:
    if len(data) < 16:
        return None
    version, command = divmod(data[12], 16)
    family, transport = divmod(data[13], 16)
    end = 16 + int.from_bytes(data[14:16])
    if version != 2 or command > 1:
        raise ProxyError(f"a PROXY protocol header of version {version}, command {command}")
    if end > LONGEST:
        raise ProxyError(f"a PROXY protocol header of {end} bytes; at most {LONGEST} are taken")
    if len(data) < end:
        return None
    header = data[:end]
    if command == 0 or family == 0 or transport == 0:  # LOCAL, or a connection that it has no words for
        return Origin(), end
    size = _ADDRESSES.get(family)
    if size is None or transport != 1:
        raise ProxyError(f"a PROXY protocol header of family {family}, transport {transport}")
    if end < 16 + size:
        raise ProxyError("a PROXY protocol header without room for its addresses")
    tlvs = _tlvs(header[16 + size :])
    if _CRC32C in tlvs:
        _check_sum(header, tlvs[_CRC32C])
    return _origin(family, header[16 : 16 + size], tlvs), end


def _origin(family: int, addresses: bytes, tlvs: dict[int, bytes]) -> Origin:
    name = _common_name(tlvs[_SSL]) if _SSL in tlvs else ""
    if family == _IPV4:
        return Origin(str(IPv4Address(addresses[:4])), int.from_bytes(addresses[8:10]), name)
    if family == _IPV6:
        return Origin(str(IPv6Address(addresses[:16])), int.from_bytes(addresses[32:34]), name)
    return Origin(addresses[:108].partition(b"\0")[0].decode(errors="backslashreplace") or "unix", 0, name)


def _tlvs(data: bytes) -> dict[int, bytes]:
    """Type to value; of two of one type the first."""
    found: dict[int, bytes] = {}
    at = 0
    while at < len(data):
        end = at + 3 + int.from_bytes(data[at + 1 : at + 3])
        if at + 3 > len(data) or end > len(data):
            raise ProxyError("a PROXY protocol header that ends inside of a value")
        found.setdefault(data[at], data[at + 3 : end])
        at = end
    return found


def _common_name(data: bytes) -> str:
    """That of the client's certificate, where it showed one, on this connection or an earlier one, that is good."""
    if len(data) < 5:
        raise ProxyError("a PROXY protocol header whose TLS part is too short")
    shown, verified = data[0] & (_BY_CONNECTION | _BY_SESSION), data[1:5] == b"\0\0\0\0"
    name = _tlvs(data[5:]).get(_SSL_CN, b"")
    if not shown or not verified:
        return ""
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise ProxyError("a PROXY protocol header whose common name is not UTF-8") from None


def _check_sum(header: bytes, given: bytes) -> None:
    """The sum is over the whole header, with its own four bytes as zeros."""
    at = _place_of_sum(header)
    if len(given) != 4 or _crc32c(header[:at] + bytes(4) + header[at + 4 :]) != int.from_bytes(given):
        raise ProxyError("a PROXY protocol header whose CRC-32C is wrong")


def _place_of_sum(header: bytes) -> int:
    at = 16 + _ADDRESSES[header[13] >> 4]
    while header[at] != _CRC32C:
        at += 3 + int.from_bytes(header[at + 1 : at + 3])
    return at + 3


def _crc32c(data: bytes) -> int:
    """Castagnoli's CRC (RFC 3720, appendix B.4), bit by bit: it is needed once in a connection at most."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF
