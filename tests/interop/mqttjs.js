// Subscribes, publishes what it is asked to, waits for answers, and prints each as a line of JSON.
// In MQTT 5 it gives its topics aliases. It takes none: it forgets the topic of a QoS 2 message that comes with an alias alone.
// Arguments: URL, version, client identifier, filter, topic, payload size, number of answers, file of the authority.
const mqtt = require("mqtt");
const fs = require("fs");

const [url, version, clientId, filter, topic, size, answers, ca] = process.argv.slice(2);
const client = mqtt.connect(url, {
  protocolVersion: Number(version),
  protocolId: version === "3" ? "MQIsdp" : "MQTT",
  clientId,
  reconnectPeriod: 0,
  ca: fs.readFileSync(ca),
  ...(version === "5" && { autoAssignTopicAlias: true }),
});
let missing = Number(answers);

function fail(error) {
  console.error(String(error));
  process.exit(1);
}

// The server closes the connection at DISCONNECT, and may do so before WebSocket's own goodbye is written.
client.on("error", (error) => missing > 0 && fail(error));
client.on("message", (name, payload, packet) => {
  console.log(JSON.stringify({ topic: name, payload: payload.toString("hex"), qos: packet.qos }));
  missing -= 1;
  if (missing === 0) client.end();
});
client.on("connect", async () => {
  try {
    await client.subscribeAsync(filter, { qos: 2 });
    for (const qos of [0, 1, 2]) {
      await client.publishAsync(`${topic}/${qos}`, Buffer.alloc(Number(size), qos), { qos });
    }
  } catch (error) {
    fail(error);
  }
});
