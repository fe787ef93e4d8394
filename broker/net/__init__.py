"""The asyncio shells: what knows of sockets and of the loop."""
