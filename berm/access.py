"""Who may connect to which listener, and do what: made from the settings, and made anew when files change.

Password and rule files are read where a node starts, when they have changed, and on SIGHUP. One that can't be used then
is told as an error, and the old one goes on. Rules that have changed hold at once. A user whose password has changed,
or who is not in the file any more, is disconnected, unless a certificate has proved who it is.

What only a node with such files needs is imported, and its threads are started, where there are some.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from berm.settings import AccessSection, ListenerSection, QuotasSection
from broker.listener import Listener
from broker.quotas import Meter, Quotas
from broker.watched import FileError, Watched
from storage.worker import Post, ThreadWorker

if TYPE_CHECKING:
    from broker.acl import Rule
    from broker.auth import Access, Method, Scram, Verifier
    from broker.hub import Hub
    from broker.passwords import Passwords

T = TypeVar("T")

THREADS: Final = 2
"""Passwords that are checked at a time."""
WAITING: Final = 256
"""Passwords that wait to be checked at most; clients beyond are told that the server is busy."""
WATCH: Final = 2_000_000
"""µs between two looks at the files."""

_logger = logging.getLogger("berm.access")


class AccessError(Exception):
    """A listener can't be guarded as the settings ask; the message says which, why, and what to do.

    `problems`: all that is wrong, each with the listener.
    """

    def __init__(self, listener: str, *problems: str) -> None:
        super().__init__(f"listener {listener}: {'; '.join(problems)}")
        self.problems = tuple(f"listener {listener}: {problem}" for problem in problems)


class Guards:
    """What guards the listeners of one node. `post` hands a call over to the loop's thread."""

    def __init__(self, post: Post) -> None:
        self._post = post
        self._workers: list[ThreadWorker] = []
        self._verifier: Verifier | None = None
        self._passwords: dict[Path, Watched[Passwords]] = {}
        self._rules: dict[Path, Watched[tuple[Rule, ...]]] = {}
        self._guarded: list[tuple[Listener, AccessSection]] = []
        self._scrams: list[Scram] = []
        self._reading = 0
        """Files that are being read anew."""
        self._next_look = 0

    def guard(self, section: ListenerSection, listener: Listener, now: int) -> None:
        """Have a listener ask of its clients what its settings say. Reads files.

        Raises:
            AccessError: a file can't be used, or nobody could connect.
        """
        access = section.access or AccessSection()
        quotas = section.quotas or QuotasSection()
        if quotas != QuotasSection():
            listener.meter = Meter(Quotas(**quotas.model_dump()), now)
        listener.access = self._access(section, access)
        self._guarded.append((listener, access))

    def make_up_salts_of(self, secret: bytes) -> None:
        """Ask users that there are none of for the same salts as earlier runs that were given this secret."""
        for scram in self._scrams:
            scram.secret = secret

    def _access(self, section: ListenerSection, access: AccessSection) -> Access | None:
        anonymous = access.anonymous
        if anonymous is None:
            anonymous = access.password_file is None and is_local(section)
        identity = (section.tls is not None and section.tls.identity is not None) or (
            section.proxy_protocol is not None and section.proxy_protocol.identity
        )
        if not anonymous and access.password_file is None and not identity:
            raise AccessError(
                section.name,
                "nobody could connect: others than this machine reach it, and no "
                "password_file, nor the identity of certificates, says who they are; "
                "set one of these, or access.anonymous = true to let everyone in",
            )
        if anonymous and access.password_file is access.acl_file is None and not identity and not access.client_ids:
            return None
        from broker.acl import Policy
        from broker.auth import Access, Gate, Scram
        from broker.scram import METHOD

        problems: list[str] = []
        passwords = _read(self._password_file, access.password_file, problems)
        rules = _read(self._rule_file, access.acl_file, problems)
        if problems:
            raise AccessError(section.name, *problems)
        gate = Gate(anonymous, passwords, None if passwords is None else self._verifier, access.client_ids)
        methods: dict[str, Method] = {}
        if passwords is not None:
            methods[METHOD] = scram = Scram(passwords)
            self._scrams.append(scram)
        authorizer = None if rules is None else Policy(rules.current, access.acl_default == "allow")
        return Access(gate, methods, gate.admit, authorizer)

    def _password_file(self, path: Path) -> Watched[Passwords]:
        from broker.auth import Verifier
        from broker.passwords import parse

        if path not in self._passwords:
            self._passwords[path] = Watched(path, parse)
        if self._verifier is None:
            self._verifier = Verifier(self._threads(), WAITING)
        return self._passwords[path]

    def _rule_file(self, path: Path) -> Watched[tuple[Rule, ...]]:
        from broker.acl import parse

        if path not in self._rules:
            self._rules[path] = Watched(path, parse)
        self._threads()
        return self._rules[path]

    def _threads(self) -> list[ThreadWorker]:
        if not self._workers:
            self._workers = [ThreadWorker(f"berm-access-{n}", self._post) for n in range(THREADS)]
        return self._workers

    def tick(self, hub: Hub, now: int) -> None:
        """Look at the files from time to time, and read those that have changed. `now` in µs."""
        if now < self._next_look or self._reading:
            return
        self._next_look = now + WATCH
        self._read(hub, lambda watched: watched.changed())

    def reload(self, hub: Hub) -> None:
        """Read every file anew."""
        self._read(hub, lambda watched: True)

    def _read(self, hub: Hub, wanted: Callable[[Watched[Passwords] | Watched[tuple[Rule, ...]]], bool]) -> None:
        for passwords in self._passwords.values():
            if wanted(passwords):
                self._load(passwords, partial(self._take_passwords, hub))
        for rules in self._rules.values():
            if wanted(rules):
                self._load(rules, partial(self._take_rules, hub))

    def _load(self, watched: Watched[T], take: Callable[[Watched[T], T], None]) -> None:
        found: list[T] = []

        def done(_: object, error: BaseException | None) -> None:
            self._reading -= 1
            if error is not None:
                _logger.error("%s; the old one goes on", error)
                return
            take(watched, found[0])
            _logger.info("read %s anew", watched.path)

        self._reading += 1
        self._workers[0].submit(lambda: found.append(watched.read()), done)

    def _take_passwords(self, hub: Hub, watched: Watched[Passwords], new: Passwords) -> None:
        old, watched.current = watched.current, new
        gone = {user for user, kept in old.hashes.items() if new.hashes.get(user) != kept}
        gone |= {user for user, keys in old.keys.items() if new.keys.get(user) != keys}
        for listener, access in self._guarded:
            if gone and access.password_file == watched.path:
                hub.clients.expel(listener, gone)

    def _take_rules(self, hub: Hub, watched: Watched[tuple[Rule, ...]], new: tuple[Rule, ...]) -> None:
        from broker.acl import Policy

        watched.current = new
        for listener, access in self._guarded:
            if access.acl_file == watched.path and listener.access is not None:
                policy = Policy(new, access.acl_default == "allow")
                listener.access = replace(listener.access, authorizer=policy)
                hub.clients.rules_changed(listener)

    def close(self) -> None:
        """End the threads. What waits to be checked is checked by then."""
        for worker in self._workers:
            worker.close()


def _read(read: Callable[[Path], Watched[T]], path: Path | None, problems: list[str]) -> Watched[T] | None:
    """A file, where there is to be one; what is wrong with it goes to the problems."""
    if path is None:
        return None
    try:
        return read(path)
    except FileError as error:
        problems.append(str(error))
        return None


def is_local(section: ListenerSection) -> bool:
    """Whether only this machine reaches a listener: it is on a loopback address or a unix socket, with no proxy."""
    if section.proxy_protocol is not None:
        return False
    if section.path is not None or section.host == "localhost":
        return True
    try:
        return ip_address(section.host).is_loopback
    except ValueError:  # a name may mean any address
        return False
