"""An enclave without TLS and HTTP: the other end of a region, for tests of the host.

`FakeEnclave` is driven step by step by a test in the same process. Run as a program it is an enclave process that
echoes: `python fake_enclave.py [behaviour]`, where a behaviour makes it fail in one way (see `main`).
"""

from __future__ import annotations

import mmap
import os
import select
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from enclave_os.wire import (
    EMPTY,
    FULL,
    Consumer,
    Producer,
    decode_frame,
    decode_rpc_reply,
    encode_frame,
    encode_rpc_request,
)
from enclave_os.wire.frames import CloseReason, FrameKind
from enclave_os.wire.layout import (
    DESCRIPTORS_OFFSET,
    REGION_FOLDER,
    SLOT_RESULT,
    SLOT_STATE,
    EntryResult,
    RegionLayout,
    Slot,
    SlotState,
    check_channel,
    descriptor_offset,
    slot_offset,
)
from enclave_os.wire.rpc import PEER_INDEX_SIZE, LogLevel, Method, Status

Frame = tuple[int, int, bytes]
LETTER = bytes(PEER_INDEX_SIZE) + b"a letter to worker 0"


@dataclass
class FakeEnclave:
    """The data channel's enclave end."""

    region: mmap.mmap | bytearray
    layout: RegionLayout
    doorbell_in: int
    doorbell_out: int
    frames: list[Frame] = field(default_factory=list)
    paused: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        inward, outward = self.layout.data.to_enclave, self.layout.data.to_host
        self.consumer = Consumer(self.region, inward.header_offset, inward.data_offset, inward.capacity)
        self.producer = Producer(self.region, outward.header_offset, outward.data_offset, outward.capacity, True)

    def ring(self) -> None:
        os.write(self.doorbell_out, (1).to_bytes(8, "little"))

    def put(self, kind: int, conn_id: int, payload: bytes = b"") -> bool:
        """Commit one frame; False when the ring is full."""
        return self.producer.produce(encode_frame(kind, conn_id, payload)) != FULL

    def publish(self) -> None:
        if self.producer.publish():
            self.ring()

    def say(self, kind: int, conn_id: int, payload: bytes = b"") -> None:
        """One frame, visible at once; waits for room."""
        while not self.put(kind, conn_id, payload):
            self.publish()
            if self.producer.wait_for_room(len(payload) + 8) == FULL:
                self.sleep()
        self.publish()

    def stream(self, conn_id: int, data: bytes) -> None:
        """DATA in frames of 16 KiB that obey PAUSE; meanwhile what comes is kept in `frames`."""
        for offset in range(0, len(data), 16384):
            self.frames += self.take()
            while conn_id in self.paused:
                if self.consumer.arm() == EMPTY:
                    self.sleep()
                self.frames += self.take()
            self.say(FrameKind.DATA, conn_id, data[offset : offset + 16384])

    def close(self, conn_id: int, reason: int = CloseReason.NORMAL) -> None:
        self.say(FrameKind.CLOSE, conn_id, reason.to_bytes(2, "little"))

    def take(self) -> list[Frame]:
        """What there is now."""
        records = self.consumer.consume_many(256, 1 << 22)
        if self.consumer.release():
            self.ring()
        frames = [decode_frame(record) for record in records]
        for kind, conn_id, _ in frames:
            if kind == FrameKind.PAUSE:
                self.paused.add(conn_id)
            elif kind in (FrameKind.RESUME, FrameKind.CLOSE):
                self.paused.discard(conn_id)
        return frames

    def sleep(self, seconds: float = 10.0) -> None:
        """Until the host rings."""
        ready, _, _ = select.select([self.doorbell_in], [], [], seconds)
        if not ready:
            raise TimeoutError(f"the host did not ring within {seconds} s")
        os.read(self.doorbell_in, 8)

    def wait(self, wanted: Callable[[Frame], bool], seconds: float = 10.0) -> Frame:
        """Take frames until one is wanted; the others are kept in `frames`."""
        for index, frame in enumerate(self.frames):
            if wanted(frame):
                return self.frames.pop(index)
        while True:
            taken = self.take()
            for index, frame in enumerate(taken):
                if wanted(frame):
                    self.frames += taken[:index] + taken[index + 1 :]
                    return frame
            self.frames += taken
            if not taken and self.consumer.arm() == EMPTY:
                self.sleep(seconds)
                self.consumer.disarm()

    def wait_kind(self, kind: FrameKind, conn_id: int | None = None, seconds: float = 10.0) -> Frame:
        return self.wait(lambda frame: frame[0] == kind and conn_id in (None, frame[1]), seconds)

    def read(self, conn_id: int, size: int) -> bytes:
        """At least `size` bytes of DATA of one connection."""
        data = b""
        while len(data) < size:
            data += self.wait_kind(FrameKind.DATA, conn_id)[2]
        return data


class FakeCalls:
    """The RPC channel's enclave end; a call's id is its method, so there is one of each."""

    def __init__(self, region: mmap.mmap, layout: RegionLayout, bell: int) -> None:
        inward, outward = layout.rpc.to_enclave, layout.rpc.to_host
        self.consumer = Consumer(region, inward.header_offset, inward.data_offset, inward.capacity)
        self._producer = Producer(region, outward.header_offset, outward.data_offset, outward.capacity, True)
        self._bell = bell

    def send(self, *calls: tuple[Method, bytes]) -> None:
        for method, request in calls:
            self._producer.produce(encode_rpc_request(method, method, request))
        if self._producer.publish():
            os.write(self._bell, (1).to_bytes(8, "little"))

    def replies(self) -> list[tuple[Method, Status]]:
        records = self.consumer.consume_many(16, 1 << 20)
        self.consumer.release()
        return [(Method(req_id), Status(status)) for req_id, status, _ in map(decode_rpc_reply, records)]


