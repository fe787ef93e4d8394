"""Who is let in, as whom; what a check of a password may cost; and what a password file may say."""

from __future__ import annotations

import hmac
from base64 import b64decode, b64encode
from collections.abc import Callable
from functools import cache
from hashlib import pbkdf2_hmac, sha256
from pathlib import Path

import pytest

from broker import passwords
from broker.auth import Applicant, Challenge, Check, Gate, Proof, Scram, Verdict, Verifier, check_pattern
from broker.mqtt.reason import Reason
from broker.passwords import MEMORY, Passwords, lines, parse, replace, verify
from broker.watched import FileError, Watched
from tests.broker.helpers import Turns


@cache
def kept(user: str, password: str) -> str:
    """A user's lines. Each costs what a password costs, so they are made once."""
    return "\n".join(lines(user, password, scram=True)) + "\n"


@pytest.fixture
def file(tmp_path: Path) -> Watched[Passwords]:
    path = tmp_path / "passwords"
    path.write_text(kept("alice", "wonder") + kept("bob", "builder"))
    return Watched(path, parse)


class Asked:
    """What became of the checks of one gate. `turn` does the work that waits."""

    def __init__(self, limit: int = 10) -> None:
        self.worker = Turns()
        self.verifier = Verifier([self.worker], limit)

    def ask(
        self,
        gate: Gate,
        username: str | None = None,
        password: bytes | None = None,
        client_id: str = "c",
        certificate: str = "",
    ) -> list[Verdict]:
        """Ask; the answers are added to the list that is returned."""
        return self.check(gate, username, password, client_id, certificate)[1]

    def check(
        self, gate: Gate, username: str | None, password: bytes | None, client_id: str = "c", certificate: str = ""
    ) -> tuple[Check, list[Verdict]]:
        answers: list[Verdict] = []
        applicant = Applicant(client_id, username, password, "mqtt", "192.0.2.1", certificate)
        check = Check(applicant, answers.append)
        gate.authenticate(check)
        return check, answers

    def turn(self) -> None:
        while self.worker.step():
            pass


def answering_yes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bytes]]:
    """Let every password be right; what was asked is added to the list that is returned."""
    seen: list[tuple[str, bytes]] = []

    def verify(kept: str, password: bytes) -> bool:
        seen.append((kept, password))
        return True

    monkeypatch.setattr("broker.auth.verify", verify)
    return seen


def reasons(verdicts: list[Verdict]) -> list[Reason]:
    return [verdict.reason for verdict in verdicts]


def test_the_right_password_lets_its_user_in_after_the_work_and_not_before(file: Watched[Passwords]) -> None:
    asked = Asked()
    answers = asked.ask(Gate(False, file, asked.verifier), "alice", b"wonder")
    assert answers == []
    asked.turn()
    assert answers == [Verdict(Reason.SUCCESS, "alice")]
    assert asked.verifier.waiting == 0


@pytest.mark.parametrize(
    ("username", "password"),
    [
        ("alice", b"builder"),
        ("alice", b""),
        ("alice", None),
        ("Alice", b"wonder"),
        ("carol", b"wonder"),
        ("", b"wonder"),
        (None, b"wonder"),
        ("alice", b"wonder\0"),
        ("alice", b"\xff"),
    ],
)
def test_whoever_does_not_say_a_user_and_its_password_is_refused_even_where_nobody_is_welcome(
    file: Watched[Passwords], username: str | None, password: bytes | None
) -> None:
    asked = Asked()
    answers = asked.ask(Gate(True, file, asked.verifier), username, password)
    asked.turn()
    assert reasons(answers) == [Reason.BAD_USER_NAME_OR_PASSWORD]
    assert answers[0].username == ""


