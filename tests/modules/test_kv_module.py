"""The module `kv`: keys, conditions, expiry and lists, and that who has no scope learns nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclave_os.errors import ClockUntrusted, ConfigError
from enclave_os.http import HTTPError, Request, Response, make_request
from enclave_os.modules.auth import Authenticator
from enclave_os.modules.kv import KEY_SIZE_MAX, KV, LIST_MAX
from enclave_os.modules.query import percent_encoded, read_query
from enclave_os.modules.registry import Registry
from tests.enclave.module_services import LOGGER, DenyAll, make_services
from tests.enclave.tokens import CLAIMS, NOW, FixedClock, issuer, new_key, token
from tests.modules.storage import ModuleStorage

ISSUER = new_key()
STRANGER = new_key()


class Rig:
    """The module over a real sealed store, behind a registry; each `ask` has a token of the scopes named."""

    def __init__(self, storage: ModuleStorage, clock: FixedClock) -> None:
        self.storage = storage
        self.clock = clock
        self.registry = Registry([KV()], DenyAll(), LOGGER)

    @classmethod
    async def open(cls, ranges: int = 1) -> Rig:
        clock = FixedClock()
        rig = cls(await ModuleStorage.open(ranges=ranges, trusted_ns=clock.trusted_ns), clock)
        services = make_services(storage=rig.storage.of("kv"), tokens=Authenticator([issuer(ISSUER)], clock))
        await rig.registry.start(lambda _: services)
        return rig

    async def ask(
        self, method: str, target: str, body: bytes = b"", scopes: str = "kv:ns:read kv:ns:write", **fields: str
    ) -> Response:
        bearer = token(ISSUER, CLAIMS | {"scope": scopes})
        return await self.send(method, target, body, Authorization=f"Bearer {bearer}", **fields)

    async def send(self, method: str, target: str, body: bytes = b"", **fields: str) -> Response:
        headers = [(name.replace("_", "-"), value) for name, value in fields.items()]
        response = self.registry.respond(make_request(method, target, headers, body))
        return response if isinstance(response, Response) else await response


def run(work: Coroutine[object, object, None]) -> None:
    asyncio.run(work)


def etag(response: Response) -> str:
    return dict(response.headers)["ETag"]


async def body_of(response: Response) -> bytes:
    """As a client has it in the end."""
    return b"".join([chunk async for chunk in response.chunks]) if response.streaming else response.body  # type: ignore[attr-defined]


def listed(response: Response) -> tuple[list[str], str | None]:
    document = json.loads(response.body)
    return [row["key"] for row in document["keys"]], document["cursor"]


def test_put_get_delete() -> None:
    async def work() -> None:
        rig = await Rig.open()
        assert (await rig.ask("GET", "/kv/ns/a/b%20c")).status == 404
        put = await rig.ask("PUT", "/kv/ns/a/b%20c", b"\0value")
        assert (put.status, json.loads(put.body)) == (200, {"version": 1})
        got = await rig.ask("GET", "/kv/ns/a/b%20c")
        assert (got.status, got.body, etag(got)) == (200, b"\0value", '"1"')
        assert dict(got.headers)["Cache-Control"] == "no-store"
        same = await rig.ask("GET", "/kv/ns?key=a%2Fb%20c")
        assert same.body == b"\0value"
        assert (await rig.ask("GET", "/kv/ns/a/b%20c", If_None_Match='"9", "1"')).status == 304
        assert (await rig.ask("DELETE", "/kv/ns/a/b%20c")).status == 204
        assert (await rig.ask("DELETE", "/kv/ns/a/b%20c")).status == 204
        assert (await rig.ask("GET", "/kv/ns/a/b%20c")).status == 404
        assert (await rig.ask("PUT", "/kv/ns/empty", b"")).status == 200
        assert (await rig.ask("GET", "/kv/ns/empty")).body == b""

    run(work())


@given(name=st.binary(min_size=1, max_size=KEY_SIZE_MAX), value=st.binary(max_size=64))
@settings(max_examples=25, deadline=None)
def test_any_bytes_are_a_key(name: bytes, value: bytes) -> None:
    async def work() -> None:
        rig = await Rig.open()
        target = f"/kv/ns?key={''.join(f'%{byte:02x}' for byte in name)}"
        assert (await rig.ask("PUT", target, value)).status == 200
        assert (await rig.ask("GET", f"/kv/ns?key={percent_encoded(name)}")).body == value
        assert listed(await rig.ask("GET", "/kv/ns")) == ([percent_encoded(name)], None)

    run(work())


@pytest.mark.parametrize(
    ("method", "target", "fields", "status"),
    [
        ("GET", f"/kv/ns/{'a' * 1025}", {}, 400),
        ("PUT", "/kv/ns", {}, 400),
        ("PUT", "/kv/ns?key=", {}, 400),
        ("GET", "/kv/ns?key=a&key=b", {}, 400),
        ("GET", "/kv/ns/a?key=b", {}, 400),
        ("GET", "/kv/ns/a?limit=1", {}, 400),
        ("GET", "/kv/ns?unknown=1", {}, 400),
        ("GET", "/kv/ns?limit=0", {}, 400),
        ("GET", f"/kv/ns?limit={LIST_MAX + 1}", {}, 400),
        ("GET", "/kv/ns?limit=1e3", {}, 400),
        ("GET", "/kv/ns?limit=" + "9" * 5000, {}, 400),
        ("PUT", "/kv/ns/a?ttl=0", {}, 400),
        ("PUT", "/kv/ns/a?ttl=-1", {}, 400),
        ("PUT", "/kv/ns/a?ttl=99999999999999", {}, 400),
        ("PUT", "/kv/ns/a", {"If-Match": "1"}, 400),
        ("PUT", "/kv/ns/a", {"If-Match": 'W/"1"'}, 400),
        ("PUT", "/kv/ns/a", {"If-Match": '"0"'}, 400),
        ("PUT", "/kv/ns/a", {"If-None-Match": '"1"'}, 400),
        ("PUT", "/kv/ns/a", {"If-Match": '"1"', "If-None-Match": "*"}, 400),
        ("DELETE", "/kv/ns/a", {"If-None-Match": "*"}, 400),
        ("PUT", "/kv/ns//a", {}, 404),
        ("POST", "/kv/ns/a", {}, 405),
    ],
)
def test_what_is_no_request_of_ours(method: str, target: str, fields: dict[str, str], status: int) -> None:
    async def work() -> None:
        rig = await Rig.open()
        answer = await rig.ask(method, target, b"x" if method == "PUT" else b"", **fields)
        assert answer.status == status
        assert rig.storage.writes == 0

    run(work())


def test_a_write_for_a_version() -> None:
    async def work() -> None:
        rig = await Rig.open()
        assert (await rig.ask("PUT", "/kv/ns/a", b"1", If_Match="*")).status == 412
        first = await rig.ask("PUT", "/kv/ns/a", b"1", If_None_Match="*")
        taken = await rig.ask("PUT", "/kv/ns/a", b"2", If_None_Match="*")
        assert (first.status, taken.status, etag(taken)) == (200, 412, etag(first))
        second = await rig.ask("PUT", "/kv/ns/a", b"2", If_Match=etag(first))
        assert second.status == 200
        assert (await rig.ask("PUT", "/kv/ns/a", b"3", If_Match=etag(first))).status == 412
        assert (await rig.ask("DELETE", "/kv/ns/a", If_Match=etag(first))).status == 412
        assert (await rig.ask("PUT", "/kv/ns/a", b"4", If_Match="*")).status == 200
        assert (await rig.ask("DELETE", "/kv/ns/a", If_Match="*")).status == 204
        assert (await rig.ask("DELETE", "/kv/ns/a", If_Match="*")).status == 412

    run(work())


def test_of_many_that_create_one_wins() -> None:
    async def work() -> None:
        rig = await Rig.open()
        asked = (rig.ask("PUT", "/kv/ns/lock", b"%d" % number, If_None_Match="*") for number in range(16))
        answers = [answer.status for answer in await asyncio.gather(*asked)]
        assert sorted(answers) == [200] + [412] * 15

    run(work())


def test_what_expires_is_absent_and_can_be_created_again() -> None:
    async def work() -> None:
        rig = await Rig.open()
        assert (await rig.ask("PUT", "/kv/ns/a?ttl=60", b"1")).status == 200
        assert (await rig.ask("GET", "/kv/ns/a")).body == b"1"
        rig.clock.now = NOW + 60
        assert (await rig.ask("GET", "/kv/ns/a")).status == 404
        assert listed(await rig.ask("GET", "/kv/ns")) == ([], None)
        assert (await rig.ask("PUT", "/kv/ns/a", b"2", If_Match="*")).status == 412
        assert (await rig.ask("PUT", "/kv/ns/a", b"2", If_None_Match="*")).status == 200
        assert (await rig.ask("GET", "/kv/ns/a")).body == b"2"

    run(work())


def test_lists_page_by_prefix_and_cursor() -> None:
    async def work() -> None:
        rig = await Rig.open()
        names = [b"a", b"b", b"b\0", b"b\xff", b"b\xff\xff", b"ba", b"c", b"\xff", b"\xff\xff"]
        for name in names:
            await rig.ask("PUT", f"/kv/ns?key={percent_encoded(name)}", b"")
        for prefix, limit in product([b"", b"b", b"b\xff", b"\xff", b"x"], [1, 2, 100]):
            found: list[str] = []
            cursor: str | None = ""
            while cursor is not None:
                after = f"&cursor={cursor}" if cursor else ""
                page = await rig.ask("GET", f"/kv/ns?prefix={percent_encoded(prefix)}&limit={limit}{after}")
                keys, cursor = listed(page)
                assert len(keys) <= limit
                found += keys
            assert found == [percent_encoded(name) for name in sorted(names) if name.startswith(prefix)]

    run(work())


def test_a_list_reads_no_large_values() -> None:
    async def work() -> None:
        rig = await Rig.open()
        for number in range(3):
            await rig.ask("PUT", f"/kv/ns/{number}", bytes(100_000))
        before = rig.storage.rows.gets
        keys, _ = listed(await rig.ask("GET", "/kv/ns"))
        assert keys == ["0", "1", "2"]
        assert rig.storage.rows.gets == before
        assert await body_of(await rig.ask("GET", "/kv/ns/1")) == bytes(100_000)

    run(work())


def test_large_values_on_their_way_to_clients_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who reads slowly holds its own value, and no more than so many in all; 503 beyond, and small ones go on."""
    monkeypatch.setattr("enclave_os.modules.kv.ANSWERS_SIZE_MAX", 250_000)

    async def work() -> None:
        rig = await Rig.open()
        for name, size in (("a", 100_000), ("b", 100_000), ("large", 300_000), ("small", 1000)):
            await rig.ask("PUT", f"/kv/ns/{name}", bytes(size))
        slow = [await rig.ask("GET", f"/kv/ns/{name}") for name in "ab"]
        assert [response.status for response in slow] == [200, 200]
        assert dict(slow[0].headers)["ETag"] == '"1"'
        refused = await rig.ask("GET", "/kv/ns/a")
        assert refused.status == 503
        assert (await rig.ask("GET", "/kv/ns/small")).status == 200
        assert [await body_of(response) for response in slow] == [bytes(100_000)] * 2
        assert (await rig.ask("GET", "/kv/ns/a")).status == 503, "until the ingress lets go of them"
        slow.clear()
        assert len(await body_of(await rig.ask("GET", "/kv/ns/large"))) == 300_000, "one alone is always taken"
        assert (await rig.ask("GET", "/kv/ns/a")).status == 200  # and nobody reads it
        module = rig.registry.started[0]
        assert isinstance(module, KV)
        assert module._answers.held == 0

    run(work())


