"""How workers get what worker 0 opened, with a host that carries the letters and lies."""

from __future__ import annotations

import pytest

from enclave_os.errors import SealBroken
from enclave_os.sealing import sealed_config
from enclave_os.sealing.sealed_config import SealedConfig
from enclave_os.sealing.welcome import Welcome
from enclave_os.wire.policy import policy_of
from enclave_os.wire.settings import check
from enclave_os.workers.admission import HELLO_SIZE, Admission, admit

KEY = bytes(range(32))


def welcome(hello: bytes, key: bytes, index: int, config: SealedConfig) -> bytes:
    return admit(hello, key, index, Welcome(config))[0]


@pytest.fixture(scope="module")
def config() -> SealedConfig:
    return sealed_config.first(policy_of(check({})))


def test_a_worker_gets_the_whole_content(config: SealedConfig) -> None:
    admission = Admission(KEY, 1)
    assert len(admission.hello) == HELLO_SIZE
    answer = welcome(admission.hello, KEY, 1, config)
    assert config.master_key not in answer
    assert admission.open(answer)[0] == Welcome(config)


def test_all_that_is_said_with_it_arrives_and_both_ends_have_one_channel(config: SealedConfig) -> None:
    said = Welcome(config.booted(), 7, bytes(range(32, 64)))
    admission = Admission(KEY, 1)
    answer, first = admit(admission.hello, KEY, 1, said)
    heard, other = admission.open(answer)
    assert heard == said
    assert other.mirrored() == first
    assert len({first.sending, first.receiving, first.channel_id}) == 3
    assert first.sending.hex() not in repr(first)
    # Another exchange, another channel.
    again = Admission(KEY, 1)
    assert admit(again.hello, KEY, 1, said)[1].sending != first.sending


def test_other_code_gets_nothing(config: SealedConfig) -> None:
    """Another measurement has another platform key: both ways."""
    stranger = Admission(bytes(32), 1)
    with pytest.raises(SealBroken):
        stranger.open(welcome(stranger.hello, KEY, 1, config))
    admission = Admission(KEY, 1)
    with pytest.raises(SealBroken):
        admission.open(welcome(admission.hello, bytes(32), 1, config))


def test_an_answer_is_for_one_hello_and_one_worker(config: SealedConfig) -> None:
    first, second = Admission(KEY, 1), Admission(KEY, 1)
    answer = welcome(first.hello, KEY, 1, config)
    with pytest.raises(SealBroken):
        second.open(answer)  # a replay, to a new start or to another worker
    with pytest.raises(SealBroken):
        first.open(welcome(first.hello, KEY, 2, config))


def test_every_changed_bit_of_an_answer(config: SealedConfig) -> None:
    admission = Admission(KEY, 1)
    answer = welcome(admission.hello, KEY, 1, config)
    for at in range(0, len(answer), 7):
        changed = bytearray(answer)
        changed[at] ^= 1 << at % 7  # the top bit of an X25519 key is not read (RFC 7748 5)
        with pytest.raises(SealBroken):
            admission.open(bytes(changed))
    for size in (0, 31, 32, 33, len(answer) - 1):
        with pytest.raises(SealBroken):
            admission.open(answer[:size])


@pytest.mark.parametrize("hello", [b"", bytes(HELLO_SIZE - 1), bytes(HELLO_SIZE + 1), bytes(HELLO_SIZE)])
def test_a_hello_that_is_none(config: SealedConfig, hello: bytes) -> None:
    """The last is a public key of small order: with it the key would be known to everybody."""
    with pytest.raises(SealBroken):
        welcome(hello, KEY, 1, config)
