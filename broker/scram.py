"""SCRAM-SHA-256, the server's side (RFC 5802, RFC 7677): a client proves that it knows a password, and never sends it.

Three messages make an exchange: client-first, server-first, client-final; the server's last word proves to the client
that the server knew of its password as well. What the server keeps of a password (`Keys`) is not enough to log in with.

The rules:

1. Whatever the client sends, an exchange raises nothing but `ScramError`, and is then of no further use.
2. A user that does not exist gets a salt like any other, the same each time, and fails at the end as with a wrong
   password: nobody learns from an exchange which users there are.
3. Channel binding is not offered. A client that insists on it is refused; one that could have had it goes on.
4. Names are compared, and passwords hashed, as SASLprep (RFC 4013) has them.
"""

from __future__ import annotations

import binascii
import hmac
import stringprep
import unicodedata
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import pbkdf2_hmac, sha256
from secrets import token_bytes
from typing import Final

METHOD: Final = "SCRAM-SHA-256"
ITERATIONS: Final = 15_000
"""Of PBKDF2, for a new password; RFC 7677 asks for at least 4096."""
LEAST_ITERATIONS: Final = 4096
SALT: Final = 16
"""Bytes of a new salt."""

_LONGEST: Final = 4096
"""Bytes of a message at most."""
_NONCE: Final = 18
"""Random bytes that the server adds to a nonce."""


class ScramError(Exception):
    """The exchange has failed; the message says why, for the log: clients are told no more than that."""


@dataclass(frozen=True, slots=True)
class Keys:
    """What is kept of a password: with it a proof can be checked, and none can be made."""

    iterations: int
    salt: bytes
    stored: bytes
    server: bytes


def derive(password: str, salt: bytes, iterations: int) -> Keys:
    """The keys of a password. Slow, as it is meant to be.

    Raises:
        ValueError: the password has a character that SASLprep prohibits.
    """
    salted = pbkdf2_hmac("sha256", prepare(password).encode(), salt, iterations)
    stored = sha256(_hmac(salted, b"Client Key")).digest()
    return Keys(iterations, salt, stored, _hmac(salted, b"Server Key"))


class Exchange:
    """One client's attempt. `lookup` gives the keys of a (prepared) user name; `secret` makes up salts for others."""

    __slots__ = ("_client_first", "_header", "_keys", "_lookup", "_nonce", "_secret", "_server_first", "username")

    def __init__(self, lookup: Callable[[str], Keys | None], secret: bytes, nonce: str | None = None) -> None:
        self.username = ""
        """Who the client says it is; to be believed once `finish` has returned."""
        self._lookup = lookup
        self._secret = secret
        self._nonce = nonce or b64encode(token_bytes(_NONCE)).decode()
        self._header = self._client_first = self._server_first = ""
        self._keys: Keys | None = None

    def begin(self, message: bytes) -> bytes:
        """Take client-first, and give server-first.

        Raises:
            ScramError: it is ill-formed, or asks for what is not offered.
        """
        text = _text(message)
        flag, _, rest = text.partition(",")
        authzid, comma, bare = rest.partition(",")
        if flag.startswith("p="):
            raise ScramError("channel binding is not offered")
        if flag not in ("n", "y") or not comma or (authzid and not authzid.startswith("a=")):
            raise ScramError("client-first has no GS2 header")
        self._header = f"{flag},{authzid},"
        self._client_first = bare
        if bare.startswith("m="):
            raise ScramError("client-first asks for an extension that there is none of")
        fields = bare.split(",")
        if len(fields) < 2:
            raise ScramError("client-first lacks a name or a nonce")
        self.username = _name(_field(fields[0], "n"))
        if authzid and _name(authzid[2:]) != self.username:
            raise ScramError("nobody may act for another user")
        client_nonce = _field(fields[1], "r")
        if not client_nonce or not client_nonce.isascii() or not client_nonce.isprintable():
            raise ScramError("the client's nonce is empty or not printable")
        self._nonce = client_nonce + self._nonce
        self._keys = self._lookup(self.username)
        iterations, salt = ITERATIONS, _hmac(self._secret, self.username.encode())[:SALT]
        if self._keys is not None:
            iterations, salt = self._keys.iterations, self._keys.salt
        self._server_first = f"r={self._nonce},s={b64encode(salt).decode()},i={iterations}"
        return self._server_first.encode()

    def finish(self, message: bytes) -> bytes:
        """Take client-final, and give server-final: the client is who it says.

        Raises:
            ScramError: it is ill-formed, or the proof is wrong, or there is no such user.
        """
        text = _text(message)
        fields = text.split(",")
        if len(fields) < 3:
            raise ScramError("client-final lacks a channel, a nonce or a proof")
        if _base64(_field(fields[0], "c")) != self._header.encode():
            raise ScramError("client-final is bound to another channel than client-first")
        if not hmac.compare_digest(_field(fields[1], "r").encode(), self._nonce.encode()):
            raise ScramError("client-final has another nonce")
        proof = _base64(_field(fields[-1], "p"))
        keys = self._keys or Keys(ITERATIONS, b"", bytes(32), bytes(32))
        said = ",".join((self._client_first, self._server_first, *fields[:-1])).encode()
        signature = _hmac(keys.stored, said)
        if len(proof) != len(signature):
            raise ScramError("the proof is not of the method's size")
        client_key = bytes(a ^ b for a, b in zip(proof, signature, strict=True))
        proved = hmac.compare_digest(sha256(client_key).digest(), keys.stored)
        if self._keys is None:
            raise ScramError("there is no such user")
        if not proved:
            raise ScramError("the password is wrong")
        return b"v=" + b64encode(_hmac(keys.server, said))


