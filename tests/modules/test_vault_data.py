"""The first vault's operations through POST /data: a token carries the secret, or asks for it."""

from __future__ import annotations

import hashlib
import json
from typing import Any, cast

import pytest

from enclave_os.http import Response, make_request
from enclave_os.modules.vault.request_fields import encoded
from tests.enclave.tokens import new_key, token
from tests.modules.vault_rig import CLAIMS, Rig, run, said


def test_the_first_vaults_operations() -> None:
    secret = b"the seed's secret"
    digest = hashlib.sha256(secret).hexdigest()

    async def work(rig: Rig) -> None:
        store = {"StoreSecret": {"jwt": Rig.bearer(roles=(), secret=encoded(secret))}}
        get = {"GetSecret": {"jwt": Rig.bearer(roles=(), secret_hash=digest)}}
        other = {"GetSecret": {"jwt": Rig.bearer("bob", roles=(), secret_hash=digest)}}
        assert (await rig.ask("POST", "/data", get, bearer="")).status == 404
        assert said(await rig.ask("POST", "/data", store, bearer="")) == {"SecretStored": {"secret_hash": digest}}
        assert said(await rig.ask("POST", "/data", store, bearer="")) == {"SecretStored": {"secret_hash": digest}}
        assert said(await rig.ask("POST", "/data", get, bearer="")) == {"SecretValue": {"secret": encoded(secret)}}
        assert (await rig.ask("POST", "/data", other, bearer="")).status == 404
        listed = said(await rig.ask("GET", "/vault/secrets"))["secrets"]
        assert [one["path"].rpartition("/")[2] for one in listed] == [digest]

    run(work)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"StoreSecret":{"jwt":"x"}}', 401),
        (b'{"GetSecret":{"jwt":""}}', 401),
        (b'{"StoreSecret":{"jwt":1}}', 400),
        (b'{"StoreSecret":{}}', 400),
        (b'{"StoreSecret":"x"}', 400),
        (b'{"StoreSecret":{"jwt":"x","y":1}}', 400),
        (b'{"Other":{"jwt":"x"}}', 404),
        (b'{"StoreSecret":{"jwt":"x"},"GetSecret":{"jwt":"x"}}', 404),
        (b"{", 404),
        (b"hello", 404),
        (json.dumps({"StoreSecret": {"jwt": token(new_key(), CLAIMS)}}).encode(), 401),
        (json.dumps({"StoreSecret": {"jwt": Rig.bearer()}}).encode(), 400),
        (json.dumps({"GetSecret": {"jwt": Rig.bearer(**cast(dict[str, Any], {"secret_hash": "x"}))}}).encode(), 400),
        (json.dumps({"StoreSecret": {"jwt": Rig.bearer(**cast(dict[str, Any], {"secret": "!"}))}}).encode(), 400),
    ],
)
def test_data_that_is_not_for_us_or_wrong(body: bytes, status: int) -> None:
    async def work(rig: Rig) -> None:
        answer = rig.registry.respond(make_request("POST", "/data", body=body))
        found = answer if isinstance(answer, Response) else await answer
        assert found.status == status

    run(work)


def test_nobody_takes_the_places_of_post_data() -> None:
    async def work(rig: Rig) -> None:
        squatter: dict[str, Any] = {"sub": "data"}
        assert (await rig.ask("PUT", "/vault/secrets/data/x", b"x", **squatter)).status == 403
        assert (await rig.ask("PUT", "/vault/secrets/data/x/y", b"x", **squatter)).status == 403
        stored = Rig.bearer(roles=(), **cast(dict[str, Any], {"secret": "c2VjcmV0"}))
        await rig.ask("POST", "/data", {"StoreSecret": {"jwt": stored}}, bearer="")
        path = said(await rig.ask("GET", "/vault/secrets"))["secrets"][0]["path"]
        assert (await rig.ask("PUT", f"/vault/secrets/{path}", b"new")).status == 200  # its owner may
        assert (await rig.ask("PUT", f"/vault/secrets/{path}", b"new", **squatter)).status == 403

    run(work)
