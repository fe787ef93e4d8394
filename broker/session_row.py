"""What of a session outlives the process, in one row: made, and read again.

The row is always a consistent snapshot, since it says of every event up to the position that it was acknowledged or is
in flight. Its subscriptions are rows of their own.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

from broker.session import Session
from storage.interface import SESSIONS, Group, Row

if TYPE_CHECKING:
    from broker.follower import Host
    from broker.share import Share

_UNACKED, _UNRECEIVED, _UNCOMPLETED = 1, 2, 3
_inflight = Struct(">BHQ")
_identifier = Struct(">H")


def save_session(session: Session, group: Group) -> None:
    """Put its row into a group."""
    inflight = b"".join(
        _inflight.pack(stage, packet_id, seq)
        for stage, window in (
            (_UNACKED, session.unacked),
            (_UNRECEIVED, session.unreceived),
            (_UNCOMPLETED, session.uncompleted),
        )
        for packet_id, seq in window.items()
    )
    received = b"".join(map(_identifier.pack, session.received))
    connected = int(session.connection is not None)
    values = (
        session.version,
        session.expiry,
        connected,
        session.ended,
        session.position,
        inflight,
        received,
        _pack_shared(session.shared),
        session.username,
    )
    group.put(SESSIONS, (session.client_id,), values)
    session.dirty = False
    session.stored = True


def _pack_shared(shared: dict[int, Share]) -> bytes:
    """For each shared subscription with messages on their way: filter, U+0000, their number, packet identifiers."""
    ids: dict[Share, list[int]] = {}
    for packet_id, share in shared.items():
        ids.setdefault(share, []).append(packet_id)
    return b"".join(
        share.filter.encode() + b"\0" + b"".join(map(_identifier.pack, (len(found), *found)))
        for share, found in ids.items()
    )


def restore_session(host: Host, row: Row) -> tuple[Session, bytes]:
    """The session that a row describes, without its subscriptions; and what `restore_shared` takes."""
    client_id, version, expiry, connected, ended, position, inflight, received, shared, username = row
    assert isinstance(client_id, str)
    assert isinstance(version, int)
    assert isinstance(expiry, int)
    assert isinstance(ended, int)
    assert isinstance(position, int)
    assert isinstance(inflight, bytes)
    assert isinstance(received, bytes)
    assert isinstance(shared, bytes)
    assert isinstance(username, str)
    session = Session(host, client_id, version, expiry, position)
    session.ended = ended
    session.stored = True
    session.username = username
    windows = {_UNACKED: session.unacked, _UNRECEIVED: session.unreceived, _UNCOMPLETED: session.uncompleted}
    for stage, packet_id, seq in _inflight.iter_unpack(inflight):
        windows[stage][packet_id] = seq
    session.received = {packet_id for (packet_id,) in _identifier.iter_unpack(received)}
    if connected:
        session.dup_upto = host.log.last
    return session, shared


def restore_shared(session: Session, packed: bytes) -> None:
    """Take over which messages on their way are of shared subscriptions."""
    while packed:
        filter, _, packed = packed.partition(b"\0")
        end = 2 + 2 * int.from_bytes(packed[:2])
        share = session.shares.get(filter.decode())
        if share is not None:
            for (packet_id,) in _identifier.iter_unpack(packed[2:end]):
                session.shared[packet_id] = share
            share.expect(session)
        packed = packed[end:]
