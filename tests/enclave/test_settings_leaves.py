"""Every key that the enclave is told has its place in the root (and so has the CA)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import pytest

from enclave_os.errors import UsageError
from enclave_os.ratls.config_tree import ConfigTree
from enclave_os.ratls.settings_leaves import ca_leaves, certificate_leaves, settings_leaves
from enclave_os.wire.authority import CertificateAuthority
from enclave_os.wire.egress_settings import EgressAllowance, Target
from enclave_os.wire.setting_issuers import Issuer
from enclave_os.wire.setting_kinds import dump_table
from enclave_os.wire.setting_table import ENCLAVE_SECTIONS, EnclaveSettings
from enclave_os.wire.start import Start

CA = CertificateAuthority(certificate_pem="", key_pem="", key_origin="imported")
SETTINGS = EnclaveSettings(worker_index=0, worker_count=2, ca=CA)
ISSUER = Issuer(issuer="https://issuer.example", audience="here", public_key_pem="-----BEGIN PUBLIC KEY-----")


ALLOWANCE = EgressAllowance(module="vault", hosts=(Target("api.example", 443, False),))


def root(settings: EnclaveSettings) -> bytes:
    return ConfigTree(settings_leaves(settings).items()).root


def other(name: str, value: Any) -> Any:
    """A value unlike `value`, of the type of the key `name`."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return value + "x"
        case tuple() if not value:
            return {"issuers": (ISSUER,), "allow": (ALLOWANCE,)}.get(name, ("00" * 32,))
        case tuple():
            return value[:-1]
        case None:
            return 1
    raise AssertionError(value)


KEYS = [(section, name) for section, table in ENCLAVE_SECTIONS.items() for name in dump_table(table, table())]


@pytest.mark.parametrize(("section", "name"), KEYS, ids=[".".join(key) for key in KEYS])
def test_every_key_of_every_section_moves_the_root(section: str, name: str) -> None:
    before = getattr(SETTINGS, section)
    after = dataclasses.replace(before, **{name: other(name, getattr(before, name))})
    assert root(dataclasses.replace(SETTINGS, **{section: after})) != root(SETTINGS)


def test_nothing_that_the_enclave_is_told_is_left_out() -> None:
    fields = {field.name for field in dataclasses.fields(EnclaveSettings)}
    # The platform is that of a direct enclave, which proves nothing anyway; it is in its quotes.
    assert fields == {*ENCLAVE_SECTIONS, "module", "worker_index", "worker_count", "ca", "start", "platform"}


def test_the_bundle_of_egress_is_a_leaf_by_its_own_bytes() -> None:
    pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    settings = dataclasses.replace(SETTINGS, egress=dataclasses.replace(SETTINGS.egress, ca_pem=pem))
    assert settings_leaves(settings)["egress.ca_bundle"] == pem.encode()
    assert "egress.ca_bundle" not in settings_leaves(SETTINGS)


def test_all_workers_have_one_root() -> None:
    assert root(dataclasses.replace(SETTINGS, worker_index=1)) == root(SETTINGS)
    assert root(dataclasses.replace(SETTINGS, worker_count=3)) != root(SETTINGS)


def test_a_start_that_does_not_serve_says_so() -> None:
    assert "start" not in settings_leaves(SETTINGS)
    for start in (Start(kind="recover"), Start(kind="import", giver="77" * 32)):
        leaves = settings_leaves(dataclasses.replace(SETTINGS, start=start))
        assert json.loads(leaves["start"]) == {"kind": start.kind, "giver": start.giver}


def test_a_module_s_section_is_a_leaf_whether_the_module_names_it_or_not() -> None:
    settings = dataclasses.replace(SETTINGS, module={"greeter": {"greeting": "Hi", "n": 1.0}})
    leaves = settings_leaves(settings)
    assert leaves["module.greeter"] == b'{"greeting":"Hi","n":1}'
    assert root(settings) != root(SETTINGS)


def test_a_section_is_canonical_json() -> None:
    data = settings_leaves(SETTINGS)["timeouts"]
    assert data.startswith(b'{"body":60,"drain":30,')
    assert json.loads(data) == dump_table(ENCLAVE_SECTIONS["timeouts"], SETTINGS.timeouts)


def test_a_number_that_readers_read_differently_is_refused() -> None:
    with pytest.raises(UsageError):
        settings_leaves(dataclasses.replace(SETTINGS, module={"m": {"n": 2**53}}))


def test_the_ca_s_leaves() -> None:
    leaves = ca_leaves([b"signing", b"above", b"root"], "generated")
    assert leaves == {"ca.certificate": b"signing", "ca.chain": b"aboveroot", "ca.key_origin": b"generated"}
    assert set(ca_leaves([b"signing"], "imported")) == {"ca.certificate", "ca.key_origin"}
    fingerprint = ConfigTree(leaves.items()).manifest()[0].sha256
    assert fingerprint == hashlib.sha256(b"signing").digest()


def test_what_modules_put_into_certificates() -> None:
    assert certificate_leaves({}, {}) == {"extensions": None, "apps": None}
    leaves = certificate_leaves({"1.2.4": b"\1", "1.2.3": b""}, {"b.example": {}, "a.example": {"1.2.3": b"\xff"}})
    assert leaves == {
        "extensions": b'{"1.2.3":"","1.2.4":"01"}',
        "apps": b'{"a.example":{"1.2.3":"ff"},"b.example":{}}',
    }
