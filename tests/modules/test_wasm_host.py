"""What an app may reach, used by a C program through its C library: each app its own, and nothing of the host's."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key

from enclave_os.errors import ClockUntrusted, EgressError, UsageError
from enclave_os.modules.api import Item
from enclave_os.modules.wasm.host import crypto, files
from enclave_os.modules.wasm.host.https import policy_of
from tests.enclave.tokens import NOW
from tests.modules import wasm_rig
from tests.modules.storage import ModuleStorage
from tests.modules.wasm_rig import Site, json_of

PROBE = (Path(__file__).parent / "guests" / "probe.wasm").read_bytes()


def on_site(test: Callable[[Site], Awaitable[None]], **options: Any) -> None:
    wasm_rig.on_site(test, compiled_before=(PROBE,), **options)


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


async def ok(site: Site, function: str, app: str = "probe", **arguments: Any) -> Any:
    """What a function that returns a result says is right."""
    response = await site.call(app, function, **arguments)
    assert response.status == 200, (function, arguments, response.body)
    return json_of(response)["ok"]


async def err(site: Site, function: str, app: str = "probe", **arguments: Any) -> str:
    """What it says is wrong."""
    response = await site.call(app, function, **arguments)
    assert response.status == 422, (function, arguments, response.status, response.body)
    return str(json_of(response)["err"])


def test_files_are_what_a_program_expects() -> None:
    async def test(site: Site) -> None:
        await site.loaded("probe", PROBE)
        await ok(site, "write", path="/notes.txt", text="one\n")
        await ok(site, "append", path="/notes.txt", text="two\n")
        assert await ok(site, "read", path="/notes.txt") == "one\ntwo\n"
        assert await ok(site, "size", path="/notes.txt") == 8
        await ok(site, "make-directory", path="/box")
        assert "exists" in await err(site, "make-directory", path="/box")
        await ok(site, "rename", old="/notes.txt", new="/box/kept.txt")
        assert await ok(site, "read", path="/box/kept.txt") == "one\ntwo\n"
        assert "No such" in await err(site, "read", path="/notes.txt")
        await ok(site, "write", path="/box/more", text="x" * 200_000)
        assert await ok(site, "read", path="/box/more") == "x" * 200_000
        assert await ok(site, "entries", path="/box") == "kept.txt\nmore\n"
        assert await ok(site, "entries", path="/") == "box/\n"
        assert "empty" in await err(site, "remove", path="/box")
        await ok(site, "rename", old="/box/more", new="/box/kept.txt")
        assert await ok(site, "size", path="/box/kept.txt") == 200_000
        await ok(site, "remove", path="/box/kept.txt")
        await ok(site, "remove", path="/box")
        assert await ok(site, "entries", path="/") == ""

    on_site(test)


def test_files_are_there_after_a_start_and_gone_after_the_app() -> None:
    async def main() -> None:
        site = Site(await ModuleStorage.open(), compiled_before=(PROBE,))
        async with site:
            await site.loaded("probe", PROBE)
            await ok(site, "write", path="/a", text="kept")
        site = await site.again()
        async with site:
            assert await ok(site, "read", path="/a") == "kept"
            assert (await site.send("DELETE", "/wasm/apps/probe")).status == 204
            await site.loaded("probe", PROBE)
            assert "No such" in await err(site, "read", path="/a")

    asyncio.run(main())


def test_what_a_call_that_traps_did_not_sync_is_as_it_was() -> None:
    async def test(site: Site) -> None:
        await site.loaded("probe", PROBE)
        await ok(site, "write", path="/a", text="before")
        assert (await site.call("probe", "write-and-crash", path="/a", text="after", sync=False)).status == 500
        assert await ok(site, "read", path="/a") == "before"
        assert (await site.call("probe", "write-and-crash", path="/a", text="after", sync=True)).status == 500
        assert await ok(site, "read", path="/a") == "after"

    on_site(test)


TRICKS = ["../a", "/../a", "box/../../a", "..", "./../probe/a", "a/../../b", "\u2025/a", "..\\a", "%2e%2e/a"]


@pytest.mark.parametrize("path", TRICKS)
def test_no_path_leads_to_another_app(path: str) -> None:
    """WA2: by construction: another app's rows are named and sealed with another key."""

    async def test(site: Site) -> None:
        for app in ("a", "ab", "probe"):
            await site.loaded(app, PROBE)
            await ok(site, "write", app, path="/a", text=f"of {app}")
        response = await site.call("a", "read", path=path)
        assert response.status == 422 or json_of(response)["ok"] == "of a", response.body
        response = await site.call("a", "write", path=path, text="evil")
        for app in ("ab", "probe"):
            assert await ok(site, "read", app, path="/a") == f"of {app}"
            assert await ok(site, "entries", app, path="/") == "a\n"

    on_site(test)


