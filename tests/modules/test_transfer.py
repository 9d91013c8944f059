"""What is sealed goes from one enclave to another over a host that may do to the bytes what it likes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest

from enclave_os.errors import AttestationError, ConfigError, EnclaveError, SealBroken, ServerProtocolError
from enclave_os.evidence.quote import ATTRIBUTE_DEBUG
from enclave_os.http import HTTPError
from enclave_os.ratls.session import CONTEXT_NS
from enclave_os.sealing.opening import open_blob
from enclave_os.sealing.sealed_config import SealedConfig
from enclave_os.wire.errors import HostProtocolError
from tests.enclave.sealing import FakePlatform, policy
from tests.enclave.test_sealing_transfer import NEXT, sealed
from tests.evidence.conftest import forge as forge  # fixtures
from tests.evidence.conftest import other_forge as other_forge
from tests.evidence.forge import IDENTITY, MEASUREMENT, Forge
from tests.modules.transfer_rig import Carrier, Giving, Receiving, giving

DAY_NS = 24 * 3600 * 10**9


def receiving(forge: Forge, carrier: Carrier, giver: Giving, **changes: Any) -> Receiving:
    known: dict[str, Any] = {
        "measurement": NEXT, "policy": giver.keeper.config.policy, "now_ns": giver.rig.now_ns,
    }  # fmt: skip
    return Receiving(forge, carrier, **(known | changes))


@pytest.fixture
def config() -> SealedConfig:
    return sealed("approved", NEXT)


@pytest.fixture
def giver(forge: Forge, config: SealedConfig) -> Giving:
    return giving(forge, config)


def test_an_honest_host(forge: Forge, giver: Giving, config: SealedConfig, caplog: pytest.LogCaptureFixture) -> None:
    carrier = Carrier(giver.accept)
    taken = receiving(forge, carrier, giver).run()
    assert (taken.master_key, taken.boot_count, taken.kv_root) == (config.master_key, config.boot_count + 1, b"r" * 32)
    assert taken.kv_states == config.kv_states
    assert "start with enclave-os serve and kv.ranges = 2" in caplog.text
    assert taken.provenance is not None
    assert (taken.provenance.measurement, taken.provenance.boot_count) == (MEASUREMENT, config.boot_count)
    assert (taken.exports, taken.given_to, taken.next_policy) == ((), (), None)
    stored = open_blob(carrier.disk.blob, FakePlatform(NEXT, b"n" * 32))
    assert stored == taken
    # The giver sealed that it gave, before it gave, and said it to its config tree.
    assert [change.given_to for change in giver.changes] == [(NEXT,)]
    assert open_blob(giver.disk.blob, FakePlatform(MEASUREMENT)).given_to == (NEXT,)
    assert config.master_key not in carrier.disk.blob


def test_the_host_sees_no_plaintext(forge: Forge, giver: Giving, config: SealedConfig) -> None:
    seen = bytearray()

    def watch(data: bytes) -> bytes:
        seen.extend(data)
        return data

    receiving(forge, Carrier(giver.accept, up=watch, down=watch), giver).run()
    for secret in (config.master_key, b"boot_count", b"/seal/export", NEXT):
        assert secret not in bytes(seen)


# -- who is given nothing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "approved", "why"),
    [
        ("none", (NEXT,), "nothing is given to any other enclave: seal.export is none"),
        ("approved", (), "no measurement is approved"),
        ("approved", (b"x" * 32,), f"measurement {NEXT.hex()} is not approved: a manager approves it"),
    ],
)
def test_a_receiver_that_may_not(forge: Forge, rule: str, approved: tuple[bytes, ...], why: str) -> None:
    giver = giving(forge, sealed(rule, *approved))
    carrier = Carrier(giver.accept)
    with pytest.raises(AttestationError, match=why):
        receiving(forge, carrier, giver).run()
    assert (carrier.disk.writes, giver.disk.writes, giver.changes) == (0, 0, [])
    assert giver.served[-1][0] == 403


def test_a_signer_gives_to_its_next_version_alone(forge: Forge) -> None:
    giver = giving(forge, sealed("signer"))
    older = replace(IDENTITY, isv_svn=IDENTITY.isv_svn - 1)
    with pytest.raises(AttestationError, match="is not approved: a manager"):
        receiving(forge, Carrier(giver.accept), giver, identity=older).run()
    assert receiving(forge, Carrier(giver.accept), giver).run().provenance


def test_a_debug_enclave_is_given_nothing(forge: Forge, giver: Giving) -> None:
    receiver = receiving(forge, Carrier(giver.accept), giver)
    attributes = receiver.attester.body.attributes
    receiver.attester.body = replace(
        receiver.attester.body, attributes=bytes([attributes[0] | ATTRIBUTE_DEBUG]) + attributes[1:]
    )
    receiver.attester.quote = lambda report_data: forge.quote(  # type: ignore[method-assign]
        report_data, mr_enclave=NEXT, attributes=receiver.attester.body.attributes
    )
    with pytest.raises(AttestationError, match=r"(?i)debug"):
        receiver.run()
    assert giver.changes == []


def test_another_simulated_platform_is_given_nothing(other_forge: Forge, giver: Giving) -> None:
    """Nor does it take anything: each judges the other's evidence by its own platform's root."""
    carrier = Carrier(giver.accept)
    with pytest.raises(AttestationError, match="SIMULATED, by another machine"):
        receiving(other_forge, carrier, giver).run()
    assert giver.changes == []


def test_hardware_and_simulation_give_each_other_nothing(forge: Forge, config: SealedConfig) -> None:
    giver = giving(forge, config)
    giver.exporting._own = replace(giver.exporting._own, simulated=False, simulated_root_der=None)
    with pytest.raises(AttestationError, match="SIMULATED: no hardware made this evidence"):
        receiving(forge, Carrier(giver.accept), giver).run()
    assert (giver.served[-1][0], giver.changes) == (403, [])
    giver = giving(forge, config)
    receiver = receiving(forge, Carrier(giver.accept), giver)
    receiver.attester.simulated = False
    with pytest.raises(AttestationError, match="SIMULATED: no hardware made this evidence"):
        receiver.run()
    assert giver.changes == []


def test_any_worker_gives_once_worker_0_has_sealed_it(forge: Forge, config: SealedConfig) -> None:
    """The evidence is bound to the TLS session, so the worker where it ends judges it; worker 0 seals."""
    zero, one = giving(forge, config), giving(forge, config)

    async def ask_worker_0(measurement: bytes) -> None:
        await Giving.give(zero, measurement)
        one.keeper.adopt(zero.keeper.config)

    one.give = ask_worker_0  # type: ignore[method-assign]
    carrier = Carrier(one.accept)
    assert receiving(forge, carrier, one).run()
    assert len(carrier.connections) == 1
    assert (one.disk.writes, zero.disk.writes) == (0, 1)


@pytest.mark.parametrize("failure", [None, HTTPError(503, "worker 0 is not reached")])
def test_nothing_is_given_that_worker_0_has_not_sealed(
    forge: Forge, config: SealedConfig, failure: HTTPError | None
) -> None:
    giver = giving(forge, config)

    async def nothing(measurement: bytes) -> None:
        if failure is not None:
            raise failure

    giver.give = nothing  # type: ignore[method-assign]
    with pytest.raises(AttestationError, match="not sealed" if failure is None else "not reached"):
        receiving(forge, Carrier(giver.accept), giver).run()
    assert giver.served[-1][0] == 503
    assert giver.changes == []


def test_a_policy_is_what_the_giver_has_sealed(forge: Forge, giver: Giving) -> None:
    carrier = Carrier(giver.accept)
    with pytest.raises(ConfigError, match=r"seal\.export: sealed is approved; the configuration says signer"):
        receiving(forge, carrier, giver, policy=policy(seal={"export": "signer"})).run()
    assert carrier.disk.writes == 0


# -- from whom nothing is taken ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"named": b"x" * 32}, "MRENCLAVE: other code than was asked for"),
        ({"identity": replace(IDENTITY, mr_signer=b"s" * 32)}, "MRSIGNER"),
        ({"identity": replace(IDENTITY, isv_prod_id=IDENTITY.isv_prod_id + 1)}, "ISVPRODID"),
        ({"identity": replace(IDENTITY, mr_signer=bytes(32))}, "has no signer"),
    ],
)
def test_a_giver_that_is_not_the_one(forge: Forge, giver: Giving, changes: dict[str, Any], why: str) -> None:
    """KV13: the host names the giver, and could name an enclave of its own: it has none of our signer's."""
    carrier = Carrier(giver.accept)
    with pytest.raises(AttestationError, match=why):
        receiving(forge, carrier, giver, **changes).run()
    assert (carrier.disk.writes, giver.changes) == (0, [])


