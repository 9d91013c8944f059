"""Plain TCP of modules over the real proxy and connector: whom it reaches, what ends it, and what it may hold."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from enclave_os.egress.service import EgressService, ModuleEgress
from enclave_os.errors import EgressError
from enclave_os.modules.api import NoEgress
from enclave_os.wire.errors import UsageError
from enclave_os.wire.frames import CloseReason
from tests.modules.egress_rig import MODULE, EgressRig, Nobody, egress_settings
from tests.modules.egress_servers import Authority
from tests.modules.tcp_servers import Silent, Sink, TCPServer, flood, reset

CA = Authority()


@pytest.fixture
def server() -> Iterator[TCPServer]:
    with TCPServer() as running:
        yield running


def rig(folder: Path, *hosts: str, **keys: object) -> EgressRig:
    return EgressRig(folder, hosts, CA.pem, **keys)


def fails(rig: EgressRig, work: Coroutine[Any, Any, Any]) -> EgressError:
    with pytest.raises(EgressError) as failed:
        rig.run(work)
    return failed.value


def test_bytes_go_there_and_back_and_the_end_with_them(tmp_path: Path, server: TCPServer) -> None:
    said = bytes(range(256)) * 4096  # 1 MiB: more than ring, windows and kernel hold at once

    async def talk() -> bytes:
        stream = await module.connect("127.0.0.1", server.port)
        assert stream.address == f"127.0.0.1:{server.port}"

        async def write() -> None:
            await stream.write(said)
            stream.end()

        writing = asyncio.create_task(write())
        heard = b""
        while piece := await stream.read(10_000):
            assert len(piece) <= 10_000
            heard += piece
        await writing
        stream.close()
        return heard

    with rig(tmp_path, f"tcp://127.0.0.1:{server.port}") as running:
        module = running.egress
        assert running.run(talk()) == said


def test_after_the_end_of_our_half_the_servers_goes_on(tmp_path: Path) -> None:
    def late(connection: socket.socket) -> None:
        said = b""
        while piece := connection.recv(100):
            said += piece
        connection.sendall(b"you said " + said)

    async def talk() -> bytes:
        async with await module.connect("127.0.0.1", server.port) as stream:
            await stream.write(b"hello")
            stream.end()
            stream.end()
            with pytest.raises(UsageError):
                await stream.write(b"more")
            heard = b""
            while piece := await stream.read(100):
                heard += piece
            return heard

    with TCPServer(late) as server, rig(tmp_path, f"tcp://127.0.0.1:{server.port}") as running:
        module = running.egress
        assert running.run(talk()) == b"you said hello"


@pytest.mark.parametrize(
    ("host", "entry"),
    [
        *(("127.0.0.1", "127.0.0.1:1"), ("127.0.0.1", "localhost:{port}"), ("localhost", "127.0.0.1:{port}")),
        *(("127.0.0.1", "*:{port}"), ("127.0.0.1", "0.0.0.0/0:{port}"), ("169.254.169.254", "0.0.0.0/0:{port}")),
        *(("evil.example", "db.example:{port}"), ("a.db.example", "db.example:{port}")),
        *(("127.1", "127.0.0.1:{port}"), ("0x7f000001", "127.0.0.1:{port}"), ("::ffff:127.0.0.1", "[::1]:{port}")),
        *(("db.example\r\nX", "db.example:{port}"), ("", "db.example:{port}"), ("b\u00fccher.example", "*:{port}")),
    ],
)
def test_whom_the_list_does_not_name_nobody_is_asked_for(
    tmp_path: Path, server: TCPServer, host: str, entry: str
) -> None:
    with rig(tmp_path, "tcp://" + entry.format(port=server.port)) as running:
        error = fails(running, running.egress.connect(host, server.port))
        assert error.stage == "policy"
        assert running.counters()["egress_connects_total"] == 0
    assert server.taken == 0


@pytest.mark.parametrize("port", [0, -1, 65536, "80", True])
def test_what_is_no_port_is_refused(tmp_path: Path, port: Any) -> None:
    with rig(tmp_path, "tcp://127.0.0.1:80") as running:
        assert fails(running, running.egress.connect("127.0.0.1", port)).stage == "policy"


def test_https_and_tcp_are_different_entries(tmp_path: Path, server: TCPServer) -> None:
    with rig(tmp_path, f"127.0.0.1:{server.port}") as running:
        assert fails(running, running.egress.connect("127.0.0.1", server.port)).reason == "not_allowed"
    with rig(tmp_path, f"tcp://127.0.0.1:{server.port}") as running:
        assert running.fails(f"https://127.0.0.1:{server.port}/").reason == "not_allowed"


def test_a_name_that_leads_inside_gets_no_byte(tmp_path: Path) -> None:
    """EG9: DNS rebinding: `localhost` is such a name here, and what it leads to is not in the list."""
    with Sink() as server:
        with rig(tmp_path, f"tcp://localhost:{server.port}") as running:
            error = fails(running, running.egress.connect("localhost", server.port))
            assert (error.stage, error.reason) == ("policy", "not_public")
            assert "is not public" in str(error)
        server.wait(lambda: len(server.ended) == server.taken)
        assert server.received == [b""] * server.taken


def test_a_name_and_its_address_are_both_named(tmp_path: Path, server: TCPServer) -> None:
    async def talk() -> bytes:
        async with await module.connect("localhost", server.port) as stream:
            await stream.write(b"x")
            return await stream.read(10)

    entries = [f"tcp://{host}:{server.port}" for host in ("localhost", "127.0.0.0/8", "[::1]")]
    with rig(tmp_path, *entries) as running:
        module = running.egress
        assert running.run(talk()) == b"x"


def test_who_reads_nothing_holds_a_bounded_amount(tmp_path: Path) -> None:
    async def talk() -> int:
        async with await module.connect("127.0.0.1", server.port) as stream:
            first = await stream.read(1)
            held = 0
            # As long as the server can still write, more comes in; then nothing does.
            for _ in range(50):
                await asyncio.sleep(0)
                held = max(held, running.counters()["egress_held_bytes"])
            assert first == b"\0"
            return held

    with TCPServer(flood) as server, rig(tmp_path, f"tcp://127.0.0.1:{server.port}") as running:
        module = running.egress
        assert running.run(talk()) <= (64 << 10) + (2 << 20)


def test_a_reset_is_an_error_and_no_end(tmp_path: Path) -> None:
    async def talk() -> bytes:
        async with await module.connect("127.0.0.1", server.port) as stream:
            await stream.write(b"x")
            return await stream.read(10)

    with TCPServer(reset) as server, rig(tmp_path, f"tcp://127.0.0.1:{server.port}") as running:
        module = running.egress
        error = fails(running, talk())
        assert (error.stage, error.fault) == ("truncated", "network")


def test_a_read_that_brings_nothing_ends_in_time(tmp_path: Path) -> None:
    async def talk() -> bytes:
        async with await module.connect("127.0.0.1", server.port) as stream:
            return await stream.read(10, timeout=0.05)

    with Silent() as server, rig(tmp_path, f"tcp://127.0.0.1:{server.port}") as running:
        module = running.egress
        assert fails(running, talk()).stage == "time"
        server.wait(lambda: server.ended == ["reset"])  # an error cuts it: nobody takes it for the end


def test_nobody_there_and_no_such_name(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with rig(tmp_path, f"tcp://127.0.0.1:{port}", f"tcp://nobody.invalid:{port}") as running:
        error = fails(running, running.egress.connect("127.0.0.1", port))
        assert (error.stage, error.reason) == ("connect", "")
        assert fails(running, running.egress.connect("nobody.invalid", port)).stage == "name"


def test_a_module_has_so_many_and_gets_them_back(tmp_path: Path, server: TCPServer) -> None:
    async def talk() -> None:
        streams = [await module.connect("127.0.0.1", server.port) for _ in range(3)]
        with pytest.raises(EgressError) as failed:
            await module.connect("127.0.0.1", server.port)
        assert (failed.value.stage, failed.value.reason) == ("limit", "connections")
        streams[1].close()
        last = await module.connect("127.0.0.1", server.port)
        await last.write(b"x")
        assert await last.read(1) == b"x"

    with rig(tmp_path, f"tcp://127.0.0.1:{server.port}", requests_per_module=3) as running:
        module = running.egress
        running.run(talk())  # the others are closed with the service


def test_what_was_written_goes_out_with_the_end_unless_it_is_cut(tmp_path: Path) -> None:
    async def talk(*, cut: bool) -> None:
        stream = await module.connect("127.0.0.1", server.port)
        await stream.write(b"written")
        stream.close(b" and the last", cut=cut)

    with Sink() as server, rig(tmp_path, f"tcp://127.0.0.1:{server.port}") as running:
        module = running.egress
        running.run(talk(cut=False))
        server.wait(lambda: server.ended == ["fin"])
        assert server.received == [b"written and the last"]
        running.run(talk(cut=True))
        server.wait(lambda: server.ended == ["fin", "reset"])


def test_without_a_list_nobody_is_connected_to() -> None:
    with pytest.raises(EgressError, match="lets this module call nobody"):
        asyncio.run(NoEgress().connect("127.0.0.1", 80))


class Lying:
    """A border whose host says that it reached what a test wants."""

    def __init__(self, address: str | None) -> None:
        self.address = address
        self.state = "open"
        self.ended_by: str | None = None
        self.reason = -1
        self.wake: Any = None
        self.written = b""
        self.closed: list[int] = []
        self.readable = self.writable = True

    def connect(self, target: bytes, deadline_ms: int) -> Lying:
        return self

    def take(self, size_max: int) -> bytes | None:
        return b"220 welcome"

    def write(self, data: bytes) -> None:
        self.written += data

    def finish_writing(self) -> None:
        raise AssertionError("nothing was begun")

    def close(self, reason: int = 0) -> None:
        self.closed.append(reason)
        self.state = "ended"


def over(lying: Lying) -> ModuleEgress:
    service = EgressService(
        egress_settings(["tcp://8.8.8.8:80", "tcp://db.example:80", "tcp://[2606:4700::1]:80"], CA.pem),
        cast(Any, lying.connect),
        seconds=lambda: int(time.time()),
        monotonic=time.monotonic,
        identity=Nobody(),
        simulated=True,
    )
    return service.modules[MODULE]


def lied_to(lying: Lying, host: str) -> EgressError:
    with pytest.raises(EgressError) as failed:
        asyncio.run(over(lying).connect(host, 80))
    return failed.value


@pytest.mark.parametrize(
    "address",
    [
        *("8.8.4.4:80", "8.8.8.8:81", "8.8.8.8", "", None, "nonsense", "127.0.0.1:80", "[8.8.8.8]:", "8.8.8.8:080"),
        *("[::ffff:8.8.4.4]:80", "8.8.8.8:80:80", "db.example:80", "\udcff:80", "8.8.8.8%eth0:80", "8.8.8.8 :80"),
    ],
)
def test_a_host_that_says_it_reached_another_address_is_told_nothing(address: str | None) -> None:
    """EG9: whoever asked for one address is not connected to another."""
    lying = Lying(address)
    error = lied_to(lying, "8.8.8.8")
    assert (error.stage, error.fault) == ("connect", "host")
    assert lying.written == b""
    assert lying.closed == [CloseReason.PEER_GONE]


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1:80", "10.0.0.1:80", "169.254.169.254:80", "168.63.129.16:80", "[::1]:80", "[fe80::1]:80"),
        *("[::ffff:127.0.0.1]:80", "[64:ff9b::7f00:1]:80", "[2002:7f00:1::]:80", "[fd00:ec2::254]:80", "0.0.0.0:80"),
    ],
)
def test_a_name_that_leads_inside_is_told_nothing(address: str) -> None:
    """EG9."""
    lying = Lying(address)
    error = lied_to(lying, "db.example")
    assert (error.stage, error.fault, error.reason) == ("policy", "network", "not_public")
    assert "tcp://" in str(error), "it says which entry would be missing"
    assert lying.written == b""
    assert lying.closed == [CloseReason.PEER_GONE]


@pytest.mark.parametrize(
    ("host", "address"),
    [
        *(("8.8.8.8", "8.8.8.8:80"), ("8.8.8.8", "[::ffff:8.8.8.8]:80"), ("db.example", "93.184.216.34:80")),
        *(("2606:4700::1", "[2606:4700::1]:80"), ("2606:4700:0::1", "[2606:4700::1]:80")),
    ],
)
def test_what_was_asked_for_is_reached(host: str, address: str) -> None:
    lying = Lying(address)

    async def talk() -> bytes:
        async with await over(lying).connect(host, 80) as stream:
            await stream.write(b"x")
            return await stream.read(100)

    assert asyncio.run(talk()) == b"220 welcome"
    assert lying.written == b"x"
