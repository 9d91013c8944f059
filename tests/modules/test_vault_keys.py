"""Keys: what they make, that they stay, and who may use them for what."""

from __future__ import annotations

import hashlib
import hmac
import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from hypothesis import given, settings
from hypothesis import strategies as st

from enclave_os.http import Response
from enclave_os.modules.vault import transit
from enclave_os.modules.vault.keyring import USES, VERSIONS_MAX
from enclave_os.modules.vault.request_fields import decoded, encoded
from tests.modules.vault_rig import Rig, run, said

URL = "/vault/keys/alice/app"
PLAIN = b"plaintext of somebody"


async def made(rig: Rig, kind: str = transit.AES, target: str = URL, **members: Any) -> dict[str, Any]:
    answer = await rig.ask("PUT", target, {"type": kind, **members})
    assert answer.status == 201, answer.body
    found: dict[str, Any] = said(answer)
    return found


async def use(rig: Rig, operation: str, members: dict[str, Any], *, target: str = URL, **who: Any) -> Response:
    return await rig.ask("POST", f"{target}/{operation}", members, **who)


def test_wrap_and_unwrap_through_rotations() -> None:
    async def work(rig: Rig) -> None:
        assert (await made(rig))["versions"][0]["version"] == 1
        body = {"plaintext": encoded(PLAIN), "context": encoded(b"file 7")}
        first = said(await use(rig, "wrap", body))
        assert first["ciphertext"].startswith("eos:v1:1:")
        assert encoded(PLAIN) not in first["ciphertext"]
        assert said(await use(rig, "wrap", body))["ciphertext"] != first["ciphertext"]
        assert said(await rig.ask("POST", f"{URL}/rotate"))["latest"] == 2
        second = said(await use(rig, "wrap", body))
        assert second["version"] == 2
        for wrapped in (first, second):
            open_it = {"ciphertext": wrapped["ciphertext"], "context": encoded(b"file 7")}
            opened = said(await use(rig, "unwrap", open_it))
            assert (decoded(opened["plaintext"]), opened["version"]) == (PLAIN, wrapped["version"])
            assert (await use(rig, "unwrap", open_it | {"context": ""})).status == 422
        again = said(await use(rig, "rewrap", {"ciphertext": first["ciphertext"], "context": encoded(b"file 7")}))
        assert again["ciphertext"].startswith("eos:v1:2:")
        assert (await rig.ask("DELETE", f"{URL}?versions=1")).status == 200
        gone = {"ciphertext": first["ciphertext"], "context": encoded(b"file 7")}
        assert (await use(rig, "unwrap", gone)).status == 404
        kept = {"ciphertext": again["ciphertext"], "context": encoded(b"file 7")}
        restarted = await rig.again()
        assert decoded(said(await use(restarted, "unwrap", kept))["plaintext"]) == PLAIN

    run(work)


def test_signatures_are_those_of_the_public_key() -> None:
    async def work(rig: Rig) -> None:
        pem = (await made(rig, transit.ECDSA))["versions"][0]["public_key_pem"]
        public = load_pem_public_key(pem.encode())
        assert isinstance(public, ec.EllipticCurvePublicKey)
        message = {"message": encoded(PLAIN)}
        der = decoded(said(await use(rig, "sign", message))["signature"]) or b""
        public.verify(der, PLAIN, ec.ECDSA(hashes.SHA256()))
        digest = {"digest": encoded(hashlib.sha256(PLAIN).digest()), "encoding": "raw"}
        raw = decoded(said(await use(rig, "sign", digest))["signature"]) or b""
        assert len(raw) == 64
        numbers = int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big")
        public.verify(encode_dss_signature(*numbers), PLAIN, ec.ECDSA(hashes.SHA256()))
        for body, valid in (
            (message | {"signature": encoded(der)}, True),
            (message | {"signature": encoded(raw), "encoding": "raw"}, True),
            (message | {"signature": encoded(raw)}, False),
            (message | {"signature": encoded(der), "encoding": "raw"}, False),
            (message | {"signature": encoded(bytes(64)), "encoding": "raw"}, False),
            ({"message": encoded(b"other"), "signature": encoded(der)}, False),
        ):
            assert said(await use(rig, "verify", body))["valid"] is valid
        await rig.ask("POST", f"{URL}/rotate")
        assert said(await use(rig, "verify", message | {"signature": encoded(der)}))["valid"] is False
        assert said(await use(rig, "verify", message | {"signature": encoded(der), "version": 1}))["valid"] is True

    run(work)


def test_hmac() -> None:
    async def work(rig: Rig) -> None:
        await made(rig, transit.HMAC, exportable=True)
        key = decoded(said(await rig.ask("GET", f"{URL}/export"))["key"]) or b""
        found = said(await use(rig, "hmac", {"message": encoded(PLAIN)}))["hmac"]
        assert decoded(found) == hmac.digest(key, PLAIN, "sha256")
        for value, valid in ((found, True), (encoded(bytes(32)), False), ("", False)):
            body = {"message": encoded(PLAIN), "hmac": value}
            assert said(await use(rig, "hmac-verify", body))["valid"] is valid

    run(work)