def test_something_that_is_no_giver(forge: Forge, giver: Giving) -> None:
    class Babble:
        async def exchange(self, data: bytes) -> bytes:
            return b"HTTP/1.1 200 OK\r\n\r\n"

    with pytest.raises(ServerProtocolError):
        receiving(forge, Carrier(Babble), giver).run()


def test_nothing_is_taken_over_what_is_there(forge: Forge, giver: Giving) -> None:
    carrier = Carrier(giver.accept)
    receiving(forge, carrier, giver).run()
    before = carrier.disk.blob
    with pytest.raises(SealBroken, match="has a sealed configuration of its own already"):
        receiving(forge, carrier, giver).run()
    assert (carrier.disk.blob, carrier.disk.writes, len(giver.changes)) == (before, 1, 1)


def test_a_clock_behind_the_givers_judged_nothing(forge: Forge, config: SealedConfig) -> None:
    giver = giving(forge, config)
    giver.keeper.adopt(replace(config, clock_floor_ns=giver.rig.now_ns + DAY_NS + 1))
    carrier = Carrier(giver.accept)
    with pytest.raises(ConfigError, match="clock is more than 24 h behind"):
        receiving(forge, carrier, giver).run()
    assert carrier.disk.writes == 0


# -- a host that does to the bytes what it likes -----------------------------------------------------------------------


