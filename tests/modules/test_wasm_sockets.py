"""`wasi:sockets` by a C program over the real proxy: what it may reach, and what it cannot do to anybody else."""

from __future__ import annotations

import asyncio
import base64
import socket
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.modules.egress_rig import EgressRig
from tests.modules.egress_servers import Authority
from tests.modules.storage import ModuleStorage
from tests.modules.tcp_servers import Silent, Sink, TCPServer, flood, hang_up, reset
from tests.modules.wasm_rig import SECONDS, Site, json_of

GUEST = (Path(__file__).parent / "guests" / "tcp.wasm").read_bytes()
CA = Authority()
SOCKETS = 16  # of one app, where the operator says nothing
Test = Callable[[Site], Awaitable[None]]


def on_site(folder: Path, hosts: list[str], test: Test, **config: Any) -> None:
    """Run `test` with the operator's list `hosts`; at its end nothing of any connection is left."""
    with EgressRig(folder, hosts, CA.pem) as rig:

        async def main() -> None:
            site = Site(await ModuleStorage.open(), config=config, egress=rig.egress, compiled_before=(GUEST,))
            async with site:
                await asyncio.wait_for(test(site), SECONDS)

        rig.run(main())


async def loaded(site: Site, *sockets: str, app: str = "tcp", **said: Any) -> None:
    permissions = {"version": 1, "sockets": list(sockets)}
    await site.loaded(app, GUEST, permissions=permissions, **said)


async def exchange(site: Site, host: str, port: int, data: bytes = b"hello", app: str = "tcp") -> Any:
    """What comes back, or the error."""
    response = await site.call(app, "exchange", host=host, port=port, data=base64.b64encode(data).decode())
    assert response.status in (200, 422), response.body
    answer = json_of(response)
    return base64.b64decode(answer["ok"]) if "ok" in answer else answer["err"]


async def log(site: Site, app: str = "tcp") -> str:
    return "\n".join(json_of(await site.send("GET", f"/wasm/apps/{app}/log"))["lines"])


def _until(done: threading.Event) -> None:
    done.wait(60)


async def none_open(site: Site) -> None:
    """Until nothing of any socket is left; what ends a call does not wait for it."""
    parts = site.module._parts
    assert parts is not None
    while parts.apps.get("tcp").ready()[1].sockets.open:
        await asyncio.sleep(0)


