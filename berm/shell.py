"""What the commands share: options, the settings, the log of a data directory, and errors as one line with a code."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from berm.settings import Settings, SettingsError, find, load

if TYPE_CHECKING:
    from storage.sqlite import SQLiteEngine

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", metavar="FILE", help="TOML file; otherwise ./berm.toml, /etc/berm/berm.toml or the defaults."
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.NAME=VALUE", help="Override one setting; the value is TOML. Repeatable."),
]
DataOption = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", help="Data directory; then no configuration is read, only --set counts."),
]


def fail(problem: str, code: int) -> NoReturn:
    """End with one line on stderr."""
    print(f"berm: {problem}", file=sys.stderr)
    raise typer.Exit(code)


def load_settings(config: Path | None, overrides: list[str] | None) -> Settings:
    """The settings; what is wrong with them ends the command."""
    try:
        return load(find(config), overrides or ())
    except SettingsError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None


def settings_for(config: Path | None, overrides: list[str] | None, data: Path | None) -> Settings:
    """The settings; with a data directory that is named, the defaults and what overrides them."""
    if data is None:
        return load_settings(config, overrides)
    try:
        found = load(None, overrides or ())
    except SettingsError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None
    return found.model_copy(update={"storage": found.storage.model_copy(update={"path": data})})


def data_directory(config: Path | None, overrides: list[str] | None, data: Path | None) -> Path:
    """The data directory that is named, or that of the settings."""
    return settings_for(config, overrides, data).storage.path


@contextmanager
def opened_log(settings: Settings) -> Iterator[SQLiteEngine]:
    """The log of a node with these settings, to be read only.

    The command ends with 2 where it can't be opened, and with 1 where it can't be read on the way.
    """
    from berm.keys import reader
    from berm.status import DATABASE
    from broker.mqtt.errors import ProtocolError
    from storage.interface import StorageError
    from storage.sqlite import SQLiteEngine

    data = settings.storage.path
    if not (data / DATABASE).is_file():
        fail(f"{data / DATABASE}: there is no log; name a node's data directory with --data, or its --config", 2)
    try:
        engine = SQLiteEngine(data, readonly=True, unlock=lambda: reader(settings))
    except StorageError as error:
        fail(str(error), 2)
    except PermissionError as error:
        fail(f"{error.filename}: cannot be read: {error.strerror}", 2)
    try:
        try:
            yield engine
        finally:
            engine.close()
    except (StorageError, ProtocolError) as error:
        fail(str(error), 1)


@contextmanager
def interruptible() -> Iterator[None]:
    """End quietly where the reader of stdout has gone (0), or at Ctrl-C (130)."""
    try:
        yield
    except BrokenPipeError:
        # The interpreter flushes stdout once more when it ends, and must not fail at that.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


@contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """A function that says whether SIGINT or SIGTERM has come: for what must not be interrupted just anywhere."""
    came: list[int] = []
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in former:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
