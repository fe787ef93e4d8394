"""The keys of a data directory, from the settings: for a node, for commands that read, and for `berm keys`."""

from __future__ import annotations

import logging
import os
import shlex
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import orjson

from berm.settings import EncryptionSection, Settings, check_key_source
from berm.times import format_time
from storage.files import sync_directory
from storage.keysource import OPERATOR_KEY_BYTES, KeyCommand, KeyFile, KeysError, KeySource, KeyVariable, is_encrypted
from storage.worker import ThreadWorker

if TYPE_CHECKING:
    from storage.vault import Reader, Vault
    from storage.worker import Post

SEGMENTS: Final = "*.segment"
REFRESHED: Final = 1_000_000
"""How often a node looks for new keys, in µs."""

_logger = logging.getLogger("berm.keys")


def sources(section: EncryptionSection) -> tuple[KeySource, ...]:
    """Where the operator's key is, and then where earlier ones are; nothing where nothing is to be encrypted."""
    return tuple(source(each) for each in (section.key, *section.earlier) if each is not None)


def source(text: str) -> KeySource:
    """The place that a setting means.

    Raises:
        ValueError: it means none.
    """
    kind, _, rest = check_key_source(text).partition(":")
    if kind == "file":
        return KeyFile(Path(rest))
    if kind == "env":
        return KeyVariable(rest.strip())
    return KeyCommand(tuple(shlex.split(rest)))


def vault(settings: Settings, now: int) -> Vault | None:
    """What a node encrypts with from now on, in a data directory that it holds; None: with nothing.

    `now` is in µs since the epoch.

    Raises:
        KeysError: the directory is encrypted and the settings name no key, or the key or the file of keys is wrong.
    """
    given = _sources(settings)
    if not given:
        return None
    from storage.vault import Vault  # few nodes encrypt

    return Vault(settings.storage.path, given, now, settings.encryption.new_data_key_days)


def reader(settings: Settings) -> Reader | None:
    """What opens that which a node has encrypted, or encrypts meanwhile; None: nothing is encrypted.

    Raises:
        KeysError: as of `vault`.
    """
    given = _sources(settings)
    if not given or not is_encrypted(settings.storage.path):
        return None
    from storage.keys import read
    from storage.vault import Reader

    return Reader(read(settings.storage.path, given))


class RunningKeys:
    """Takes up the keys that commands make beside a running node, in a thread that nobody waits for.

    `post` hands a call over to the loop's thread.
    """

    def __init__(self, vault: Vault, post: Post) -> None:
        self._vault = vault
        self._worker = ThreadWorker("berm-keys", post)
        self._busy = False
        self._next = 0
        for problem in vault.keyring.problems:
            _logger.warning("%s; it was written anew", problem)

    def tick(self, now: int) -> None:
        """To be called often. `now` is in µs since the epoch."""
        if now >= self._next:
            self._next = now + REFRESHED
            self.refresh(now)

    def refresh(self, now: int) -> None:
        """See whether there are new keys, or one is due, unless that is being done."""
        if not self._busy:
            self._busy = True
            self._worker.submit(lambda: self._vault.refresh(now), self._refreshed)

    def close(self) -> None:
        """Wait for nothing: a command that gives the operator's key may take long."""
        self._worker.close(0)

    def _refreshed(self, another: object, error: BaseException | None) -> None:
        self._busy = False
        if isinstance(error, KeysError):
            _logger.error("%s; the keys that the node has go on", error)
        elif error is not None:
            _logger.error("looking for new keys failed", exc_info=error)
        elif another:
            _logger.info("data key %d encrypts from now on", self._vault.data_key.number)


def needed(settings: Settings) -> tuple[KeySource, ...]:
    """Where the key of an encrypted data directory is, and where earlier ones are.

    Raises:
        KeysError: the directory is not encrypted, or the settings name no key.
    """
    given = _sources(settings)
    if not is_encrypted(settings.storage.path):
        raise KeysError(
            f"{settings.storage.path} is not encrypted; a node whose settings say in encryption.key where a key is "
            "encrypts what it writes"
        )
    return given


def _sources(settings: Settings) -> tuple[KeySource, ...]:
    given = sources(settings.encryption)
    if not given and is_encrypted(settings.storage.path):
        raise KeysError(
            f"{settings.storage.path} is encrypted, and the settings name no key; "
            "nothing was changed; say in encryption.key where it is"
        )
    return given


def make_key() -> str:
    """A new operator's key, as text."""
    return os.urandom(OPERATOR_KEY_BYTES).hex()


def make_key_file(path: Path) -> None:
    """Make a file with a new operator's key that only its owner can read.

    Raises:
        KeysError: it is there already, or can't be written.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise KeysError(f"{path} is there already, and the key in it may be in use; name another file") from None
    except OSError as error:
        raise KeysError(f"making {path}: {error.strerror}; name a file in a directory that can be written") from None
    try:
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(f"{make_key()}\n")
            file.flush()
            os.fsync(descriptor)
        sync_directory(path.absolute().parent)
    except OSError as error:
        with suppress(OSError):
            path.unlink()
        raise KeysError(f"writing {path}: {error.strerror}; see whether there is room on the disk") from None


@dataclass(frozen=True, slots=True)
class Use:
    """A data key, since when it encrypts, and how many segments are encrypted with it."""

    number: int
    since: str
    segments: int


@dataclass(frozen=True, slots=True)
class Listing:
    """The keys of a data directory. `operator` tells which operator's key is needed, and nothing else of it."""

    data: str
    operator: str
    revision: int
    plain_segments: int
    keys: tuple[Use, ...]
    problems: tuple[str, ...]


def listing(settings: Settings) -> Listing:
    """What there is to say of the keys of a data directory.

    Raises:
        KeysError: there are none, they are damaged, or the operator's key isn't at hand.
    """
    given = needed(settings)
    from storage.keys import read

    directory = settings.storage.path
    keyring = read(directory, given)
    used = _segments(directory)
    keys = tuple(Use(number, format_time(since), used[number]) for number, since in sorted(keyring.since.items()))
    return Listing(str(directory), keyring.operator, keyring.revision, used[0], keys, keyring.problems)


def _segments(directory: Path) -> Counter[int]:
    """How many segments are encrypted with which data key; 0: with none. Those that are damaged don't count."""
    from storage.segment_format import HEADER_BYTES, Damaged, Header

    found: Counter[int] = Counter()
    for path in directory.rglob(SEGMENTS):
        with suppress(OSError, Damaged), path.open("rb") as file:
            found[Header.unpack(file.read(HEADER_BYTES)).key] += 1
    return found


def to_json(found: Listing) -> bytes:
    """One line."""
    return orjson.dumps(asdict(found), option=orjson.OPT_APPEND_NEWLINE)


def to_text(found: Listing) -> str:
    """A few lines and a table."""
    lines = [f"data      {found.data}", f"operator  {found.operator}", f"revision  {found.revision}"]
    lines += [f"problem   {problem}" for problem in found.problems]
    lines += ["", "data key  since                        segments"]
    lines += [f"{key.number:8}  {key.since:27}  {key.segments:8}" for key in found.keys]
    if found.plain_segments:
        lines.append(f"{'none':>8}  {'':27}  {found.plain_segments:8}")
    return "\n".join(lines) + "\n"