def test_paths_that_cannot_be() -> None:
    async def test(site: Site) -> None:
        await site.loaded("probe", PROBE)
        assert "long" in await err(site, "write", path="/" + "n" * 256, text="")
        await ok(site, "write", path="/" + "n" * 255, text="")
        assert await err(site, "make-directory", path="/" + "/".join("d" * 70))
        assert await err(site, "write", path="/no/such", text="")
        await ok(site, "write", path="/file", text="")
        assert "directory" in await err(site, "write", path="/file/below", text="")
        assert await err(site, "remove", path="/")
        await ok(site, "make-directory", path="/d")
        assert await err(site, "rename", old="/d", new="/d/e")
        assert "large" in await err(site, "write", path="/big", text="x" * 70_000)

    on_site(test, config={"file_bytes": 65_536})


def test_a_call_holds_only_so_much_of_its_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "HELD_BYTES_MAX", 100_000)

    async def main() -> None:
        storage = await ModuleStorage.open()
        of_wasm = storage.of("wasm")
        loop = asyncio.get_running_loop()

        def wait(work: Coroutine[Any, Any, Any], *, whole: bool = False) -> Any:
            return asyncio.run_coroutine_threadsafe(work, loop).result(20)

        def work() -> None:
            system = files.FileSystem(of_wasm.table("files", app="a"), of_wasm.write, wait, os.urandom, 50_000)
            ids = [system.make_file((f"f{number}",), exclusive=True)[1] for number in range(6)]
            for node_id in ids[:2]:
                system.write(system.node(node_id), 0, bytes(50_000))
            system.flush()
            for node_id in ids:  # what was stored makes room
                system.write(system.node(node_id), 0, bytes(30_000))
                system.sync(system.node(node_id))
            assert sum(len(node.content) for node in system._nodes.values()) <= 100_000
            for node_id in ids[:2]:  # what was not does not
                system.write(system.node(node_id), 0, bytes(40_000))
            with pytest.raises(files.FileError, match="insufficient-memory"):
                system.node(ids[2])

        await loop.run_in_executor(None, work)

    asyncio.run(main())


def test_many_crafted_names_stay_names() -> None:
    async def test(site: Site) -> None:
        await site.loaded("probe", PROBE)
        names = ["a b", "A", "\u00e9", "e\u0301", "\U0001f600", "con", ".hidden", "a'b\"c", "x\ny", "-rf", "*", "~"]
        for name in names:
            await ok(site, "write", path=f"/{name}", text=name)
        for name in names:
            assert await ok(site, "read", path=f"/{name}") == name

    on_site(test)


def test_random_numbers_and_clocks_are_the_enclaves() -> None:
    async def test(site: Site) -> None:
        await site.loaded("probe", PROBE)
        assert await site.value("probe", "random") != await site.value("probe", "random")
        now = await site.value("probe", "now")
        assert now == NOW * 1_000_000_000 + 123_000_000  # whole milliseconds: WA5
        assert await site.value("probe", "ticks") % 1_000_000 == 0
        assert await site.value("probe", "nap", milliseconds=30) >= 30_000_000
        site.clock.error = ClockUntrusted("a step of a day")
        assert (await site.call("probe", "now")).status == 503
        assert await site.value("probe", "hello") == "hello from C"

    on_site(test)


def test_a_nap_beyond_the_deadline_ends() -> None:
    async def test(site: Site) -> None:
        await site.loaded("probe", PROBE, timeout=1)
        assert (await site.call("probe", "nap", milliseconds=60_000)).status == 504

    on_site(test)


def test_the_environment_is_the_apps_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMBIENT", "of the process")

    async def test(site: Site) -> None:
        await site.loaded("probe", PROBE, env={"GREETING": "bonjour"})
        assert await ok(site, "variable", name="GREETING") == "bonjour"
        for name in ("AMBIENT", "PATH", "HOME"):
            assert await err(site, "variable", name=name) == "not set"

    on_site(test)


def test_what_it_prints_is_for_its_owner(caplog: pytest.LogCaptureFixture) -> None:
    async def test(site: Site) -> None:
        await site.loaded("probe", PROBE)
        await site.value("probe", "print", text="a secret line\nand half")
        lines = json_of(await site.send("GET", "/wasm/apps/probe/log"))["lines"]
        assert lines == ["stdout: a secret line", "stdout: and half"]
        await site.value("probe", "print", text="x" * 40_000)
        lines = json_of(await site.send("GET", "/wasm/apps/probe/log"))["lines"]
        assert "dropped" in lines[-2] + lines[-1]

    on_site(test)
    assert "secret" not in caplog.text


