"""docs/wire.md says what the code does: sizes, offsets, kinds, reasons, methods."""

import re
from pathlib import Path

import pytest

from enclave_os.wire import (
    Consumer,
    create_ring,
    encode_frame,
    encode_rpc_reply,
    encode_rpc_request,
    kv,
    layout,
    limits,
    rpc,
)
from enclave_os.wire.frames import FRAME_RULES, CloseReason, FrameKind
from enclave_os.wire.setting_table import RPC_CAPACITY
from enclave_os.workers import link
from enclave_os.workers.group_calls import GroupOperation
from enclave_os.workers.store_calls import Operation
from tests.wire.rings import HEADER_WORDS, make_ring
from tests.wire.test_kv import batch_size

TEXT = (Path(__file__).parents[2] / "docs/wire.md").read_text()
Table = list[dict[str, str]]


def tables() -> list[tuple[str, Table]]:
    """(the nearest heading above, rows by column name) of each table."""
    found: list[tuple[str, Table]] = []
    heading = ""
    columns: list[str] = []
    for line in TEXT.splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        if not line.startswith("|"):
            columns = []
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not columns:
            columns = cells
            found.append((heading, []))
        elif not set(line) <= set("|-"):
            assert len(cells) == len(columns), line
            found[-1][1].append(dict(zip(columns, cells, strict=True)))
    return found


def table(heading: str, column: str) -> Table:
    """The table under a heading that starts so and has the column."""
    (rows,) = [rows for title, rows in tables() if title.startswith(heading) and column in rows[0]]
    return rows


STRUCTURES = [title for title, rows in tables() if "size" in rows[0]]


def test_every_structure_is_there() -> None:
    assert {title.partition(" (")[0] for title in STRUCTURES} == {
        "Control slot",
        "Channel descriptor",
        "Ring header",
        "Record header",
        "Padding",
        "Frame header",
        "Request header",
        "Reply header",
        "KV_GET request",
        "KV_PUT and KV_DELETE request",
        "KV_BATCH request",
        "KV_BATCH_PIECE and KV_BATCH_END request",
        "Operation of a batch",
        "KV_MULTI_GET request",
        "Value of a KV_MULTI_GET reply",
        "KV_SCAN request",
        "KV_SCAN reply",
        "Row of a KV_SCAN reply",
        "Frame of a message",
    }


@pytest.mark.parametrize("title", STRUCTURES)
def test_fields_fill_the_structure(title: str) -> None:
    match = re.search(r"\((\d+) bytes, `(\w+)`\)$", title)
    assert match is not None
    size, name = int(match.group(1)), match.group(2)
    assert size in (getattr(module, name, None) for module in (limits, layout, kv, link))
    position = 0
    for row in table(title, "size"):
        assert int(row["offset"]) == position, row
        position += int(row["size"])
    assert position == size


def test_region() -> None:
    rows = table("Region", "what")
    named = {re.match(r"`(\w+)`", row["what"]).group(1): int(row["offset"], 16) for row in rows}  # type: ignore[union-attr]
    for name, offset in named.items():
        assert getattr(layout, name) == offset
    assert {name for name in vars(layout) if name.endswith("_OFFSET") and not name.startswith("SLOT_")} == set(named), (
        "each offset of the layout is in the table"
    )
    assert (layout.SLOT_STATE, layout.SLOT_OFFSET) == (0, 8)
    assert (layout.SLOT_ARGUMENT_SIZE, layout.SLOT_RESULT) == (16, 24)


def test_ring_header_words() -> None:
    words = {row["field"].partition(":")[0]: int(row["offset"]) for row in table("Ring header", "field")}
    del words["unused"]
    assert words == HEADER_WORDS
    ring = make_ring(256, 64)
    for name, offset in words.items():
        assert ring.word(offset) == (64 if name in ("produced", "consumed") else 0)
    ring.consumer.arm()
    assert ring.word(words["consumer_waits"]) == 1


def test_record_and_padding_bytes() -> None:
    ring = make_ring(64, 48)
    ring.producer.produce_many([b"abcdefghi"])
    data = ring.memory[limits.RING_HEADER_SIZE :]
    assert data[48:56] == bytes.fromhex("ffffffff00000000")
    assert data[:24] == bytes.fromhex("0900000000000000") + b"abcdefghi" + bytes(7)


def test_capacity_bounds() -> None:
    assert "from 64 KiB to 1 GiB" in TEXT
    region = bytearray(limits.RING_HEADER_SIZE + limits.RING_CAPACITY_MIN)
    create_ring(region, 0)
    assert Consumer(region, 0, limits.RING_HEADER_SIZE, 64 << 10).record_size_max == (64 << 10) // 2 - 8
    assert limits.RING_CAPACITY_MAX == 1 << 30


