"""What the platform's key no longer opens, its owner opens; and what a host can make of that, which is nothing."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from enclave_os.errors import ConfigError, HostRefused, SealBroken
from enclave_os.evidence.protocol import RECOVER_PATH, b64url, read_b64url
from enclave_os.http import HTTPError, make_request
from enclave_os.modules.recover import RecoverRoutes
from enclave_os.modules.registry import Registry
from enclave_os.runtime.clock import Clock
from enclave_os.runtime.recovering import Recovering
from enclave_os.sealing import blob, sealed_config
from enclave_os.sealing.keeper import SealKeeper
from enclave_os.sealing.opening import open_blob, seal_config
from enclave_os.sealing.sealed_config import SealedConfig, first
from enclave_os.wire.rpc import Method
from enclave_os_client import cli
from tests.enclave.module_services import DenyAll, answer, make_services
from tests.enclave.sealing import FakePlatform, owner, owner_pem, policy
from tests.modules.transfer_rig import Stored

BEFORE = FakePlatform()
AFTER = FakePlatform(key=b"l" * 32)
OWNED = policy(seal={"owner_public_key_pem": owner_pem()})
LOGGER = logging.getLogger("test")


class Sessions:
    """Admits so many messages."""

    def __init__(self) -> None:
        self.left = 1000

    def admit(self, connection: object) -> Any:
        self.left -= 1
        return None if self.left >= 0 else type("Busy", (), {"retry_after_s": 3})()


class Waiting:
    """An enclave that waits, on the platform as it is now."""

    def __init__(self, data: bytes, own_policy: bytes = OWNED, platform: FakePlatform = AFTER) -> None:
        self.disk = Stored()
        self.disk.blob = data
        self.keeper = SealKeeper(cast(Any, self.disk), platform, own_policy)
        self.sessions = Sessions()
        self.ends = 0
        self.recovering = Recovering(
            self.keeper, platform, own_policy, sessions=cast(Any, self.sessions), clock=Clock(), logger=LOGGER,
            done=self._done,
        )  # fmt: skip

    def _done(self) -> None:
        self.ends += 1

    def begin(self) -> None:
        asyncio.run(self.recovering.begin())

    def bring(self, data_key: bytes, signature: bytes) -> int:
        return asyncio.run(self.recovering.recover(cast(Any, None), data_key, signature))


def granted(data: bytes, key: rsa.RSAPrivateKey | None = None) -> tuple[bytes, bytes]:
    """What an owner makes of a blob, without looking."""
    found = blob.parse(data)
    key = key or owner()
    return blob.unwrap_as_owner(found, key), blob.grant(found, key)


def sealed(platform: FakePlatform = BEFORE) -> tuple[SealedConfig, bytes]:
    config = replace(first(OWNED), boot_count=7, kv_version=3, kv_root=b"r" * 32)
    return config, seal_config(config, platform)


def test_the_owner_opens_it_and_it_goes_on() -> None:
    config, data = sealed()
    with pytest.raises(SealBroken, match="enclave-os seal recover"):
        open_blob(data, AFTER)
    waiting = Waiting(data)
    waiting.begin()
    assert waiting.bring(*granted(data)) == 8
    assert waiting.ends == 1
    found = open_blob(waiting.disk.blob, AFTER)
    assert (found.master_key, found.boot_count, found.recoveries) == (config.master_key, 8, 1)
    assert found.boot_nonce != config.boot_nonce
    assert (found.kv_version, found.kv_root, found.policy) == (3, b"r" * 32, config.policy)
    # The data key is a fresh one: the grant opens the former file and no other.
    data_key, signature = granted(data)
    with pytest.raises(SealBroken):
        blob.open_with_data_key(blob.parse(waiting.disk.blob), data_key)
    with pytest.raises(HTTPError) as again:
        waiting.bring(data_key, signature)
    assert (again.value.status, waiting.ends) == (409, 1)


@pytest.mark.parametrize(
    ("data", "platform", "why"),
    [
        (b"", AFTER, "nothing to recover"),
        (sealed()[1], BEFORE, "start without --recover"),
        (seal_config(first(policy()), BEFORE), AFTER, "no second wrap"),
        (sealed()[1][:-1], AFTER, "cut short"),
    ],
    ids=["none", "it opens", "one wrap", "damaged"],
)
def test_a_start_that_has_nothing_to_wait_for(data: bytes, platform: FakePlatform, why: str) -> None:
    waiting = Waiting(data, platform=platform)
    with pytest.raises((SealBroken, ConfigError), match=why):
        waiting.begin()
    assert waiting.disk.writes == 0


def refused(waiting: Waiting, data_key: bytes, signature: bytes) -> str:
    """Why; nothing was written, and it waits on."""
    writes = waiting.disk.writes
    with pytest.raises(HTTPError) as error:
        waiting.bring(data_key, signature)
    assert (error.value.status, waiting.disk.writes, waiting.ends) == (403, writes, 0)
    return error.value.message


def test_what_opens_nothing() -> None:
    _, data = sealed()
    waiting = Waiting(data)
    waiting.begin()
    data_key, signature = granted(data)
    assert "does not open" in refused(waiting, os.urandom(32), signature)
    assert "32 bytes" in refused(waiting, b"short", signature)
    for spoiled in (b"", signature[:-1], bytes(len(signature)), granted(sealed()[1])[1]):
        assert "owner's signature does not fit" in refused(waiting, data_key, spoiled)
    stranger = rsa.generate_private_key(65537, 3072)
    assert "owner's signature does not fit" in refused(waiting, data_key, blob.grant(blob.parse(data), stranger))
    assert waiting.bring(data_key, signature) == 8


def test_a_blob_of_the_hosts_own_opens_for_nobody() -> None:
    """It knows the owner's public key, and so can wrap to it; it brings the data key itself, and has all but the
    owner's signature. What the owner signed before is of another blob."""
    true = sealed()[1]
    forged = seal_config(first(OWNED), FakePlatform(key=b"h" * 32))
    waiting = Waiting(forged)
    waiting.begin()
    data_key, _ = granted(forged)  # as the host, which drew it, has it
    for signature in (b"", granted(true)[1]):
        assert "owner's signature does not fit" in refused(waiting, data_key, signature)


