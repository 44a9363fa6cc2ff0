// Reads the records of foldstream with the CloudEvents SDK for JavaScript, and checks what it finds.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { Kafka } from "cloudevents";

const records = JSON.parse(readFileSync(new URL("records.json", import.meta.url)));
assert(records.length > 0, "there are no records");
for (const record of records) {
  const value = Buffer.from(record.value, "hex");
  const headers = Object.fromEntries(record.headers);
  const message = { key: record.key, value, headers, body: value, timestamp: "0" };
  assert(Kafka.isEvent(message));
  const event = Kafka.toEvent(message);
  assert(event.validate());
  const { data, data_base64, partitionkey, ...found } = event.toJSON();
  // The SDK keeps times in milliseconds, and presents the key of the record as an extension.
  const time = new Date(record.attributes.time).toISOString();
  const present = Object.entries(found).filter(([, value]) => value !== undefined);
  assert.deepEqual(Object.fromEntries(present), { ...record.attributes, time });
  assert.equal(partitionkey, record.key);
  if (record.data === null) {
    assert.equal(data_base64 ?? Buffer.from(data).toString("base64"), value.toString("base64"));
  } else {
    assert.deepEqual(data, record.data);
  }
}
console.log(`interop: ${records.length} records read by the CloudEvents SDK for JavaScript`);
