"""Changes one user in a password file. A reader of the file, such as a node, sees the old content or the new one."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from broker.passwords import check_name, lines, parse, replace
from broker.watched import FileError

MODE: Final = 0o600
"""Of a new file: nobody else needs to read it."""


class PasswdError(Exception):
    """The file is as it was; the message says what was tried, why it failed and what to do."""


def set_password(path: Path, user: str, password: str, scram: bool) -> str:
    """Give a user a password, and say what was done. `scram`: for SCRAM-SHA-256, too.

    A user that has keys for SCRAM-SHA-256 gets new ones either way: the old password is worth nothing afterwards.

    Raises:
        PasswdError: the name or the password can't be one, or the file can't be read or written, or is wrong.
    """
    problem = check_name(user)
    if problem is not None:
        raise PasswdError(f"user name {user!r} {problem}; give the user another")
    if not password:
        raise PasswdError("the password is empty; give one")
    with _locked(path):
        text = _read(path)
        known = parse(text, str(path))
        scram = scram or user in known.keys
        try:
            made = lines(user, password, scram)
        except ValueError as error:
            raise PasswdError(
                f"user {user!r} can't use SCRAM-SHA-256: {error}; give another name or password"
            ) from None
        _write(path, replace(text, user, made))
    done = "changed" if user in known.hashes or user in known.keys else "added"
    return f"{path}: {done} {user}{', with SCRAM-SHA-256' if scram else ''}"


def delete(path: Path, user: str) -> str:
    """Take a user out of the file, and say so.

    Raises:
        PasswdError: there is no such user, or the file can't be read or written, or is wrong.
    """
    with _locked(path):
        text = _read(path)
        known = parse(text, str(path))
        if user not in known.hashes and user not in known.keys:
            raise PasswdError(f"{path}: there is no user {user!r} in it")
        _write(path, replace(text, user, ()))
    return f"{path}: deleted {user}"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep others who change the file waiting, and tell what fails in one way."""
    try:
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
            yield
            os.fsync(directory)
        finally:
            os.close(directory)
    except FileError as error:
        raise PasswdError(str(error)) from None
    except OSError as error:
        raise PasswdError(f"{error.filename or path}: cannot be changed: {error.strerror}") from None


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError:
        raise PasswdError(f"{path}: not UTF-8; name a password file, or a new one") from None


def _write(path: Path, text: str) -> None:
    """Put a new file in the place of the old one, with its owner and mode."""
    path = path.resolve()  # what a link leads to is what is replaced
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            try:
                old = path.stat()
            except FileNotFoundError:
                os.fchmod(file.fileno(), MODE)
            else:
                os.fchmod(file.fileno(), old.st_mode & 0o777)
                if (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(file.fileno(), old.st_uid, old.st_gid)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(name)
        raise
