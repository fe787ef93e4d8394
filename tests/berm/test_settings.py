from __future__ import annotations

from pathlib import Path

import pytest

from berm.settings import SEARCHED, Settings, SettingsError, find, load

BRIDGE = '[[bridges]]\nname = "cloud"\nhost = "cloud.example"\n[[bridges.routes]]\nname = "all"\ntopic = "#"\n'


def read(tmp_path: Path, text: str, *overrides: str) -> Settings:
    path = tmp_path / "berm.toml"
    path.write_text(text)
    return load(path, overrides)


def test_without_a_file_every_setting_has_its_default() -> None:
    settings = load(None)
    assert (settings.mqtt.host, settings.mqtt.port, settings.storage.path) == ("127.0.0.1", 1883, Path("data"))
    assert (settings.processors, settings.bridges, settings.storage.rules) == ((), (), ())
    assert settings.node.name


def test_an_empty_file_means_the_defaults_beside_it(tmp_path: Path) -> None:
    settings = read(tmp_path, "")
    assert settings.storage.path == tmp_path / "data"
    assert settings.mqtt == load(None).mqtt


def test_the_configuration_file_that_lists_everything_means_the_defaults() -> None:
    listed = Path(__file__).parents[2] / "config" / "berm.toml"
    settings = load(listed)
    assert settings.storage.path == listed.parent / "data"
    assert settings.model_dump(exclude={"storage": {"path"}}) == load(None).model_dump(exclude={"storage": {"path"}})


def test_paths_in_a_file_are_relative_to_it_and_those_in_overrides_to_the_working_directory(tmp_path: Path) -> None:
    text = '[storage]\npath = "log"\n[[processors]]\nfile = "a.py"\n[[processors]]\nfile = "/b.py"\n'
    settings = read(tmp_path, text)
    assert settings.storage.path == tmp_path / "log"
    assert [processor.file for processor in settings.processors] == [tmp_path / "a.py", Path("/b.py")]
    assert read(tmp_path, text, 'storage.path="elsewhere"').storage.path == Path("elsewhere")


def test_files_of_keys_are_relative_to_the_settings_and_other_places_stay_as_they_are(tmp_path: Path) -> None:
    text = '[encryption]\nkey = "file:key"\nearlier = ["file:/old", "env:OLD", "command:cat old", "file:old"]\n'
    encryption = read(tmp_path, text).encryption
    assert encryption.key == f"file:{tmp_path}/key"
    assert encryption.earlier == ("file:/old", "env:OLD", "command:cat old", f"file:{tmp_path}/old")
    assert read(tmp_path, text, "encryption.key=file:elsewhere").encryption.key == "file:elsewhere"
    assert read(tmp_path, "").encryption.key is None


def test_an_override_is_toml_or_else_text(tmp_path: Path) -> None:
    settings = read(tmp_path, "[mqtt]\nport = 1\n", "mqtt.port=2", "node.name = edge-7", "mqtt.queue_qos0=true")
    assert (settings.mqtt.port, settings.node.name, settings.mqtt.queue_qos0) == (2, "edge-7", True)


def test_an_override_can_give_a_list_of_tables(tmp_path: Path) -> None:
    rules = read(tmp_path, "", 'storage.rules=[{topic="a/#", durability="memory"}]').storage.rules
    assert [(rule.topic, rule.durability) for rule in rules] == [("a/#", "memory")]


def test_the_last_of_two_overrides_counts(tmp_path: Path) -> None:
    assert read(tmp_path, "", "mqtt.port=1", "mqtt.port=2").mqtt.port == 2


def test_a_bridge_takes_its_client_identifier_from_the_node_where_it_has_none(tmp_path: Path) -> None:
    assert read(tmp_path, BRIDGE, "node.name=edge-7").bridges[0].client_id == "edge-7-cloud"
    named = BRIDGE.replace("[[bridges.routes]]", 'client_id = "mine"\n[[bridges.routes]]')
    assert read(tmp_path, named).bridges[0].client_id == "mine"


def test_a_password_is_not_shown(tmp_path: Path) -> None:
    text = BRIDGE.replace("[[bridges.routes]]", 'password = "hunter2"\n[[bridges.routes]]')
    assert "hunter2" not in repr(read(tmp_path, text))


