"""Invariant: whatever frames a host invents, no plaintext changes its TLS session, and all counters end at zero.

In detail: no exception leaves the ingress; the channel is not poisoned, since every frame is one of the contract; each
NEW for a free slot is followed by exactly one CLOSE, the last frame of that connection; a request reaches the module
with the peer of the connection whose client wrote it, and each client's requests arrive once, in their order; a client
reads only answers to its own requests. The host of this program lies about everything that a frame can say.

    python -m tests.fuzz.fuzz_ingress --seconds 60
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from tests.enclave.ingress_harness import TIMEOUTS, Client, IngressHarness, request

from enclave_os.http import Request, Response, StreamingResponse
from enclave_os.wire.frames import CloseReason, FrameKind, conn_id_make

SLOTS = 12
GENERATIONS = 3
ANSWER = 60_000
BODY = 6_000
ASCII = bytes(range(128))


AT_REST_NONE = ("connections_live", "connections_closing", "body_memory_bytes", "answer_memory_bytes")


class Session:
    """One NEW and what came of it: the client's side of the oracle."""

    def __init__(self, number: int, client: Client) -> None:
        self.number = number
        self.client = client
        self.peer = f"10.0.0.1:{number}"
        self.asked = 0
        self.heard = 0
        self.spoiled = False  # the host wrote something into this stream that the client did not say
        self.unsent: list[bytes] = []
        self.host_closed = False
        self.eof = False

    @property
    def marker(self) -> bytes:
        """One byte that no protocol text has, and none of the 127 sessions before this one."""
        return bytes([0x80 | self.number & 0x7F])