def test_who_has_no_scope_learns_nothing() -> None:
    """The same answer whether the key, or the namespace, exists, and whatever else is wrong with the request."""

    async def work() -> None:
        rig = await Rig.open()
        await rig.ask("PUT", "/kv/ns/there", b"1")
        conditions: list[dict[str, Any]] = [{}, {"If-Match": '"1"'}, {"If-None-Match": "*"}]
        requests = [
            (method, target, fields)
            for method in ("GET", "PUT", "DELETE")
            for target in ("/kv/ns/there", "/kv/ns/none", "/kv/other/there", "/kv/ns?key=", "/kv/.*/a", "/kv/ns?x=1")
            for fields in conditions
        ]
        for scopes in ("", "kv", "kv:ns", "kv:*:read", "kv:n:read kv:n:write", "kv:ns:READ", "kv:nss:write"):
            for method, target, fields in requests:
                answer = await rig.ask(method, target, scopes=scopes, **fields)
                assert (answer.status, answer.body) == (
                    403,
                    b'{"error":"the token does not carry the scope that this needs"}',
                )
        unsigned = {(await rig.send(method, target, **fields)).body for method, target, fields in requests}
        strange = f"Bearer {token(STRANGER, CLAIMS | {'scope': 'kv:ns:read'})}"
        for method, target, fields in requests:
            answer = await rig.send(method, target, Authorization=strange, **fields)
            assert answer.status == 401
            assert {answer.body} == unsigned
        assert rig.storage.writes == 1

    run(work())