def test_the_file_that_is_read_is_the_named_one_or_the_first_that_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("berm.settings.SEARCHED", (Path("berm.toml"), tmp_path / "etc.toml"))
    assert [str(path) for path in SEARCHED] == ["berm.toml", "/etc/berm/berm.toml"]
    assert find(None) is None
    (tmp_path / "etc.toml").touch()
    assert find(None) == tmp_path / "etc.toml"
    (tmp_path / "berm.toml").touch()
    assert find(None) == Path("berm.toml")
    assert find(Path("other.toml")) == Path("other.toml")


def problems(tmp_path: Path, text: str, *overrides: str) -> list[str]:
    """What is said about wrong settings, with the file's path shortened to `berm.toml`."""
    with pytest.raises(SettingsError) as caught:
        read(tmp_path, text, *overrides)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return [problem.replace(f"{tmp_path}/", "") for problem in caught.value.problems]


WRONG = {
    "a type": (
        '[mqtt]\n\nport = "1883"\n',
        'berm.toml:3: mqtt.port: "1883" is not allowed; allowed: an integer from 0 to 65,535',
    ),
    "a bound": (
        "mqtt.port = 70_000",
        "berm.toml:1: mqtt.port: 70000 is not allowed; allowed: an integer from 0 to 65,535",
    ),
    "a boolean for a number": (
        "[mqtt]\nport = true",
        "berm.toml:2: mqtt.port: true is not allowed; allowed: an integer from 0 to 65,535",
    ),
    "a number for a boolean": (
        "[mqtt]\nqueue_qos0 = 1",
        "berm.toml:2: mqtt.queue_qos0: 1 is not allowed; allowed: `true` or `false`",
    ),
    "a choice": (
        '[log]\nlevel = "loud"',
        'berm.toml:2: log.level: "loud" is not allowed; allowed: "debug", "info", "warning" or "error"',
    ),
    "an unknown setting": (
        "[mqtt]\n# a comment\nprot = 1883",
        'berm.toml:3: mqtt.prot: unknown setting; did you mean "port"? allowed: host, port, max_connections, ',
    ),
    "a setting of another section": (
        "[node]\nport = 1883",
        'berm.toml:2: node.port: unknown setting; did you mean "mqtt.port"? allowed: name',
    ),
    "an unknown setting like no other": ("[node]\nzzz = 1", "berm.toml:2: node.zzz: unknown setting; allowed: name"),
    "an unknown section": (
        "[strorage]\npath = 'x'",
        'berm.toml:1: strorage: unknown section; did you mean "storage"? allowed: node, storage, encryption, ',
    ),
    "a setting outside of a section": ("port = 1883", 'berm.toml:1: port: unknown setting; did you mean "mqtt.port"?'),
    "a section that is no table": ("mqtt = 5", "berm.toml:1: mqtt: 5 is not allowed; allowed: a table"),
    "one table where a list belongs": (
        "[bridges]\nname = 'x'",
        "berm.toml:1: bridges: a table is not allowed; allowed: a list of tables",
    ),
    "a missing setting": (
        BRIDGE.replace('host = "cloud.example"\n', ""),
        "berm.toml:1: bridges[0].host: it is missing; allowed: a host name or an address",
    ),
    "a bridge without routes": (
        "[[bridges]]\nname = 'c'\nhost = 'h'\nroutes = []",
        "berm.toml:4: bridges[0].routes: it is empty; allowed: a list of tables, at least one",
    ),
    "a topic filter": (
        BRIDGE.replace('"#"', '"a/#/b"'),
        'berm.toml:6: bridges[0].routes[0].topic: "a/#/b": ',
    ),
    "a shared subscription": (
        BRIDGE.replace('"#"', '"$share/g/a"'),
        'berm.toml:6: bridges[0].routes[0].topic: "$share/g/a": a shared subscription; give the filter behind it',
    ),
    "a name": (BRIDGE.replace('"all"', '"a/b"'), 'berm.toml:5: bridges[0].routes[0].name: "a/b": not a name'),
    "a prefix": (BRIDGE + 'prefix = "a/+/"\n', 'berm.toml:7: bridges[0].routes[0].prefix: "a/+/": it has a wildcard'),
    "two bridges of one name": (BRIDGE * 2, "berm.toml:8: bridges[1].name: it is given twice; each must have its own"),
    "two routes of one name": (
        BRIDGE + '[[bridges.routes]]\ntopic = "a"\nname = "all"\n',
        "berm.toml:9: bridges[0].routes[1].name: it is given twice",
    ),
    "a processor file named twice": (
        '[[processors]]\nfile = "a.py"\n\n[[processors]]\nfile = "a.py"\n',
        "berm.toml:5: processors[1].file: it is given twice",
    ),
    "a backoff that runs backwards": (
        BRIDGE.replace("[[bridges.routes]]", "backoff_min = 10.0\nbackoff_max = 5.0\n[[bridges.routes]]"),
        "berm.toml:5: bridges[0].backoff_max: 5.0: 5 s is shorter than backoff_min, 10 s; allowed: a number from ",
    ),
    "a key itself, not where it is": (
        '[encryption]\nkey = "hunter2"',
        "berm.toml:2: encryption.key: this value: it does not say where a key is; allowed: `file:PATH`, `env:NAME` or ",
    ),
    "a command that is none": (
        '[encryption]\nkey = "command:cat \'hunter2"',
        "berm.toml:2: encryption.key: this value: No closing quotation; allowed: ",
    ),
    "earlier keys and none to go on with": (
        '[encryption]\nearlier = ["file:hunter2"]',
        "berm.toml:2: encryption.earlier: this value: there is no key to go on with; allowed: a list of places ",
    ),
    "a password alone with 3.1.1": (
        BRIDGE.replace("[[bridges.routes]]", 'version = "3.1.1"\npassword = "hunter2"\n[[bridges.routes]]'),
        "berm.toml:5: bridges[0].password: this value: MQTT 3.1.1 takes no password without a user name",
    ),
    "no TOML": ("[mqtt]\nport = \n", "berm.toml:2: not TOML: "),
    "a section given twice": ("[mqtt]\n[log]\n[mqtt]\n", "berm.toml:3: not TOML: "),
    "a string without its end": ('[node]\nname = """x\n\n', "berm.toml:3: not TOML: "),
}


