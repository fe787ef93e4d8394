"""The command `berm erase`. What it needs is imported when it runs."""

from __future__ import annotations

from time import time_ns
from typing import Annotated

import typer

from berm.shell import ConfigOption, DataOption, SetOption, asked_to_stop, fail, opened_log, settings_for


def erase(
    clients: Annotated[
        list[str] | None, typer.Option("--client", metavar="ID", help="A client identifier. Repeatable.")
    ] = None,
    topics: Annotated[
        list[str] | None, typer.Option("--topic", "-t", metavar="FILTER", help="A topic filter. Repeatable.")
    ] = None,
    reference: Annotated[
        str, typer.Option("--reference", metavar="TEXT", help="What you know it by; it is in the report.")
    ] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count what there is, and erase nothing.")] = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
    data: DataOption = None,
) -> None:
    """Erase all that clients have published, and that topics have, with all that is kept of these clients.

    It can't be undone. A running node does it beside its work; backups made before are not touched.
    """
    if not clients and not topics:
        fail("say what to erase, with --client ID or --topic FILTER", 2)
    from berm.erase import erase, preview, read, request
    from broker.mqtt.errors import ProtocolError
    from broker.mqtt.topic import validate_filter
    from storage.interface import StorageError

    for topic in topics or ():
        try:
            validate_filter(topic)
        except ProtocolError as error:
            fail(f"--topic: {error}", 2)
    settings = settings_for(config, overrides, data)
    directory = settings.storage.path
    asked = request(clients or (), topics or (), reference)
    with opened_log(settings) as engine:
        found = preview(engine, asked) if dry_run or not yes else None
    if found is not None:
        for place, number in sorted(found.items()):
            print(f"{place}: {number:,}")
        if not found:
            print("nothing of it is there")
        if dry_run:
            return
        if not typer.confirm(f"Erase this from {directory}, for good?", err=True):
            raise typer.Exit(1)
    with asked_to_stop() as stopped:
        try:
            path = erase(settings, asked, time_ns() // 1000, lambda: not stopped())
        except InterruptedError:
            fail(f"stopped waiting; the node, or the next one on {directory}, goes on with it", 130)
        except OSError as error:
            fail(f"{error.filename}: {error.strerror}", 1)
        except StorageError as error:
            fail(str(error), 2)
    report = read(path)
    rows = report["rows"]
    assert isinstance(rows, dict)
    for place, number in rows.items():
        print(f"{place}: {number:,}")
    print(f"segments: {report['events_in_segments']:,} events")
    left = report["not_looked_into"]
    if isinstance(left, list) and left:
        print(f"not looked into, remove them yourself: {', '.join(map(str, left))}")
    print(f"done; see {path}")