def test_a_user_that_does_not_exist_costs_the_work_of_one_that_does(
    file: Watched[Passwords], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, bytes]] = []  # what is verified; the answer is always yes

    def accept(kept: str, password: bytes) -> bool:
        seen.append((kept, password))
        return True

    monkeypatch.setattr("broker.auth.verify", accept)
    asked = Asked()
    answers = asked.ask(Gate(False, file, asked.verifier), "carol", b"wonder")
    asked.turn()
    assert seen == [(file.current.hashes["alice"], b"wonder")]
    assert reasons(answers) == [Reason.BAD_USER_NAME_OR_PASSWORD]


def test_a_password_file_without_a_user_lets_nobody_in(tmp_path: Path) -> None:
    path = tmp_path / "passwords"
    path.write_text("# nobody yet\n\n")
    asked = Asked()
    assert reasons(asked.ask(Gate(False, Watched(path, parse), asked.verifier), "alice", b"")) == [
        Reason.BAD_USER_NAME_OR_PASSWORD
    ]


@pytest.mark.parametrize(("anonymous", "reason"), [(True, Reason.SUCCESS), (False, Reason.NOT_AUTHORIZED)])
def test_who_says_no_name_is_nobody_and_let_in_where_the_listener_says_so(
    file: Watched[Passwords], anonymous: bool, reason: Reason
) -> None:
    asked = Asked()
    for gate in (Gate(anonymous), Gate(anonymous, file, asked.verifier)):
        answers = asked.ask(gate)
        assert reasons(answers) == [reason]
        assert answers[0].username == ""


def test_a_user_name_that_nobody_can_check_is_nobody_s() -> None:
    assert Asked().ask(Gate(True), "alice", b"anything") == [Verdict(Reason.SUCCESS, "")]
    assert reasons(Asked().ask(Gate(False), "alice", b"anything")) == [Reason.NOT_AUTHORIZED]


def test_a_certificate_says_who_the_client_is_and_no_password_is_asked_for(file: Watched[Passwords]) -> None:
    asked = Asked()
    gate = Gate(False, file, asked.verifier)
    assert asked.ask(gate, certificate="device-7") == [Verdict(Reason.SUCCESS, "device-7")]
    assert asked.ask(gate, "device-7", b"x", certificate="device-7") == [Verdict(Reason.SUCCESS, "device-7")]
    assert reasons(asked.ask(gate, "alice", b"wonder", certificate="device-7")) == [Reason.NOT_AUTHORIZED]


def test_more_checks_than_may_wait_are_told_to_come_again(file: Watched[Passwords]) -> None:
    asked = Asked(limit=2)
    gate = Gate(False, file, asked.verifier)
    answers = [asked.ask(gate, "alice", b"wonder") for _ in range(3)]
    assert [reasons(each) for each in answers] == [[], [], [Reason.SERVER_BUSY]]
    asked.turn()
    assert [reasons(each) for each in answers] == [[Reason.SUCCESS], [Reason.SUCCESS], [Reason.SERVER_BUSY]]
    assert asked.ask(gate, "alice", b"wonder") == []


