"""Listeners as an operator meets them: settings, what a start and `berm check` say, certificates that change."""

from __future__ import annotations

import signal
import socket
import ssl
import tomllib
from pathlib import Path

import pytest

from berm.parts import endpoints
from berm.settings import BoundsSection, Settings, SettingsError, load
from broker.listener import Limits
from broker.mqtt.codec import encode
from broker.mqtt.packets import Connect
from broker.mqtt.reason import Reason
from broker.net.listener import TCPAddress, UnixAddress
from tests.berm.helpers import berm
from tests.broker.net.certificates import Authority, serial, serial_of
from tests.node import HOST, PATIENCE, Node, wait_until

CONNECT = encode(Connect("c", 4, True, 0, None, None, None), 4)


def read(directory: Path, text: str, *overrides: str) -> Settings:
    (directory / "berm.toml").write_text(text)
    return load(directory / "berm.toml", overrides)


def problem(directory: Path, text: str, *overrides: str) -> str:
    """The one thing that is wrong."""
    with pytest.raises(SettingsError) as caught:
        read(directory, text, *overrides)
    (line,) = caught.value.problems
    return line.removeprefix(f"{directory}/")


def test_without_any_listener_there_is_one_for_plain_tcp(tmp_path: Path) -> None:
    (endpoint,) = endpoints(read(tmp_path, "[mqtt]\nport = 1884\nmax_connections = 5\n"))
    assert (endpoint.address, endpoint.url) == (TCPAddress("127.0.0.1", 1884), "mqtt://127.0.0.1:1884")
    assert (endpoint.tls, endpoint.websocket, endpoint.proxy) == (None, None, None)
    assert endpoint.listener.limits.max_connections == 5


def test_a_listener_has_the_bounds_of_mqtt_but_for_its_own(tmp_path: Path) -> None:
    text = "[mqtt]\nmax_packet_size = 4096\nreceive_maximum = 7\n"
    text += '[[listeners]]\nname = "a"\nport = 1\nmax_packet_size = 2048\n[[listeners]]\nname = "b"\nport = 2\n'
    a, b = endpoints(read(tmp_path, text))
    assert (a.listener.limits.max_packet_size, a.listener.limits.receive_maximum) == (2048, 7)
    assert (b.listener.limits.max_packet_size, b.listener.limits.receive_maximum) == (4096, 7)


def test_every_bound_of_the_settings_reaches_the_clients_of_its_listener(tmp_path: Path) -> None:
    text = """
[[listeners]]
name = "a"
port = 1
max_connections = 2
max_packet_size = 2048
receive_maximum = 3
max_inflight = 4
max_keep_alive = 5
topic_alias_maximum = 6
max_topic_aliases = 7
max_session_expiry = 8
connect_timeout = 9
write_buffer = 8192
max_subscriptions = 10
max_qos = 1
retain_available = false
wildcard_subscription_available = false
subscription_identifier_available = false
shared_subscription_available = false
replay = false
max_replays = 11
check_payload_format = true
reason_strings = false
response_topic_prefix = "responses/%c/"
redirect = "server_moved"
server_reference = "other.example"
"""
    (endpoint,) = endpoints(read(tmp_path, text))
    (given,) = tomllib.loads(text)["listeners"]
    given = {key: value for key, value in given.items() if key not in ("name", "port")}
    assert set(given) == set(BoundsSection.model_fields)
    given["redirect"] = Reason.SERVER_MOVED
    assert {key: getattr(endpoint.listener.limits, key) for key in given} == given
    assert all(getattr(Limits(), key) != value for key, value in given.items())


def test_every_kind_of_listener_is_what_its_table_says(tmp_path: Path) -> None:
    certificate, key = Authority(tmp_path).server()
    text = f"""
[[listeners]]
name = "secure"
port = 8883
mount_point = "site-7/"
[listeners.tls]
certificate = "{certificate.name}"
key = "{key.name}"
identity = "san"
client_ca = "ca.pem"
[[listeners]]
name = "web"
type = "websocket"
host = "::1"
port = 8083
[[listeners]]
name = "local"
type = "unix"
path = "mqtt.sock"
mode = "600"
[listeners.proxy_protocol]
sources = ["10.0.0.0/8", "fd00::1"]
identity = true
"""
    secure, web, local = endpoints(read(tmp_path, text))
    assert (secure.url, secure.listener.mount_point) == ("mqtts://127.0.0.1:8883", "site-7/")
    assert secure.tls is not None
    assert (secure.tls.files.client_ca, secure.tls.files.identity) == (tmp_path / "ca.pem", "san")
    assert web.url == "ws://[::1]:8083/mqtt"
    assert local.address == UnixAddress(tmp_path / "mqtt.sock", 0o600)
    assert local.proxy is not None
    assert ([str(each) for each in local.proxy.sources], local.proxy.identity) == (["10.0.0.0/8", "fd00::1/128"], True)


def listener(*lines: str) -> str:
    return "\n".join(("[[listeners]]", 'name = "a"', *lines))