@pytest.mark.parametrize("size", [0, 1, 5000, 300_000])
def test_an_app_talks_to_a_server(tmp_path: Path, size: int) -> None:
    async def test(site: Site) -> None:
        await loaded(site, f"127.0.0.1:{server.port}")
        said = bytes(range(256)) * (size // 256) + bytes(size % 256)
        assert await exchange(site, "127.0.0.1", server.port, said) == said
        await none_open(site)

    with TCPServer() as server:
        on_site(tmp_path, [f"tcp://127.0.0.1:{server.port}"], test)
        server.wait(lambda: server.ended == ["fin"])


def test_by_name(tmp_path: Path) -> None:
    async def test(site: Site) -> None:
        names = [f"localhost:{server.port}", f"127.0.0.0/8:{server.port}", f"[::1]:{server.port}"]
        await loaded(site, *names)
        assert await exchange(site, "localhost", server.port) == b"hello"
        assert await exchange(site, "LOCALHOST.", server.port) == b"hello"
        assert await site.value("tcp", "lookup", name="localhost") == {"ok": "198.18.0.1"}

    with TCPServer() as server:
        entries = [f"tcp://{host}:{server.port}" for host in ("localhost", "127.0.0.1", "[::1]")]
        on_site(tmp_path, entries, test)


def test_without_a_grant_there_is_no_socket(tmp_path: Path) -> None:
    async def test(site: Site) -> None:
        await site.loaded("tcp", GUEST)
        assert await exchange(site, "127.0.0.1", server.port) == "access-denied"
        assert await site.value("tcp", "hoard", count=1000) == 0
        for name in ("localhost", "db.example", "metadata.google.internal"):
            assert json_of(await site.call("tcp", "lookup", name=name)) == {"err": "access-denied"}
        assert await site.value("tcp", "listen") == "access-denied"
        assert await site.value("tcp", "udp") == "access-denied"

    with TCPServer() as server:
        on_site(tmp_path, [f"tcp://127.0.0.1:{server.port}"], test)
    assert server.taken == 0


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.0.0.2", "169.254.169.254", "100.100.100.200", "168.63.129.16", "10.0.0.1", "192.168.0.1"),
        *("::1", "fd00:ec2::254", "fe80::1", "198.18.0.1", "8.8.8.8", "localhost", "a.db.example"),
        "db.example.evil.org",
    ],
)
def test_outside_of_its_grants_an_app_reaches_nobody(tmp_path: Path, host: str) -> None:
    """EG9: not this machine, not its network, not the cloud's metadata, and no other port."""

    async def test(site: Site) -> None:
        await loaded(site, "db.example:5432", "*.cache.example:6379", "*:443", "9.0.0.0/8:80")
        for port in (80, 443, 5432, 6379, server.port):
            if (host, port) != ("a.db.example", 443) and (host, port) != ("db.example.evil.org", 443):
                assert await exchange(site, host, port) == "access-denied", port
        assert "is not among permissions.sockets" in await log(site)

    with TCPServer() as server:
        on_site(tmp_path, ["tcp://0.0.0.0/0:80", "tcp://*:443", f"tcp://127.0.0.1:{server.port}"], test)
    assert server.taken == 0


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "224.0.0.1", "ff02::1", "::ffff:127.0.0.1"])  # noqa: S104
def test_nobody_is_at_such_an_address(tmp_path: Path, host: str) -> None:
    async def test(site: Site) -> None:
        await loaded(site, "db.example:5432")
        # The last is IPv4 in disguise, and is looked up as what it is.
        assert await exchange(site, host, 5432) in ("invalid-argument", "access-denied")

    on_site(tmp_path, ["tcp://*:5432"], test)


def test_what_an_app_is_granted_the_operator_has_to_allow(tmp_path: Path) -> None:
    async def test(site: Site) -> None:
        await loaded(site, f"127.0.0.1:{server.port}")
        assert await exchange(site, "127.0.0.1", server.port) == "access-denied"
        assert "[[egress.allow]]" in await log(site)

    with TCPServer() as server:
        on_site(tmp_path, [f"127.0.0.1:{server.port}"], test)  # for HTTPS
    assert server.taken == 0


@pytest.mark.parametrize("who", ["operator", "app"])
def test_a_name_that_leads_inside_gets_no_byte(tmp_path: Path, who: str) -> None:
    """EG9: DNS rebinding: both lists have to name where `localhost` leads, and one does not."""

    async def test(site: Site) -> None:
        inside = [f"127.0.0.0/8:{server.port}", f"[::1]:{server.port}"]
        await loaded(site, f"localhost:{server.port}", *(inside if who == "operator" else []))
        assert await exchange(site, "localhost", server.port) == "access-denied"
        assert "is not public" in await log(site)

    with Sink() as server:
        names = ["localhost"] if who == "operator" else ["localhost", "127.0.0.0/8", "[::1]"]
        on_site(tmp_path, [f"tcp://{name}:{server.port}" for name in names], test)
        server.wait(lambda: len(server.ended) == server.taken)
        assert b"".join(server.received) == b""


def test_lookups(tmp_path: Path) -> None:
    async def test(site: Site) -> None:
        await loaded(site, "a.example:1", "*.b.example:1")

        async def lookup(name: str) -> Any:
            return json_of(await site.call("tcp", "lookup", name=name))

        assert await lookup("a.example") == await lookup("A.Example.") == {"ok": "198.18.0.1"}
        assert await lookup("x.b.example") == {"ok": "198.18.0.1"}, "an address stands for a name in one call"
        assert await lookup("b.example") == {"err": "access-denied"}
        assert await lookup("8.8.8.8") == {"ok": "8.8.8.8"}
        for name in ("", "a b", "a..example", "127.1", "x" * 300, "a.example\0", "\u2025"):
            assert await lookup(name) == {"err": "invalid-argument"}, name

    on_site(tmp_path, ["tcp://*:1"], test)