def test_a_client_that_has_gone_costs_no_check_and_gets_no_answer(
    file: Watched[Passwords], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def accept(kept: str, password: bytes) -> bool:
        seen.append(kept)
        return True

    monkeypatch.setattr("broker.auth.verify", accept)
    asked = Asked()
    check, answers = asked.check(Gate(False, file, asked.verifier), "alice", b"wonder")
    check.withdrawn = True
    asked.turn()
    assert (seen, answers, check.done) == ([], [], True)
    assert asked.verifier.waiting == 0


def test_each_thread_has_one_check_at_a_time(file: Watched[Passwords]) -> None:
    workers = [Turns(), Turns()]
    gate = Gate(False, file, Verifier(workers, 10))
    for _ in range(3):
        Asked().check(gate, "alice", b"wonder")
    assert workers[1].step()  # and has the third one now
    assert [[worker.step() for _ in range(2)] for worker in workers] == [[True, False]] * 2


def ask_from(host: str, gate: Gate, number: int = 1) -> list[list[Verdict]]:
    """Ask so many times, from one address."""
    found: list[list[Verdict]] = []
    for _ in range(number):
        answers: list[Verdict] = []
        gate.authenticate(Check(Applicant("c", "alice", b"wrong", "mqtt", host, ""), answers.append))
        found.append(answers)
    return found


def test_hosts_take_turns_however_much_one_of_them_asks(file: Watched[Passwords]) -> None:
    asked = Asked(100)
    gate = Gate(False, file, asked.verifier)
    many = ask_from("192.0.2.66", gate, 20)
    (one,), (other,) = ask_from("192.0.2.1", gate), ask_from("192.0.2.2", gate)
    for _ in range(4):
        asked.worker.step()
    assert one
    assert other
    assert sum(map(bool, many)) == 2


def test_one_host_can_not_take_every_place_in_the_queue(file: Watched[Passwords]) -> None:
    asked = Asked(8)
    gate = Gate(False, file, asked.verifier)
    many = ask_from("192.0.2.66", gate, 10)
    assert [reasons(each) for each in many] == [[]] * 6 + [[Reason.SERVER_BUSY]] * 4
    assert ask_from("192.0.2.1", gate, 2) == [[], []]
    assert reasons(ask_from("192.0.2.1", gate)[0]) == [Reason.SERVER_BUSY]
    while asked.worker.step():
        pass
    assert asked.verifier.waiting == 0
    assert ask_from("192.0.2.66", gate) == [[]]


def test_a_check_that_fails_by_itself_lets_nobody_in_and_is_told(
    file: Watched[Passwords], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(kept: str, password: bytes) -> bool:
        raise MemoryError("no memory")

    class Broken(Turns):
        def submit(
            self,
            work: Callable[[], object],
            done: Callable[[object, BaseException | None], None],
            after: Callable[[], object] | None = None,
        ) -> None:
            with pytest.raises(MemoryError) as caught:
                work()
            done(None, caught.value)

    monkeypatch.setattr("broker.auth.verify", fails)
    asked = Asked()
    verifier = Verifier([Broken()], 10)
    assert reasons(asked.ask(Gate(False, file, verifier), "alice", b"wonder")) == [Reason.BAD_USER_NAME_OR_PASSWORD]
    assert "a password can't be checked: no memory" in caplog.text
    assert verifier.waiting == 0


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("%u", ["alice"], ["bob", "alice2", "", "%u"]),
        ("%u-*", ["alice-", "alice-7"], ["alice", "bob-7", "alice7"]),
        ("edge-%u", ["edge-alice"], ["edge-", "alice"]),
        ("fleet-*", ["fleet-1"], ["flee", "x"]),
    ],
)
def test_client_identifiers_belong_to_their_users(pattern: str, yes: list[str], no: list[str]) -> None:
    gate = Gate(False, client_ids=pattern)
    for client_id in yes:
        assert gate.admit("alice", client_id).reason == Reason.SUCCESS
    for client_id in no:
        assert gate.admit("alice", client_id).reason == Reason.CLIENT_IDENTIFIER_NOT_VALID
    if "%u" in pattern:
        assert all(gate.admit("", each).reason != Reason.SUCCESS for each in (*yes, *no, "-", "-x"))


def test_a_user_name_with_signs_of_patterns_in_it_is_taken_as_it_is() -> None:
    assert Gate(False, client_ids="%u").admit("a*", "ab").reason == Reason.CLIENT_IDENTIFIER_NOT_VALID
    assert Gate(False, client_ids="%u").admit(r"\1%u", r"\1%u").reason == Reason.SUCCESS


def test_a_pattern_that_would_give_one_user_the_identifiers_of_another_is_refused() -> None:
    assert [check_pattern(each) for each in ("", "%u", "%u-*", "*")] == [None] * 4
    assert all(check_pattern(each) is not None for each in ("%u*", "a*b", "%c", "100%"))


