"""One ingress on one loop, played by hand: the test writes every frame as the host, and reads every frame it gets.

Nothing happens by itself: `pump` is the doorbell, `expire` is the clock, and no test sleeps. Clients speak real TLS to
the ingress through the frames, so what they read went through the whole road from record to module and back.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from enclave_os._tls import ClientHello, TLSContext, TLSEngine
from enclave_os._x509 import Identity
from enclave_os.border.channel import Channel, attach_channel
from enclave_os.border.region import Region
from enclave_os.errors import ServerProtocolError
from enclave_os.http import Request, Response
from enclave_os.ratls.certificate import CertificateStore
from enclave_os.runtime._ingress import Ingress
from enclave_os.runtime.clock import imf_fixdate
from enclave_os.wire import FULL, decode_frame, encode_frame
from enclave_os.wire.errors import PeerProtocolError
from enclave_os.wire.frames import CloseReason, FrameKind, conn_id_make
from enclave_os.wire.layout import SLOT_STATE, Slot, slot_offset
from tests.enclave.certificates import Authority
from tests.enclave.fake_host import CAPACITY, FakeHost

NAME: Final = "enclave.example"
PEER: Final = b"192.0.2.1:50000"
DATE: Final = imf_fixdate(0)

LIMITS: Final[Mapping[str, int]] = {
    "connections": 4096,
    "head_bytes": 16 << 10,
    "headers": 100,
    "target_bytes": 8 << 10,
    "body_bytes": 1 << 20,
    "body_memory_bytes": 8 << 20,
}
# Seconds, all different, so that a test that meets the wrong deadline fails.
TIMEOUTS: Final[Mapping[str, float]] = {
    "handshake": 10.0,
    "head": 20.0,
    "body": 40.0,
    "idle": 60.0,
    "request": 80.0,
    "write_stall": 100.0,
}

Handler = Callable[[Request], Response | Coroutine[Any, Any, Any] | Any]


class Frame(NamedTuple):
    """One frame that the enclave sent."""

    kind: FrameKind
    conn_id: int
    payload: bytes

    @property
    def reason(self) -> CloseReason:
        assert self.kind == FrameKind.CLOSE
        return CloseReason(int.from_bytes(self.payload, "little"))


class Reply(NamedTuple):
    """One HTTP response as a client reads it."""

    status: int
    fields: dict[str, str]
    body: bytes


class Client:
    """One TLS client behind one conn_id: its engine, what it has read, and what became of its connection."""

    def __init__(self, harness: IngressHarness, conn_id: int) -> None:
        self.harness = harness
        self.conn_id = conn_id
        self.engine = TLSEngine(harness.client_context, NAME)
        self.plain = bytearray()
        self.frames: list[Frame] = []
        self.tls_closed = False
        self.failure: ServerProtocolError | None = None
        self.record: list[bytes] | None = None  # a list: keep the payload of every DATA frame sent

    # -- what the host does for it ------------------------------------------------------------------------------------

    def send(self, kind: FrameKind, payload: bytes = b"") -> None:
        if self.record is not None and kind == FrameKind.DATA:
            self.record.append(payload)
        self.harness.send(kind, self.conn_id, payload)

    def new(self, peer: bytes = PEER) -> None:
        self.send(FrameKind.NEW, peer)

    def eof(self) -> None:
        self.send(FrameKind.EOF)

    def pause(self) -> None:
        self.send(FrameKind.PAUSE)

    def resume(self) -> None:
        self.send(FrameKind.RESUME)

    def close(self, reason: CloseReason = CloseReason.NORMAL) -> None:
        """The host's CLOSE: the socket is gone, or this answers the enclave's CLOSE."""
        self.send(FrameKind.CLOSE, reason.to_bytes(2, "little"))

    # -- what the client does -----------------------------------------------------------------------------------------

    def handshake(self) -> Client:
        """NEW, and the whole handshake."""
        self.new()
        return self.handshake_after_new()

    def handshake_after_new(self) -> Client:
        """The whole handshake of a connection that the enclave knows."""
        assert self.engine.read() is None
        for _ in range(20):  # a turn is bounded: how many it takes depends on the machine
            self.flush()
            self.harness.turn()
            if self.engine.handshake_done:
                break
        assert self.engine.handshake_done
        self.flush()  # our Finished
        self.harness.turn()
        return self

    def ciphertext(self, plaintext: bytes) -> bytes:
        """`plaintext` encrypted, not sent."""
        self.engine.write(plaintext)
        return self.engine.take_output()

    def write(self, plaintext: bytes) -> None:
        """Encrypt and put into the ring, without letting the ingress run."""
        self.engine.write(plaintext)
        self.flush()

    def flush(self, piece: int = 16_384) -> None:
        data = self.engine.take_output()
        for start in range(0, len(data), piece):
            self.send(FrameKind.DATA, data[start : start + piece])

    def flush_unchecked(self) -> None:
        """Send what there is to an enclave that may no longer take any."""
        data = self.engine.take_output()
        if data:
            self.harness.send_unchecked(encode_frame(FrameKind.DATA, self.conn_id, data))

    def take(self, data: bytes) -> None:
        """Bytes that came from the enclave. An alert, or what is not TLS, ends the reading: `failure` has it."""
        self.engine.feed(data)
        while not self.tls_closed and self.failure is None:
            try:
                plaintext = self.engine.read()
            except ServerProtocolError as error:
                self.failure = error
                return
            if plaintext is None:
                return
            if plaintext == b"":
                self.tls_closed = True
            self.plain += plaintext

    def ask(self, head: str | bytes, body: bytes = b"") -> Reply:
        """Send one request and pump until its response is whole. `head`: request line and fields, any line end."""
        self.write(request(head, body))
        self.harness.pump()
        return self.reply(is_head=head[:4] in ("HEAD", b"HEAD"))

    def reply(self, *, is_head: bool = False) -> Reply:
        """Take the first whole response out of what was read."""
        reply, used = parse_reply(bytes(self.plain), is_head=is_head, closed=self.closed is not None)
        del self.plain[:used]
        return reply

    # -- what became of it --------------------------------------------------------------------------------------------

    @property
    def closes(self) -> list[CloseReason]:
        return [frame.reason for frame in self.frames if frame.kind == FrameKind.CLOSE]

    @property
    def closed(self) -> CloseReason | None:
        """The reason of the enclave's CLOSE, None when none came. More than one is a failure everywhere."""
        assert len(self.closes) <= 1
        return self.closes[0] if self.closes else None

    def count(self, kind: FrameKind) -> int:
        return sum(frame.kind == kind for frame in self.frames)


