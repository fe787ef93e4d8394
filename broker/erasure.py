"""What the broker forgets where a client or a topic is erased: everything that it would otherwise write again.

Clients that are erased are disconnected, and their sessions end; nothing is published of their wills. They may come
back at once: to keep them out is the business of rules.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import replace
from typing import TYPE_CHECKING

from broker.mqtt.reason import Reason
from storage.interface import RETAINED

if TYPE_CHECKING:
    from broker.hub import Hub


def forget(hub: Hub, clients: Set[str], accepts: Callable[[str], bool]) -> None:
    """Forget these clients, and all that is kept of topics that are accepted. Their rows go with the open group.

    What has not committed yet is newer, and stays.
    """
    for client_id in clients:
        session = hub.sessions.all.get(client_id)
        if session is not None and session.connection is not None:
            session.connection.will = None
            session.connection.close(Reason.ADMINISTRATIVE_ACTION, "the client is erased")
        hub.wills.withdraw(client_id)
        hub.wills.discard(client_id)
        session = hub.sessions.all.get(client_id)
        if session is not None:
            hub.sessions.end(session)
    for connection in hub.clients.connections:
        if connection.will is not None and connection.session is not None and accepts(connection.will.topic):
            connection.will = None
            hub.wills.discard(connection.session.client_id)
    hub.wills.forget(accepts)
    newer = {event.topic for event in hub.log.uncommitted() if event.retain}
    for event in [*hub.retained.match("#"), *hub.retained.match("$dead/#")]:
        if event.topic not in newer and (event.client in clients or accepts(event.topic)):
            hub.retained.store(replace(event, payload=b""))
            hub.log.open.delete(RETAINED, (event.topic,))
    hub.wake()