TLS = ("[listeners.tls]", 'certificate = "a"', 'key = "b"')
WRONG = {
    "a port that is missing": (listener(), "berm.toml:1: listeners[0].port: it is missing; allowed: an integer"),
    "a path that is missing": (
        listener('type = "unix"'),
        "berm.toml:1: listeners[0].path: it is missing; allowed: a path",
    ),
    "a path of TCP": (
        listener("port = 1", 'path = "/x"'),
        'berm.toml:4: listeners[0].path: "/x": a listener of type tcp has none; allowed: a path',
    ),
    "a port of a unix socket": (
        listener('type = "unix"', 'path = "x"', "port = 1"),
        "berm.toml:5: listeners[0].port: 1: a listener of type unix has none",
    ),
    "a path that is too long": (
        listener('type = "unix"', f'path = "/{"x" * 107}"'),
        f"berm.toml:4: listeners[0].path: \"/{'x' * 58}...: longer than the 107 bytes that a socket's path may have",
    ),
    "a mode that is none": (
        listener('type = "unix"', 'path = "x"', 'mode = "0x1"'),
        'berm.toml:5: listeners[0].mode: "0x1": not a mode; allowed: three octal digits, such as `0660`',
    ),
    "TLS of a unix socket": (
        listener('type = "unix"', 'path = "x"', *TLS),
        "berm.toml:5: listeners[0].tls: a table: a listener of type unix has none",
    ),
    "WebSocket of TCP": (
        listener("port = 1", "[listeners.websocket]"),
        'berm.toml:4: listeners[0].websocket: a table: it is for listeners of type "websocket"',
    ),
    "no key": (
        listener("port = 1", *TLS[:2]),
        "berm.toml:4: listeners[0].tls.key: it is missing; allowed: a path",
    ),
    "a required certificate that nobody can check": (
        listener("port = 1", *TLS, "require_client_certificate = true"),
        "berm.toml:7: listeners[0].tls.require_client_certificate: true: there is no client_ca",
    ),
    "a version that is too old": (
        listener("port = 1", *TLS, 'minimum_version = "1.1"'),
        'berm.toml:7: listeners[0].tls.minimum_version: "1.1" is not allowed; allowed: "1.2" or "1.3"',
    ),
    "an identity that is none": (
        listener("port = 1", *TLS, 'client_ca = "c"', 'identity = "dn"'),
        'berm.toml:8: listeners[0].tls.identity: "dn" is not allowed; allowed: "cn" or "san"',
    ),
    "a URL's path that is none": (
        listener('type = "websocket"', "port = 1", "[listeners.websocket]", 'path = "mqtt"'),
        'berm.toml:6: listeners[0].websocket.path: "mqtt": not the path of a URL; allowed: the path of a URL',
    ),
    "a network that is none": (
        listener("port = 1", "[listeners.proxy_protocol]", 'sources = ["::1", "10.0.0.1/8"]'),
        'berm.toml:5: listeners[0].proxy_protocol.sources[1]: "10.0.0.1/8": 10.0.0.1/8 has host bits set',
    ),
    "a mount point for the server": (
        listener("port = 1", 'mount_point = "$SYS/"'),
        'berm.toml:4: listeners[0].mount_point: "$SYS/": topics that begin with $ are the server\'s; allowed: text',
    ),
    "a mount point with a wildcard": (
        listener("port = 1", 'mount_point = "+/"'),
        'berm.toml:4: listeners[0].mount_point: "+/": it has a wildcard or U+0000 in it; allowed: text',
    ),
    "a bound that is none": (
        listener("port = 1", "max_connections = 0"),
        "berm.toml:4: listeners[0].max_connections: 0 is not allowed; allowed: an integer from 1 to 1,000,000",
    ),
    "a table that is unknown": (
        listener("port = 1", "[listeners.ssl]"),
        "berm.toml:4: listeners[0].ssl: unknown setting",
    ),
    "one name twice": (
        f"{listener('port = 1')}\n{listener('port = 2')}",
        "berm.toml:5: listeners[1].name: it is given twice; each must have its own",
    ),
    "one port twice": (
        f'{listener("port = 1")}\n[[listeners]]\nname = "b"\nport = 1',
        "berm.toml:6: listeners[1].port: it is given twice; each must have its own",
    ),
    "the short form beside listeners": (
        f"[mqtt]\nport = 1883\n{listener('port = 1')}",
        "berm.toml:2: mqtt.port: it is of no use beside [[listeners]]; make it a listener of its own",
    ),
}


