"""The anchor of a whole server (KV4): etcd over TLS that ends in the enclave, through a host that only carries it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.kv_site import KVSite
from tests.e2e.server import Overrides
from tests.modules.etcd import Etcd


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Etcd]:
    folder = tmp_path / "etcd"
    folder.mkdir()
    etcd = Etcd(folder)
    yield etcd
    etcd.stop()


@pytest.fixture
def site(python: Path, tmp_path: Path) -> Iterator[KVSite]:
    made = KVSite(python, tmp_path)
    yield made
    made.stop()


def anchored(site: KVSite, etcd: Etcd, **more: object) -> Overrides:
    ca = site.folder / "etcd-ca.pem"
    ca.write_bytes(etcd.ca_pem)
    return {"kv": {"anchor_url": etcd.url, "anchor_ca_file": str(ca), "checkpoint": 0.05, **more}}


def test_a_state_put_back_whole_is_refused_and_so_is_a_start_without_its_anchor(site: KVSite, etcd: Etcd) -> None:
    settings = anchored(site, etcd)
    server = site.start(settings)
    with site.client(server) as client:
        assert client.put("/kv/ns/key", content=b"old").status_code in (200, 201)
        assert client.get("/kv/ns/key").content == b"old"
    server.stop()
    old = site.copy(site.state, "old")
    server = site.start(settings)
    with site.client(server) as client:
        assert client.get("/kv/ns/key").content == b"old"
        before = etcd.entries()
        assert client.put("/kv/ns/key", content=b"new").status_code in (200, 201)
        etcd.wait_for_change(before)
    server.stop()
    latest = site.copy(site.state, "latest")
    site.put_back(old, site.state)
    assert "older than what the anchor knows" in site.refused(settings)
    site.put_back(latest, site.state)
    etcd.stop()
    with pytest.raises(AssertionError, match=r"the anchor https://127\.0\.0\.1:\d+ cannot be asked"):
        site.start(settings)
    shutil.rmtree(site.folder / f"start-{len(site.started)}")
    etcd.start()
    server = site.start(settings)
    with site.client(server) as client:
        assert client.get("/kv/ns/key").content == b"new"
    server.stop()