def scram_final(first: bytes, challenge: bytes, password: str) -> bytes:
    fields = dict(each.split("=", 1) for each in challenge.decode().split(","))
    salted = pbkdf2_hmac("sha256", password.encode(), b64decode(fields["s"]), int(fields["i"]))
    key = hmac.digest(salted, b"Client Key", "sha256")
    without = b"c=biws,r=" + fields["r"].encode()
    signature = hmac.digest(sha256(key).digest(), b",".join((first[3:], challenge, without)), "sha256")
    return without + b",p=" + b64encode(bytes(a ^ b for a, b in zip(key, signature, strict=True)))


@pytest.mark.parametrize(("password", "right"), [("wonder", True), ("builder", False)])
def test_scram_proves_a_user_by_the_keys_in_the_file(file: Watched[Passwords], password: str, right: bool) -> None:
    attempt = Scram(file).begin()
    first = b"n,,n=alice,r=abc"
    challenge = attempt.step(first)
    assert isinstance(challenge, Challenge)
    answer = attempt.step(scram_final(first, challenge.data, password))
    if right:
        assert isinstance(answer, Proof)
        assert answer.username == "alice"
        assert answer.data.startswith(b"v=")
    else:
        assert isinstance(answer, Verdict)
        assert answer.reason == Reason.NOT_AUTHORIZED


def test_the_salts_of_users_that_do_not_exist_are_made_of_the_secret(file: Watched[Passwords]) -> None:
    def challenge(secret: bytes | None, name: str) -> bytes:
        scram = Scram(file)
        if secret is not None:
            scram.secret = secret
        answer = scram.begin().step(f"n,,n={name},r=abc".encode())
        assert isinstance(answer, Challenge)
        return answer.data.partition(b",")[2]

    assert challenge(b"kept", "nobody") == challenge(b"kept", "nobody")
    made = {challenge(secret, "nobody") for secret in (b"kept", b"another", None, None)}
    assert len(made) == 4
    assert challenge(b"kept", "alice") == challenge(None, "alice")


@pytest.mark.parametrize("data", [b"", b"n,,n=alice", b"\xff"])
def test_what_is_no_scram_is_refused_with_a_verdict(file: Watched[Passwords], data: bytes) -> None:
    answer = Scram(file).begin().step(data)
    assert isinstance(answer, Verdict)
    assert answer.reason == Reason.NOT_AUTHORIZED


# -- the password file


def test_a_line_is_what_a_password_can_be_checked_with() -> None:
    found = parse(kept("alice", "wonder"), "passwords")
    assert f"m={MEMORY},t={passwords.PASSES},p=1" in found.hashes["alice"]
    assert verify(found.hashes["alice"], b"wonder")
    assert not verify(found.hashes["alice"], b"Wonder")
    assert "alice" in found.keys


def test_two_users_with_the_same_password_have_different_lines() -> None:
    one, other = lines("alice", "same", scram=True), lines("bob", "same", scram=True)
    assert {each.split(":", 1)[1] for each in one}.isdisjoint(each.split(":", 1)[1] for each in other)


