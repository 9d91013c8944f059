"""The content that is sealed: one form, read strictly."""

from __future__ import annotations

import base64
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_os.errors import InternalError, SealBroken
from enclave_os.evidence.store_state import combined
from enclave_os.sealing import sealed_config
from enclave_os.sealing.sealed_config import FORMER_MAX, Authority, Provenance, SealedConfig, decode, encode
from enclave_os.wire.kv import CHAIN_SHIFT, RANGES_MAX
from tests.enclave.sealing import policy

POLICY = policy()
hashes = st.binary(min_size=32, max_size=32)
counts = st.integers(0, 2**63 - 1)
configs = st.builds(
    SealedConfig,
    master_key=hashes,
    boot_count=st.integers(1, 2**63 - 1),
    boot_nonce=hashes,
    former=st.lists(hashes, max_size=FORMER_MAX).map(tuple),
    clock_floor_ns=counts,
    policy=st.just(POLICY),
    next_policy=st.none() | st.just(policy(seal={"export": "none"})),
    policy_changes=counts,
    authority=st.none()
    | st.builds(
        Authority,
        chain_der=st.lists(st.binary(max_size=64), min_size=1, max_size=8).map(tuple),
        key_der=st.binary(max_size=64),
        key_origin=st.sampled_from(["generated", "imported"]),
    ),
    pending_key_der=st.none() | st.binary(max_size=64),
    exports=st.lists(hashes, max_size=16).map(tuple),
    module_data=st.dictionaries(st.text(max_size=16), st.binary(max_size=64), max_size=8),
    kv_root=hashes,
    kv_version=counts,
    kv_further=st.lists(st.tuples(st.integers(0, 2**CHAIN_SHIFT - 1), hashes), max_size=RANGES_MAX - 1).map(tuple),
    provenance=st.none() | st.builds(Provenance, measurement=hashes, boot_count=st.integers(1, 2**63 - 1)),
)


@given(configs)
def test_it_reads_what_it_wrote(config: SealedConfig) -> None:
    assert decode(encode(config)) == config


def test_a_first_boot_makes_a_key_that_never_was() -> None:
    first, second = sealed_config.first(POLICY), sealed_config.first(POLICY)
    assert first.master_key != second.master_key
    assert first.boot_nonce != second.boot_nonce
    assert first.boot_count == 1
    again = first.booted()
    assert again.master_key == first.master_key
    assert (again.boot_count, again.boot_nonce != first.boot_nonce) == (2, True)
    assert first.state() == (1, first.boot_nonce, 0, bytes(32))


def test_a_store_of_one_range_is_sealed_as_it_was_before_there_were_several() -> None:
    config = sealed_config.first(POLICY)
    assert b"kv_further" not in encode(config)
    assert (config.kv_states, config.kv_further) == (((0, bytes(32)),), ())
    assert sealed_config.first(POLICY, 1).kv_states == config.kv_states


def test_each_range_has_its_checkpoint() -> None:
    config = sealed_config.first(POLICY, 4)
    assert config.kv_states == ((0, bytes(32)),) * 4
    assert config.state()[2:] == (0, bytes(32))  # as of a store that is not there yet
    written = [(7, b"a" * 32), (0, bytes(32)), (2**CHAIN_SHIFT - 1, b"c" * 32), (9, b"d" * 32)]
    for index in (3, 0, 2):
        config = config.with_kv_state(index, *written[index])
    assert list(config.kv_states) == written
    assert (config.kv_version, config.kv_root) == written[0]
    assert config.state() == (1, config.boot_nonce, *combined(written))
    assert decode(encode(config)) == config
    assert config.booted().kv_states == config.kv_states
    assert len(encode(sealed_config.first(POLICY, RANGES_MAX))) - len(encode(sealed_config.first(POLICY))) < 6000
    for index in (-1, 4, RANGES_MAX):
        with pytest.raises(InternalError):
            config.with_kv_state(index, 1, bytes(32))
    with pytest.raises(InternalError):
        sealed_config.first(POLICY).with_kv_state(1, 1, bytes(32))


FURTHER = {"version": 1, "root": base64.b64encode(b"r" * 32).decode()}


@pytest.mark.parametrize(
    "further",
    [
        [],  # that is the form without it
        None,
        {},
        "x",
        FURTHER,
        [FURTHER] * RANGES_MAX,
        [[1, FURTHER["root"]]],
        [{**FURTHER, "more": 1}],
        [{"version": 1}],
        [{**FURTHER, "version": -1}],
        [{**FURTHER, "version": 1.0}],
        [{**FURTHER, "version": True}],
        [{**FURTHER, "version": 2**CHAIN_SHIFT}],
        [{**FURTHER, "root": None}],
        [{**FURTHER, "root": base64.b64encode(bytes(31)).decode()}],
        [FURTHER, None],
    ],
)
def test_other_ranges_in_another_form_are_refused(further: object) -> None:
    document = json.loads(encode(sealed_config.first(POLICY)))

    def with_further(further: object) -> bytes:
        return json.dumps({**document, "kv_further": further}, sort_keys=True, separators=(",", ":")).encode()

    assert len(decode(with_further([FURTHER] * (RANGES_MAX - 1))).kv_states) == RANGES_MAX
    with pytest.raises(SealBroken):
        decode(with_further(further))


def test_a_line_of_descent_is_known_as_far_back_as_it_is_bounded() -> None:
    boots = [sealed_config.first(POLICY)]
    for _ in range(FORMER_MAX + 3):
        boots.append(boots[-1].booted())
    for later in range(len(boots)):
        for earlier in range(len(boots) + 2):
            known = later - FORMER_MAX <= earlier < later
            nonce = boots[later].nonce_of(earlier + 1)  # boots count from 1
            assert nonce == (boots[earlier].boot_nonce if known else None)
    assert len(encode(boots[-1])) - len(encode(boots[0])) < 50 * FORMER_MAX


def test_no_key_shows_in_its_repr() -> None:
    config = replace(
        sealed_config.first(POLICY),
        pending_key_der=b"PENDING",
        authority=Authority((b"chain",), b"SECRET", "generated"),
    )
    for secret in (repr(config.master_key), "PENDING", "SECRET"):
        assert secret not in repr(config)


@pytest.mark.parametrize("name", json.loads(encode(sealed_config.first(POLICY))))
@pytest.mark.parametrize("value", [None, True, -1, 2**63, 1.5, "", "*", [], {}, [{}], "AAAA"])
def test_another_type_or_size_is_refused_or_equal(name: str, value: object) -> None:
    document = json.loads(encode(sealed_config.first(POLICY)))
    if document[name] == value:
        return
    document[name] = value
    data = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    try:
        config = decode(data)
    except SealBroken:
        return
    assert encode(config) == data  # what it took is what was said


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data + b" ",
        lambda data: data[:-1],
        lambda data: b"[" * 100_000,
        lambda data: b"\xff",
        lambda data: data.replace(b'"format":1', b'"format":2'),
        lambda data: data.replace(b'"format":1', b'"format":1,"format":1'),
        lambda data: data.replace(b'"kv_version":0', b'"kv_version":-0'),
        lambda data: data.replace(base64.b64encode(POLICY), base64.b64encode(b"{}")),
    ],
)
def test_another_form_is_refused(change: object) -> None:
    with pytest.raises(SealBroken):
        decode(change(encode(sealed_config.first(POLICY))))  # type: ignore[operator]


def test_what_could_not_be_opened_is_never_sealed() -> None:
    with pytest.raises(InternalError):
        encode(replace(sealed_config.first(POLICY), master_key=b"short"))
