"""A password file is changed whole or not at all, and a user's old password is worth nothing afterwards."""

from __future__ import annotations

import os
import pty
import subprocess
import threading
from pathlib import Path

import pytest

from berm.passwd import PasswdError, delete, set_password
from broker.passwords import parse, verify
from tests.berm.helpers import berm
from tests.node import BERM, PATIENCE


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "passwords"


def knows(path: Path, user: str, password: str) -> bool:
    found = parse(path.read_text(), "f")
    return user in found.hashes and verify(found.hashes[user], password.encode())


def test_a_user_is_added_changed_and_deleted(path: Path) -> None:
    assert set_password(path, "alice", "one", scram=False) == f"{path}: added alice"
    assert set_password(path, "bob", "two", scram=False) == f"{path}: added bob"
    assert set_password(path, "alice", "three", scram=False) == f"{path}: changed alice"
    assert (knows(path, "alice", "one"), knows(path, "alice", "three"), knows(path, "bob", "two")) == (
        False,
        True,
        True,
    )
    assert delete(path, "alice") == f"{path}: deleted alice"
    assert set(parse(path.read_text(), "f").hashes) == {"bob"}


def test_a_user_with_scram_keeps_it_and_not_the_old_password(path: Path) -> None:
    set_password(path, "alice", "one", scram=True)
    old = parse(path.read_text(), "f")
    assert set_password(path, "alice", "two", scram=False) == f"{path}: changed alice, with SCRAM-SHA-256"
    new = parse(path.read_text(), "f")
    assert new.keys["alice"] != old.keys["alice"]
    delete(path, "alice")
    assert path.read_text() == ""


def test_a_new_file_is_for_its_owner_and_an_old_one_keeps_its_mode(path: Path) -> None:
    set_password(path, "alice", "one", scram=False)
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    set_password(path, "alice", "two", scram=False)
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(path.parent) == ["passwords"]


def test_a_link_still_leads_to_the_file(path: Path) -> None:
    link = path.with_name("link")
    path.write_text("# ours\n")
    link.symlink_to(path)
    set_password(link, "alice", "one", scram=False)
    assert link.is_symlink()
    assert path.read_text().startswith("# ours\nalice:$argon2id$")


def test_those_who_change_a_file_at_the_same_time_lose_nothing(path: Path) -> None:
    names = [f"user-{n}" for n in range(8)]
    threads = [threading.Thread(target=set_password, args=(path, name, "x", False)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert set(parse(path.read_text(), "f").hashes) == set(names)


@pytest.mark.parametrize(
    ("user", "password", "problem"),
    [
        ("", "x", "is not 1 to 255 characters long"),
        ("a:b", "x", "has a colon"),
        ("#a", "x", "a leading #"),
        ("a\nb", "x", "a control character"),
        ("alice", "", "the password is empty"),
        ("alice", "a\u0627b", "can't use SCRAM-SHA-256"),
    ],
)
def test_what_can_not_be_is_refused_and_the_file_is_as_it_was(
    path: Path, user: str, password: str, problem: str
) -> None:
    path.write_text("# ours\n")
    with pytest.raises(PasswdError, match=problem):
        set_password(path, user, password, scram=True)
    assert path.read_text() == "# ours\n"


def test_a_file_that_is_no_password_file_is_left_alone(path: Path) -> None:
    path.write_text("[mqtt]\nport = 1883\n")
    with pytest.raises(PasswdError, match=r"passwords:1: not `user:hash`"):
        set_password(path, "alice", "one", scram=False)
    path.write_bytes(b"\xff")
    with pytest.raises(PasswdError, match="not UTF-8"):
        delete(path, "alice")
    with pytest.raises(PasswdError, match="no-such-directory: cannot be changed: No such file"):
        set_password(path.parent / "no-such-directory" / "f", "alice", "one", scram=False)
    with pytest.raises(PasswdError, match="there is no user 'alice' in it"):
        delete(path.with_name("new"), "alice")
    assert path.read_bytes() == b"\xff"


def test_the_command_reads_a_password_from_stdin(path: Path) -> None:
    done = berm("passwd", "passwords", "alice", "--stdin", "--scram", cwd=path.parent, stdin="wonder land \r\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "passwords: added alice, with SCRAM-SHA-256\n", "")
    assert knows(path, "alice", "wonder land ")
    done = berm("passwd", "passwords", "alice", "--delete", cwd=path.parent)
    assert (done.returncode, done.stdout) == (0, "passwords: deleted alice\n")
    done = berm("passwd", "passwords", "alice", "--delete", cwd=path.parent)
    assert (done.returncode, done.stderr) == (1, "berm: passwords: there is no user 'alice' in it\n")


def test_without_a_terminal_and_without_stdin_nothing_is_asked(path: Path) -> None:
    done = berm("passwd", "passwords", "alice", cwd=path.parent, stdin="wonder\n")
    assert done.returncode == 2
    assert "--stdin" in done.stderr
    assert not path.exists()


def test_on_a_terminal_the_password_is_asked_for_twice_and_never_shown(path: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*BERM, "passwd", "passwords", "alice"],
        cwd=path.parent,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    seen = b""
    for asked in (b"Password of alice: ", b"Repeat for confirmation: "):
        while asked not in seen:
            seen += os.read(ours, 1024)
        os.write(ours, b"wonder\n")
    assert process.wait(PATIENCE) == 0
    os.close(ours)
    assert b"wonder" not in seen
    assert knows(path, "alice", "wonder")
