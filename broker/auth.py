"""Who a client is, and whether it may connect: `Authenticator`, `Method` and `Authorizer`, and those that are built in.

The rules:

1. An authenticator is asked once about each CONNECT (`Check`) and answers once, at once or later, always on the loop.
   What an answer costs is bounded: so many checks wait at most, and a client that has gone is not looked at any more.
2. Who a client is (its user name) is what was proved: by a certificate, a password or an exchange. A user name that
   nobody has checked is nobody's. Rules for `%u` and `user=` go by what was proved.
3. Whether a user exists can't be told from outside: the same answer comes, after the same work.
4. No password is remembered, nor any quick digest of one: whoever reads the memory of a node should find no more than
   in its password file. A device that connects too often for that proves itself by a certificate or SCRAM-SHA-256,
   which take the server microseconds.
"""

from __future__ import annotations

import logging
import re
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from secrets import token_bytes
from typing import Final, Protocol

from broker.acl import Who
from broker.mqtt.reason import Reason
from broker.names import shown
from broker.passwords import Passwords, verify
from broker.scram import METHOD, Exchange, Keys, ScramError
from broker.watched import Watched
from storage.interface import Worker

_logger = logging.getLogger("berm.broker")


@dataclass(frozen=True, slots=True)
class Applicant:
    """What a CONNECT says, and where it came from.

    `certificate` is who the transport has proved the peer to be, `host` its address; empty: nobody, and none.
    """

    client_id: str
    username: str | None
    password: bytes | None = field(repr=False)
    listener: str
    host: str
    certificate: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """An answer. `username`: who the client is (empty: nobody in particular); `why`: what the log says of a refusal."""

    reason: Reason
    username: str = ""
    why: str = ""


class Check:
    """One question: may this applicant connect? `answer` is to be called once, on the loop."""

    __slots__ = ("_answered", "applicant", "done", "withdrawn")

    def __init__(self, applicant: Applicant, answered: Callable[[Verdict], None]) -> None:
        self.applicant = applicant
        self.done = False
        self.withdrawn = False
        """Nobody waits for the answer any more. It may be set while a thread works on it."""
        self._answered = answered

    def answer(self, verdict: Verdict) -> None:
        """Give the answer. It is lost where nobody waits for it."""
        assert not self.done, "answered twice"
        self.done = True
        if not self.withdrawn:
            self._answered(verdict)


class Authenticator(Protocol):
    """Decides who may connect."""

    def authenticate(self, check: Check) -> None:
        """Answer, now or later. The loop must not be held up by it."""


class Attempt(Protocol):
    """One enhanced authentication under way (MQTT 5, section 4.12). Every call returns at once."""

    def step(self, data: bytes) -> Challenge | Proof | Verdict:
        """Take the client's authentication data; a Verdict is a refusal. Nothing else is raised or returned."""


class Method(Protocol):
    """An authentication method."""

    def begin(self) -> Attempt:
        """A client begins with it."""


@dataclass(frozen=True, slots=True)
class Challenge:
    """The client has to say more, in answer to this."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Proof:
    """The client is this user. `data` is the server's last word."""

    username: str
    data: bytes


class Authorizer(Protocol):
    """Decides who may do what with topics. It is asked once for each client and topic; `acl.Policy` is one."""

    @property
    def unlimited(self) -> bool:
        """Whether everything is allowed to everyone: then nothing is asked."""

    def may_publish(self, who: Who, topic: str) -> bool:
        """Whether a client may publish to a topic."""

    def may_subscribe(self, who: Who, filter: str) -> bool:
        """Whether a client may subscribe by a valid filter."""

    def may_receive(self, who: Who, topic: str) -> bool:
        """Whether a client may be given a message of a topic."""


_Job = tuple[str, Check, Callable[[bool], None]]
"""A hash, whose password it should be, and whom to tell."""


class Verifier:
    """Checks passwords in threads of its own, one at a time in each.

    At most `limit` checks are under way or wait; each takes the memory that its line in the password file asks for only
    while it is under way. Hosts take turns, and the last quarter of the places is not for the host that has the others,
    so that whoever tries a thousand passwords keeps nobody else out.
    """

    def __init__(self, workers: Sequence[Worker], limit: int) -> None:
        self._idle = list(workers)
        self._limit = limit
        self._hosts: dict[str, deque[_Job]] = {}
        """What waits, by the address of who asks; the first host is the next to have its turn."""
        self._held: Counter[str] = Counter()
        """How many checks each host has under way or waiting."""
        self.waiting = 0
        """Checks under way, and those that wait."""

    def verify(self, kept: str, check: Check, done: Callable[[bool], None]) -> bool:
        """Have `done` called on the loop with whether the password is the one of this hash; False: too many wait."""
        host = check.applicant.host
        if self.waiting >= self._limit or self._held[host] >= self._limit - self._limit // 4:
            return False
        self.waiting += 1
        self._held[host] += 1
        self._hosts.setdefault(host, deque()).append((kept, check, done))
        self._begin()
        return True

    def _begin(self) -> None:
        while self._idle and self._hosts:
            host, jobs = next(iter(self._hosts.items()))
            job = jobs.popleft()
            del self._hosts[host]
            if jobs:
                self._hosts[host] = jobs  # behind all others
            self._submit(self._idle.pop(0), host, *job)

    def _submit(self, worker: Worker, host: str, kept: str, check: Check, done: Callable[[bool], None]) -> None:
        password = check.applicant.password or b""

        def work() -> bool:
            return not check.withdrawn and verify(kept, password)

        def finished(result: object, error: BaseException | None) -> None:
            self.waiting -= 1
            self._held[host] -= 1
            if not self._held[host]:
                del self._held[host]
            self._idle.append(worker)
            if error is not None:
                _logger.error("a password can't be checked: %s; look at memory, and at the password file", error)
            done(result is True)
            self._begin()

        worker.submit(work, finished)