@pytest.mark.parametrize(("code", "status"), [(0, 500), (1, 500)])
def test_an_app_that_ends_itself_answers_nothing(code: int, status: int) -> None:
    async def test(site: Site) -> None:
        await site.loaded("probe", PROBE)
        response = await site.call("probe", "leave", code=code)
        assert response.status == status
        assert b"ended itself" in response.body

    on_site(test)


def test_keys_sign_and_never_leave() -> None:
    async def main() -> None:
        site = Site(await ModuleStorage.open(), compiled_before=(PROBE,))
        async with site:
            await site.loaded("probe", PROBE)
            await site.loaded("other", PROBE)
            assert await ok(site, "digest", data=b64(b"abc")) == b64(hashlib.sha256(b"abc").digest())
            await ok(site, "make-key", name="k")
            assert "already" in await err(site, "make-key", name="k")
            signature = await ok(site, "sign", name="k", data=b64(b"text"))
            public = load_der_public_key(base64.b64decode(await ok(site, "public-key", name="k")))
            assert isinstance(public, ec.EllipticCurvePublicKey)
            public.verify(base64.b64decode(signature), b"text", ec.ECDSA(hashes.SHA256()))
            assert await ok(site, "verify", name="k", data=b64(b"text"), signature=signature) is True
            assert await ok(site, "verify", name="k", data=b64(b"texts"), signature=signature) is False
            assert "no key" in await err(site, "sign", "other", name="k", data="")
            assert "bytes" in await err(site, "make-key", name="")
        later = await site.again()
        async with later:
            # Persisted, so it is found again.
            assert await ok(later, "verify", name="k", data=b64(b"text"), signature=signature) is True

    asyncio.run(main())


def test_the_table_keeps_bytes() -> None:
    async def test(site: Site) -> None:
        await site.loaded("probe", PROBE)
        await site.loaded("other", PROBE)
        first = await ok(site, "put", key=b64(b"\0k"), value=b64(b"v"))
        assert await ok(site, "put", key=b64(b"\0k"), value=b64(b"w")) > first
        assert await ok(site, "get", key=b64(b"\0k")) == b64(b"w")
        assert await err(site, "get", "other", key=b64(b"\0k")) == "nothing there"
        assert await err(site, "put", key="", value="") == "not stored"

    on_site(test)