def test_to_read_is_not_to_write() -> None:
    async def work() -> None:
        rig = await Rig.open()
        assert (await rig.ask("PUT", "/kv/ns/a", b"1", scopes="kv:ns:read")).status == 403
        assert (await rig.ask("PUT", "/kv/ns/a", b"1", scopes="kv:ns:write")).status == 200
        assert (await rig.ask("GET", "/kv/ns/a", scopes="kv:ns:write")).status == 403
        assert (await rig.ask("GET", "/kv/ns", scopes="kv:ns:write")).status == 403
        assert (await rig.ask("GET", "/kv/ns/a", scopes="kv:ns:read")).body == b"1"
        assert (await rig.ask("DELETE", "/kv/ns/a", scopes="kv:ns:read")).status == 403

    run(work())


def test_what_the_host_does_is_never_not_found() -> None:
    async def work() -> None:
        rig = await Rig.open()
        await rig.ask("PUT", "/kv/ns/a", b"1")
        rig.storage.rows.refuse = 1
        assert (await rig.ask("PUT", "/kv/ns/b", b"1")).status == 503
        assert (await rig.ask("PUT", "/kv/ns/b", b"2")).status == 200
        for rows in rig.storage.rows.tables.values():
            rows.clear()
        assert (await rig.ask("GET", "/kv/ns/a")).status == 500
        assert (await rig.ask("GET", "/kv/ns")).status == 500
        assert len(rig.storage.tampering) == 2
        assert (await rig.ask("GET", "/kv/ns/c")).status == 404

    run(work())