def attach(region: mmap.mmap) -> RegionLayout:
    """Take the three entries, as the enclave does."""
    words = memoryview(region).cast("Q")
    channels = []
    for slot in (Slot.INIT_CHANNEL, Slot.INIT_DATA_CHANNEL):
        if words[(slot_offset(slot) + SLOT_STATE) // 8] != SlotState.FILLED:
            raise RuntimeError(f"{slot.name} is not filled")
        start = descriptor_offset(slot) // 8
        channels.append(check_channel(words[start : start + 6].tolist(), len(region)))
        answer(region, slot, EntryResult.OK)
    if descriptor_offset(Slot.INIT_CHANNEL) < DESCRIPTORS_OFFSET:
        raise RuntimeError("descriptors are not where the layout says")
    return RegionLayout(len(region), *channels)


def answer(region: mmap.mmap, slot: Slot, result: EntryResult) -> None:
    words = memoryview(region).cast("Q")
    words[(slot_offset(slot) + SLOT_RESULT) // 8] = result
    words[(slot_offset(slot) + SLOT_STATE) // 8] = SlotState.TAKEN


def filled(region: mmap.mmap, slot: Slot) -> bool:
    return memoryview(region).cast("Q")[(slot_offset(slot) + SLOT_STATE) // 8] == SlotState.FILLED


def main(behaviour: str) -> int:
    """Echo until `shutdown`; behaviours: echo, refuse, exit, mute, stuck, lie, stop, crash.

    together: worker 0 has the others started, and serves when it has a letter from one. together-exit, together-refuse:
    then the others end instead of writing one. together-asked: then the others ask for the start themselves.
    """
    path = Path(REGION_FOLDER_OVERRIDE or REGION_FOLDER) / os.environ["ENCLAVE_OS_REGION"]
    incoming, data_out, rpc_out = (int(text) for text in os.environ["ENCLAVE_OS_DOORBELL"].split(":")[1].split(","))
    with path.open("r+b") as file:
        region = mmap.mmap(file.fileno(), 0)
    layout = attach(region)
    first = path.name.split("-")[-2] == "0"
    together, _, ending = behaviour.partition("-")
    if together == "together" and not first:
        behaviour = ending or "write"
    if behaviour == "refuse":
        answer(region, Slot.RUN, EntryResult.BAD_CONFIGURATION)
        print("fake: no such module", file=sys.stderr)
        return 78
    if behaviour == "exit":
        return 3
    enclave = FakeEnclave(region, layout, incoming, data_out)
    calls = FakeCalls(region, layout, rpc_out)
    if together == "together" and first:
        calls.send((Method.PEER_START, b""), (Method.PEER_TAKE, b""))
    elif behaviour != "mute":
        enclave.say(FrameKind.READY, 0)
    if behaviour == "stop":
        calls.send((Method.LOG, bytes([LogLevel.WARNING]) + b"asking\nto stop"), (Method.STOP, b""))
    elif behaviour == "asked":
        calls.send((Method.PEER_START, b""), (Method.PEER_SEND, LETTER))
    elif behaviour == "write":
        calls.send((Method.PEER_SEND, LETTER))
    if behaviour == "lie":
        enclave.say(FrameKind.NEW, 5, b"1.2.3.4:5")
    live: set[int] = set()
    draining = said = False
    while True:
        for method, status in calls.replies():
            if method == Method.PEER_TAKE and first:
                calls.send((Method.PEER_START, b""))  # again: nothing comes of it
                enclave.say(FrameKind.READY, 0)
            elif method == Method.PEER_START and status:
                print(f"fake: {method.name} is refused: {status.name}", file=sys.stderr, flush=True)
        for kind, conn_id, payload in enclave.take():
            if kind == FrameKind.NEW:
                live.add(conn_id)
            elif kind == FrameKind.DATA and payload == b"crash":
                os._exit(9)
            elif kind == FrameKind.DATA:
                enclave.say(FrameKind.DATA, conn_id, payload)
            elif kind == FrameKind.EOF:
                enclave.close(conn_id)
            elif kind == FrameKind.CLOSE and conn_id in live:
                live.discard(conn_id)
            elif kind == FrameKind.DRAIN:
                draining = True
                for other in live:
                    enclave.close(other)
        if draining and not live and not said and behaviour != "stuck":
            said = True
            enclave.say(FrameKind.DRAIN, 0)
        if filled(region, Slot.SHUTDOWN) and behaviour != "stuck":
            return 0
        if enclave.consumer.arm() == EMPTY and calls.consumer.arm() == EMPTY:
            ready, _, _ = select.select([incoming, 0], [], [])
            if 0 in ready:
                return 75
            os.read(incoming, 8)
        enclave.consumer.disarm()
        calls.consumer.disarm()


if __name__ == "__main__":
    REGION_FOLDER_OVERRIDE = sys.argv[2] if len(sys.argv) > 2 else ""
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "echo"))