class CountingLoop(asyncio.SelectorEventLoop):
    """A loop that knows what the ingress asked of it.

    Attributes:
        timers: handles of `call_later`, newest last.
        wakes: how often `on_wake` was asked for by `call_soon`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.timers: list[asyncio.TimerHandle] = []
        self.wakes = 0

    def call_soon(self, callback: Any, *args: Any, **kwargs: Any) -> asyncio.Handle:  # type: ignore[override]
        self.wakes += getattr(callback, "__name__", "") == "on_wake"
        return super().call_soon(callback, *args, **kwargs)

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Any, *args: Any, **kwargs: Any
    ) -> asyncio.TimerHandle:
        handle = super().call_later(delay, callback, *args, **kwargs)
        self.timers.append(handle)
        return handle


class IngressHarness:
    """An ingress, the host's end of its rings, and the clients behind them.

    Args:
        folder: for the region's file.
        respond: as the registry's; the default answers with the request's own line and body.
        choose: of the server's identity; the default is a `CertificateStore`'s, for NAME.
        judge_client: as the TLSContext's.
    Attributes:
        stops: what `on_stop` was told. bugs: exceptions that reached the loop. reports: (text, exception) pairs.
        strays: frames for conn_ids that no client of the harness has.
    """

    def __init__(
        self,
        folder: Path,
        respond: Handler | None = None,
        *,
        capacity: int = CAPACITY,
        limits: Mapping[str, int] | None = None,
        timeouts: Mapping[str, float] | None = None,
        spin_us: int = 0,
        start: bool = True,
        choose: Callable[[ClientHello], Identity] | None = None,
        judge_client: Callable[[tuple[bytes, ...], bytes], object] | None = None,
        egress_max: int = 0,
    ) -> None:
        self.host = FakeHost(folder, capacity)
        self.region = Region(self.host.name, str(folder))
        self.loop = CountingLoop()
        self.loop.set_exception_handler(lambda _, context: self.bugs.append(context))
        self.respond: Handler = echo if respond is None else respond
        self.requests: list[Request] = []
        self.stops: list[BaseException | None] = []
        self.bugs: list[dict[str, Any]] = []
        self.reports: list[tuple[str, BaseException]] = []
        self.rpc_calls = 0
        self.rpc_records: list[bytes] = []
        self.rpc_records_at_once = 1000
        self.rpc_lies: list[PeerProtocolError] = []
        self.clients: dict[int, Client] = {}
        self.frames: list[Frame] = []
        self.strays: list[Frame] = []
        authority = development_authority()
        self.store = CertificateStore(
            authority.certificate_pem.decode(), authority.key_pem.decode(), [NAME], lambda: time.time()
        )
        self.client_context = TLSContext.client(ca_pem=authority.certificate_pem)
        self.rpc: Channel = attach_channel(self.region, self.host.layout.rpc)
        self.data: Channel = attach_channel(self.region, self.host.layout.data)
        self.ingress = Ingress(
            from_host=self.data.from_host,
            to_host=self.data.to_host,
            rpc_from_host=self.rpc.from_host,
            region=self.region.buffer,
            shutdown_offset=slot_offset(Slot.SHUTDOWN) + SLOT_STATE,
            doorbell_in=self.host.to_enclave_bell,
            doorbell_out=self.host.data_bell,
            tls=TLSContext.server(
                self.store.choose if choose is None else choose, keep_buffers=True, judge_client=judge_client
            ),
            respond=self._respond,
            loop=self.loop,
            http_date=lambda: DATE,
            on_rpc=self._on_rpc,
            on_stop=self.stops.append,
            report=lambda what, error: self.reports.append((what, error)),
            limits={**LIMITS, **(limits or {})},
            timeouts={**TIMEOUTS, **(timeouts or {})},
            spin_us=spin_us,
            egress_max=egress_max,
        )
        if start:
            self.ingress.start()
            self.receive()
            assert [frame.kind for frame in self.frames] == [FrameKind.READY]

    def close(self) -> None:
        """End the loop, with whatever still runs on it."""
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        if tasks:
            self.loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()
        self.host.close()

    def close_early(self) -> None:
        """For tests with many harnesses: end this one now, if it has not ended. Its loop must have met no exception."""
        if not self.loop.is_closed():
            self.close()
            assert self.bugs == []

    # -- the host -----------------------------------------------------------------------------------------------------

    def client(self, slot: int | None = None, generation: int = 1) -> Client:
        """A client in a slot of its own, or in the one that is named."""
        slot = len(self.clients) + 1 if slot is None else slot
        client = Client(self, conn_id_make(slot, generation))
        self.clients[client.conn_id] = client
        return client

    def connect(self) -> Client:
        """A client whose handshake is done."""
        return self.client().handshake()

    def send(self, kind: int, conn_id: int, payload: bytes = b"") -> None:
        """One honest frame. When the ring is full, the ingress is let run."""
        self.send_record(encode_frame(kind, conn_id, payload))

    def send_record(self, record: bytes) -> None:
        """One ring record, whatever it says."""
        for _ in range(3):
            if self.host.data_to_enclave.produce(record) != FULL:
                self.host.data_to_enclave.publish()
                return
            self.ingress.on_wake()
        raise AssertionError("the ingress does not drain its ring")

    def send_unchecked(self, record: bytes) -> None:
        """One ring record for an enclave that may no longer take any."""
        if self.host.data_to_enclave.produce(record) != FULL:
            self.host.data_to_enclave.publish()

    def receive(self, limit: int = 100_000) -> list[Frame]:
        """Take at most `limit` frames out of the outgoing ring, hand their bytes to the clients, and give room back."""
        taken = []
        for record in self.host.data_to_host.consume_many(limit, 1 << 30):
            kind, conn_id, payload = decode_frame(record)
            frame = Frame(FrameKind(kind), conn_id, payload)
            taken.append(frame)
            client = self.clients.get(conn_id)
            if client is None:
                if conn_id:
                    self.strays.append(frame)
                continue
            assert client.closed is None, f"{frame.kind.name} after CLOSE"
            client.frames.append(frame)
            if frame.kind == FrameKind.DATA:
                client.take(payload)
        self.frames += taken
        self.host.data_to_host.release()
        return taken

    # -- the enclave --------------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """The doorbell rang; what comes out is taken. The loop's other work waits."""
        self.ingress.on_wake()
        self.receive()

    def wake(self) -> None:
        """The doorbell rang, and whatever became ready on the loop runs. The outgoing ring is left alone."""
        self.ingress.on_wake()
        self.step()

    def step(self, times: int = 4) -> None:
        """`times` iterations of the event loop."""
        for _ in range(times):
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()

    def pump(self, times: int = 2) -> None:
        """Wake, and take what comes out, until nothing more comes."""
        for _ in range(times):
            self.wake()
            self.receive()
        for _ in range(500):
            self.wake()
            if not self.receive():
                return
        raise AssertionError("the ingress goes on and on")

    def pump_once(self) -> list[Frame]:
        """Wake, and take what came out of it: for what never ends by itself."""
        self.wake()
        return self.receive()

    def expire(self, seconds: float) -> None:
        """What the tick would do `seconds` from now."""
        self.ingress.expire(time.monotonic_ns() + int(seconds * 1e9))
        self.step()
        self.receive()

    def count(self, name: str) -> int:
        return self.ingress.counters()[name]

    def check_at_rest(self) -> None:
        """Nothing lives, nothing is owed, nothing is counted: what must hold when every connection ended both ways."""
        self.pump()
        counters = self.ingress.counters()
        assert (counters["connections_live"], counters["connections_closing"]) == (0, 0)
        assert (counters["body_memory_bytes"], counters["answer_memory_bytes"]) == (0, 0)
        assert self.bugs == []
        assert self.stops == []
        for client in self.clients.values():
            assert len(client.closes) == 1

    # -- what the ingress calls ---------------------------------------------------------------------------------------

    def _respond(self, asked: Request) -> Any:
        self.requests.append(asked)
        return self.respond(asked)

    def _on_rpc(self) -> None:
        self.rpc_calls += 1
        try:
            self.rpc_records += self.rpc.from_host.consume_many(self.rpc_records_at_once, 1 << 20)
            self.rpc.from_host.release()
        except PeerProtocolError as error:
            self.rpc_lies.append(error)