class Gate:
    """The built-in authenticator of a listener: certificate, then password, then nobody.

    1. Whom a certificate identifies is that user; a user name in its CONNECT must be the same.
    2. A user name or password is checked where there is a password file. One that is wrong is refused, whatever else is
       allowed. Without a password file nobody can check it, so it counts for nothing.
    3. Everyone else is let in as nobody where `anonymous` says so.

    `client_ids` binds client identifiers to users: a pattern in which `%u` is the user name, and a `*` at the end
    anything; empty: any. It is checked whichever way a client has proved who it is (`admit`).
    """

    def __init__(
        self,
        anonymous: bool,
        passwords: Watched[Passwords] | None = None,
        verifier: Verifier | None = None,
        client_ids: str = "",
    ) -> None:
        if (passwords is None) != (verifier is None):
            raise ValueError("a password file needs a verifier, and a verifier a password file")
        self._anonymous = anonymous
        self._passwords = passwords
        self._verifier = verifier
        self._client_ids = client_ids

    def authenticate(self, check: Check) -> None:
        """Answer: at once, unless a password has to be checked."""
        who = check.applicant
        if who.certificate:
            if who.username is not None and who.username != who.certificate:
                why = f"the certificate is of {who.certificate!r}, not of {who.username!r}"
                check.answer(Verdict(Reason.NOT_AUTHORIZED, why=why))
            else:
                check.answer(self.admit(who.certificate, who.client_id))
        elif self._passwords is not None and (who.username is not None or who.password is not None):
            self._check_password(check, self._passwords.current)
        elif self._anonymous:
            check.answer(self.admit("", who.client_id))
        else:
            why = "it does not say who it is, and the listener takes nobody in particular (`anonymous`)"
            check.answer(Verdict(Reason.NOT_AUTHORIZED, why=why))

    def admit(self, username: str, client_id: str) -> Verdict:
        """Whether a user, proved to be one, may connect with a client identifier."""
        if self._client_ids and not _fits(self._client_ids, username, client_id):
            why = f"the client identifier is not {self._client_ids!r} for user {username!r}"
            return Verdict(Reason.CLIENT_IDENTIFIER_NOT_VALID, why=why)
        return Verdict(Reason.SUCCESS, username)

    def _check_password(self, check: Check, passwords: Passwords) -> None:
        assert self._verifier is not None
        username = check.applicant.username or ""
        kept = passwords.hashes.get(username)
        # For a user that does not exist another's password is checked, for the time that it takes.
        stand_in = next(iter(passwords.hashes.values()), None)

        def done(right: bool) -> None:
            if right and kept is not None:
                check.answer(self.admit(username, check.applicant.client_id))
            else:
                why = "wrong password" if kept is not None else "there is no such user with a password"
                check.answer(Verdict(Reason.BAD_USER_NAME_OR_PASSWORD, why=f"{why} ({shown(username)})"))

        if stand_in is None:
            done(False)
        elif not self._verifier.verify(kept or stand_in, check, done):
            check.answer(Verdict(Reason.SERVER_BUSY, why="too many passwords wait to be checked"))


class Scram:
    """The authentication method SCRAM-SHA-256, over the keys in a password file."""

    name: Final = METHOD

    def __init__(self, passwords: Watched[Passwords]) -> None:
        self.secret = token_bytes(32)
        """Salts for users that there are none of are made of it. One that is kept has them outlast the process."""
        self._passwords = passwords

    def begin(self) -> Attempt:
        """A client begins with it."""
        return _ScramAttempt(self._keys, self.secret)

    def _keys(self, username: str) -> Keys | None:
        return self._passwords.current.keys.get(username)


class _ScramAttempt:
    __slots__ = ("_begun", "_exchange")

    def __init__(self, lookup: Callable[[str], Keys | None], secret: bytes) -> None:
        self._exchange = Exchange(lookup, secret)
        self._begun = False

    def step(self, data: bytes) -> Challenge | Proof | Verdict:
        """client-first, then client-final."""
        try:
            if not self._begun:
                self._begun = True
                return Challenge(self._exchange.begin(data))
            return Proof(self._exchange.username, self._exchange.finish(data))
        except ScramError as error:
            return Verdict(Reason.NOT_AUTHORIZED, why=f"{METHOD} for {shown(self._exchange.username)}: {error}")


@dataclass(frozen=True, slots=True)
class Access:
    """What a listener asks of its clients. Without any of it everyone may do everything, as nobody in particular."""

    authenticator: Authenticator | None = None
    methods: Mapping[str, Method] = field(default_factory=dict)
    """Those of enhanced authentication, by name."""
    admit: Callable[[str, str], Verdict] | None = None
    """Whether a user that a method has proved may connect with a client identifier."""
    authorizer: Authorizer | None = None


def check_pattern(pattern: str) -> str | None:
    """What is wrong with a pattern for client identifiers, or None."""
    if "*" in pattern[:-1]:
        return "a * may stand at the end only"
    if "%" in pattern.replace("%u", ""):
        return "a % is followed by u"
    if pattern.endswith("%u*"):
        return "between %u and * stands something that ends the name, such as -"
    return None


def _fits(pattern: str, username: str, client_id: str) -> bool:
    if "%u" in pattern and not username:
        return False
    text = re.sub("%u", lambda _: username, pattern)
    return client_id.startswith(text[:-1]) if pattern.endswith("*") else client_id == text
