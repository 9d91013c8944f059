"""`[kv]`: an anchor has a URL that means one server, and a CA; the host reads the CA's file."""

from __future__ import annotations

from typing import Any

import pytest

from enclave_os.wire.kv import RANGES_MAX
from enclave_os.wire.kv_settings import anchor_target
from enclave_os.wire.settings import CertificateAuthority, ConfigError, check, enclave_document, parse_enclave_document

PEM = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
URL = "https://etcd.example:2379"


def test_what_the_enclave_is_told() -> None:
    kv = {"anchor_url": URL, "anchor_ca_pem": PEM, "anchor_adopt": True, "anchor_every": "commit", "memory": "1MiB"}
    settings = check({"kv": kv})
    inside = parse_enclave_document(enclave_document(settings, 0, 1, CertificateAuthority())).kv
    assert (inside.anchor_url, inside.anchor_ca_pem, inside.anchor_adopt) == (URL, PEM, True)
    assert (inside.memory, inside.anchor_every) == (1 << 20, "commit")
    assert check({}).kv.anchor_url == ""


@pytest.mark.parametrize("ranges", [1, 2, RANGES_MAX])
def test_the_enclave_is_told_how_many_ranges_there_are(ranges: int) -> None:
    settings = check({"kv": {"ranges": ranges}})
    assert parse_enclave_document(enclave_document(settings, 1, 2, CertificateAuthority())).kv.ranges == ranges
    assert check({}).kv.ranges == 1


@pytest.mark.parametrize("ranges", [0, -1, RANGES_MAX + 1, 1.0, True, "2"])
def test_a_store_has_from_one_range_to_the_most(ranges: object) -> None:
    with pytest.raises(ConfigError) as refusal:
        check({"kv": {"ranges": ranges}})
    assert f"from 1 to {RANGES_MAX}" in refusal.value.problems["kv.ranges"]


@pytest.mark.parametrize(
    ("url", "target"),
    [
        (URL, "etcd.example:2379"),
        (URL + "/", "etcd.example:2379"),
        ("https://127.0.0.1:2379", "127.0.0.1:2379"),
        ("https://[::1]:2379", "[::1]:2379"),
        ("https://etcd.example", "etcd.example:443"),
    ],
)
def test_urls_that_mean_one_server(url: str, target: str) -> None:
    assert str(anchor_target(url)) == target


@pytest.mark.parametrize(
    ("kv", "key", "text"),
    [
        ({"anchor_url": URL}, "kv.anchor_ca_file", "is missing"),
        ({"anchor_ca_pem": PEM}, "kv.anchor_url", "is missing"),
        ({"anchor_ca_file": "ca.pem"}, "kv.anchor_url", "is missing"),
        ({"anchor_url": URL, "anchor_ca_pem": PEM, "anchor_ca_file": "ca.pem"}, "kv.anchor_ca_pem", "either"),
        ({"anchor_url": URL, "anchor_ca_pem": "-----BEGIN PRIVATE KEY-----"}, "kv.anchor_ca_pem", "private key"),
        ({"anchor_url": URL, "anchor_ca_pem": "x"}, "kv.anchor_ca_pem", "BEGIN CERTIFICATE"),
        ({"anchor_url": "http://etcd.example", "anchor_ca_pem": PEM}, "kv.anchor_url", "the host could answer"),
        ({"anchor_url": "https://*.example:1", "anchor_ca_pem": PEM}, "kv.anchor_url", "more than one host"),
        ({"anchor_url": "https://etcd.example:x", "anchor_ca_pem": PEM}, "kv.anchor_url", "port"),
        ({"anchor_url": "https://etcd.example:1/v3", "anchor_ca_pem": PEM}, "kv.anchor_url", "port"),
        ({"anchor_url": "https://user@etcd.example:1", "anchor_ca_pem": PEM}, "kv.anchor_url", ""),
        ({"anchor_every": "commit"}, "kv.anchor_every", "set kv.anchor_url"),
        (
            {"anchor_every": "commit", "anchor_url": URL, "anchor_ca_pem": PEM, "sync": "off"},
            *("kv.anchor_every", "needs kv.sync = group or always"),
        ),
    ],
)
def test_what_is_no_anchor(kv: dict[str, Any], key: str, text: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        check({"kv": kv})
    assert text in refusal.value.problems[key]