ALICE = "alice:$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHRzYWx0c2FsdA$aGFzaA"
KEY = b64encode(bytes(32)).decode()
SCRAM = f"alice:SCRAM-SHA-256$4096:c2FsdA==${KEY}:{KEY}"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("alice", "not `user:hash`; set the password with `berm passwd`"),
        (":x", "the user name is not 1 to 255 characters long"),
        ("a" * 256 + ":x", "the user name is not 1 to 255 characters long"),
        (" alice:x", "the user name has a colon, a control character, a leading # or a space"),
        ("al\tice:x", "the user name has a colon, a control character"),
        ("alice:secret", "neither a hash of argon2id nor keys of SCRAM-SHA-256; set the password again"),
        ("alice:", "neither a hash"),
        ("alice:$7$101$salt$hash", "a hash of mosquitto_passwd, which can't be taken over; set the password again"),
        ("alice:$argon2i$v=19$m=19456,t=2,p=1$c2FsdA$aGFzaA", "not a hash of argon2id"),
        (ALICE.replace("m=19456", "m=999999999"), "a check would take 999999999 KiB"),
        (ALICE.replace("t=2", "t=999"), "a check would take"),
        (ALICE.replace("m=19456", "m=7"), "a check would take"),
        (SCRAM.replace("4096", "100"), "from 4096 to 1000000"),
        (SCRAM.replace("4096", "100000000"), "from 4096 to 1000000"),
        (SCRAM.replace("c2FsdA==", "c2FsdA"), "base64"),
        (SCRAM[:-9], "base64"),
        (SCRAM.replace(KEY, "AAAA"), "another size"),
    ],
)
def test_a_wrong_line_is_told_with_its_file_and_what_to_do(line: str, problem: str) -> None:
    with pytest.raises(FileError) as caught:
        parse(f"# users\n\n{line}\n", "/etc/berm/passwords")
    assert str(caught.value).startswith("/etc/berm/passwords:3: ")
    assert problem in str(caught.value)
    assert "berm passwd" in str(caught.value) or "give the user another" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("line", [ALICE, SCRAM])
def test_a_user_has_one_line_of_each_kind(line: str) -> None:
    assert parse(f"{ALICE}\n{SCRAM}\n", "f") == Passwords(
        {"alice": ALICE.partition(":")[2]}, parse(f"{SCRAM}\n", "f").keys
    )
    with pytest.raises(FileError, match="f:3: there is a line for 'alice' before this one; delete one of them"):
        parse(f"{ALICE}\n{SCRAM}\n{line}\n", "f")


def test_new_lines_stand_where_the_old_ones_stood_and_comments_stay() -> None:
    text = "# ours\nalice:1\nbob:2\nalice:3\n\n#alice:4\n"
    assert replace(text, "alice", ["alice:5"]) == "# ours\nalice:5\nbob:2\n\n#alice:4\n"
    assert replace(text, "carol", ["carol:6"]) == text + "carol:6\n"
    assert replace(text, "alice", []) == "# ours\nbob:2\n\n#alice:4\n"
    assert replace("bob:2", "alice", ["alice:1"]) == "bob:2\nalice:1\n"


@pytest.mark.parametrize(("user", "password"), [("alice", "a\u0627b"), ("\u2168", "x")])
def test_scram_takes_no_name_or_password_that_clients_would_write_otherwise(user: str, password: str) -> None:
    with pytest.raises(ValueError):
        lines(user, password, scram=True)
    assert len(lines(user, password, scram=False)) == 1


def test_a_file_that_has_changed_is_told_once_when_it_has_stopped_changing(file: Watched[Passwords]) -> None:
    assert not file.changed()
    file.path.write_text(kept("alice", "wonder"))
    assert [file.changed() for _ in range(3)] == [False, True, False]
    assert set(file.read().hashes) == {"alice"}
    assert not file.changed()
    file.path.write_text(kept("bob", "builder"))
    file.read()  # for a reason of its own
    assert [file.changed() for _ in range(3)] == [False] * 3
    assert set(file.current.hashes) == {"alice", "bob"}


def test_a_file_that_is_wrong_or_gone_says_so_and_the_old_content_stays(file: Watched[Passwords]) -> None:
    file.path.write_bytes(b"alice:x\nb\xff")
    with pytest.raises(FileError, match="passwords:2: not UTF-8; write the line again"):
        file.read()
    file.path.unlink()
    assert [file.changed() for _ in range(2)] == [False, True]
    with pytest.raises(FileError, match="passwords: cannot be read: No such file"):
        file.read()
    assert set(file.current.hashes) == {"alice", "bob"}