def test_keys_stay_unless_they_were_made_to_leave() -> None:
    async def work(rig: Rig) -> None:
        shown = [await made(rig), await made(rig, transit.ECDSA, "/vault/keys/alice/ec", exportable=True)]
        assert (await rig.ask("GET", f"{URL}/export")).status == 403
        exported = said(await rig.ask("GET", "/vault/keys/alice/ec/export"))
        private = load_pem_private_key(exported["key"].encode(), None)
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        shown += [said(await rig.ask("GET", URL)), said(await rig.ask("GET", "/vault/keys"))]
        text = json.dumps(shown)
        assert "PRIVATE" not in text
        assert (await rig.ask("PUT", URL, {"type": transit.AES, "exportable": True})).status == 409
        assert (await rig.ask("GET", f"{URL}/export", sub="bob")).status == 403

    run(work)


def test_policies_are_per_operation() -> None:
    async def work(rig: Rig) -> None:
        await made(rig)
        document = {"owners": ["alice"], "rules": [
            {"effect": "allow", "actions": ["key.wrap"], "roles": ["app"]},
            {"effect": "allow", "actions": ["key.unwrap"], "enclaves": [{"mr_enclaves": ["01" * 32]}]},
            {"effect": "deny", "actions": ["key.unwrap"], "roles": ["app"]},
        ]}  # fmt: skip
        assert (await rig.ask("PUT", f"{URL}/policy", document)).status == 200
        assert said(await rig.ask("GET", f"{URL}/policy"))["rules"] == document["rules"]
        app: dict[str, Any] = {"sub": "app", "roles": ("app",)}
        wrapped = said(await use(rig, "wrap", {"plaintext": encoded(PLAIN)}, **app))["ciphertext"]
        assert (await use(rig, "unwrap", {"ciphertext": wrapped}, **app)).status == 403
        assert (await use(rig, "rewrap", {"ciphertext": wrapped}, **app)).status == 403
        assert (await rig.ask("POST", f"{URL}/rotate", **app)).status == 403
        assert (await use(rig, "unwrap", {"ciphertext": wrapped})).status == 200

    run(work)


def test_a_strangers_refusals_tell_nothing() -> None:
    """For each operation: the same answer, after the same calls to the host, whether the key is there or not."""

    async def work(rig: Rig) -> None:
        await made(rig)
        bodies = {
            "wrap": {"plaintext": ""}, "unwrap": {"ciphertext": "x"}, "rewrap": {"ciphertext": "x"},
            "sign": {"message": ""}, "verify": {"message": "", "signature": ""}, "hmac": {"message": ""},
            "hmac-verify": {"message": "", "hmac": ""}, "rotate": None, "": None, "policy": None, "export": None,
        }  # fmt: skip
        for operation, body in bodies.items():
            seen = []
            for name in ("app", "not-there"):
                before = rig.storage.rows.gets + rig.storage.rows.batches
                method = "POST" if body is not None or operation == "rotate" else "GET"
                ending = f"/{operation}" if operation else ""
                answer = await rig.ask(method, f"/vault/keys/alice/{name}{ending}", body or b"", sub="mallory")
                calls = rig.storage.rows.gets + rig.storage.rows.batches - before
                seen.append((answer.status, answer.body, answer.headers, calls))
            assert seen[0] == seen[1], operation
            assert seen[0][0] == 403

    run(work)


def test_lists_and_the_end_of_a_key() -> None:
    async def work(rig: Rig) -> None:
        for name in ("b", "a"):
            await made(rig, target=f"/vault/keys/alice/{name}")
        assert [one["name"] for one in said(await rig.ask("GET", "/vault/keys"))["keys"]] == ["alice/a", "alice/b"]
        assert said(await rig.ask("GET", "/vault/keys?limit=1"))["next"] == "alice/a"
        assert said(await rig.ask("GET", "/vault/keys", sub="bob"))["keys"] == []
        assert (await rig.ask("DELETE", "/vault/keys/alice/a")).status == 200
        assert (await rig.ask("GET", "/vault/keys/alice/a")).status == 404
        for _ in range(VERSIONS_MAX - 1):
            assert (await rig.ask("POST", "/vault/keys/alice/b/rotate")).status == 200
        assert (await rig.ask("POST", "/vault/keys/alice/b/rotate")).status == 409
        assert (await rig.ask("DELETE", "/vault/keys/alice/b?versions=1,2")).status == 200
        assert said(await rig.ask("POST", "/vault/keys/alice/b/rotate"))["latest"] == VERSIONS_MAX + 1

    run(work)


