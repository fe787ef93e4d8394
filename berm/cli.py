"""The command line. What a command needs is imported by that command, so that `berm run` carries nothing else."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import time_ns
from typing import Annotated

import typer

from berm import __version__, backup, history_commands, log_commands
from berm.erase_command import erase
from berm.settings import find
from berm.shell import (
    ConfigOption,
    DataOption,
    SetOption,
    fail,
    interruptible,
    load_settings,
    opened_log,
    settings_for,
)

app = typer.Typer(
    name="berm",
    help="An edge MQTT broker that never loses an acknowledged message.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command that the process's arguments ask for, and exit."""
    app()


def _version(wanted: bool) -> None:
    if wanted:
        print(f"berm {__version__}")
        raise typer.Exit


@app.callback()
def berm(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """An edge MQTT broker that never loses an acknowledged message."""


@app.command(short_help="Run a node.")
def run(
    config: ConfigOption = None,
    overrides: SetOption = None,
    hints: Annotated[
        bool | None, typer.Option("--hints/--no-hints", help="Say what to try next; otherwise only on a terminal.")
    ] = None,
) -> None:
    """Run a node until SIGTERM or SIGINT."""
    settings = load_settings(config, overrides)
    from berm.app import main as run_node

    raise typer.Exit(run_node(settings, sys.stdout.isatty() if hints is None else hints))


@app.command(short_help="Tell whether a node could start.")
def check(config: ConfigOption = None, overrides: SetOption = None) -> None:
    """Tell whether a node could start: settings, data directory, processor files."""
    from berm.check import check as examine

    path = find(config)
    settings = load_settings(path, overrides)
    print(f"settings: {path or 'none found, so the defaults'}")
    problems = 0
    for fact in examine(settings):
        problems += fact.wrong
        print(fact.text, file=sys.stderr if fact.wrong else sys.stdout, flush=True)
    if problems:
        raise typer.Exit(2)
    print("ok")


history_commands.register(app)
app.command("erase", short_help="Erase all of a client, or of topics.")(erase)
backup.register(app)
log_commands.register(app)


@app.command(short_help="Tell what is in the log, and who reads it.")
def status(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
    data: DataOption = None,
) -> None:
    """Tell what is in the log, who reads it and how far behind each reader is, running node or not."""
    from berm.status import gather, to_json, to_text

    settings = settings_for(config, overrides, data)
    with opened_log(settings) as engine, interruptible():
        found = gather(engine, settings.storage.path)
        sys.stdout.buffer.write(to_json(found) if as_json else to_text(found).encode())
        sys.stdout.flush()


@app.command(short_help="Add, change or delete a user in a password file.")
def passwd(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The password file; one that is not there is made.")],
    user: Annotated[str, typer.Argument(metavar="USER", help="The user name.")],
    delete: Annotated[bool, typer.Option("--delete", help="Delete the user.")] = False,
    scram: Annotated[
        bool, typer.Option("--scram", help="Let the user log in by SCRAM-SHA-256, too, which never sends the password.")
    ] = False,
    stdin: Annotated[bool, typer.Option("--stdin", help="Read the password from the first line of stdin.")] = False,
) -> None:
    """Add, change or delete a user in a password file; ask for the password. A running node reads the file anew."""
    from berm import passwd as file_of

    try:
        if delete:
            print(file_of.delete(file, user))
        else:
            print(file_of.set_password(file, user, _password(user, stdin), scram))
    except file_of.PasswdError as error:
        fail(str(error), 1)


keys_app = typer.Typer(rich_markup_mode=None)
app.add_typer(keys_app, name="keys", short_help="List the keys of an encrypted data directory, or change them.")


@keys_app.callback(invoke_without_command=True)
def keys(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """List the data keys of an encrypted data directory, since when there is each, and how many segments need it."""
    if (command := context.invoked_subcommand) is not None:
        if as_json or config or overrides:
            fail(f"options of `berm keys {command}` stand behind {command}", 2)
        return
    from berm.keys import listing, to_json, to_text

    settings = load_settings(config, overrides)
    with _keys_errors():
        found = listing(settings)
    sys.stdout.buffer.write(to_json(found) if as_json else to_text(found).encode())
    sys.stdout.flush()


@keys_app.command("new", short_help="Make a new operator's key.")
def keys_new(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="A file that is not there yet; none: print the key.")
    ] = None,
) -> None:
    """Make a new operator's key, in a file that only its owner can read. It changes no data directory."""
    from berm.keys import make_key, make_key_file

    if file is None:
        print(make_key())
        return
    with _keys_errors():
        make_key_file(file)
    print(f"{file}: made; keep a copy of it elsewhere: without it nothing that it encrypts can be read")


@keys_app.command("rotate", short_help="Make a new data key.")
def keys_rotate(config: ConfigOption = None, overrides: SetOption = None) -> None:
    """Make a new data key, for what is written from now on. A running node takes it up."""
    from berm.keys import needed

    settings = load_settings(config, overrides)
    with _keys_errors():
        places = needed(settings)
        from storage.keys import rotate  # where there are no keys, nothing that knows ciphers is needed

        keyring = rotate(settings.storage.path, places, time_ns() // 1000)
    print(f"{settings.storage.path}: made data key {keyring.current.number}")


@keys_app.command("rewrap", short_help="Go over to a new operator's key.")
def keys_rewrap(
    earlier: Annotated[
        list[str] | None,
        typer.Option("--from", metavar="PLACE", help="Where an earlier key is, such as file:old.key. Repeatable."),
    ] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """Encrypt the data keys with the operator's key of the settings; they may be encrypted with an earlier one.

    Nothing else is written anew. A running node is not disturbed.
    """
    from berm.keys import needed, source

    settings = load_settings(config, overrides)
    try:
        more = [source(each) for each in earlier or ()]
    except ValueError as error:
        fail(f"--from: {error}; write it like file:old.key, env:NAME or command:PROGRAM ARGUMENT", 2)
    with _keys_errors():
        places = (*needed(settings), *more)
        from storage.keys import rewrap

        keyring = rewrap(settings.storage.path, places)
    print(f"{settings.storage.path}: encrypted {len(keyring.keys)} data keys with the key {keyring.operator}")


@contextmanager
def _keys_errors() -> Iterator[None]:
    """Say what is wrong with keys, in one line."""
    from storage.keysource import KeysError

    try:
        yield
    except KeysError as error:
        fail(str(error), 2)


def _password(user: str, stdin: bool) -> str:
    if stdin:
        return sys.stdin.readline().rstrip("\r\n")
    if not sys.stdin.isatty():
        fail("there is no terminal to ask for the password; give it on stdin, with --stdin", 2)
    password: str = typer.prompt(f"Password of {user}", hide_input=True, confirmation_prompt=True, err=True)
    return password
