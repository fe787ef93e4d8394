"""Who may connect and do what, as an operator sets it: what a start says of files, and what holds when they change."""

from __future__ import annotations

import hmac
import signal
import socket
import subprocess
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import pbkdf2_hmac, sha256
from pathlib import Path

import pytest

from berm.access import AccessError, Guards, is_local
from berm.parts import endpoints, listeners
from berm.passwd import delete, set_password
from berm.settings import ListenerSection, ProxySection, Settings, SettingsError, load
from broker.listener import Listener
from broker.mqtt.codec import Decoder, encode
from broker.mqtt.packets import (
    Auth,
    Connack,
    Connect,
    Disconnect,
    Packet,
    Puback,
    Publish,
    Suback,
    Subscribe,
    Subscription,
)
from broker.mqtt.properties import Properties, Property, first
from broker.mqtt.reason import Reason
from broker.scram import METHOD
from tests.berm.helpers import berm, needs_mosquitto
from tests.node import HOST, PATIENCE, Node, wait_until

CONFIG = """
[mqtt.access]
password_file = "passwords"
acl_file = "acl"
"""
RULES = """
allow publish,read  up/%u/#
allow read  down/%c/#
"""


class Client:
    """A client of MQTT 5 over a socket, one packet at a time."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection((HOST, port), PATIENCE)
        self._decoder = Decoder(5)
        self._packets: list[Packet] = []

    def send(self, packet: Packet) -> None:
        self._socket.sendall(encode(packet, 5))

    def next(self) -> Packet | None:
        """The next packet; None: the connection is closed."""
        while not self._packets:
            data = self._socket.recv(4096)
            if not data:
                return None
            self._packets += self._decoder.feed(data)
        return self._packets.pop(0)

    def ask(self, packet: Packet) -> Packet | None:
        """Send a packet, and wait for the next that comes."""
        self.send(packet)
        return self.next()

    def close(self) -> None:
        self._socket.close()


@contextmanager
def client(
    port: int, username: str | None = None, password: str | None = None, client_id: str = "c"
) -> Iterator[Client]:
    """A client that has been answered."""
    found = Client(port)
    secret = None if password is None else password.encode()
    connack = found.ask(Connect(client_id, 5, True, 0, None, username, secret))
    assert isinstance(connack, Connack)
    assert connack.reason == 0, hex(connack.reason)
    try:
        yield found
    finally:
        found.close()


def refusal(port: int, username: str | None = None, password: str | None = None) -> int:
    """The reason with which a client is refused."""
    found = Client(port)
    secret = None if password is None else password.encode()
    connack = found.ask(Connect("c", 5, True, 0, None, username, secret))
    assert isinstance(connack, Connack)
    found.close()
    return connack.reason


def guard(section: ListenerSection) -> Listener:
    """A listener of these settings, guarded."""
    guards = Guards(lambda call: None)
    (endpoint,) = endpoints(Settings(listeners=(section,)))
    try:
        guards.guard(section, endpoint.listener, 0)
    finally:
        guards.close()
    return endpoint.listener


def write(directory: Path) -> None:
    set_password(directory / "passwords", "alice", "wonder", scram=True)
    (directory / "acl").write_text(RULES)


# -- settings


@pytest.mark.parametrize(
    ("section", "local"),
    [
        (ListenerSection(name="x", port=1), True),
        (ListenerSection(name="x", port=1, host="::1"), True),
        (ListenerSection(name="x", port=1, host="127.8.8.8"), True),
        (ListenerSection(name="x", port=1, host="localhost"), True),
        (ListenerSection(name="x", type="unix", path=Path("/run/x")), True),
        (ListenerSection(name="x", port=1, host="0.0.0.0"), False),
        (ListenerSection(name="x", port=1, host="::"), False),
        (ListenerSection(name="x", port=1, host="edge-7"), False),
        (ListenerSection(name="x", port=1, proxy_protocol=ProxySection()), False),
        (ListenerSection(name="x", type="unix", path=Path("/run/x"), proxy_protocol=ProxySection()), False),
    ],
)
def test_nobody_has_to_say_who_it_is_where_only_this_machine_can_connect(section: ListenerSection, local: bool) -> None:
    assert is_local(section) is local
    if local:
        assert guard(section).access is None
    else:
        with pytest.raises(AccessError, match=r"listener x: nobody could connect: .*access\.anonymous = true"):
            guard(section)


def test_a_listener_has_the_access_and_the_quotas_of_mqtt_but_for_its_own(tmp_path: Path) -> None:
    (tmp_path / "berm.toml").write_text(
        "[mqtt.access]\nanonymous = true\n[mqtt.quotas]\nmessage_rate = 5.0\n"
        '[[listeners]]\nname = "a"\nport = 1\nhost = "0.0.0.0"\n'
        '[[listeners]]\nname = "b"\nport = 2\n'
        '[listeners.access]\nclient_ids = "%u"\nanonymous = false\npassword_file = "p"\nacl_file = "r"\n'
        "[listeners.quotas]\nconnect_rate = 1.0\n"
    )
    a, b = listeners(load(tmp_path / "berm.toml"))
    assert a.access is not None
    assert a.quotas is not None
    assert b.access is not None
    assert b.quotas is not None
    assert (a.access.anonymous, a.quotas.message_rate, a.quotas.connect_rate) == (True, 5, 0)
    assert (b.access.client_ids, b.quotas.message_rate, b.quotas.connect_rate) == ("%u", 0, 1)
    assert (b.access.password_file, b.access.acl_file) == (tmp_path / "p", tmp_path / "r")
    assert guard(a).meter is not None
    assert guard(a).access is None


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('client_ids = "%u*"', "mqtt.access.client_ids: .*between %u and \\*"),
        ('client_ids = "%c"', "mqtt.access.client_ids: .*a % is followed by u"),
        ('acl_default = "no"', 'mqtt.access.acl_default: .*allowed: "deny" or "allow"'),
        ("password = 1", 'unknown setting; did you mean "password_file"'),
    ],
)
def test_a_wrong_setting_is_told(tmp_path: Path, line: str, problem: str) -> None:
    (tmp_path / "berm.toml").write_text(f"[mqtt.access]\n{line}\n")
    with pytest.raises(SettingsError, match=problem):
        load(tmp_path / "berm.toml")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda at: (at / "passwords").unlink(), "passwords: cannot be read: No such file or directory"),
        (lambda at: (at / "passwords").write_text("alice:x\n"), "passwords:1: neither a hash of argon2id nor keys"),
        (lambda at: (at / "acl").write_text("\nallow write x\n"), "acl:2: 'write' is none of publish, subscribe"),
    ],
)
def test_a_file_that_can_not_be_used_ends_the_start_and_check_says_the_same(
    tmp_path: Path, change: Callable[[Path], object], problem: str
) -> None:
    write(tmp_path)
    change(tmp_path)
    (tmp_path / "berm.toml").write_text(CONFIG)
    for command in ("run", "check"):
        done = berm(command, "--set", "mqtt.port=0", cwd=tmp_path)
        assert done.returncode == 2
        assert f"listener mqtt: {problem}" in done.stderr
        assert "Traceback" not in done.stderr


def test_check_tells_every_file_that_can_not_be_used_and_a_start_too(tmp_path: Path) -> None:
    tls = '[[listeners]]\nname = "a"\nport = 0\ntls.certificate = "c.pem"\ntls.key = "k.pem"\n'
    (tmp_path / "berm.toml").write_text(tls + CONFIG.replace("mqtt.access", "listeners.access"))
    done = berm("check", cwd=tmp_path)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if "listener a: " in line]
    assert ["c.pem" in lines[0], "passwords: cannot be read" in lines[1], "acl: cannot be read" in lines[2]] == [
        True
    ] * 3
    assert len(lines) == 3
    (tmp_path / "berm.toml").write_text(CONFIG)
    done = berm("run", "--set", "mqtt.port=0", cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "listener mqtt: passwords: cannot be read" in line
    assert "; acl: cannot be read" in line


def test_a_node_that_others_reach_does_not_start_without_saying_who_they_are(tmp_path: Path) -> None:
    done = berm("run", "--set", "mqtt.port=0", "--set", "mqtt.host=0.0.0.0", cwd=tmp_path)
    assert done.returncode == 2
    assert "berm: listener mqtt: nobody could connect: " in done.stderr
    assert not (tmp_path / "data").exists()


# -- a running node


def test_a_node_asks_for_passwords_and_goes_by_its_rules(tmp_path: Path) -> None:
    write(tmp_path)
    with Node(tmp_path, CONFIG) as node:
        assert refusal(node.port) == Reason.NOT_AUTHORIZED
        assert refusal(node.port, "alice", "wander") == Reason.BAD_USER_NAME_OR_PASSWORD
        assert refusal(node.port, "bob", "wonder") == Reason.BAD_USER_NAME_OR_PASSWORD
        with client(node.port, "alice", "wonder") as alice:
            asked = Subscribe(1, tuple(Subscription(filter, 1) for filter in ("up/alice/#", "#", "down/c/x")))
            suback = alice.ask(asked)
            assert isinstance(suback, Suback)
            assert suback.reasons == (1, Reason.NOT_AUTHORIZED, 1)
            puback = alice.ask(Publish("up/bob/x", b"", 1, packet_id=2))
            assert isinstance(puback, Puback)
            assert puback.reason == Reason.NOT_AUTHORIZED
            alice.send(Publish("up/alice/x", b"mine", 1, packet_id=3))
            came = [alice.next(), alice.next()]
            assert Puback(3) in came
            assert Publish("up/alice/x", b"mine", 1, packet_id=1) in came
        assert node.stop() == 0
    assert " at mqtt: may not connect: wrong password ('alice')" in node.stderr
    assert "wonder" not in node.stderr
    assert "wander" not in node.stderr


def is_expelled(client: Client) -> bool:
    packet = client.next()
    return isinstance(packet, Disconnect) and packet.reason == Reason.NOT_AUTHORIZED


def said(data: bytes) -> Properties:
    return ((Property.AUTHENTICATION_METHOD, METHOD), (Property.AUTHENTICATION_DATA, data))


def test_a_client_proves_by_scram_sha_256_who_it_is_and_proves_it_again(tmp_path: Path) -> None:
    write(tmp_path)

    def final(challenge: Packet | None) -> Auth:
        assert isinstance(challenge, Auth)
        data = first(challenge.properties, Property.AUTHENTICATION_DATA)
        assert isinstance(data, bytes)
        fields = dict(each.split("=", 1) for each in data.decode().split(","))
        salted = pbkdf2_hmac("sha256", b"wonder", b64decode(fields["s"]), int(fields["i"]))
        key = hmac.digest(salted, b"Client Key", "sha256")
        without = b"c=biws,r=" + fields["r"].encode()
        signature = hmac.digest(sha256(key).digest(), b",".join((b"n=alice,r=abc", data, without)), "sha256")
        proof = b64encode(bytes(a ^ b for a, b in zip(key, signature, strict=True)))
        return Auth(Reason.CONTINUE_AUTHENTICATION, said(without + b",p=" + proof))

    with Node(tmp_path, CONFIG) as node:
        found = Client(node.port)
        connack = found.ask(final(found.ask(Connect("c", 5, True, 0, None, None, None, said(b"n,,n=alice,r=abc")))))
        assert isinstance(connack, Connack)
        assert connack.reason == 0
        assert found.ask(Publish("up/alice/x", b"", 1, packet_id=1)) == Puback(1)
        again = found.ask(final(found.ask(Auth(Reason.RE_AUTHENTICATE, said(b"n,,n=alice,r=abc")))))
        assert isinstance(again, Auth)
        assert again.reason == 0
        found.close()


def test_a_user_that_does_not_exist_is_asked_for_the_same_salt_by_every_listener_and_in_every_run(
    tmp_path: Path,
) -> None:
    def salt(port: int, name: str) -> str:
        found = Client(port)
        challenge = found.ask(Connect("c", 5, True, 0, None, None, None, said(f"n,,n={name},r=abc".encode())))
        found.close()
        assert isinstance(challenge, Auth)
        data = first(challenge.properties, Property.AUTHENTICATION_DATA)
        assert isinstance(data, bytes)
        return data.decode().split(",", 1)[1]

    write(tmp_path)
    names = ("alice", "nobody", "no one")
    two = CONFIG + '[[listeners]]\nname = "a"\nport = 0\n[[listeners]]\nname = "b"\nport = 0\n'
    with Node(tmp_path, two) as node:
        before = [salt(port, name) for port in node.ports.values() for name in names]
        assert before[:3] == before[3:]
        assert len(set(before)) == 3
        assert {each.partition(",")[2] for each in before} == {"i=15000"}
        assert node.stop() == 0
        node.start()
        assert [salt(port, name) for port in node.ports.values() for name in names] == before
        assert node.stop() == 0
    (tmp_path / "other").mkdir()
    write(tmp_path / "other")
    with Node(tmp_path / "other", CONFIG) as other:
        assert salt(other.port, "nobody") not in before
        assert other.stop() == 0


def test_files_that_change_are_read_anew_and_a_wrong_one_is_told_while_the_old_one_goes_on(tmp_path: Path) -> None:
    write(tmp_path)
    set_password(tmp_path / "passwords", "bob", "builder", scram=False)
    with Node(tmp_path, CONFIG) as node, client(node.port, "bob", "builder", "b") as bob:
        with client(node.port, "alice", "wonder") as alice:
            set_password(tmp_path / "passwords", "carol", "carol", scram=False)
            set_password(tmp_path / "passwords", "alice", "through", scram=False)
            (tmp_path / "acl").write_text(RULES + "allow publish all\n")
            node.process.send_signal(signal.SIGHUP)
            assert is_expelled(alice)
            assert alice.next() is None
        wait_until("the rules are read", lambda: "read acl anew" in node.stderr)
        assert refusal(node.port, "alice", "wonder") == Reason.BAD_USER_NAME_OR_PASSWORD
        with client(node.port, "carol", "carol"):
            assert bob.ask(Publish("all", b"", 1, packet_id=1)) == Puback(1)
        (tmp_path / "passwords").write_text("carol\n")
        (tmp_path / "acl").write_text("allow all\n")
        wait_until("it is told", lambda: node.stderr.count("the old one goes on") == 2)
        assert "passwords:1: not `user:hash`" in node.stderr
        assert "acl:1: not three or four words" in node.stderr
        with client(node.port, "carol", "carol"):
            assert bob.ask(Publish("all", b"", 1, packet_id=2)) == Puback(2)
        assert node.stop() == 0


def test_a_file_that_changes_is_noticed_without_a_signal(tmp_path: Path) -> None:
    write(tmp_path)
    set_password(tmp_path / "passwords", "bob", "builder", scram=False)
    with Node(tmp_path, CONFIG) as node, client(node.port, "alice", "wonder") as alice:
        delete(tmp_path / "passwords", "alice")
        assert is_expelled(alice)
        with client(node.port, "bob", "builder"):
            pass


@needs_mosquitto
def test_mosquitto_s_clients_log_in(tmp_path: Path) -> None:
    write(tmp_path)
    with Node(tmp_path, CONFIG) as node:

        def publish(*arguments: str) -> subprocess.CompletedProcess[str]:
            command = ["mosquitto_pub", "-h", HOST, "-p", str(node.port), "-t", "up/alice/x", "-m", "1", "-q", "1"]
            return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False)

        for version in ("mqttv31", "mqttv311", "mqttv5"):
            assert publish("-V", version, "-u", "alice", "-P", "wonder").returncode == 0
            refused = publish("-V", version, "-u", "alice", "-P", "wander")
            assert refused.returncode != 0
            assert "bad user name or password" in (refused.stdout + refused.stderr).lower()
        assert publish("-V", "mqttv311").returncode == 5
