"""A device, against a broker that acknowledges what the test wants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import orjson

from bench.devices import Device, Fleet
from broker.mqtt.packets import Puback, Publish
from broker.mqtt.properties import Property
from tests.bench.helpers import PATIENCE, Peer, Script

OFTEN = 0.005


@asynccontextmanager
async def talking(*devices: Device) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Let devices do what they do; what it gives makes them stop measuring, and waits until they have."""
    stop = asyncio.Event()
    talks = [asyncio.create_task(device.talk()) for device in devices]
    measuring = [asyncio.create_task(device.measure(stop)) for device in devices]

    async def enough() -> None:
        stop.set()
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*measuring)

    try:
        yield enough
    finally:
        for task in (*talks, *measuring):
            task.cancel()
        await asyncio.gather(*talks, *measuring, return_exceptions=True)


async def reading(peer: Peer) -> Publish:
    packet = await peer.expect()
    assert isinstance(packet, Publish)
    return packet


async def acknowledge_all(peer: Peer) -> None:
    with suppress(EOFError):
        while True:
            peer.send(Puback((await reading(peer)).packet_id))


async def test_what_was_not_acknowledged_is_sent_again_with_dup_in_the_same_order_under_the_same_identifiers() -> None:
    first: list[Publish] = []
    again: list[Publish] = []

    async def lose(peer: Peer) -> None:
        connect = await peer.welcome(session_present=False)
        assert not connect.clean_start
        assert dict(connect.properties)[Property.SESSION_EXPIRY_INTERVAL]
        first.extend([await reading(peer) for _ in range(4)])
        peer.send(Puback(first[0].packet_id))
        await until(lambda: device.acknowledged == {1})

    async def keep(peer: Peer) -> None:
        await peer.welcome(session_present=True)
        again.extend([await reading(peer) for _ in range(3)])

    async with Script(lose, keep) as script:
        device = Device(7, script.port, OFTEN)
        async with talking(device):
            await script.finish()
    assert [each.dup for each in first] == [False] * 4
    assert [each.dup for each in again] == [True] * 3
    assert [(each.packet_id, each.payload) for each in again] == [(p.packet_id, p.payload) for p in first[1:]]
    assert device.repeated >= 3


async def test_without_the_session_the_same_readings_are_new_messages() -> None:
    again: list[Publish] = []

    async def lose(peer: Peer) -> None:
        await peer.welcome(session_present=False)
        await reading(peer)

    async def forget(peer: Peer) -> None:
        await peer.welcome(session_present=False)
        again.append(await reading(peer))

    async with Script(lose, forget) as script, talking(Device(7, script.port, OFTEN)):
        await script.finish()
    assert not again[0].dup
    assert orjson.loads(again[0].payload)["n"] == 1


async def test_it_measures_while_nobody_answers_and_publishes_that_later() -> None:
    numbers: list[int] = []

    async def refuse(peer: Peer) -> None:
        await until(lambda: device.published >= 5)

    async def take(peer: Peer) -> None:
        await peer.welcome(session_present=False)
        for _ in range(5):
            packet = await reading(peer)
            assert not packet.dup
            numbers.append(orjson.loads(packet.payload)["n"])

    async with Script(refuse, take) as script:
        device = Device(7, script.port, OFTEN)
        async with talking(device):
            await script.finish()
    assert numbers == [1, 2, 3, 4, 5]


async def test_a_reading_counts_as_acknowledged_once_and_not_at_all_when_it_is_refused() -> None:
    async def mixed(peer: Peer) -> None:
        await peer.welcome(session_present=False)
        packets = [await reading(peer) for _ in range(3)]
        peer.send(Puback(packets[0].packet_id))
        peer.send(Puback(packets[0].packet_id))
        peer.send(Puback(packets[1].packet_id, 0x97))
        await until(lambda: device.refused == 1)

    async with Script(mixed) as script:
        device = Device(7, script.port, OFTEN)
        async with talking(device):
            await script.finish()
    assert device.acknowledged == {1}
    assert device.refused == 1


async def test_after_stop_measuring_ends_and_nothing_stays_owed() -> None:
    async with Script(acknowledge, acknowledge) as script:
        fleet = Fleet(2, script.port, OFTEN)
        async with talking(*fleet.devices) as enough:
            await until(lambda: fleet.published >= 10)
            await enough()
            await until(lambda: not fleet.owed)
    assert fleet.acknowledged == fleet.published >= 10
    assert fleet.readings() == {
        (device.name, number) for device in fleet.devices for number in range(1, device.published + 1)
    }


async def acknowledge(peer: Peer) -> None:
    await peer.welcome(session_present=False)
    await acknowledge_all(peer)


async def until(met: Callable[[], bool]) -> None:
    """Wait until something holds that other tasks bring about."""
    async with asyncio.timeout(PATIENCE):
        while not met():  # noqa: ASYNC110 - what changes has no event
            await asyncio.sleep(0.001)
