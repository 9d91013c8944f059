"""The key-value store of a whole server: what was acknowledged survives any end, and a host that lies is found out."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from enclave_os.evidence import oids
from enclave_os.evidence.protocol import read_b64url
from enclave_os.wire.kv import Operation, OperationKind, Scan
from enclave_os_host.kv_store import KVStore
from tests.e2e.kv_site import KVSite
from tests.e2e.server import Overrides, Server
from tests.e2e.test_attestation import manifest
from tests.e2e.wire import HELLO, Connection

REFUSED = 1


@pytest.fixture
def site(python: Path, tmp_path: Path) -> Iterator[KVSite]:
    made = KVSite(python, tmp_path)
    yield made
    made.stop()


def state_of(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = manifest(server)["state"]
    return found


def state_in_leaf(server: Server) -> tuple[bytes, int]:
    """Root and version in the certificate of a new connection (P.2.6)."""
    context = ssl.create_default_context(cafile=server.ca_file)
    with (
        socket.create_connection(("localhost", server.port), timeout=60) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        leaf = x509.load_der_x509_certificate(connection.getpeercert(binary_form=True) or b"")
    value = leaf.extensions.get_extension_for_oid(x509.ObjectIdentifier(oids.KV_STATE)).value
    assert isinstance(value, x509.UnrecognizedExtension)
    return value.value[:32], int.from_bytes(value.value[32:], "big")


def end(server: Server) -> None:
    """As a power cut does: both processes at once."""
    server._asked = True
    for pid in (server.host_pid, *server.enclave_pids.values()):
        os.kill(pid, signal.SIGKILL)
    assert server.wait() == -signal.SIGKILL


def test_the_command_line_from_start_to_start(site: KVSite) -> None:
    server = site.start()
    blob = os.urandom(200_000)
    (site.folder / "blob").write_bytes(blob)
    assert site.command(server, "kv", "put", "ns", "orders/17", "two") == b"1\n"
    site.command(server, "kv", "put", "ns", "blob", "--file", site.folder / "blob")
    site.command(server, "kv", "put", "ns", "%00%ff", "--encoded", given=b"from standard input")
    server.stop()
    assert "the key-value store is open" not in server.log
    again = site.start()
    again.wait_for_log("the key-value store is open: 4 rows, version 3")
    assert site.command(again, "kv", "get", "ns", "orders/17") == b"two"
    assert site.command(again, "kv", "get", "ns", "blob") == blob
    assert site.command(again, "kv", "list", "ns") == b"%00%FF\nblob\norders%2F17\n"
    assert json.loads(site.command(again, "kv", "list", "ns", "--prefix", "o", "--json")) == {
        "key": "orders%2F17", "version": 1,
    }  # fmt: skip
    assert b"has version 1" in site.command(
        again, "kv", "put", "ns", "orders/17", "x", "--if-absent", code=os.EX_DATAERR
    )
    site.command(again, "kv", "put", "ns", "orders/17", "three", "--if-version", "1")
    assert b"scope" in site.command(again, "kv", "get", "ns", "blob", code=os.EX_NOPERM, scopes=["kv:other:read"])
    site.command(again, "kv", "delete", "ns", "orders/17")
    assert b"no such key" in site.command(again, "kv", "get", "ns", "orders/17", code=os.EX_NOINPUT)


def test_the_largest_value_and_one_more_byte(site: KVSite) -> None:
    """KV10: 16 MiB through TLS, parts and rings, and back."""
    server = site.start()
    value = os.urandom(1 << 20) * 16
    with site.client(server) as client:
        assert client.put("/kv/ns/large", content=value).status_code == 200
        assert client.get("/kv/ns/large").content == value
        assert client.put("/kv/ns/large", content=value + b"\0").status_code == 413
        assert client.put("/kv/ns/" + "k" * 1024, content=b"").status_code == 200
        assert client.put("/kv/ns/" + "k" * 1025, content=b"").status_code == 400


def test_a_power_cut_loses_nothing_and_evidence_is_live(site: KVSite) -> None:
    server = site.start({"kv": {"checkpoint": 3600}})
    before = state_of(server)
    assert (before["version"], before["root"]) == (0, None)
    with site.client(server) as client:
        for number in range(20):
            assert client.put(f"/kv/ns/{number}", content=b"%d" % number).status_code == 200
    after = state_of(server)
    assert (after["boot"], after["version"]) == (1, 20)
    assert state_in_leaf(server) == (read_b64url(after["root"]), 20)
    end(server)
    again = site.start()
    again.wait_for_log("21 rows, version 20")
    found = state_of(again)
    assert (found["boot"], found["version"], found["root"]) == (2, 20, after["root"])
    with site.client(again) as client:
        assert [client.get(f"/kv/ns/{number}").content for number in range(20)] == [b"%d" % n for n in range(20)]
    with site.client(again, roles=["monitoring"]) as client:
        counters = client.get("/metrics").json()["counters"]
    assert (counters["kv_rows"], counters["kv_version"], counters["kv_tampering_total"]) == (21, 20, 0)


def test_kv5_a_lost_configuration_is_no_first_boot(site: KVSite) -> None:
    server = site.start()
    with site.client(server) as client:
        client.put("/kv/ns/a", content=b"1")
    server.stop()
    blob = site.sealed / "config.sealed"
    held = blob.read_bytes()
    blob.unlink()
    log = site.refused()
    assert "the key-value store of this measurement exists" in log
    assert not blob.exists()
    blob.write_bytes(held)
    site.start()


def test_kv4_a_store_from_before_the_checkpoint_is_refused_and_a_whole_older_state_by_who_remembers(
    site: KVSite,
) -> None:
    memory = site.folder / "memory.json"
    drained: Overrides = {"kv": {"checkpoint": 3600}}  # no checkpoint is due: the drains seal what was written
    server = site.start(drained)
    with site.client(server) as client:
        client.put("/kv/ns/balance", content=b"100")
    server.stop()
    old = site.copy(site.sealed, "old")
    server = site.start(drained)
    with site.client(server) as client:
        client.put("/kv/ns/balance", content=b"0")
    site.verify(server, memory)
    server.stop()
    new = site.copy(site.sealed, "new")
    site.put_back(old / "store", site.sealed / "store")  # the store alone: the sealed checkpoint knows better
    assert "the key-value store is refused" in site.refused()
    shutil.rmtree(site.sealed / "store")  # or nothing at all
    assert "the key-value store is refused" in site.refused()
    site.put_back(old, site.sealed)  # both: the enclave cannot know, and a client that remembers does
    rolled_back = site.start()
    with site.client(rolled_back) as client:
        assert client.get("/kv/ns/balance").content == b"100"
        client.put("/kv/ns/more", content=b"writes")
    assert "REFUSED" in site.verify(rolled_back, memory, REFUSED)
    refused = site.command(rolled_back, "kv", "get", "ns", "balance", "--state", memory, code=REFUSED)
    assert b"REFUSED" in refused
    assert b"100" not in refused
    rolled_back.stop()
    site.put_back(new, site.sealed)
    site.verify(site.start(), memory)


def edit(folder: Path, lie: str) -> None:
    """What a host does to the rows of a server that is down, through RocksDB's own API."""
    store = KVStore(folder, sync="always", cache_bytes=8 << 20, report=print)
    store.get(bytes(16), b"open")
    rows = {name: store.scan(Scan(name, b"", b"", 1000))[0] for name in store._families}
    journal = next(name for name, found in rows.items() if found and all(len(key) == 8 for key, _ in found))
    table = max((name for name in rows if name != journal), key=lambda name: len(rows[name]))
    (first, record), (second, other) = rows[table][:2]
    operations = {
        "flipped": [Operation(OperationKind.PUT, table, first, record[:-20] + bytes([record[-20] ^ 1]) + record[-19:])],
        "tag": [Operation(OperationKind.PUT, table, first, record[:-1] + bytes([record[-1] ^ 1]))],
        "swapped": [
            Operation(OperationKind.PUT, table, first, other), Operation(OperationKind.PUT, table, second, record)
        ],
        "deleted": [Operation(OperationKind.DELETE, table, first)],
        "added": [Operation(OperationKind.PUT, table, bytes(16), record)],
    }[lie]  # fmt: skip
    done = threading.Event()
    store.write(operations, lambda _: done.set())
    assert done.wait(60)
    store.close()


