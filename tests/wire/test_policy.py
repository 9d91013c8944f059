"""The policy of a configuration: one form on both sides, and every difference named."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_os.wire import policy
from enclave_os.wire.policy import PolicyError, differences, policy_of, read_policy
from enclave_os.wire.setting_table import EXPORTS
from enclave_os.wire.settings import CertificateAuthority, check, enclave_document, parse_enclave_document

KEY = "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n"
NO_OCCASION: tuple[object, ...] = ("never", None, [])
ISSUERS = [
    {"issuer": "b", "audience": "x", "public_key_pem": KEY.format("AAAA\nBBBB")},
    {"issuer": "a", "audience": "x", "public_key_pem": KEY.format("CCCC")},
]


def of(**sections: object) -> bytes:
    return policy_of(check(sections))


def test_host_and_enclave_compute_the_same() -> None:
    settings = check(
        {
            "auth": {"issuers": ISSUERS},
            "module": {"helloworld": {"ä": [1, 2.5, None, "\u2028"]}},
            "seal": {"export": "none"},
        }
    )
    inside = parse_enclave_document(enclave_document(settings, 0, 1, CertificateAuthority()))
    assert policy_of(inside) == policy_of(settings)
    read_policy(policy_of(settings))


def test_what_means_the_same_is_the_same() -> None:
    wrapped = [{**ISSUERS[1]}, {**ISSUERS[0], "public_key_pem": KEY.format("AA\r\nAABB\nBB")}]
    assert of(auth={"issuers": ISSUERS}) == of(auth={"issuers": wrapped})
    assert of(timeouts={"idle": 1}, server={"workers": 3}) == of()


@pytest.mark.parametrize("modules", [["helloworld", "other"], ["other", "helloworld"]])
def test_the_order_of_modules_counts(modules: list[str]) -> None:
    assert of(modules={"enabled": modules}) != of(modules={"enabled": modules[::-1]})


def test_every_change_is_a_difference_with_a_name() -> None:
    before = of(auth={"issuers": ISSUERS}, module={"helloworld": {"a": 1, "b": None}})
    after = of(
        auth={"issuers": [{**ISSUERS[0], "roles_claim": "r"}]},
        module={"helloworld": {"a": 1.5}},
        modules={"enabled": ["helloworld", "kv"]},
        seal={"export": "none", "owner_public_key_pem": KEY.format("DDDD")},
    )
    found = {difference.key for difference in differences(before, after)}
    assert found == {
        "auth.issuers 'a'",
        "auth.issuers 'b'",
        "seal.owner_public_key_pem",
        "seal.export",
        "modules.enabled",
        "module.helloworld.a",
        "module.helloworld.b",
    }
    assert not differences(before, before)


sections = st.fixed_dictionaries(
    {},
    optional={
        "seal": st.fixed_dictionaries({"export": st.sampled_from(EXPORTS)}),
        "auth": st.fixed_dictionaries(
            {"issuers": st.lists(st.sampled_from(ISSUERS), max_size=2, unique_by=lambda issuer: issuer["issuer"])}
        ),
        "module": st.fixed_dictionaries(
            {}, optional={"helloworld": st.dictionaries(st.text("ab", max_size=2), st.none() | st.integers(0, 2))}
        ),
    },
)


@given(sections, sections)
def test_differences_are_empty_only_for_equal_policies(one: dict[str, object], other: dict[str, object]) -> None:
    assert bool(differences(of(**one), of(**other))) == (of(**one) != of(**other))


@pytest.mark.parametrize(
    "sections",
    [
        {"auth": {"issuers": [{**ISSUERS[0], "public_key_pem": "-----BEGIN PUBLIC KEY-----\nAAAA"}]}},
        {"auth": {"issuers": [{**ISSUERS[0], "public_key_pem": KEY.format("AAAA") * 2}]}},
        {"auth": {"issuers": [ISSUERS[0], ISSUERS[0]]}},
        {"module": {"helloworld": {"much": "x" * 30_000}}},
    ],
)
def test_a_configuration_without_a_policy_is_refused(sections: dict[str, object]) -> None:
    with pytest.raises(PolicyError):
        of(**sections)


def changed(**members: object) -> bytes:
    document = {**json.loads(of(auth={"issuers": ISSUERS})), **members}
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"{}",
        b"[" * 20_000,
        b"\xff",
        b" " + of(),
        of() + b" ",
        of().replace(b'"format":1', b'"format":true'),
        of().replace(b'"format":1', b'"format":1,"format":1'),
        changed(more=1),
        changed(export="all"),
        changed(export=None),
        changed(owner_key=""),
        changed(owner_key="A B"),
        changed(owner_key=7),
        changed(modules="helloworld"),
        changed(modules=[1]),
        changed(module=[]),
        changed(module={"a": 1}),
        changed(module={"a": {"deep": [[[[[[[[[[1]]]]]]]]]]}}),
        changed(issuers={}),
        changed(issuers=[{}]),
        changed(issuers=[{"issuer": "a", "audience": "b", "key": "*", "roles_claim": "r"}]),
        changed(issuers=[{"issuer": "a", "audience": 1, "key": "AAAA", "roles_claim": "r"}]),
        b"x" * (policy.POLICY_SIZE_MAX + 1),
    ],
)
def test_what_is_no_policy_is_refused(data: bytes) -> None:
    with pytest.raises(PolicyError):
        read_policy(data)


@given(st.integers(0, 10_000), st.integers(0, 7))
def test_a_flipped_bit_is_refused_or_another_policy(at: int, bit: int) -> None:
    data = bytearray(of(auth={"issuers": ISSUERS}))
    data[at % len(data)] ^= 1 << bit
    read: Callable[[bytes], object] = read_policy
    try:
        read(bytes(data))
    except PolicyError:
        return
    assert differences(of(auth={"issuers": ISSUERS}), bytes(data))


class TestEgress:
    """Who may be sent data, and who vouches for them, is sealed with the rest (KV13)."""

    PEM = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    ALLOW: ClassVar[list[dict[str, Any]]] = [{"module": "helloworld", "hosts": ["b.example:8443", "a.example"]}]
    REORDERED: ClassVar[list[dict[str, Any]]] = [{"module": "helloworld", "hosts": ["a.example", "b.example:8443"]}]

    @pytest.mark.parametrize(
        ("change", "key"),
        [
            ({"allow": [{"module": "helloworld", "hosts": ["a.example"]}]}, "egress.allow 'helloworld'"),
            ({"allow": []}, "egress.allow 'helloworld'"),
            ({"ca_pem": PEM + "\n"}, "egress.ca_pem"),
            ({"tls_min": "1.2"}, "egress.tls_min"),
        ],
    )
    def test_what_decides_is_named_when_it_changes(self, change: dict[str, Any], key: str) -> None:
        before = {"allow": self.ALLOW, "ca_pem": self.PEM}
        found = differences(of(egress=before), of(egress={**before, **change}))
        assert [difference.key for difference in found] == [key]

    @pytest.mark.parametrize("change", [{"total": 30}, {"connections": 8}, {"allow": REORDERED}])
    def test_what_is_only_operational_may_change(self, change: dict[str, Any]) -> None:
        before = {"allow": self.ALLOW, "ca_pem": self.PEM}
        assert of(egress=before) == of(egress={**before, **change})

    @pytest.mark.parametrize(
        "egress",
        [
            *(None, [], {}, {"allow": {}, "ca_sha256": ""}, {"allow": [], "ca_sha256": "", "tls_min": "1.3"}),
            {"allow": {"m": "h"}, "ca_sha256": "", "tls_min": "1.3"},
            {"allow": {}, "ca_sha256": "x", "tls_min": "1.3"},
            {"allow": {}, "ca_sha256": "", "tls_min": "1.1"},
        ],
    )
    def test_a_policy_that_says_something_else_is_none(self, egress: Any) -> None:
        document = {**json.loads(of()), "egress": egress}
        text = json.dumps(document, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        with pytest.raises(PolicyError, match="egress"):
            read_policy(text.encode())


class TestAnchor:
    """What stops a rollback of the store is sealed too: whoever could change it could make one (KV4, KV13)."""

    PEM = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    BEFORE: ClassVar[dict[str, Any]] = {"anchor_url": "https://etcd.example:2379", "anchor_ca_pem": PEM}

    @pytest.mark.parametrize(
        ("change", "keys"),
        [
            ({"anchor_url": "https://other.example:2379"}, ["kv.anchor_url"]),
            ({"anchor_ca_pem": PEM + "\n"}, ["kv.anchor_ca_pem"]),
            ({"anchor_adopt": True}, ["kv.anchor_adopt"]),
            ({"anchor_every": "commit"}, ["kv.anchor_every"]),
            ({"anchor_url": "", "anchor_ca_pem": ""}, ["kv.anchor_url", "kv.anchor_ca_pem"]),
        ],
    )
    def test_what_decides_is_named_when_it_changes(self, change: dict[str, Any], keys: list[str]) -> None:
        found = differences(of(kv=self.BEFORE), of(kv={**self.BEFORE, **change}))
        assert [difference.key for difference in found] == keys

    @pytest.mark.parametrize("change", [{"checkpoint": 30}, {"memory": "1GiB"}])
    def test_what_is_only_operational_may_change(self, change: dict[str, Any]) -> None:
        assert of(kv=self.BEFORE) == of(kv={**self.BEFORE, **change})

    @pytest.mark.parametrize(
        "anchor",
        [
            *(None, [], {}, {"url": "", "ca_sha256": ""}, {"adopt": False, "ca_sha256": "", "url": ""}),
            {"adopt": 0, "ca_sha256": "", "every": "commit", "url": ""},
            {"adopt": False, "ca_sha256": "x", "every": "commit", "url": ""},
            {"adopt": False, "ca_sha256": "", "every": "commit", "url": None},
            *({"adopt": False, "ca_sha256": "", "every": every, "url": ""} for every in NO_OCCASION),
        ],
    )
    def test_a_policy_that_says_something_else_is_none(self, anchor: Any) -> None:
        document = {**json.loads(of()), "anchor": anchor}
        text = json.dumps(document, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        with pytest.raises(PolicyError, match="anchor"):
            read_policy(text.encode())
