"""Reads the records of foldstream with the CloudEvents SDK for Python, and checks what it finds."""

import datetime
import json
import pathlib
import sys

from cloudevents.core.bindings.kafka import KafkaMessage, from_kafka_event

records = json.loads((pathlib.Path(__file__).parent / "records.json").read_text())
for record in records:
    headers = {name: value.encode() for name, value in record["headers"]}
    message = KafkaMessage(headers, record["key"].encode(), bytes.fromhex(record["value"]))
    event = from_kafka_event(message)
    found = dict(event.get_attributes())
    expected = dict(record["attributes"])
    expected["time"] = datetime.datetime.fromisoformat(expected["time"])
    # The SDK presents the key of the record as an extension.
    expected["partitionkey"] = record["key"]
    assert found == expected, f"found {found}, expected {expected}"
    data = event.get_data()
    wanted = record["data"] if record["data"] is not None else bytes.fromhex(record["value"])
    assert data == wanted, f"found {data!r}, expected {wanted!r}"
if not records:
    sys.exit("there are no records")
print(f"interop: {len(records)} records read by the CloudEvents SDK for Python")
