"""The password file: who may log in, and what is kept of their passwords.

One user has one line, or two:

    alice:$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ$...     for passwords in CONNECT
    alice:SCRAM-SHA-256$15000:c2FsdA==$...:...               for SCRAM-SHA-256, where the password is never sent

An empty line, and one that begins with `#`, says nothing. The name ends at the first colon; it is compared character by
character. Both lines hold a salt of their own. `berm passwd` writes them.

What a check may cost is bounded by what a line may ask for, so a file can't make a node run out of memory.
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from os import urandom
from typing import Final

from broker.scram import ITERATIONS, LEAST_ITERATIONS, METHOD, SALT, Keys, derive, prepare
from broker.watched import FileError

MEMORY: Final = 19_456
"""KiB that a check of a new password takes: with PASSES, what OWASP asks for, and what an edge node can spare."""
PASSES: Final = 2
LONGEST_NAME: Final = 255
"""Characters of a user name at most."""

_MOST_MEMORY: Final = 1 << 18
"""KiB."""
_MOST_PASSES: Final = 50
_MOST_ITERATIONS: Final = 1_000_000
_ARGON2ID: Final = re.compile(r"\$argon2id\$v=19\$m=(\d{1,9}),t=(\d{1,9}),p=(\d{1,3})\$[A-Za-z0-9+/]+\$[A-Za-z0-9+/]+")
_SCRAM: Final = re.compile(re.escape(METHOD) + r"\$(\d{1,9}):([^:$]+)\$([^:$]+):([^:$]+)")
_AGAIN: Final = "set the password again with `berm passwd`"


@dataclass(frozen=True, slots=True)
class Passwords:
    """What a password file says, by user name."""

    hashes: Mapping[str, str] = field(default_factory=dict)
    """argon2id, in the notation of its reference implementation."""
    keys: Mapping[str, Keys] = field(default_factory=dict)
    """SCRAM-SHA-256."""


def parse(text: str, name: str) -> Passwords:
    """What a password file says; `name` is what messages call it.

    Raises:
        FileError: a line is wrong; the message tells the first.
    """
    hashes: dict[str, str] = {}
    keys: dict[str, Keys] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        user, colon, kept = line.partition(":")
        where = f"{name}:{number}"
        if not colon:
            raise FileError(f"{where}: not `user:hash`; set the password with `berm passwd`")
        if (problem := check_name(user)) is not None:
            raise FileError(f"{where}: the user name {problem}; give the user another")
        found = hashes if kept.startswith("$") else keys
        if user in found:
            raise FileError(f"{where}: there is a line for {user!r} before this one; delete one of them")
        if kept.startswith("$"):
            hashes[user] = _check_hash(kept.rstrip(), where)
        else:
            keys[user] = _parse_keys(kept.rstrip(), where)
    return Passwords(hashes, keys)


def check_name(user: str) -> str | None:
    """What is wrong with a user name: it would not fit on a line. None: nothing."""
    if not user or len(user) > LONGEST_NAME:
        return f"is not 1 to {LONGEST_NAME} characters long"
    if not user.isprintable() or ":" in user or user.startswith("#") or user != user.strip():
        return "has a colon, a control character, a leading # or a space around it"
    return None


def lines(user: str, password: str, scram: bool) -> list[str]:
    """The lines of a user with this password. Slow.

    Raises:
        ValueError: SCRAM can't take the name or the password (RFC 4013).
    """
    from argon2.low_level import Type, hash_secret  # a node whose clients show certificates does without it

    kept = hash_secret(password.encode(), urandom(16), PASSES, MEMORY, 1, 32, Type.ID).decode()
    made = [f"{user}:{kept}"]
    if scram:
        if prepare(user) != user:
            raise ValueError(f"clients would log in as {prepare(user)!r}")
        keys = derive(password, urandom(SALT), ITERATIONS)
        salt, stored, server = (b64encode(each).decode() for each in (keys.salt, keys.stored, keys.server))
        made.append(f"{user}:{METHOD}${keys.iterations}:{salt}${stored}:{server}")
    return made


def replace(text: str, user: str, new: Iterable[str]) -> str:
    """The text of a password file in which these lines stand for the user: where the first stood, or at the end."""
    kept: list[str] = []
    at: int | None = None
    for line in text.splitlines():
        if not line.startswith("#") and line.partition(":")[0] == user and ":" in line:
            at = len(kept) if at is None else at
        else:
            kept.append(line)
    at = len(kept) if at is None else at
    kept[at:at] = new
    return "".join(f"{line}\n" for line in kept)


def verify(kept: str, password: bytes) -> bool:
    """Whether it is the password of this argon2id hash. Takes long, and memory: not for the loop."""
    from argon2.exceptions import VerifyMismatchError
    from argon2.low_level import Type, verify_secret

    try:
        return verify_secret(kept.encode(), password, Type.ID)
    except VerifyMismatchError:
        return False


def _check_hash(kept: str, where: str) -> str:
    found = _ARGON2ID.fullmatch(kept)
    if found is None:
        if kept.startswith(("$6$", "$7$")):
            raise FileError(f"{where}: a hash of mosquitto_passwd, which can't be taken over; {_AGAIN}")
        raise FileError(f"{where}: not a hash of argon2id, version 19; {_AGAIN}")
    memory, passes, lanes = (int(each) for each in found.groups())
    if not (8 * lanes <= memory <= _MOST_MEMORY and 1 <= passes <= _MOST_PASSES and 1 <= lanes <= 16):
        raise FileError(
            f"{where}: a check would take {memory} KiB, {passes} passes and {lanes} lanes; "
            f"at most {_MOST_MEMORY}, {_MOST_PASSES} and 16 are allowed: {_AGAIN}"
        )
    return kept


def _parse_keys(kept: str, where: str) -> Keys:
    found = _SCRAM.fullmatch(kept)
    if found is None:
        raise FileError(f"{where}: neither a hash of argon2id nor keys of {METHOD}; {_AGAIN}")
    iterations = int(found[1])
    try:
        salt, stored, server = (b64decode(each, validate=True) for each in found.groups()[1:])
    except (binascii.Error, ValueError):
        raise FileError(f"{where}: what should be base64 is not; {_AGAIN}") from None
    if not (LEAST_ITERATIONS <= iterations <= _MOST_ITERATIONS and len(stored) == len(server) == 32 and salt):
        raise FileError(
            f"{where}: keys of another size than {METHOD} has them, or iterations that are not "
            f"from {LEAST_ITERATIONS} to {_MOST_ITERATIONS}; {_AGAIN}"
        )
    return Keys(iterations, salt, stored, server)