def prepare(text: str) -> str:
    """A name or a password as SASLprep has it (RFC 4013), as stored strings must be: unassigned code points are wrong.

    Raises:
        ValueError: a character is prohibited, or directions of writing are mixed.
    """
    if text.isascii() and text.isprintable():
        return text
    mapped = "".join(
        " " if stringprep.in_table_c12(each) else each for each in text if not stringprep.in_table_b1(each)
    )
    prepared = unicodedata.ucd_3_2_0.normalize("NFKC", mapped)
    for each in prepared:
        if any(prohibits(each) for prohibits in _PROHIBITED):
            raise ValueError(f"U+{ord(each):04X} may not be in it (RFC 4013)")
    if any(map(stringprep.in_table_d1, prepared)):  # RFC 3454, section 6
        ends = stringprep.in_table_d1(prepared[0]) and stringprep.in_table_d1(prepared[-1])
        if not ends or any(map(stringprep.in_table_d2, prepared)):
            raise ValueError("it is written in both directions (RFC 3454, section 6)")
    return prepared


_PROHIBITED: Final = (
    stringprep.in_table_a1,
    stringprep.in_table_c12,
    stringprep.in_table_c21_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
)


def _hmac(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, "sha256")


def _text(message: bytes) -> str:
    if len(message) > _LONGEST:
        raise ScramError(f"a message of more than {_LONGEST} bytes")
    try:
        text = message.decode()
    except UnicodeDecodeError:
        raise ScramError("a message that is not UTF-8") from None
    if "\0" in text:
        raise ScramError("a message with U+0000 in it")
    return text


def _field(field: str, key: str) -> str:
    if not field.startswith(f"{key}="):
        raise ScramError(f"there is no {key}= where one must be")
    return field[2:]


def _name(escaped: str) -> str:
    """A name as it was before it was escaped for the message."""
    plain = escaped.replace("=2C", "").replace("=3D", "")
    if "=" in plain or not escaped:
        raise ScramError("the name is empty or ill-formed")
    try:
        return prepare(escaped.replace("=2C", ",").replace("=3D", "="))
    except ValueError as error:
        raise ScramError(f"the name can't be one: {error}") from None


def _base64(text: str) -> bytes:
    try:
        return b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ScramError("what should be base64 is not") from None
