"""The anchor of a whole server (KV4): etcd over TLS that ends in the enclave, through a host that only carries it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.kv_site import KVSite
from tests.e2e.server import Overrides
from tests.e2e.test_kv import end
from tests.modules.etcd import Etcd

REFUSED_SECONDS_MAX = 30.0  # of a write whose anchor is silent: two exchanges of five seconds, on a shared machine


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


def test_a_data_folder_put_back_counts_by_a_managers_consent_which_the_anchor_takes_first(
    site: KVSite, etcd: Etcd
) -> None:
    settings = anchored(site, etcd)
    receipt = site.folder / "receipt.json"
    server = site.start(settings)
    with site.client(server) as client:
        assert client.put("/kv/ns/balance", content=b"100").status_code == 200
    site.command(server, "kv", "backup", "--out", receipt, roles=["manager"])
    server.stop()
    old = site.copy(site.state, "old")
    server = site.start(settings)
    with site.client(server) as client:
        before = etcd.entries()
        assert client.put("/kv/ns/balance", content=b"0").status_code == 200
        etcd.wait_for_change(before)
    server.stop()
    latest = site.copy(site.state, "latest")
    site.put_back(old, site.state)
    known = etcd.entries()
    log = site.refused(settings)
    assert "it was put back, or cloned" in log
    assert "kv.restore = true" in log
    assert etcd.entries() == known
    held = site.start(anchored(site, etcd, restore=True))
    held.wait_for_log("HELD")
    with site.client(held) as client:
        assert client.get("/kv/ns/balance").status_code == 404
    assert b"role" in site.command(held, "kv", "restore", receipt, code=os.EX_NOPERM, roles=["monitoring"])
    assert etcd.entries() == known
    site.command(held, "kv", "restore", receipt, roles=["manager"])
    held.wait_for_log("worker 0 serves", 2)
    assert etcd.entries() != known
    with site.client(held) as client:
        assert client.get("/kv/ns/balance").content == b"100"
        assert client.put("/kv/ns/balance", content=b"90").status_code == 200
    held.stop()
    site.put_back(latest, site.state)
    assert "the key-value store is refused" in site.refused(settings)


def test_each_commit_anchored_leaves_nothing_to_turn_back_to_and_an_etcd_that_is_away_acknowledges_nothing(
    site: KVSite, etcd: Etcd
) -> None:
    settings = anchored(site, etcd, anchor_every="commit", checkpoint=3600)
    server = site.start(settings)
    with site.client(server) as client:
        assert client.put("/kv/ns/key", content=b"old").status_code == 200
    end(server)
    old = site.copy(site.state, "old")
    server = site.start(settings)
    with site.client(server) as client:
        assert client.put("/kv/ns/key", content=b"new").status_code == 200
    end(server)
    latest = site.copy(site.state, "latest")
    site.put_back(old, site.state)
    assert "older than what the anchor knows" in site.refused(settings)
    site.put_back(latest, site.state)
    server = site.start(settings)
    with site.client(server) as client:
        assert client.get("/kv/ns/key").content == b"new"
        for stop, go_on in ((etcd.stop, etcd.start), (etcd.freeze, etcd.thaw)):
            stop()
            answer = client.put("/kv/ns/during", content=b"1", timeout=REFUSED_SECONDS_MAX)
            assert answer.status_code == 503, answer.text
            if stop == etcd.stop:  # a silent one costs each of these five seconds
                assert client.put("/kv/ns/more", content=b"1", timeout=REFUSED_SECONDS_MAX).status_code == 503
                assert client.get("/kv/ns/during", timeout=REFUSED_SECONDS_MAX).status_code == 503  # there or not
            assert client.get("/kv/ns/key").content == b"new"
            go_on()
            assert client.put("/kv/ns/after", content=b"1", timeout=REFUSED_SECONDS_MAX).status_code == 200
            assert client.get("/kv/ns/during").status_code == 200
            assert client.get("/kv/ns/more").status_code == 404
            assert client.delete("/kv/ns/during").status_code == 204
    end(server)
    server = site.start(settings)
    with site.client(server) as client:
        assert client.get("/kv/ns/during").status_code == 404
        assert client.get("/kv/ns/after").content == b"1"
    server.stop()


def test_a_weaker_anchor_than_the_sealed_one_is_refused(site: KVSite, etcd: Etcd) -> None:
    """The host writes the configuration: it cannot go back to anchoring less (KV13)."""
    site.start(anchored(site, etcd, anchor_every="commit")).stop()
    log = site.refused(anchored(site, etcd))
    assert "kv.anchor_every: sealed is commit; the configuration says checkpoint" in log