def nth(turn: int, spoil: Callable[[bytes], bytes | None]) -> Callable[[bytes], bytes | None]:
    """Do that to the bytes of one turn only."""
    count = iter(range(1, 1000))
    return lambda data: spoil(data) if next(count) == turn else data


def flip(data: bytes) -> bytes:
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


SPOILED: list[tuple[str, Callable[[bytes], bytes | None]]] = [
    ("changed", flip),
    ("cut", lambda data: data[:-1]),
    ("lost", lambda data: None),
    ("repeated", lambda data: data + data),
    ("reordered", lambda data: data[len(data) // 2 :] + data[: len(data) // 2]),
    ("stretched", lambda data: data + b"\0"),
]


@pytest.mark.parametrize("way", ["up", "down"])
@pytest.mark.parametrize("spoil", [spoil for _, spoil in SPOILED], ids=[name for name, _ in SPOILED])
def test_bytes_that_were_spoiled_on_their_way(
    forge: Forge, giver: Giving, way: str, spoil: Callable[[bytes], bytes | None]
) -> None:
    """In each turn there is. Nothing is sealed but what the giver gave; a cut or a repetition at the very end, when all
    has come, changes nothing any more."""
    whole = Carrier(giver.accept)
    receiving(forge, whole, giver).run()
    for turn in range(1, whole.turns + 1):
        carrier = Carrier(giver.accept, **{way: cast(Any, nth(turn, spoil))})
        try:
            taken = receiving(forge, carrier, giver).run()
        except EnclaveError:
            assert carrier.disk.writes == 0
        else:
            assert turn == whole.turns
            assert taken.master_key == giver.keeper.config.master_key


def test_a_recorded_transfer_is_of_no_use(forge: Forge, giver: Giving) -> None:
    """To the receiver that it was for, and to another: the host has all bytes of it, and no key."""
    record: list[bytes] = []

    def keep(data: bytes) -> bytes:
        record.append(data)
        return data

    receiving(forge, Carrier(giver.accept, down=keep), giver).run()

    class Recorded:
        def __init__(self) -> None:
            self._left = iter(record)

        async def exchange(self, data: bytes) -> bytes:
            return next(self._left, b"")

    carrier = Carrier(Recorded)
    with pytest.raises(EnclaveError):
        receiving(forge, carrier, giver).run()
    assert carrier.disk.writes == 0


def test_a_connection_that_changes_hands(forge: Forge, giver: Giving, config: SealedConfig) -> None:
    """The host swaps the giver by a third enclave, of the same code even, once the first has proved itself."""
    third = giving(forge, replace(config, master_key=os.urandom(32)))
    for turn in range(1, 4):
        first, other = giver.accept(), third.accept()
        count = iter(range(1, 100))

        class Swapped:
            async def exchange(self, data: bytes) -> bytes:
                return await (first if next(count) < turn else other).exchange(data)  # noqa: B023 # used at once

        carrier = Carrier(Swapped)
        if turn == 1:
            assert receiving(forge, carrier, giver).run().master_key == third.keeper.config.master_key
            continue  # a whole connection to another enclave of that measurement: the operator named no more than that
        with pytest.raises(EnclaveError):
            receiving(forge, carrier, giver).run()
        assert carrier.disk.writes == 0


def test_evidence_that_comes_late_is_none(forge: Forge, giver: Giving) -> None:
    def late(data: bytes) -> bytes:
        giver.rig.now_ns += CONTEXT_NS + 1
        return data

    with pytest.raises(AttestationError, match='"context" has expired'):
        receiving(forge, Carrier(giver.accept, up=nth(3, late)), giver).run()
    assert giver.changes == []


@pytest.mark.parametrize("reply", [b"", b"\2abc", b"\1abc", b"\0", b"\xff"])
def test_a_turn_that_contradicts_itself_is_a_lie(forge: Forge, giver: Giving, reply: bytes) -> None:
    carrier = Carrier(giver.accept, raw=lambda came: reply)
    with pytest.raises((HostProtocolError, IndexError)):
        receiving(forge, carrier, giver).run()
    assert carrier.lies or not reply  # the channel itself refuses what is shorter than declared
