"""Apps on several workers: whichever a client meets, it meets the same apps, their keys, logs and costs."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from enclave_os.errors import InternalError, StoreBusy
from enclave_os.http import Request, Response
from enclave_os.modules.wasm import calling
from enclave_os.modules.wasm.sharing import KEY_BROUGHT
from tests.modules import wasm_guests as guests
from tests.modules.storage import ModuleStorage
from tests.modules.test_wasm_module import other
from tests.modules.wasm_rig import SECONDS, Site, json_of

PLAIN = guests.plain()
KEY = "ab" * 32
WORKERS = 3


class Seen:
    """The other workers as one of them sees them; `modules.api.Peers`."""

    def __init__(self, server: Server, index: int) -> None:
        self._server = server
        self._index = index

    @property
    def first(self) -> bool:
        return self._index == 0

    async def forward(self, request: Request, token: str | None = None) -> Response:
        self._server.forwarded += 1
        answer = self._server.sites[0].registry.respond(request)
        return answer if isinstance(answer, Response) else await answer

    async def ask_first(self, what: bytes) -> bytes:
        if self.first:
            raise InternalError("worker 0 asks itself")
        if 0 in self._server.down:
            raise StoreBusy("worker 0 is not reached")
        return await self._server.sites[0].registry.peer("wasm", what)

    async def tell_others(self, what: bytes) -> list[bytes]:
        assert self.first
        others = [site for index, site in enumerate(self._server.sites) if index and index not in self._server.down]
        return [*await asyncio.gather(*(site.registry.peer("wasm", what) for site in others))]


class Server:
    """Some workers over one store."""

    def __init__(self, storage: ModuleStorage) -> None:
        self.storage = storage
        self.down: set[int] = set()
        self.forwarded = 0
        self.sites: list[Site] = []

    async def __aenter__(self) -> Server:
        for index in range(WORKERS):
            self.sites.append(await self._make(index))
        return self

    async def __aexit__(self, *exc: object) -> None:
        for index, site in enumerate(self.sites):
            if index not in self.down:
                await site.__aexit__(*exc)

    async def stop(self, index: int) -> None:
        self.down.add(index)
        await self.sites[index].__aexit__(None, None, None)

    async def start(self, index: int) -> None:
        self.sites[index] = await self._make(index)
        self.down.discard(index)
        others = [site for other, site in enumerate(self.sites) if other and other not in self.down]
        for site in others if index == 0 else [self.sites[index]]:  # each is admitted again, or looks after its start
            await site.registry.look_again()

    async def _make(self, index: int) -> Site:
        site = Site(self.storage, workers=WORKERS, peers=Seen(self, index))
        return await site.__aenter__()

    async def states(self) -> list[str]:
        found = []
        for site in self.sites:
            answer = await site.send("GET", "/wasm/apps/demo")
            found.append(json_of(answer)["state"] if answer.status == 200 else str(answer.status))
        return found

    async def hellos(self) -> list[Any]:
        return [json_of(await site.call("demo", "hello")) for site in self.sites]


def on_server(test: Callable[[Server], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(SECONDS), Server(await ModuleStorage.open()) as server:
            await test(server)

    asyncio.run(main())


@pytest.mark.parametrize("through", range(WORKERS))
def test_what_one_acknowledged_all_do(through: int) -> None:
    async def test(server: Server) -> None:
        site = server.sites[through]
        assert (await site.load("demo", PLAIN)).status == 201
        assert await server.hellos() == ["hello, world"] * WORKERS
        roots = {json.dumps(sorted((name, data.hex()) for name, data in one.module.config_leaves().items()))
                 for one in server.sites}  # fmt: skip
        assert len(roots) == 1
        assert (await site.load("demo", other())).status == 200
        assert await server.hellos() == ["other"] * WORKERS
        assert (await site.send("DELETE", "/wasm/apps/demo")).status == 204
        assert await server.states() == ["404"] * WORKERS
        wanted = {"wasm_load": {"name": "demo", "bytes": [*PLAIN]}}
        loaded = await site.send("POST", "/data", json.dumps(wanted).encode())
        assert loaded.status == 200, loaded.body
        assert await server.hellos() == ["hello, world"] * WORKERS
        gone = await site.send("POST", "/data", b'{"wasm_unload": {"name": "demo"}}')
        assert json_of(gone) == {"status": "unloaded", "name": "demo"}
        assert await server.states() == ["404"] * WORKERS
        assert server.forwarded == (0 if through == 0 else 5)

    on_server(test)


def test_two_changes_at_two_workers_that_cannot_both_be() -> None:
    """Both apps of one host name, stored, would be attested by no start."""

    async def test(server: Server) -> None:
        loads = [site.load(f"app-{n}", PLAIN, hostname="a.example") for n, site in enumerate(server.sites)]
        answers = await asyncio.gather(*loads)
        assert sorted(answer.status for answer in answers) == [201, 409, 409]
        (winner,) = [f"app-{n}" for n, answer in enumerate(answers) if answer.status == 201]
        for site in server.sites:
            assert [app.hostname for app in site.module.app_identities()] == ["a.example"]
            assert [app["name"] for app in json_of(await site.send("GET", "/wasm/apps"))["apps"]] == [winner]

    on_server(test)


def test_refusals_are_the_same_through_any_worker() -> None:
    async def test(server: Server) -> None:
        await server.sites[0].loaded("demo", PLAIN)
        for who in (None, "somebody:", "forged"):
            answers = [await site.send("DELETE", "/wasm/apps/demo", who=who) for site in server.sites]
            assert len({(answer.status, answer.body) for answer in answers}) == 1
            assert answers[0].status in (401, 403)

    on_server(test)


def test_what_a_worker_knows_of_an_apps_calls_goes_with_the_app(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calling, "SERIES_MAX", 1)

    async def test(server: Server) -> None:
        for name, gone in (("demo", "demo-2"), ("demo-2", "demo")):
            await server.sites[0].loaded(name, PLAIN)
            for site in server.sites:
                await site.value(name, "hello")
                counters = site.module.counters()
                assert counters[f'wasm_function_calls_total{{app="{name}",function="hello"}}'] == 1
                parts = site.module._parts
                assert parts is not None
                assert list(parts.pool._apps) == [name]
                assert not any(f'app="{gone}"' in counter for counter in counters)
            assert (await server.sites[1].send("DELETE", f"/wasm/apps/{name}")).status == 204

    on_server(test)


class TestBroughtKeys:
    def test_a_key_reaches_every_worker_and_one_that_is_started_anew(self) -> None:
        async def test(server: Server) -> None:
            assert (await server.sites[1].load("demo", PLAIN, encryption_key=KEY)).status == 201
            assert await server.states() == ["ready"] * WORKERS
            await server.stop(2)
            await server.start(2)
            assert await server.states() == ["ready"] * WORKERS, "it has the key of worker 0"
            await server.stop(0)
            await server.start(0)
            assert await server.states() == ["ready"] * WORKERS, "the others brought it the key"

        on_server(test)

    def test_when_all_have_ended_it_has_to_come_again_and_once_is_enough(self) -> None:
        async def test(server: Server) -> None:
            await server.sites[0].load("demo", PLAIN, encryption_key=KEY)
            for index in range(WORKERS):
                await server.stop(index)
            for index in range(WORKERS):
                await server.start(index)
            assert await server.states() == ["locked"] * WORKERS
            body = json.dumps({"encryption_key": KEY}).encode()
            assert (await server.sites[2].send("POST", "/wasm/apps/demo/key", body)).status == 200
            assert await server.states() == ["ready"] * WORKERS

        on_server(test)

    def test_a_key_that_is_not_the_apps_is_not_taken(self) -> None:
        async def test(server: Server) -> None:
            await server.sites[0].load("demo", PLAIN, encryption_key=KEY)
            await server.stop(1)
            server.down.add(0)  # worker 0 is not heard: the key is not to be had
            await server.start(1)
            server.down.discard(0)
            assert (await server.states())[1] == "locked"
            for key in (b"", b"k", bytes.fromhex("cd" * 32)):
                assert await server.sites[1].registry.peer("wasm", KEY_BROUGHT + b"\4\0demo" + key) == b""
            assert await server.sites[1].registry.peer("wasm", KEY_BROUGHT + b"\4\0none" + bytes(32)) == b""
            assert (await server.states())[1] == "locked"
            await server.sites[1].registry.look_again()
            assert (await server.states())[1] == "ready"

        on_server(test)


def test_logs_and_costs_are_of_all_workers() -> None:
    async def test(server: Server) -> None:
        await server.sites[0].loaded("demo", PLAIN)
        for number, site in enumerate(server.sites):
            for _ in range(number + 1):
                assert await site.value("demo", "hello") == "hello, world"
            parts = site.module._parts
            assert parts is not None
            parts.apps.get("demo").write_log(f"of worker {number}")
        for site in server.sites:
            lines = json_of(await site.send("GET", "/wasm/apps/demo/log"))["lines"]
            assert lines == [f"of worker {number}" for number in range(WORKERS)]
            functions = json_of(await site.send("GET", "/wasm/apps/demo/metrics"))["functions"]
            assert functions["hello"]["calls"] == 1 + 2 + 3

    on_server(test)


def test_costs_that_all_workers_store_at_once_are_all_stored() -> None:
    async def test(server: Server) -> None:
        await server.sites[0].loaded("demo", PLAIN)
        for round_ in range(4):
            await asyncio.gather(*(site.value("demo", "hello") for site in server.sites))
            await asyncio.gather(*(site.send("GET", "/wasm/apps/demo/metrics") for site in server.sites))
            shown = json_of(await server.sites[1].send("GET", "/wasm/apps/demo/metrics"))
            assert shown["functions"]["hello"]["calls"] == WORKERS * (round_ + 1)

    on_server(test)


def test_worker_0_looks_and_asks_nobody() -> None:
    async def test(server: Server) -> None:
        assert (await server.sites[0].load("demo", PLAIN, encryption_key=KEY)).status == 201
        parts = server.sites[0].module._parts
        assert parts is not None
        await parts.sharing.look()
        await server.stop(0)
        await server.start(0)  # the others look, and bring the key
        parts = server.sites[0].module._parts
        assert parts is not None
        await parts.sharing.look()
        assert await server.states() == ["ready"] * WORKERS

    on_server(test)


def test_one_that_was_away_follows_when_it_looks_again() -> None:
    async def test(server: Server) -> None:
        server.down.add(2)  # alive, and not heard
        await server.sites[1].loaded("demo", PLAIN)
        assert await server.states() == ["ready", "ready", "404"]
        server.down.discard(2)
        await server.sites[2].registry.look_again()
        assert await server.states() == ["ready"] * WORKERS
        data = base64.b64encode(b"x").decode()
        assert await server.sites[2].value("demo", "echo", data=data) == data

    on_server(test)


def test_many_words_of_changes_cost_two_looks_and_one_that_nobody_waits_for_is_finished() -> None:
    async def test(server: Server) -> None:
        site = server.sites[1]
        parts = site.module._parts
        assert parts is not None
        looks, gate = 0, asyncio.Event()
        follow = parts.apps.follow

        async def slowly() -> None:
            nonlocal looks
            looks += 1
            await gate.wait()
            await follow()

        parts.apps.follow = slowly  # type: ignore[method-assign]
        server.down.add(1)
        await server.sites[0].loaded("demo", PLAIN)
        server.down.discard(1)
        asked = [asyncio.ensure_future(site.registry.peer("wasm", b"")) for _ in range(50)]
        while looks == 0:
            await asyncio.sleep(0)
        asked += [asyncio.ensure_future(site.registry.peer("wasm", b"")) for _ in range(50)]
        await asyncio.sleep(0)
        for one in asked[1:]:
            one.cancel()  # worker 0 waits no longer
        gate.set()
        await asked[0]
        assert (await server.states())[1] == "ready"
        while looks < 2:
            await asyncio.sleep(0)
        await parts.sharing.look()
        assert looks == 3

    on_server(test)