def test_rows_that_the_host_edits_between_two_starts_are_refused_or_never_served(site: KVSite) -> None:
    """KV2, KV3: the whole server, on files that its host changed. A flipped ciphertext shows when it is opened."""
    server = site.start()
    with site.client(server) as client:
        for number in range(8):
            client.put(f"/kv/ns/{number}", content=b"%d" % number * 50)
    server.stop()
    honest = site.copy(site.sealed / "store", "honest")
    for lie in ("tag", "swapped", "deleted", "added"):
        site.put_back(honest, site.sealed / "store")
        edit(site.sealed / "store", lie)
        assert "the key-value store is refused" in site.refused(), lie
    site.put_back(honest, site.sealed / "store")
    edit(site.sealed / "store", "flipped")
    flipped = site.start()
    with site.client(flipped) as client:
        answers = [client.get(f"/kv/ns/{number}") for number in range(8)]
    assert sorted(answer.status_code for answer in answers) == [200] * 7 + [500]
    assert all(answer.content == b"%d" % number * 50 for number, answer in enumerate(answers) if answer.is_success)
    flipped.wait_for_log("the host tampers with the key-value store")
    flipped.stop()
    site.put_back(honest, site.sealed / "store")
    site.start()


def test_a_host_that_denies_everything_gets_an_empty_enclave_that_who_remembers_refuses(site: KVSite) -> None:
    """KV5: nothing tells it from a first boot, inside; its boot count, and its CA, are another's."""
    memory = site.folder / "memory.json"
    server = site.start()
    with site.client(server) as client:
        client.put("/kv/ns/a", content=b"1")
    server.stop()
    server = site.start()
    site.verify(server, memory)
    server.stop()
    (site.state / "sealed").rename(site.folder / "hidden")
    empty = site.start()
    empty.wait_for_log("first boot")
    with site.client(empty) as client:
        assert client.get("/kv/ns/a").status_code == 404
    assert "REFUSED" in site.verify(empty, memory, REFUSED)