@pytest.mark.parametrize(("text", "expected"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_listener_is_told_with_its_line_and_what_is_allowed(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in problem(tmp_path, text)


def test_the_short_form_is_told_where_it_is_an_option(tmp_path: Path) -> None:
    line = problem(tmp_path, listener("port = 1"), "mqtt.host=0.0.0.0")
    assert line.startswith("--set mqtt.host=0.0.0.0: mqtt.host: it is of no use beside [[listeners]]")


def test_a_node_listens_everywhere_and_says_where(tmp_path: Path) -> None:
    text = '[[listeners]]\nname = "lan"\nport = 0\n[[listeners]]\nname = "local"\ntype = "unix"\npath = "mqtt.sock"\n'
    with Node(tmp_path, text) as node:
        with socket.socket(socket.AF_UNIX) as local, socket.create_connection((HOST, node.port), PATIENCE) as lan:
            local.settimeout(PATIENCE)
            local.connect(str(tmp_path / "mqtt.sock"))
            for each in (local, lan):
                each.sendall(CONNECT)
                assert each.recv(10) == b"\x20\x02\x00\x00"
        assert node.stop() == 0
        assert node.rest_of_stdout().splitlines()[:1] == ["berm: edge listens on mqtt+unix:mqtt.sock (local)"]
    assert not (tmp_path / "mqtt.sock").exists()


def test_a_killed_node_starts_again_over_its_socket(tmp_path: Path) -> None:
    text = '[[listeners]]\nname = "lan"\nport = 0\n[[listeners]]\nname = "local"\ntype = "unix"\npath = "mqtt.sock"\n'
    with Node(tmp_path, text) as node:
        assert node.stop(signal.SIGKILL) == -signal.SIGKILL
        assert (tmp_path / "mqtt.sock").is_socket()
        node.start()
        assert node.stop() == 0


def shown(port: int, context: ssl.SSLContext) -> int:
    """Which certificate a node shows."""
    with (
        socket.create_connection((HOST, port), PATIENCE) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as secure,
    ):
        der = secure.getpeercert(True)
        assert der is not None
        return serial_of(der)


def test_sighup_loads_certificates_anew_and_ends_no_connection(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.server()
    context = authority.trusting()
    text = listener("port = 0", "[listeners.tls]", f'certificate = "{certificate.name}"', f'key = "{key.name}"')
    with (
        Node(tmp_path, text) as node,
        socket.create_connection((HOST, node.port), PATIENCE) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as client,
    ):
        client.sendall(CONNECT)
        assert client.recv(10) == b"\x20\x02\x00\x00"
        new = serial(authority.server()[0])
        node.process.send_signal(signal.SIGHUP)
        wait_until("it has loaded it", lambda: "listener a: loaded" in node.stderr)
        assert shown(node.port, context) == new
        key.write_text("no key\n")
        node.process.send_signal(signal.SIGHUP)
        wait_until("it has found it wrong", lambda: "it goes on with the old certificate" in node.stderr)
        assert shown(node.port, context) == new
        client.sendall(b"\xc0\x00")
        assert client.recv(10) == b"\xd0\x00"
        assert node.stop() == 0


def test_sighup_ends_no_node_without_certificates(tmp_path: Path) -> None:
    with Node(tmp_path) as node, socket.create_connection((HOST, node.port), PATIENCE) as client:
        node.process.send_signal(signal.SIGHUP)
        client.sendall(CONNECT)
        assert client.recv(10) == b"\x20\x02\x00\x00"
        assert node.stop() == 0
        assert "ERROR" not in node.stderr


def fails(directory: Path, text: str) -> tuple[int, str]:
    """The exit code of a start, and the last line of what it says."""
    (directory / "berm.toml").write_text(text)
    done = berm("run", cwd=directory)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr.splitlines()[-1]


def test_a_certificate_that_is_missing_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    code, line = fails(tmp_path, listener("port = 0", *TLS))
    assert (code, line) == (2, "berm: listener a: a: cannot be read: No such file or directory")


def test_a_key_of_another_certificate_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, _ = authority.server()
    _, key = authority.server("other")
    text = listener("port = 0", "[listeners.tls]", f'certificate = "{certificate.name}"', f'key = "{key.name}"')
    code, line = fails(tmp_path, text)
    assert code == 2
    assert line == "berm: listener a: other.key: it is not the key of the certificate in server.pem"


def test_a_port_in_use_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        code, line = fails(tmp_path, listener(f"port = {port}"))
    assert code == 1
    assert line == (
        f"berm: cannot listen on {HOST}:{port}: address already in use; "
        "stop what uses it, or set host and port of listener a"
    )


def test_a_socket_that_can_not_be_made_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    code, line = fails(tmp_path, listener('type = "unix"', 'path = "no/mqtt.sock"'))
    assert code == 1
    assert line == (
        "berm: cannot listen on no/mqtt.sock: no such file or directory; "
        "set path, mode and group of listener a to what can be used"
    )


def test_check_tells_all_of_it_and_starts_nothing(tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        text = "\n".join(
            (
                listener(f"port = {port}", *TLS),
                '[[listeners]]\nname = "b"\ntype = "unix"\npath = "no/mqtt.sock"',
                '[[listeners]]\nname = "c"\nport = 0',
            )
        )
        (tmp_path / "berm.toml").write_text(text)
        done = berm("check", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "listener a: a: cannot be read: No such file or directory",
        f"listener a: cannot listen on {HOST}:{port}: address already in use; "
        "stop what uses it, or set host and port of listener a",
        "listener b: cannot listen on no/mqtt.sock: no such file or directory; "
        "set path, mode and group of listener b to what can be used",
    ]
    assert "listener c: mqtt://127.0.0.1:0" in done.stdout.splitlines()
    assert [path.name for path in tmp_path.iterdir()] == ["berm.toml"]
