"""Workers that follow worker 0, with a host that carries their letters (CK5, KV13)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from enclave_os.errors import ConfigError, HostRefused, SealBroken
from enclave_os.runtime.beginning import Beginning
from enclave_os.runtime.clock import Clock
from enclave_os.sealing import sealed_config
from enclave_os.sealing.keeper import SealKeeper
from enclave_os.sealing.sealed_config import SealedConfig
from enclave_os.wire.errors import PeerProtocolError
from enclave_os.wire.rpc import Method
from enclave_os.workers.admission import HELLO_SIZE, KEY_SIZE, Admission, Welcome, admit
from tests.enclave.sealing import FakePlatform, policy

DAY = 24 * 3600 * 1_000_000_000
NOW = 1_795_000_000 * 1_000_000_000
INDEX_SIZE = 2


@dataclass
class Mail:
    """The host's mailboxes of two workers; `tamper` is what it does to a letter on its way.

    Attributes:
        silent: worker 1's wait for a letter runs out at once when there is none.
    """

    tamper: Callable[[bytes], bytes] = bytes
    silent: bool = False
    boxes: tuple[asyncio.Queue[bytes], ...] = ()

    def of(self, index: int) -> Any:
        async def call(method: Method, payload: bytes = b"", *, deadline: float | None = None) -> bytes:
            if method is Method.PEER_SEND:
                to = int.from_bytes(payload[:INDEX_SIZE], "little")
                await self.boxes[to].put(index.to_bytes(INDEX_SIZE, "little") + self.tamper(payload[INDEX_SIZE:]))
                return b""
            assert method is Method.PEER_TAKE
            if index and self.silent:
                while not self.boxes[0].empty():
                    await asyncio.sleep(0)  # worker 0 answers in the step in which it takes
                if self.boxes[index].empty():
                    raise HostRefused("no answer in time")
            letter = await self.boxes[index].get()
            if not letter:
                raise PeerProtocolError("ended")
            return letter

        return SimpleNamespace(call=call)


@dataclass
class Worker:
    """One worker's beginning, and what it made it of."""

    mail: Mail
    index: int
    sealed_policy: bytes = field(default_factory=policy)
    host_ns: int = NOW
    platform: FakePlatform = field(default_factory=FakePlatform)

    def __post_init__(self) -> None:
        rpc = self.mail.of(self.index)
        self.clock = Clock(lambda: self.host_ns, NOW, lambda: 0)
        self.keeper = SealKeeper(rpc, self.platform, self.sealed_policy)
        context = SimpleNamespace(settings=SimpleNamespace(worker_index=self.index))
        self.beginning = Beginning(
            cast(Any, context), rpc, self.keeper, cast(Any, self.platform), self.clock, logging.getLogger("test")
        )


def follow(first: Worker, other: Worker, config: SealedConfig, left: Sequence[bytes] = ()) -> SealedConfig:
    """Worker 0 has `config`; the other takes it. `left`: what lies in its mailbox before."""
    first.keeper.adopt(config)

    async def both() -> SealedConfig:
        first.mail.boxes = (asyncio.Queue(), asyncio.Queue())
        for letter in left:
            first.mail.boxes[1].put_nowait(letter)
        serving = asyncio.ensure_future(first.beginning.admit_workers())
        try:
            return await asyncio.wait_for(other.beginning.follow(), 10)
        finally:
            await first.mail.boxes[0].put(b"")
            await asyncio.wait_for(serving, 10)

    return asyncio.run(both())


def test_content_and_time_are_taken() -> None:
    mail = Mail()
    first, other = Worker(mail, 0), Worker(mail, 1, host_ns=NOW + 3 * DAY)
    config = replace(sealed_config.first(policy()), clock_floor_ns=NOW)
    assert follow(first, other, config) == config
    assert other.clock.look() is not None  # three days ahead of the floor: in doubt
    settled = replace(config, clock_floor_ns=NOW + 3 * DAY - 1, exports=(b"1" * 32,))
    assert follow(first, other, settled) == settled
    assert other.keeper.config.exports == (b"1" * 32,)
    assert other.clock.look() is None  # a manager confirmed it at worker 0


def test_kv13_a_worker_of_another_policy_gets_no_further() -> None:
    mail = Mail()
    other = Worker(mail, 1, sealed_policy=policy(seal={"export": "signer"}))
    with pytest.raises(ConfigError, match=r"seal\.export"):
        follow(Worker(mail, 0), other, sealed_config.first(policy()))
    with pytest.raises(SealBroken):
        _ = other.keeper.config


def test_late_answers_to_earlier_hellos_do_not_stand_in_the_way() -> None:
    config = sealed_config.first(policy())
    late = bytes(INDEX_SIZE) + admit(Admission(FakePlatform().sealing_key(), 1).hello, b"k" * 32, 1, Welcome(config))[0]
    mail = Mail()
    assert follow(Worker(mail, 0), Worker(mail, 1), config, [late, b"\0\0cut", late]) == config


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda letter: letter[:-1] + bytes([letter[-1] ^ 1]), "does not open"),
        (lambda letter: letter + b"0" if len(letter) > HELLO_SIZE else letter, "does not open"),
        (lambda letter: letter[:KEY_SIZE] if len(letter) > HELLO_SIZE else letter, "cut short"),
        (lambda letter: letter[:40], "did not answer"),
    ],
)
def test_a_letter_that_was_changed_is_asked_for_again_and_then_refused(
    change: Callable[[bytes], bytes], reason: str
) -> None:
    mail = Mail(change, silent=True)
    with pytest.raises(SealBroken, match=f"did not admit.*{reason}"):
        follow(Worker(mail, 0), Worker(mail, 1), sealed_config.first(policy()))


def test_worker_0_of_other_code_is_not_believed() -> None:
    mail = Mail(silent=True)
    with pytest.raises(SealBroken, match="other code"):
        follow(Worker(mail, 0, platform=FakePlatform(key=b"o" * 32)), Worker(mail, 1), sealed_config.first(policy()))


def test_a_host_that_refuses() -> None:
    class Refusing(Mail):
        def of(self, index: int) -> Any:
            async def call(method: Method, payload: bytes = b"", *, deadline: float | None = None) -> bytes:
                if method is Method.PEER_TAKE:
                    raise HostRefused("no", -5)
                return b""

            return SimpleNamespace(call=call)

    with pytest.raises(SealBroken, match="did not admit"):
        asyncio.run(Worker(Refusing(), 1).beginning.follow())