def test_kv4_two_clones_are_told_apart_by_who_saw_one(site: KVSite) -> None:
    memory = site.folder / "memory.json"
    server = site.start()
    with site.client(server) as client:
        client.put("/kv/ns/a", content=b"1")
    server.stop()
    copy = site.copy(site.state, "clone")
    servers = [site.start(), site.start(state=copy)]
    for number, running in enumerate(servers):
        with site.client(running) as client:
            assert client.put(f"/kv/ns/of-{number}", content=b"1").status_code == 200
    states = [state_of(running) for running in servers]
    assert states[0]["boot"] == states[1]["boot"]
    assert states[0]["version"] == states[1]["version"]
    assert states[0]["root"] != states[1]["root"]
    site.verify(servers[0], memory)
    assert "REFUSED" in site.verify(servers[1], memory, REFUSED)
    site.verify(servers[0], memory)


def test_a_server_without_the_module_keeps_no_store(site: KVSite, server: Server) -> None:
    with Connection(server) as connection:
        assert connection.ask(HELLO).body == b"world"
    (folder,) = (server.state / "sealed").glob("*")
    state: dict[str, Any] = state_of(server)
    assert state["root"] is None
    assert [path.name for path in (folder / "store").glob("*.sst")] == []


def test_a_backup_is_restored_by_a_managers_consent_only(site: KVSite) -> None:
    memory, receipt = site.folder / "memory.json", site.folder / "receipt.json"
    server = site.start()
    with site.client(server) as client:
        client.put("/kv/ns/balance", content=b"100")
    site.command(server, "kv", "backup", "--out", receipt, roles=["manager"])
    assert b"role" in site.command(server, "kv", "backup", code=os.EX_NOPERM, roles=["monitoring"])
    with site.client(server) as client:
        client.put("/kv/ns/balance", content=b"0")
    before = state_of(server)
    site.verify(server, memory)
    server.stop()
    named = json.loads(receipt.read_text())
    site.put_back(site.sealed / "backups" / f"{named['version']}-{named['root'][:16]}" / "store", site.sealed / "store")
    assert "the key-value store is refused" in site.refused()
    held = site.start({"kv": {"restore": True}})
    held.wait_for_log("HELD")
    with site.client(held) as client:
        assert client.get("/kv/ns/balance").status_code == 404
        assert client.get("/readyz").status_code == 503
    assert b"role" in site.command(held, "kv", "restore", receipt, code=os.EX_NOPERM, scopes=[])
    serves = len(held.wait_for_log("worker 0 serves"))
    site.command(held, "kv", "restore", receipt, roles=["manager"])
    held.wait_for_log("worker 0 serves", serves + 1)
    with site.client(held) as client:
        assert client.get("/kv/ns/balance").content == b"100"
        assert client.put("/kv/ns/balance", content=b"90").status_code == 200
    after = state_of(held)
    assert after["boot"] > before["boot"]
    assert after["version"] > before["version"]
    assert "seal.kv_restores" in {leaf["name"] for leaf in manifest(held)["leaves"]}
    site.verify(held, memory)  # later in every count: it is the leaf that tells
    held.stop()
    again = site.start()
    with site.client(again) as client:
        assert client.get("/kv/ns/balance").content == b"90"