MakeIngress = Callable[..., IngressHarness]


@functools.cache
def development_authority() -> Authority:
    """The CA of every harness in this process."""
    return Authority.make("Test CA of the ingress")


def ingresses(folder: Path) -> Iterator[MakeIngress]:
    """For fixtures: a maker of harnesses, which are ended, and must have met no bug, when the test is done."""
    made: list[IngressHarness] = []

    def make(*args: Any, **kwargs: Any) -> IngressHarness:
        made.append(IngressHarness(folder, *args, **kwargs))
        return made[-1]

    yield make
    for harness in made:
        harness.close_early()


def echo(asked: Request) -> Response:
    """Method, path and body, so that an answer proves which request it belongs to."""
    return Response(200, f"{asked.method} {asked.path} ".encode() + asked.body)


def request(head: str | bytes, body: bytes = b"", *, fields: Iterable[str] = ()) -> bytes:
    """A request with Host, and with Content-Length when it has a body; `head` is at least `METHOD /path`."""
    text = head if isinstance(head, str) else head.decode("latin-1")
    lines = text.splitlines()
    if len(lines[0].split(" ")) == 2:
        lines[0] += " HTTP/1.1"
    lines += fields
    names = {line.partition(":")[0].lower() for line in lines[1:]}
    if "host" not in names:
        lines.append(f"Host: {NAME}")
    if body and not names & {"content-length", "transfer-encoding"}:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def parse_reply(data: bytes, *, is_head: bool = False, closed: bool = False) -> tuple[Reply, int]:
    """The first response in `data` and its size. Raises: AssertionError: it is not whole."""
    end = data.find(b"\r\n\r\n")
    assert end >= 0, f"no whole head in {data!r}"
    first, *lines = data[:end].decode("latin-1").split("\r\n")
    version, status, _ = first.split(" ", 2)
    assert version == "HTTP/1.1"
    fields = {}
    for line in lines:
        name, _, value = line.partition(": ")
        assert name.lower() not in fields, f"{name} twice"
        fields[name.lower()] = value
    at = end + 4
    if is_head or int(status) in (204, 304) or int(status) < 200:
        return Reply(int(status), fields, b""), at
    if "content-length" in fields:
        size = int(fields["content-length"])
        assert len(data) - at >= size, f"{len(data) - at} of {size} bytes"
        return Reply(int(status), fields, data[at : at + size]), at + size
    if fields.get("transfer-encoding") == "chunked":
        body = b""
        while True:
            line_end = data.index(b"\r\n", at)
            size = int(data[at:line_end], 16)
            at = line_end + 2
            body += data[at : at + size]
            assert data[at + size : at + size + 2] == b"\r\n"
            at += size + 2
            if size == 0:
                return Reply(int(status), fields, body), at
    assert closed, "a response whose end is the close"
    return Reply(int(status), fields, data[at:]), len(data)