def test_what_a_socket_says_of_itself(tmp_path: Path) -> None:
    async def test(site: Site) -> None:
        await loaded(site, f"127.0.0.1:{server.port}")
        said = await site.value("tcp", "describe", host="127.0.0.1", port=server.port)
        assert said == {
            "ok": "ipv4, keep-alive ok and off, hop-limit ok and not-supported, "
            f"remote 127.0.0.1:{server.port}, local port 0"
        }
        assert await site.value("tcp", "listen") == "bind access-denied, listen access-denied, accept invalid-state"
        assert await site.value("tcp", "udp") == "access-denied"

    with TCPServer() as server:
        on_site(tmp_path, [f"tcp://127.0.0.1:{server.port}"], test)


def test_a_moment_and_a_byte_are_waited_for_together(tmp_path: Path) -> None:
    async def test(site: Site) -> None:
        await loaded(site, f"127.0.0.1:{echoing.port}")
        where = {"host": "127.0.0.1", "port": echoing.port}
        assert await site.value("tcp", "wait-until", **where, say="x", milliseconds=5000) == {"ok": 1}
        assert await site.value("tcp", "wait-until", **where, say="", milliseconds=20) == {"ok": 2}
        assert await site.value("tcp", "wait-until", **where, say="", milliseconds=0) == {"ok": 2}

    with TCPServer() as echoing:
        on_site(tmp_path, [f"tcp://127.0.0.1:{echoing.port}"], test)


def test_several_connections_are_waited_for_at_once(tmp_path: Path) -> None:
    async def test(site: Site) -> None:
        ports = [silent.port, silent.port, echoing.port]
        await loaded(site, *(f"127.0.0.1:{port}" for port in {*ports}))
        assert await site.value("tcp", "race", host="127.0.0.1", ports=ports) == {"ok": 2}

    with Silent() as silent, TCPServer() as echoing:
        on_site(tmp_path, [f"tcp://127.0.0.1:{port}" for port in (silent.port, echoing.port)], test)


def test_nobody_there_a_reset_and_an_end(tmp_path: Path) -> None:
    async def test(site: Site) -> None:
        await loaded(site, *(f"127.0.0.1:{port}" for port in ports), f"nobody.invalid:{closed}")
        assert await exchange(site, "127.0.0.1", closed) == "connection-refused"
        assert await exchange(site, "nobody.invalid", closed) == "remote-unreachable"
        assert await exchange(site, "127.0.0.1", resetting.port) in ("cut while reading", "cut while writing")
        assert await site.value("tcp", "why", host="127.0.0.1", port=resetting.port) == "connection-reset"
        assert await site.value("tcp", "why", host="127.0.0.1", port=hanging_up.port) == "the end"
        assert await site.value("tcp", "wait", host="127.0.0.1", port=ending.port) == {"ok": 0}

    with socket.create_server(("127.0.0.1", 0)) as gone:
        closed = gone.getsockname()[1]
    with TCPServer(reset) as resetting, TCPServer(lambda _: None) as ending, TCPServer(hang_up) as hanging_up:
        ports = [closed, resetting.port, ending.port, hanging_up.port]
        entries = [f"tcp://127.0.0.1:{port}" for port in ports]
        on_site(tmp_path, [*entries, f"tcp://nobody.invalid:{closed}"], test)


