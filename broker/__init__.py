"""The MQTT server: codec, sessions, routing, and the path of a message through them."""
