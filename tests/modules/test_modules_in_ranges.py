"""The modules over a store in several ranges: what they keep is there, and spreads where it can."""

from __future__ import annotations

import asyncio
from pathlib import Path

from enclave_os.modules.vault import transit
from tests.modules import test_kv_module as kv_rig
from tests.modules import vault_rig
from tests.modules.storage import ModuleStorage
from tests.modules.wasm_rig import Site, json_of

RANGES = 7
PROBE = (Path(__file__).parent / "guests" / "probe.wasm").read_bytes()


def used(storage: ModuleStorage) -> set[int]:
    """The ranges that anything was written to."""
    return {index for index, one in enumerate(storage.ranges) if one.state[0]}


def test_the_vault_lies_in_one_range_so_that_every_change_has_its_record() -> None:
    """Its batches are over its secrets, their values, approvals and the audit's page."""

    async def main() -> None:
        storage = await ModuleStorage.open(ranges=RANGES)
        rig = await vault_rig.Rig.open(storage=storage)
        url = "/vault/secrets/alice/db"
        policy = {"owners": ["alice"], "approval": {"roles": ["approver"], "seconds": 60}}
        for method, target, body, sub, roles in (
            ("PUT", url, b"one", "alice", vault_rig.WRITER),
            ("PUT", url, bytes(100_000), "alice", vault_rig.WRITER),
            ("PUT", f"{url}/policy", policy, "alice", vault_rig.WRITER),
            ("POST", f"{url}/approve", {"subject": "alice"}, "carol", ("approver",)),
            ("GET", f"{url}?version=1", b"", "alice", vault_rig.WRITER),
            ("PUT", "/vault/keys/alice/app", {"type": transit.AES}, "alice", vault_rig.WRITER),
        ):
            answer = await rig.ask(method, target, body, sub=sub, roles=roles)
            assert answer.status < 300, (method, target, answer.body)
        assert used(storage) == {storage.placement.of("vault", "", "secrets", alone=False)}
        rig = await rig.again()
        assert len(await rig.audit()) >= 6
        assert (await rig.ask("GET", f"{url}/versions")).status == 200
        await rig.registry.stop()

    asyncio.run(main())


def test_each_apps_data_lies_apart_and_what_the_module_knows_of_apps_together() -> None:
    async def main() -> None:
        site = Site(await ModuleStorage.open(ranges=RANGES), compiled_before=(PROBE,))
        places: dict[str, int] = {}
        async with site:
            placement, parts = site.storage.placement, site.module._parts
            assert parts is not None
            own = placement.of("wasm", "", "apps", alone=False)
            for number in range(6):
                app = f"app{number}"
                await site.loaded(app, PROBE)
                namespace = (await parts.store.records())[app].namespace
                places[app] = placement.of("wasm", namespace, "files", alone=False)
                assert (await site.call(app, "write", path="/a", text=app)).status == 200
            await parts.store_meters()
            assert used(site.storage) == {own, *places.values()}
        site = await site.again()
        async with site:
            for app in places:
                assert json_of(await site.call(app, "read", path="/a"))["ok"] == app
                assert (await site.send("DELETE", f"/wasm/apps/{app}")).status == 204
                assert (await site.call(app, "read", path="/a")).status == 404

    asyncio.run(main())


def test_the_namespaces_of_kv_spread() -> None:
    async def main() -> None:
        rig = await kv_rig.Rig.open(RANGES)
        for number in range(24):
            name = f"ns{number}"
            scopes = f"kv:{name}:read kv:{name}:write"
            assert (await rig.ask("PUT", f"/kv/{name}/key", name.encode(), scopes)).status == 200
            assert (await rig.ask("GET", f"/kv/{name}/key", scopes=scopes)).body == name.encode()
            assert kv_rig.listed(await rig.ask("GET", f"/kv/{name}", scopes=scopes)) == (["key"], None)
        places = {rig.storage.placement.of("kv", "", f"ns{number}", alone=True) for number in range(24)}
        assert used(rig.storage) == places
        assert len(places) > RANGES // 2

    asyncio.run(main())