def test_a_host_with_an_owner_of_its_own_says_so() -> None:
    """All that it can have is what a first boot would give it: an enclave whose second wrap names it."""
    host = rsa.generate_private_key(65537, 3072)
    pem = host.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    forged = seal_config(first(policy(seal={"owner_public_key_pem": pem})), BEFORE)
    waiting = Waiting(forged)  # under the true owner's configuration
    waiting.begin()
    assert "seal.owner_public_key_pem" in refused(waiting, *granted(forged, host))


def test_a_wrap_to_another_key_than_the_policys_owner() -> None:
    """The blob's second wrap is the host's, its content names the owner: the signature must be the owner's."""
    host = rsa.generate_private_key(65537, 3072)
    der = host.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    config = first(OWNED)
    forged = blob.seal(
        sealed_config.encode(config), platform=blob.PlatformKey(BEFORE.measurement, BEFORE.cpu_svn, BEFORE.key),
        owner_key=base64.b64encode(der).decode(), signer=blob.signing_key(config.master_key),
    )  # fmt: skip
    waiting = Waiting(forged)
    waiting.begin()
    assert "for another key than its policy's owner" in refused(waiting, *granted(forged, host))


def test_a_host_that_does_not_store_it() -> None:
    _, data = sealed()
    waiting = Waiting(data)
    waiting.begin()
    grant = granted(data)
    store, failures = waiting.disk.call, [HostRefused("no space"), None]

    async def call(*arguments: Any, **more: Any) -> bytes:
        error = failures.pop(0)
        if error is not None:
            raise error
        return await store(*arguments, **more)

    waiting.disk.call = call  # type: ignore[method-assign]
    with pytest.raises(HTTPError) as error:
        waiting.bring(*grant)
    assert (error.value.status, waiting.ends) == (503, 0)
    assert waiting.bring(*grant) == 8


def test_messages_are_bounded() -> None:
    _, data = sealed()
    waiting = Waiting(data)
    waiting.begin()
    waiting.sessions.left = 0
    with pytest.raises(HTTPError) as error:
        waiting.bring(b"", b"")
    assert error.value.status == 429


# -- the owner's command -----------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    config, data = sealed()
    (tmp_path / "config.sealed").write_bytes(data)
    pem = owner().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "owner.pem").write_bytes(pem)
    (tmp_path / "blob-key").write_text(blob.blob_key_of(config.master_key).hex())
    return {name: tmp_path / name for name in ("config.sealed", "owner.pem", "blob-key", "grant.json")}


def unwrap(files: dict[str, Path], *more: str | Path, blob_key: str | None = None) -> int:
    known = ["--blob-key", blob_key or files["blob-key"].read_text()]
    if "--unverified" in more:
        known = []
    arguments = ["seal", "unwrap", files["config.sealed"], "--key", files["owner.pem"], *known, *more]
    return cli.main([str(argument) for argument in arguments])