@pytest.mark.parametrize(("text", "expected"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_setting_is_told_with_its_line_and_what_is_allowed(tmp_path: Path, text: str, expected: str) -> None:
    (problem,) = problems(tmp_path, text)
    assert problem.startswith(expected)
    assert "hunter2" not in problem


def test_all_problems_are_told_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = "[log]\nlevel = 1\n[mqtt]\nprot = 1\nport = 'x'\n"
    assert [problem.split(":")[1] for problem in problems(tmp_path, text)] == ["2", "4", "5"]


def test_a_file_that_is_not_there_is_told() -> None:
    with pytest.raises(SettingsError, match=r"^/nowhere/berm.toml: there is no such file$"):
        load(Path("/nowhere/berm.toml"))


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read: Is a directory"):
        load(tmp_path)


def test_a_file_that_is_not_utf8_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "berm.toml"
    path.write_bytes(b"[node]\n# fine\nname = '\xe4'\n")
    with pytest.raises(SettingsError, match=r"berm.toml:3: not UTF-8"):
        load(path)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("mqtt.port", "--set mqtt.port: not a setting and its value; write section.name=value"),
        ("mqtt.=1", "--set mqtt.=1: not a setting and its value"),
        ("mqtt.port=x", '--set mqtt.port=x: mqtt.port: "x" is not allowed; allowed: an integer from 0 to 65,535'),
        ("mqtt.prot=1", '--set mqtt.prot=1: mqtt.prot: unknown setting; did you mean "port"?'),
        ("storage.rules=[{topic=1", "--set storage.rules=[{topic=1: the value is not TOML: "),
        ("node.name=", "--set node.name=: the value is not TOML"),
    ],
)
def test_a_wrong_override_is_told_as_it_was_given(tmp_path: Path, override: str, expected: str) -> None:
    (problem,) = problems(tmp_path, "[mqtt]\nport = 1\n", override)
    assert problem.startswith(expected)
