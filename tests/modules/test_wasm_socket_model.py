"""Any use of sockets in any order, as a hostile program may make it: every answer is one of the interface's, nothing
but a trap ends the call, and after the call nothing is open."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from enclave_os.errors import EgressError
from enclave_os.modules.wasm.host import sockets, streams
from enclave_os.modules.wasm.host.context import CallContext
from enclave_os.modules.wasm.host.socket_grants import SocketGrants
from enclave_os.wasm import GuestTrap
from enclave_os.wire.tcp_targets import TcpTargetKind
from tests.modules.test_wasm_connection import SECONDS, Stream

CODES = {
    *("unknown", "access-denied", "not-supported", "invalid-argument", "out-of-memory", "timeout", "new-socket-limit"),
    *("concurrency-conflict", "not-in-progress", "would-block", "invalid-state", "address-not-bindable"),
    *("address-in-use", "remote-unreachable", "connection-refused", "connection-reset", "connection-aborted"),
    *("datagram-too-large", "name-unresolvable", "temporary-resolver-failure", "permanent-resolver-failure"),
}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    name: function
    for interface in (*sockets.INTERFACES, *streams.INTERFACES)
    for name, function in interface.functions.items()
}
METHODS = sorted(name for name in FUNCTIONS if name.startswith("[method]tcp-socket."))
SOCKETS = 5
V4 = [(8, 8, 8, 8), (8, 8, 4, 4), (198, 18, 0, 1), (127, 0, 0, 1), (0, 0, 0, 0), (224, 0, 0, 1)]
V6 = [(0x2606, 0x4700, 0, 0, 0, 0, 0, 1), (0, 0, 0, 0, 0, 0xFFFF, 0x7F00, 1), (0,) * 8, (0, 0, 0, 0, 0, 0, 0, 1)]


class Server:
    """An egress: each address does something else."""

    def __init__(self) -> None:
        self.streams: list[Stream] = []
        self.asked: list[tuple[str, int]] = []

    async def connect(self, host: str, port: int, *, timeout: float | None = None) -> Stream:
        self.asked.append((host, port))
        if port == 81:
            raise EgressError("refused", "connect", "network")
        if port == 82:
            await asyncio.Event().wait()
        stream = Stream(echo=port != 83)
        stream.address = f"{host}:{port}" if host != "db.example" else "93.184.216.34:80"
        self.streams.append(stream)
        return stream


class Means:
    """What the sockets of an app are made of."""

    def __init__(self, server: Server) -> None:
        entries = ["8.8.8.8:80", "8.8.8.8:81", "8.8.8.8:82", "8.8.8.8:83", "db.example:80", "[2606:4700::1]:80"]
        self.sockets = SocketGrants([TcpTargetKind().read(entry) for entry in entries], SOCKETS)
        self.egress = server
        self.files = self.write = self.random = None
        self.file_bytes = 0
        self.lines: list[str] = []
        self.log = self.lines.append
        self.clock = self

    @staticmethod
    def monotonic() -> float:
        return 0.0


class Program(RuleBasedStateMachine):
    """One call."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.reported: list[Any] = []
        self.loop.set_exception_handler(lambda loop, context: self.reported.append(context))
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.server = Server()
        self.means: Any = Means(self.server)
        self.context = CallContext(self.means, self.wait, self.loop.call_soon_threadsafe, lambda: 0.02)  # type: ignore[arg-type]
        self.held: dict[str, list[Any]] = {"socket": [], "input": [], "output": []}
        self.network = sockets.Network()

    def wait(self, work: Coroutine[Any, Any, Any], *, idle: bool = False) -> Any:
        """As a call with little time: what takes longer is the deadline's trap."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(SECONDS)

    def call(self, name: str, *values: Any) -> Any:
        return FUNCTIONS[name](self.context, *values)

    def teardown(self) -> None:
        for kind in self.held.values():
            for resource in kind:
                resource.close()
        self.context.sockets.close(cut=True)
        while self.means.sockets.open:
            self.wait(asyncio.sleep(0))
        assert all(stream.closed is not None for stream in self.server.streams), "a connection outlives its call"
        assert self.means.sockets.open == 0
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(SECONDS)
        self.loop.close()
        assert self.reported == []

    def pick(self, kind: str, which: int) -> Any:
        held = self.held[kind]
        return held[which % len(held)] if held else None

    @rule(family=st.sampled_from(["ipv4", "ipv6"]))
    def create(self, family: str) -> None:
        said, made = self.call("create-tcp-socket", family)
        if said == "ok":
            self.held["socket"].append(made)
        else:
            assert made == "new-socket-limit"

    @rule(name=st.sampled_from(["db.example", "other.example", "8.8.8.8", "::1", "", "a b", "127.1"]))
    def look_up(self, name: str) -> None:
        said, made = self.call("resolve-addresses", self.network, name)
        if said == "err":
            assert made in CODES
            return
        found = self.call("[method]resolve-address-stream.resolve-next-address", made)
        assert found[0] == "ok"
        assert len(found[1][1]) == (4 if found[1][0] == "ipv4" else 8)
        assert self.call("[method]resolve-address-stream.resolve-next-address", made) == ("ok", None)

    @rule(
        which=st.integers(0, 9),
        method=st.sampled_from(METHODS),
        port=st.sampled_from([0, 80, 80, 80, 81, 82, 83, 65535]),
        v4=st.sampled_from(V4[:1] * 4 + V4),
        v6=st.sampled_from(V6),
        value=st.sampled_from([0, 1, 255]),
        how=st.sampled_from(["receive", "send", "both"]),
    )
    def method(self, which: int, method: str, port: int, v4: Any, v6: Any, value: int, how: str) -> None:
        socket = self.pick("socket", which)
        if socket is None:
            return
        short = method.removeprefix("[method]tcp-socket.")
        address: Any = ("ipv4", {"port": port, "address": v4})
        if v4 == V4[3]:
            address = ("ipv6", {"port": port, "flow-info": 0, "address": v6, "scope-id": value})
        values: tuple[Any, ...] = ()
        if short in ("start-connect", "start-bind"):
            values = (self.network, address)
        elif short == "shutdown":
            values = (how,)
        elif short.startswith("set-"):
            values = (value,)
        answer = self.call(method, socket, *values)
        if short == "subscribe":
            assert self.call("[method]pollable.ready", answer) in (True, False)
        elif short in ("is-listening", "address-family"):
            assert answer in (False, "ipv4", "ipv6")
        elif answer[0] == "err":
            assert answer[1] in CODES, answer
        elif short == "finish-connect":
            self.held["input"].append(answer[1][0])
            self.held["output"].append(answer[1][1])

    @rule(which=st.integers(0, 9), port=st.sampled_from([80, 83]))
    def connect(self, which: int, port: int) -> None:
        """The usual way, so that there are connections to do something with."""
        socket = self.pick("socket", which)
        if socket is None or socket.family != "ipv4":
            return
        self.call("[method]tcp-socket.start-connect", socket, self.network, ("ipv4", {"port": port, "address": V4[0]}))
        self.wait(asyncio.sleep(0))
        self.method(which, "[method]tcp-socket.finish-connect", 0, V4[0], V6[0], 0, "send")

    @rule(which=st.integers(0, 9), size=st.sampled_from([0, 1, 100, 70_000, 2**63]), blocking=st.booleans())
    def read(self, which: int, size: int, *, blocking: bool) -> None:
        stream = self.pick("input", which)
        if stream is None or (blocking and not stream.readable):
            return
        said, got = self.call(f"[method]input-stream.{'blocking-' if blocking else ''}read", stream, size)
        assert (said == "ok" and len(got) <= min(size, streams.CHUNK_MAX)) or (said == "err" and self.is_error(got))

    @rule(which=st.integers(0, 9), size=st.sampled_from([0, 1, 4096, 65_536, 70_000]))
    def write(self, which: int, size: int) -> None:
        stream = self.pick("output", which)
        if stream is None:
            return
        said, room = self.call("[method]output-stream.check-write", stream)
        if said == "err":
            assert self.is_error(room)
            return
        assert 0 <= room <= streams.CHUNK_MAX
        try:
            answer = self.call("[method]output-stream.write", stream, bytes(size))
        except GuestTrap:
            assert size > room
        else:
            assert answer[0] == "ok" or self.is_error(answer[1])

    @staticmethod
    def is_error(found: Any) -> bool:
        return found == ("closed", None) or (found[0] == "last-operation-failed" and found[1].code in CODES)

    @rule(kind=st.sampled_from(["socket", "input", "output"]), which=st.integers(0, 9))
    def drop(self, kind: str, which: int) -> None:
        held = self.held[kind]
        if held:
            held.pop(which % len(held)).close()

    @rule(which=st.integers(0, 9), what=st.sampled_from(["push", "fail", "end"]))
    def server_does(self, which: int, what: str) -> None:
        if self.server.streams:
            stream = self.server.streams[which % len(self.server.streams)]
            work: Callable[[], None] = (lambda: stream.push(b"x" * 1000)) if what == "push" else getattr(stream, what)
            self.loop.call_soon_threadsafe(work)
            self.wait(asyncio.sleep(0))

    @invariant()
    def bounded(self) -> None:
        assert 0 <= self.means.sockets.open <= SOCKETS
        assert all(host in ("8.8.8.8", "db.example", "2606:4700::1") for host, _ in self.server.asked)
        assert len(self.means.lines) <= 8


TestProgram = Program.TestCase
TestProgram.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