def test_time_in_doubt_takes_nothing_that_expires() -> None:
    async def work() -> None:
        rig = await Rig.open()
        await rig.ask("PUT", "/kv/ns/a?ttl=60", b"1")
        bearer = f"Bearer {token(ISSUER, CLAIMS | {'scope': 'kv:ns:read kv:ns:write'})}"
        judged = make_request("GET", "/kv/ns/a", [("Authorization", bearer)])
        found = await Authenticator([issuer(ISSUER)], FixedClock()).verify(judged)

        class Tokens:
            async def verify(self, _: Request) -> object:
                return found

        module = KV()
        doubtful = FixedClock(error=ClockUntrusted("ahead"))
        storage = (await rig.storage.again(trusted_ns=doubtful.trusted_ns)).of("kv")
        registry = Registry([module], DenyAll(), LOGGER)
        services = make_services(storage=storage, tokens=Tokens())  # type: ignore[arg-type]  # all that is asked of it
        await registry.start(lambda _: services)
        for method, target in (("GET", "/kv/ns/a"), ("GET", "/kv/ns")):
            answer = registry.respond(make_request(method, target))
            assert not isinstance(answer, Response)
            assert (await answer).status == 503

    run(work())


def test_it_needs_a_store_and_takes_no_settings() -> None:
    with pytest.raises(ConfigError, match="no key-value store"):
        KV().start(make_services())
    with pytest.raises(ConfigError, match=r"module\.kv takes no keys"):
        KV().start(make_services(config={"x": 1}))


def test_a_query_is_read_once_and_strictly() -> None:
    request = make_request("GET", "/x?a=%2541+&b=")
    assert read_query(request, ("a", "b")) == {"a": b"%41+", "b": b""}
    assert read_query(make_request("GET", "/x?"), ()) == {}
    for target in ("/x?&", "/x?a&a", "/x?c"):
        with pytest.raises(HTTPError):
            read_query(make_request("GET", target), ("a",))