class Program:
    """A hostile host, its clients and a module, moved by one random generator."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.harness = IngressHarness(
            folder,
            self._respond,
            capacity=64 << 10,
            limits={"connections": 9, "body_memory_bytes": 20_000, "body_bytes": 10_000},
        )
        self.sessions: list[Session] = []
        self.by_id: dict[int, Session] = {}
        self.gates: list[asyncio.Event] = []
        self.frames = 0
        self.done: Counter[str] = Counter()
        self.actions: list[tuple[int, Callable[[], None]]] = [
            (6, self._new),
            (30, self._client_speaks),
            (40, self._deliver),
            (1, self._misdeliver),
            (1, self._spoil),
            (2, self._eof),
            (4, self._close),
            (3, self._pause),
            (5, self._resume),
            (3, self._stray),
            (12, self._wake),
            (12, self._receive),
            (10, self._gate),
            (4, self._step),
            (1, self._expire),
            (1, self._new_in_use),
        ]

    def run(self, frames: int, seconds: float = 1e9) -> None:
        """Do random things until `frames` frames were sent or the time is up, then end everything and check."""
        due = time.monotonic() + seconds
        weights = [weight for weight, _ in self.actions]
        actions = [action for _, action in self.actions]
        while self.frames < frames and time.monotonic() < due:
            self.random.choices(actions, weights)[0]()
        self._end()

    # -- the module ---------------------------------------------------------------------------------------------------

    def _respond(self, asked: Request) -> object:
        number, _, turn = asked.path[1:].partition("/")
        session = self.sessions[int(number)]
        assert asked.peer == session.peer, f"{asked.path} came from {asked.peer}"
        assert int(turn) == session.heard, f"{asked.path} when {session.heard} was due"
        assert asked.body in (b"", session.marker * BODY)
        session.heard += 1
        self.done["requests"] += 1
        body = session.marker * self.random.choice([1, 100, ANSWER])
        kind = self.random.randrange(8)
        if kind == 0:
            return self._later(body)
        if kind == 1:
            return StreamingResponse(self._pieces(body))
        if kind == 2:
            return self._stubborn(body)
        if kind == 3:
            return self._stream_later(body)
        return Response(200, body)

    def _gate_made(self) -> asyncio.Event:
        self.gates.append(asyncio.Event())
        return self.gates[-1]

    async def _later(self, body: bytes) -> Response:
        await self._gate_made().wait()
        return Response(200, body)

    async def _stubborn(self, body: bytes) -> Response:
        gate = self._gate_made()
        try:
            await gate.wait()
        except asyncio.CancelledError:
            await self._gate_made().wait()
        return Response(200, body)

    async def _stream_later(self, body: bytes) -> Response:
        await self._gate_made().wait()
        return StreamingResponse(self._pieces(body))

    async def _pieces(self, body: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(body), 9_000):
            if start and self.random.random() < 0.2:
                try:
                    await self._gate_made().wait()
                except asyncio.CancelledError:
                    self.done["streams cancelled"] += 1
            yield body[start : start + 9_000]

    # -- the host -----------------------------------------------------------------------------------------------------

    def _send(self, kind: FrameKind, conn_id: int, payload: bytes = b"") -> None:
        self.frames += 1
        self.done[kind.name] += 1
        self.harness.send(kind, conn_id, payload)
        assert self.harness.stops == [], self.harness.stops

    def _session(self) -> Session | None:
        # Mostly one that still lives, but what is over is spoken to as well.
        alive = [session for session in self.by_id.values() if not session.host_closed and not session.client.closes]
        if alive and self.random.random() < 0.9:
            return self.random.choice(alive)
        return self.random.choice(list(self.by_id.values())) if self.by_id else None

    def _new(self) -> None:
        conn_id = conn_id_make(self.random.randrange(1, SLOTS + 1), self.random.randrange(GENERATIONS))
        slot = conn_id & 0xFFFFF
        for old_id, session in list(self.by_id.items()):
            if old_id & 0xFFFFF == slot:
                if not (session.host_closed and session.client.closes):
                    return  # in use: see _new_in_use
                del self.by_id[old_id]
        client = Client(self.harness, conn_id)
        session = Session(len(self.sessions), client)
        self.sessions.append(session)
        self.by_id[conn_id] = session
        self.harness.clients[conn_id] = client
        self._send(FrameKind.NEW, conn_id, session.peer.encode())
        assert client.engine.read() is None

    def _new_in_use(self) -> None:
        session = self._session()
        if session is not None and not session.host_closed:
            generation = self.random.randrange(GENERATIONS)
            conn_id = session.client.conn_id & 0xFFFFF | generation << 20
            self._send(FrameKind.NEW, conn_id, b"203.0.113.1:1")

    def _client_speaks(self) -> None:
        session = self._session()
        if session is None or session.eof:
            return
        engine = session.client.engine
        if engine.handshake_done and not session.client.tls_closed and session.client.failure is None:
            for _ in range(self.random.choice([1, 1, 1, 2, 5])):
                path = f"/{session.number}/{session.asked}"
                session.asked += 1
                if self.random.random() < 0.3:
                    text = request(f"POST {path}", session.marker * BODY)
                else:
                    text = request(f"GET {path}")
                engine.write(text)
        output = engine.take_output()
        while output:
            size = self.random.choice([1, 5, 100, 1500, 16_384])
            session.unsent.append(output[:size])
            output = output[size:]

    def _deliver(self) -> None:
        session = self._session()
        if session is not None and session.unsent and not session.eof:
            self._send(FrameKind.DATA, session.client.conn_id, session.unsent.pop(0))

    def _misdeliver(self) -> None:
        # One client's bytes in another one's stream, or twice in its own.
        session, other = self._session(), self._session()
        if session is not None and other is not None and other.unsent:
            session.spoiled = True
            self._send(FrameKind.DATA, session.client.conn_id, other.unsent[0])

    def _spoil(self) -> None:
        session = self._session()
        if session is not None:
            session.spoiled = True
            self._send(FrameKind.DATA, session.client.conn_id, self.random.randbytes(self.random.choice([1, 30, 3000])))

    def _eof(self) -> None:
        session = self._session()
        if session is not None and self.random.random() < 0.3:
            session.eof = True
            self._send(FrameKind.EOF, session.client.conn_id)

    def _close(self) -> None:
        session = self._session()
        if session is not None and (session.client.closes or self.random.random() < 0.1):
            session.host_closed = True
            self._send(FrameKind.CLOSE, session.client.conn_id, self.random.randbytes(2))

    def _pause(self) -> None:
        session = self._session()
        if session is not None:
            self._send(FrameKind.PAUSE, session.client.conn_id)

    def _resume(self) -> None:
        session = self._session()
        if session is not None:
            self._send(FrameKind.RESUME, session.client.conn_id)

    def _stray(self) -> None:
        kind = self.random.choice([FrameKind.DATA, FrameKind.EOF, FrameKind.CLOSE, FrameKind.PAUSE, FrameKind.RESUME])
        conn_id = conn_id_make(self.random.randrange(1, SLOTS + 1), self.random.randrange(GENERATIONS, 0x800))
        self._send(kind, conn_id, b"\0\0" if kind == FrameKind.CLOSE else b"x" if kind == FrameKind.DATA else b"")

    # -- time ---------------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        self.harness.wake()

    def _step(self) -> None:
        self.harness.step(self.random.randrange(1, 4))

    def _receive(self) -> None:
        for frame in self.harness.receive(self.random.choice([1, 2, 10, 1000])):
            assert frame.conn_id in self.by_id or frame.conn_id == 0, frame
            session = self.by_id.get(frame.conn_id)
            if session is not None and frame.kind == FrameKind.PAUSE:
                self.done["told to pause"] += 1
        for session in self.by_id.values():
            foreign = session.client.plain.translate(None, ASCII + session.marker)
            assert not foreign, f"{session.number} reads {foreign[:100]!r}"
            session.client.plain.clear()
            assert session.client.failure is None or session.spoiled, session.client.failure

    def _gate(self) -> None:
        if self.gates:
            self.gates.pop(self.random.randrange(len(self.gates))).set()

    def _expire(self) -> None:
        if self.random.random() < 0.05:
            self.harness.expire(self.random.choice(sorted(TIMEOUTS.values())) + 1)

    # -- the end ------------------------------------------------------------------------------------------------------

    def _end(self) -> None:
        for session in self.by_id.values():
            if not session.host_closed:
                session.host_closed = True
                self._send(FrameKind.CLOSE, session.client.conn_id, CloseReason.NORMAL.to_bytes(2, "little"))
        for _ in range(20):
            while self.gates:
                self.gates.pop().set()
            self.harness.pump()
        assert not asyncio.all_tasks(self.harness.loop)
        counters = self.harness.ingress.counters()
        left = {name: counters[name] for name in AT_REST_NONE}
        assert not any(left.values()), left
        assert counters["connections_accepted_total"] == len(self.sessions)
        for session in self.sessions:
            assert len(session.client.closes) == 1, f"{session.number}: {session.client.closes}"
        assert self.harness.bugs == []
        assert self.harness.strays == []
        self.done.update(
            {name: counters[name] for name in ("requests_total", "ring_full_total", "frames_dropped_total")}
        )

    def close(self) -> None:
        """Give the loop and the region back."""
        self.harness.close()


def main() -> int:
    """Fuzz for a time, each seed its own region; says the seed that broke the invariant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--frames", type=int, default=3000)
    options = parser.parse_args()
    due = time.monotonic() + options.seconds
    total: Counter[str] = Counter()
    seed = options.seed
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < due:
            program = Program(Path(folder), seed)
            try:
                program.run(options.frames)
            except BaseException:
                print(f"seed {seed} breaks the invariant", file=sys.stderr)
                raise
            finally:
                program.close()
            total.update(program.done)
            seed += 1
    print(f"{seed - options.seed} seeds: {dict(total)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