def test_unwrap_writes_a_grant_that_opens_the_file(files: dict[str, Path], capsys: Any) -> None:
    assert unwrap(files, "--grant", files["grant.json"]) == 0
    shown = capsys.readouterr().out
    assert "boot                  7" in shown
    assert files["grant.json"].stat().st_mode & 0o777 == 0o600
    grant = json.loads(files["grant.json"].read_text())
    assert grant["measurement"] == BEFORE.measurement.hex()
    assert grant["data_key"] not in shown
    waiting = Waiting(files["config.sealed"].read_bytes())
    waiting.begin()
    assert waiting.bring(*(read_b64url(grant[name]) for name in ("data_key", "signature"))) == 8
    assert unwrap(files, "--grant", files["grant.json"]) == os.EX_CANTCREAT


def test_unwrap_knows_a_forged_file(files: dict[str, Path], capsys: Any) -> None:
    forged = seal_config(first(OWNED), BEFORE)
    files["config.sealed"].write_bytes(forged)
    assert unwrap(files, "--grant", files["grant.json"]) == os.EX_DATAERR
    assert "do not unwrap it" in capsys.readouterr().err
    assert not files["grant.json"].exists()
    # Under the noted key's name, and signed by whoever: the signature is looked at first.
    noted = bytes.fromhex(files["blob-key"].read_text())
    files["config.sealed"].write_bytes(forged[:48] + noted + forged[80:])
    assert unwrap(files, "--grant", files["grant.json"]) == os.EX_DATAERR
    assert "its signature does not fit" in capsys.readouterr().err
    files["config.sealed"].write_bytes(forged)
    assert unwrap(files, "--unverified") == 0
    shown = capsys.readouterr()
    assert "NOT VERIFIED" in shown.err
    assert "no grant was written" in shown.out


def test_unwrap_refuses_an_older_file_and_odd_keys(files: dict[str, Path], capsys: Any) -> None:
    assert unwrap(files, "--boot-min", "8") == os.EX_DATAERR
    assert "an older one is there" in capsys.readouterr().err
    assert unwrap(files, "--boot-min", "7") == 0
    for pem in (b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"):
        files["owner.pem"].write_bytes(pem)
        assert unwrap(files) == os.EX_DATAERR
    stranger = rsa.generate_private_key(65537, 3072)
    files["owner.pem"].write_bytes(stranger.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    assert unwrap(files) == os.EX_DATAERR
    assert "does not undo the second wrap" in capsys.readouterr().err


# -- the route ---------------------------------------------------------------------------------------------------------


class Told:
    """Remembers what was brought."""

    def __init__(self) -> None:
        self.brought: list[tuple[bytes, bytes]] = []

    async def recover(self, connection: object, data_key: bytes, signature: bytes) -> int:
        self.brought.append((data_key, signature))
        return 9


def test_the_route_reads_strictly() -> None:
    told = Told()
    made = Registry([RecoverRoutes(told)], DenyAll(), LOGGER)
    asyncio.run(made.start(lambda module: make_services(modules=made.names)))
    right = {"data_key": b64url(b"k" * 32), "signature": b64url(b"s" * 384)}
    connection = cast(Any, object())
    documents: tuple[object, ...] = (
        [], {}, right | {"more": 1}, right | {"data_key": None}, right | {"signature": "a b"},
        right | {"data_key": right["data_key"] + "="},
    )  # fmt: skip
    for document in documents:
        request = make_request("POST", RECOVER_PATH, body=json.dumps(document).encode(), connection=connection)
        refusal = answer(made, request)
        assert refusal.status == 400
        assert right["data_key"] not in refusal.body.decode()
    assert told.brought == []
    done = answer(made, make_request("POST", RECOVER_PATH, body=json.dumps(right).encode(), connection=connection))
    assert (done.status, json.loads(done.body)) == (200, {"boot_count": 9})
    assert told.brought == [(b"k" * 32, b"s" * 384)]


def test_who_leaves_while_it_is_sealed_anew_does_not_leave_it_waiting() -> None:
    _, data = sealed()
    waiting = Waiting(data)
    waiting.begin()

    async def leave() -> None:
        gate, asked, done = asyncio.Event(), asyncio.Event(), asyncio.Event()
        call = waiting.disk.call

        async def slow(method: Method, payload: bytes = b"", *, deadline: float | None = None) -> bytes:
            asked.set()
            await gate.wait()
            return await call(method, payload, deadline=deadline)

        waiting.disk.call = slow  # type: ignore[method-assign]
        waiting.recovering._done = done.set
        task = asyncio.create_task(waiting.recovering.recover(cast(Any, None), *granted(data)))
        await asked.wait()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert waiting.disk.writes == 0
        gate.set()
        await done.wait()

    asyncio.run(leave())
    assert open_blob(waiting.disk.blob, AFTER) == waiting.keeper.config