class TestHostilePrograms:
    """EG10: sockets of one call end with it, however it ends; an app has so many; nobody else waits for them."""

    def test_a_thousand_sockets(self, tmp_path: Path) -> None:
        async def test(site: Site) -> None:
            await loaded(site, f"127.0.0.1:{server.port}")
            assert await site.value("tcp", "hoard", count=1000) == SOCKETS
            await none_open(site)
            crowd = await site.value("tcp", "crowd", host="127.0.0.1", port=server.port, count=1000)
            assert crowd == SOCKETS
            await none_open(site)
            assert await site.value("tcp", "hoard", count=3) == 3
            await none_open(site)
            assert "as many sockets open as it may" in await log(site)

        with Silent() as server:
            on_site(tmp_path, [f"tcp://127.0.0.1:{server.port}"], test)
            server.wait(lambda: len(server.ended) == SOCKETS)
            assert server.taken == SOCKETS

    def test_connections_that_are_begun_and_dropped(self, tmp_path: Path) -> None:
        """What is dropped counts until the loop has seen the last of it: no program leaves it more than it may have."""

        async def test(site: Site) -> None:
            await loaded(site, f"127.0.0.1:{server.port}", max_fuel=50_000_000_000)
            parts = site.module._parts
            assert parts is not None
            churning = asyncio.create_task(site.value("tcp", "churn", **where, count=5_000))
            most = 0
            while not churning.done():
                most = max(most, parts.apps.get("tcp").ready()[1].sockets.open)
                await asyncio.sleep(0)
            assert 0 < await churning < 5_000
            assert most <= SOCKETS
            await none_open(site)
            assert await exchange(site, "127.0.0.1", server.port) == b"hello"

        with TCPServer() as server:
            where = {"host": "127.0.0.1", "port": server.port}
            on_site(tmp_path, [f"tcp://127.0.0.1:{server.port}"], test, fuel_max=50_000_000_000)

    @pytest.mark.parametrize("function", ["drain", "flood", "wait", "idle"])
    def test_what_never_ends_ends_with_the_deadline(self, tmp_path: Path, function: str) -> None:
        done = threading.Event()

        def stuck(connection: socket.socket) -> None:
            if function == "drain":
                flood(connection)
            done.wait(60)  # reads nothing, says nothing
            while connection.recv(1 << 20):
                pass

        async def test(site: Site) -> None:
            await loaded(site, f"127.0.0.1:{server.port}", timeout=1, max_fuel=50_000_000_000)
            response = await site.call("tcp", function, host="127.0.0.1", port=server.port)
            assert response.status == 504, response.body
            await none_open(site)
            done.set()
            assert "sockets:" not in await log(site)

        with TCPServer(stuck) as server:
            on_site(tmp_path, [f"tcp://127.0.0.1:{server.port}"], test, fuel_max=50_000_000_000)
            # Cut, so that no server takes what it was told for all that was to be said. A very slow machine may not
            # have connected within the deadline.
            server.wait(lambda: server.ended == ["reset"] * server.taken)

    def test_a_program_that_fails_does_not_seem_to_have_finished(self, tmp_path: Path) -> None:
        async def test(site: Site) -> None:
            await loaded(site, f"127.0.0.1:{server.port}")
            said = base64.b64encode(b"half of it").decode()
            assert (await site.call("tcp", "crash", host="127.0.0.1", port=server.port, data=said)).status == 500
            await none_open(site)

        with Sink() as server:
            on_site(tmp_path, [f"tcp://127.0.0.1:{server.port}"], test)
            server.wait(lambda: server.ended == ["reset"])

    def test_more_than_there_is_room_for_is_a_trap(self, tmp_path: Path) -> None:
        done = threading.Event()

        async def test(site: Site) -> None:
            await loaded(site, f"127.0.0.1:{server.port}")
            assert (await site.call("tcp", "overrun", host="127.0.0.1", port=server.port)).status == 500
            assert "check-write" in await log(site)
            done.set()

        with TCPServer(lambda _: _until(done)) as server:
            on_site(tmp_path, [f"tcp://127.0.0.1:{server.port}"], test)

    def test_who_waits_for_a_server_keeps_nobody_waiting(self, tmp_path: Path) -> None:
        async def test(site: Site) -> None:
            grants = [f"127.0.0.1:{port}" for port in (silent.port, echoing.port)]
            await loaded(site, *grants, app="slow", timeout=5)
            await loaded(site, *grants, app="quick")
            where: dict[str, Any] = {"host": "127.0.0.1", "port": silent.port}
            waiting = [asyncio.create_task(site.call("slow", "wait", **where)) for _ in range(4)]
            await asyncio.to_thread(silent.wait, lambda: silent.taken == 4)
            # One core, and all of it is free: a call that waits holds none.
            for _ in range(20):
                assert await exchange(site, "127.0.0.1", echoing.port, app="quick") == b"hello"
            assert not any(task.done() for task in waiting)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            # A caller that goes ends its call at once, not with the deadline.
            await asyncio.to_thread(silent.wait, lambda: silent.ended == ["reset"] * 4)

        with Silent() as silent, TCPServer() as echoing:
            on_site(tmp_path, [f"tcp://127.0.0.1:{port}" for port in (silent.port, echoing.port)], test, cores=1)

    def test_the_server_ends_while_a_program_waits(self, tmp_path: Path) -> None:
        tasks: list[asyncio.Task[Any]] = []

        async def test(site: Site) -> None:
            await loaded(site, f"127.0.0.1:{server.port}", timeout=60)
            tasks.append(asyncio.create_task(site.call("tcp", "wait", host="127.0.0.1", port=server.port)))
            await asyncio.to_thread(server.wait, lambda: server.taken == 1)

        with Silent() as server:
            on_site(tmp_path, [f"tcp://127.0.0.1:{server.port}"], test, seconds=60)
            server.wait(lambda: len(server.ended) == 1)
        assert tasks[0].done()

    def test_what_waits_for_a_program_that_reads_nothing_is_bounded(self, tmp_path: Path) -> None:
        sent = 0

        def pour(connection: socket.socket) -> None:
            nonlocal sent
            while True:
                sent += connection.send(bytes(65536))

        async def test(site: Site) -> None:
            await loaded(site, f"127.0.0.1:{server.port}", timeout=1, max_fuel=50_000_000_000)
            assert (await site.call("tcp", "idle", host="127.0.0.1", port=server.port)).status == 504

        with TCPServer(pour) as server:
            on_site(tmp_path, [f"tcp://127.0.0.1:{server.port}"], test, fuel_max=50_000_000_000)
            server.wait(lambda: server.ended == ["reset"])
        # Inbox, border and rings hold 3 MiB at most; the rest is the kernel's, some MiB each way.
        assert sent < 32 << 20


