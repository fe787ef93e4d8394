"""From CONNECT to CONNACK: what a connection does while its client is still to prove who it is.

A client proves it by what its CONNECT says, which an authenticator answers at once or later, or in an exchange of AUTH
packets by a method that its CONNECT names (MQTT 5, section 4.12). Until an answer has come, the connection keeps what
follows the CONNECT, and nothing more is read. Until an exchange has ended only AUTH and DISCONNECT may
follow.

A client that has named a method may prove again who it is at any time (`Renewal`): other packets go on meanwhile, and
it must be the same user.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from broker.answers import encode_answer
from broker.auth import Access, Applicant, Attempt, Challenge, Check, Method, Proof, Verdict
from broker.mqtt.errors import ProtocolError
from broker.mqtt.packets import Auth, Connect
from broker.mqtt.properties import Properties, Property, first
from broker.mqtt.reason import Reason
from broker.names import shown

if TYPE_CHECKING:
    from broker.connection import Connection
    from broker.hub import Hub

_NO_METHODS: Final[Mapping[str, Method]] = {}


class Login:
    """One client's way from CONNECT to CONNACK, where a listener asks who it is, or the client names a method.

    It ends with `Connection.admit` or `Connection.fail`, in `begin`, in `on_auth`, or later.
    """

    __slots__ = ("_attempt", "_check", "_connection", "_hub", "_later", "_method", "_packet")

    def __init__(self, hub: Hub, connection: Connection, packet: Connect) -> None:
        self._hub = hub
        self._connection = connection
        self._packet = packet
        self._method = method_of(packet.properties)
        self._check: Check | None = None
        self._attempt: Attempt | None = None
        self._later = False

    @property
    def waiting(self) -> bool:
        """Whether nothing may be handled until an answer has come."""
        return self._later

    def begin(self, access: Access | None) -> None:
        """Take the CONNECT.

        Raises:
            ProtocolError: the client can't connect like this.
        """
        packet, connection = self._packet, self._connection
        if self._method is not None:
            methods = _NO_METHODS if access is None else access.methods
            if self._method not in methods:
                raise ProtocolError(
                    Reason.BAD_AUTHENTICATION_METHOD,
                    f"authentication method {shown(self._method)} is not offered",
                    "MQTT-4.12.0-1",
                )
            self._attempt = methods[self._method].begin()
            self._step(packet.properties)
            return
        if access is None or access.authenticator is None:
            connection.admit(packet, "", ())
            return
        wire = connection.wire
        applicant = Applicant(
            packet.client_id, packet.username, packet.password, connection.listener.name, wire.host, wire.identity
        )
        self._check = Check(applicant, self._answered)
        access.authenticator.authenticate(self._check)
        self._later = not self._check.done

    def on_auth(self, packet: Auth) -> None:
        """Go on with the exchange.

        Raises:
            ProtocolError: the AUTH is not the one that is due, or it proves nothing.
        """
        if self._attempt is None or packet.reason != Reason.CONTINUE_AUTHENTICATION:
            raise ProtocolError(Reason.PROTOCOL_ERROR, "an AUTH other than the one that is due", "MQTT-4.12.0-3")
        if method_of(packet.properties) != self._method:
            raise _another_method("MQTT-4.12.0-5")
        self._step(packet.properties)

    def withdraw(self) -> None:
        """The client is gone."""
        if self._check is not None:
            self._check.withdrawn = True

    def _step(self, properties: Properties) -> None:
        assert self._attempt is not None
        assert self._method is not None
        outcome = self._attempt.step(data_of(properties))
        if isinstance(outcome, Challenge):
            self._connection.send(_auth(self._connection, Reason.CONTINUE_AUTHENTICATION, self._method, outcome.data))
            return
        if isinstance(outcome, Verdict):
            raise self._refusal(outcome)  # [MQTT-4.12.0-4]
        access = self._connection.listener.access
        if access is not None and access.admit is not None:
            verdict = access.admit(outcome.username, self._packet.client_id)
            if verdict.reason != Reason.SUCCESS:
                raise self._refusal(verdict)
        self._connection.admit(self._packet, outcome.username, _said(self._method, outcome.data))

    def _answered(self, verdict: Verdict) -> None:
        if not self._later:
            self._conclude(verdict)
            return
        self._later = False
        try:
            self._conclude(verdict)
            if not self._connection.closed:
                self._connection.go_on()
        except Exception:  # noqa: BLE001 - handed to `crash`, which logs it with its stack
            self._hub.crash(self._connection)

    def _conclude(self, verdict: Verdict) -> None:
        try:
            if verdict.reason != Reason.SUCCESS:
                raise self._refusal(verdict)
            self._connection.admit(self._packet, verdict.username, ())
        except ProtocolError as error:
            self._connection.fail(error)

    def _refusal(self, verdict: Verdict) -> ProtocolError:
        return ProtocolError(verdict.reason, f"may not connect: {verdict.why}", private=True)


class Renewal:
    """A connected client's right to prove again who it is, by the method of its CONNECT."""

    __slots__ = ("_attempt", "_connection", "_method")

    def __init__(self, connection: Connection, method: str) -> None:
        self._connection = connection
        self._method = method
        self._attempt: Attempt | None = None

    def on_auth(self, packet: Auth) -> None:
        """Begin, or go on.

        Raises:
            ProtocolError: the AUTH is not one that is due, or it proves nothing, or another user.
        """
        connection = self._connection
        if method_of(packet.properties) != self._method:
            raise _another_method("MQTT-4.12.1-1")
        if packet.reason == Reason.RE_AUTHENTICATE:
            access = connection.listener.access
            methods = _NO_METHODS if access is None else access.methods
            if self._method not in methods:
                raise ProtocolError(Reason.BAD_AUTHENTICATION_METHOD, "the method is not offered any more")
            self._attempt = methods[self._method].begin()
        elif self._attempt is None or packet.reason != Reason.CONTINUE_AUTHENTICATION:
            raise ProtocolError(Reason.PROTOCOL_ERROR, "an AUTH that nobody has asked for", "section 4.12.1")
        outcome = self._attempt.step(data_of(packet.properties))
        if isinstance(outcome, Challenge):
            connection.send(_auth(connection, Reason.CONTINUE_AUTHENTICATION, self._method, outcome.data))
            return
        if not isinstance(outcome, Proof) or outcome.username != connection.who.username:  # [MQTT-4.12.1-2]
            why = outcome.why if isinstance(outcome, Verdict) else f"it is {shown(outcome.username)} now"
            raise ProtocolError(Reason.NOT_AUTHORIZED, f"has not proved again who it is: {why}", private=True)
        self._attempt = None
        connection.send(_auth(connection, Reason.SUCCESS, self._method, outcome.data))


def method_of(properties: Properties) -> str | None:
    """The authentication method that a packet names."""
    method = first(properties, Property.AUTHENTICATION_METHOD)
    return method if isinstance(method, str) else None


def data_of(properties: Properties) -> bytes:
    """The authentication data in a packet."""
    data = first(properties, Property.AUTHENTICATION_DATA)
    return data if isinstance(data, bytes) else b""


def _said(method: str, data: bytes) -> Properties:
    return ((Property.AUTHENTICATION_METHOD, method), (Property.AUTHENTICATION_DATA, data))


def _auth(connection: Connection, reason: Reason, method: str, data: bytes) -> bytes:
    return encode_answer(connection, Auth(reason, _said(method, data)))  # [MQTT-4.12.0-2]


def _another_method(clause: str) -> ProtocolError:
    return ProtocolError(Reason.PROTOCOL_ERROR, "an AUTH with another authentication method than the CONNECT", clause)