def bounds(text: str) -> tuple[int, int | None]:
    if match := re.fullmatch(r"(\d+) to (.+)", text):
        return int(match.group(1)), int(match.group(2)) if match.group(2).isdigit() else None
    return int(text), int(text)


def test_frame_kinds() -> None:
    rows = table("Frame header", "kind")
    assert [(int(row["kind"]), row["name"]) for row in rows] == [(kind.value, kind.name) for kind in FrameKind]
    for row in rows:
        rule = FRAME_RULES[FrameKind(int(row["kind"]))]
        assert (row["to enclave"] == "yes", row["to host"] == "yes") == (rule.to_enclave, rule.to_host)
        assert (row["conn_id"] != "0") == rule.connection
        assert bounds(row["payload bytes"]) == (rule.payload_min, rule.payload_max)
    assert encode_frame(FrameKind.DATA, 0x0A0B0C0D) == bytes.fromhex("0200 0000 0d0c0b0a")


def test_close_reasons() -> None:
    rows = table("Frame header", "reason")
    assert [(int(row["reason"]), row["name"]) for row in rows] == [
        (reason.value, reason.name) for reason in CloseReason
    ]


def test_conn_id_ranges() -> None:
    assert "ingress 1 to 0x7FFFFFFF" in TEXT
    assert limits.CONN_ID_INGRESS_MAX == 0x7FFFFFFF
    assert "slot in the low 20 bits, generation (0 to 0x7FF) above" in TEXT
    assert (limits.CONN_SLOT_BITS, limits.CONN_GENERATION_MAX) == (20, 0x7FF)


def test_rpc_methods() -> None:
    rows = table("Reply header", "method")
    assert [(int(row["method"]), row["name"]) for row in rows] == [(method.value, method.name) for method in rpc.Method]
    for row in rows:
        spec = rpc.METHODS[rpc.Method(int(row["method"]))]
        assert bounds(row["request bytes"]) == (spec.request_size_min, spec.request_size_max)
        assert bounds(row["reply bytes"]) == (spec.reply_size_min, spec.reply_size_max)
        room = limits.record_size_max(RPC_CAPACITY.least) - limits.RPC_HEADER_SIZE
        assert spec.request_size_max <= room >= spec.reply_size_max, "it fits the smallest ring"
    assert encode_rpc_request(1, 2, b"abc") == bytes.fromhex("0100000000000000 0200 0000 03000000") + b"abc"
    assert encode_rpc_reply(1, -1, b"") == bytes.fromhex("0100000000000000 ffffffff 00000000")


def test_rpc_statuses() -> None:
    rows = table("Reply header", "status")
    assert [(int(row["status"]), row["name"]) for row in rows] == [(status.value, status.name) for status in rpc.Status]


def test_kv_bounds() -> None:
    assert "a key (1 to 64 bytes) and a value (0 to 31744), in namespaces that 16 opaque bytes name" in TEXT
    assert (kv.KV_KEY_SIZE_MAX, kv.KV_VALUE_SIZE_MAX, kv.KV_NAMESPACE_SIZE) == (64, 31744, 16)
    assert kv.KV_OPERATIONS_MAX == 1024
    assert "lies in the number's upper 16 bits (`CHAIN_SHIFT`)" in TEXT
    assert kv.CHAIN_SHIFT == 64 - 16
    assert f"There are {kv.RANGES_MAX} (`RANGES_MAX`)" in TEXT
    keys = kv.KV_OPERATIONS_MAX * (2 + kv.KV_KEY_SIZE_MAX)
    assert kv.KV_MULTI_GET_HEADER_SIZE + keys <= kv.KV_MESSAGE_SIZE_MAX, "a multi-get is one request"
    row = (bytes(kv.KV_KEY_SIZE_MAX), bytes(kv.KV_VALUE_SIZE_MAX))
    put = kv.Operation(kv.OperationKind.PUT, bytes(16), *row)
    assert batch_size([put]) == len(kv.encode_batch([put])) <= kv.KV_MESSAGE_SIZE_MAX
    assert len(kv.encode_scan_reply([row], False)) == kv.KV_ROWS_HEADER_SIZE + kv.scan_row_size(*row)


def test_messages_between_workers() -> None:
    (field,) = [row["field"] for row in table("Frame of a message", "size") if row["field"].startswith("kind")]
    assert field == "kind: " + ", ".join(f"{kind.value} {kind.name}" for kind in link.Kind)
    rows = table("Frame of a message", "operation")
    assert [(int(row["operation"]), row["name"]) for row in rows] == [(one.value, one.name) for one in GroupOperation]
    assert f"1 to {max(Operation)} are the store's" in TEXT