def test_random() -> None:
    async def work(rig: Rig) -> None:
        seen = {said(await rig.ask("POST", "/vault/random", {"bytes": 32}))["random"] for _ in range(3)}
        assert len(seen) == 3
        assert {len(decoded(one) or b"") for one in seen} == {32}
        for wrong in (0, -1, 4097, "32", True, None):
            assert (await rig.ask("POST", "/vault/random", {"bytes": wrong})).status == 400
        assert (await rig.ask("POST", "/vault/random", {"bytes": 32}, roles=())).status == 403

    run(work)


@pytest.mark.parametrize(
    ("operation", "body"),
    [
        ("wrap", {}), ("wrap", {"plaintext": "!"}), ("wrap", {"plaintext": 1}), ("wrap", {"plaintext": "", "x": 1}),
        ("sign", {}), ("sign", {"message": "", "digest": ""}), ("sign", {"digest": "AAAA"}),
        ("sign", {"message": "", "encoding": "pem"}), ("hmac", {"message": None}),
        ("verify", {"message": "", "signature": "", "version": -1}),
        ("verify", {"message": "", "signature": "", "version": True}), ("wrap", []),
    ],
)  # fmt: skip
def test_bodies_that_cannot_be_meant(operation: str, body: Any) -> None:
    async def work(rig: Rig) -> None:
        await made(rig)
        assert (await rig.ask("POST", f"{URL}/{operation}", json.dumps(body).encode())).status == 400

    run(work)


def test_a_key_does_what_its_type_does() -> None:
    bodies = {
        "key.wrap": {"plaintext": ""}, "key.unwrap": {"ciphertext": "eos:v1:1:" + "A" * 64},
        "key.rewrap": {"ciphertext": "eos:v1:1:" + "A" * 64}, "key.sign": {"message": ""},
        "key.verify": {"message": "", "signature": ""}, "key.hmac": {"message": ""},
        "key.hmac-verify": {"message": "", "hmac": ""},
    }  # fmt: skip

    async def work(rig: Rig) -> None:
        for kind in transit.TYPES:
            await made(rig, kind, f"/vault/keys/alice/{kind}")
            for action, body in bodies.items():
                answer = await use(rig, action.partition(".")[2], body, target=f"/vault/keys/alice/{kind}")
                if USES[action] != kind:
                    assert (answer.status, "type" in said(answer)["error"]) == (422, True)
                else:
                    assert answer.status == (422 if action in ("key.unwrap", "key.rewrap") else 200)
        assert (await rig.ask("PUT", URL, {"type": "rsa"})).status == 400

    run(work)


# -- the pure part -------------------------------------------------------------------------


@given(st.binary(max_size=200), st.binary(max_size=50), st.integers(1, 10**15), st.integers(0))
@settings(max_examples=200, deadline=None)
def test_a_ciphertext_opens_as_it_is_or_not_at_all(plain: bytes, context: bytes, version: int, at: int) -> None:
    key, other = bytes(32), bytes([1]) * 32
    text = transit.wrap(key, "n", version, plain, context, random.Random(1).randbytes)
    assert transit.wrapped_version(text) == version
    assert transit.unwrap(key, "n", text, context) == plain
    mistakes: tuple[Callable[[], object], ...] = (
        lambda: transit.unwrap(other, "n", text, context),
        lambda: transit.unwrap(key, "m", text, context),
        lambda: transit.unwrap(key, "n", text, context + b"x"),
        lambda: transit.unwrap(key, "n", text.replace(f":{version}:", f":{version + 1}:", 1), context),
        lambda: transit.unwrap(key, "n", flipped(text, at), context),
    )
    for spoilt in mistakes:
        with pytest.raises(transit.WrongKey):
            spoilt()


def flipped(text: str, at: int) -> str:
    head, _, body = text.rpartition(":")
    data = bytearray(decoded(body) or b"")
    data[at % len(data)] ^= 1 << (at % 8)
    return f"{head}:{encoded(bytes(data))}"


@pytest.mark.parametrize(
    "text", ["", "eos:v1:", "eos:v1:1:", "eos:v1:0:" + "A" * 64, "eos:v1:01:" + "A" * 64, "eos:v2:1:" + "A" * 64,
             "eos:v1:1:" + "A" * 57, "eos:v1:1:" + "A" * 65, "eos:v1:1:" + "A" * 63 + "=", "eos:v1:x:" + "A" * 64],
)  # fmt: skip
def test_texts_that_are_no_ciphertext(text: str) -> None:
    with pytest.raises(transit.WrongKey):
        transit.unwrap(bytes(32), "n", text, b"")


def test_a_swapped_signature_is_refused() -> None:
    key = transit.generate(transit.ECDSA, bytes)
    digest = transit.digest_of(PLAIN)
    raw = transit.sign(key, digest, raw=True)
    assert transit.verify(key, digest, raw, raw=True)
    assert not transit.verify(key, digest, raw[32:] + raw[:32], raw=True)