@pytest.mark.parametrize(
    "sockets",
    [
        *("db.example:5432", {"db.example": 5432}, ["db.example"], ["db.example:0"], [5432], ["db.example:1"] * 2),
        *(["tcp://db.example:1"], ["10.0.0.1/8:1"], [f"a{n}.example:1" for n in range(65)], ["198.18.0.0/16:1"]),
    ],
)
def test_a_list_that_is_none_is_refused(tmp_path: Path, sockets: Any) -> None:
    async def test(site: Site) -> None:
        response = await site.load("tcp", GUEST, permissions={"version": 1, "sockets": sockets})
        assert response.status == 400
        assert b"permissions.sockets" in response.body

    on_site(tmp_path, ["tcp://*:1"], test)


def test_whom_an_app_may_reach_is_public(tmp_path: Path) -> None:
    async def test(site: Site) -> None:
        await loaded(site, "DB.example:5432", "10.0.0.0/8:6379")
        shown = json_of(await site.send("GET", "/wasm/apps/tcp"))
        assert shown["permissions"]["sockets"] == ["db.example:5432", "10.0.0.0/8:6379"]
        assert b'"sockets":["db.example:5432","10.0.0.0/8:6379"]' in site.module.config_leaves()["app.tcp"]

    on_site(tmp_path, ["tcp://*:5432"], test)