class OneServer:
    """An egress that knows one address."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    async def request(self, method: str, url: str, **rest: Any) -> Any:
        self.asked.append((method, url))
        assert rest["present"] is False  # our evidence is no app's
        if url != "https://known.example/":
            raise EgressError("the host is not allowed", "policy", "operator")

        class Answer:
            status_code = 200
            headers = {"content-type": "text/plain"}  # noqa: RUF012
            content = b"from outside"

        return Answer()


def test_https_goes_by_the_egress_and_its_rules() -> None:
    server = OneServer()

    async def test(site: Site) -> None:
        await site.loaded("probe", PROBE)
        assert await ok(site, "fetch", url="https://known.example/") == "from outside"
        assert await err(site, "fetch", url="https://other.example/") == "the host is not allowed"
        assert server.asked == [("GET", "https://known.example/"), ("GET", "https://other.example/")]

    on_site(test, egress=server)


def test_without_egress_an_app_calls_nobody() -> None:
    async def test(site: Site) -> None:
        await site.loaded("probe", PROBE)
        assert "egress.allow" in await err(site, "fetch", url="https://known.example/")

    on_site(test)


RATLS: dict[str, Any] = {
    "tee": "sgx", "mr-enclave": bytes(32), "mr-signer": None, "mr-td": None, "challenge-nonce": None,
    "expected-oids": [{"oid": "1.2.3", "value": b"v"}], "attestation-servers": [],
}  # fmt: skip


def test_what_an_attested_server_must_prove() -> None:
    policy = policy_of(RATLS)
    assert policy.mr_enclaves == {bytes(32)}
    assert dict(policy.oids) == {"1.2.3": b"v"}
    assert policy.allow_simulated is False


@pytest.mark.parametrize(
    "change",
    [
        {"tee": "tdx"}, {"mr-td": bytes(48)}, {"mr-enclave": None}, {"mr-enclave": bytes(31)}, {"mr-signer": bytes(32)},
        {"challenge-nonce": bytes(32)}, {"attestation-servers": ["https://x"]},
    ],
    ids=str,
)  # fmt: skip
def test_what_of_a_policy_cannot_be_held_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        policy_of({**RATLS, **change})


# -- whose data it is when the component changes ----------------------------------------------------------------------


def changed(wasm: bytes) -> bytes:
    """The same program with another hash: a custom section more."""
    return wasm + b"\x00\x05\x04note"


def test_another_component_gets_the_data_only_by_consent() -> None:
    async def test(site: Site) -> None:
        await site.loaded("probe", PROBE)
        await ok(site, "write", path="/a", text="secret")
        await site.loaded("probe", changed(PROBE))
        assert "No such" in await err(site, "read", path="/a")
        await ok(site, "write", path="/a", text="second")
        app = await site.loaded("probe", PROBE, keep_data=True)
        assert await ok(site, "read", path="/a") == "second"
        before, after = hashlib.sha256(changed(PROBE)).hexdigest(), hashlib.sha256(PROBE).hexdigest()
        assert app["consents"] == [{"from": before, "to": after}]
        assert before.encode() in site.module.config_leaves()["app.probe"]
        await site.loaded("probe", PROBE, env={"A": "b"})  # the same code: its own data
        assert await ok(site, "read", path="/a") == "second"
        # A consent is for one replacement: the component alone brings none.
        kind = {"Content-Type": "application/wasm"}
        assert (await site.send("PUT", "/wasm/apps/probe", changed(PROBE), headers=kind)).status == 200
        assert "No such" in await err(site, "read", path="/a")

    on_site(test)


def test_a_key_of_the_developers_comes_again_after_a_start() -> None:
    key = "ab" * 32

    async def main() -> None:
        site = Site(await ModuleStorage.open(), compiled_before=(PROBE,))
        async with site:
            app = await site.loaded("probe", PROBE, encryption_key=key)
            assert app["key_source"] == "byok:" + hashlib.sha256(bytes.fromhex(key)).hexdigest()
            await ok(site, "write", path="/a", text="secret")
        later = await site.again()
        async with later:
            assert json_of(await later.send("GET", "/wasm/apps/probe"))["state"] == "locked"
            assert (await later.call("probe", "read", path="/a")).status == 503
            target = "/wasm/apps/probe/key"
            assert (await later.send("POST", target, b'{"encryption_key": "%s"}' % (b"cd" * 32))).status == 409
            assert (await later.send("POST", target, b"{}")).status == 400
            body = b'{"encryption_key": "%s"}' % key.encode()
            assert (await later.send("POST", target, body, who="eve:")).status == 403
            assert (await later.send("POST", target, body)).status == 200
            assert await ok(later, "read", path="/a") == "secret"
            assert (await later.load("probe", PROBE, keep_data=True, encryption_key="cd" * 32)).status == 409
            # A manager cannot let other code read it without the key, though it is in memory.
            assert (await later.load("probe", changed(PROBE), keep_data=True)).status == 409
            assert (await later.load("probe", changed(PROBE), keep_data=True, encryption_key=key)).status == 200
            assert await ok(later, "read", path="/a") == "secret"

    asyncio.run(main())


def test_two_calls_that_write_one_file_do_not_lose_one() -> None:
    async def test(site: Site) -> None:
        await site.loaded("probe", PROBE)
        await ok(site, "write", path="/log", text="")
        answers = await asyncio.gather(*(site.call("probe", "append", path="/log", text="x\n") for _ in range(12)))
        statuses = [answer.status for answer in answers]
        assert set(statuses) <= {200, 409}
        assert await ok(site, "read", path="/log") == "x\n" * statuses.count(200)

    on_site(test)


def test_another_workers_changes_are_taken() -> None:
    async def main() -> None:
        storage = await ModuleStorage.open()
        one, two = Site(storage, workers=2), Site(storage, workers=2)
        async with one, two:
            await one.loaded("probe", PROBE)
            parts = two.module._parts
            assert parts is not None
            await parts.apps.follow()
            assert await two.value("probe", "hello") == "hello from C"
            await ok(one, "write", path="/a", text="shared")
            assert await ok(two, "read", path="/a") == "shared"
            await one.send("DELETE", "/wasm/apps/probe")
            await parts.apps.follow()
            assert (await two.call("probe", "hello")).status == 404
            assert two.changes == 2

    asyncio.run(main())


def test_persisted_keys_beyond_the_most_are_used_and_not_kept() -> None:
    """An app may persist and drop any number; what lies in the enclave's memory stays bounded."""
    secret = crypto.Key(crypto.SYMMETRIC, bytes(32))

    class Keys:
        async def get(self, name: bytes) -> Item:
            value = json.dumps({"kind": secret.kind, "secret": secret.secret.hex()}).encode()
            return cast("Item", SimpleNamespace(name=name, value=value, version=1))

    held = {str(number): secret for number in range(crypto.KEYS_MAX)}
    context: Any = SimpleNamespace(means=SimpleNamespace(memory_keys=held, keys=Keys()), wait=asyncio.run)
    for name in ("one", "two"):
        assert len(crypto._encrypt(context, name, bytes(12), b"", b"x")) == 17
    assert len(held) == crypto.KEYS_MAX
