"""What tests do with paho-mqtt wherever they use it."""

from __future__ import annotations

import paho.mqtt.client as paho


def end(client: paho.Client) -> None:
    """Stop its thread, and let it go at once.

    A client whose callbacks lead back to it waits for the garbage collector, which may take its pair of wake-up sockets
    before the client that would close them: Python then warns of sockets that were never closed.
    """
    client.loop_stop()
    client.on_connect = client.on_disconnect = client.on_message = None
    client.on_subscribe = client.on_unsubscribe = client.on_publish = None
