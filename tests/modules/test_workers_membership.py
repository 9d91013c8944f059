"""Whom worker 0 admits, whom a worker follows, and what a carrier that lies can do about it: end them, no more."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from enclave_os.errors import (
    AttestationError,
    ConfigError,
    HostProtocolError,
    HostRefused,
    SealBroken,
    StoreBusy,
)
from enclave_os.runtime import membership
from enclave_os.sealing.sealed_config import FORMER_MAX
from enclave_os.sealing.welcome import Welcome
from enclave_os.workers.admission import HELLO_SIZE, KEY_SIZE, Admission, admit
from enclave_os_client.memory import refuse_older
from tests.enclave.sealing import FakePlatform, policy
from tests.modules import group_rig
from tests.modules.group_rig import NOW, Worker, Workers, until
from tests.modules.played_host import Host

DAY = 24 * 3600 * 1_000_000_000


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


class TestAdmission:
    def test_content_and_time_are_taken(self) -> None:
        async def test() -> None:
            async with Workers(1, Host(2)) as workers:
                first = workers.now[0]
                other = Worker(workers.host, 1, host_ns=NOW + 3 * DAY)
                await other.begin()
                assert other.keeper.config == first.keeper.config
                assert other.clock.look() is not None  # three days ahead of the floor: in doubt
                settled = await first.keeper.change(lambda config: config.with_floor(NOW + 3 * DAY - 1))
                first.group.config_changed(settled)
                await until(lambda: other.keeper.config == settled)
                assert other.clock.look() is None  # a manager confirmed it at worker 0
                other.kill()

        run(test)

    def test_kv13_a_worker_of_another_policy_gets_no_further(self) -> None:
        async def test() -> None:
            async with Workers(1, Host(2)) as workers:
                other = Worker(workers.host, 1, own_policy=policy(seal={"export": "signer"}))
                with pytest.raises(ConfigError, match=r"seal\.export"):
                    await other.begin()
                with pytest.raises(SealBroken):
                    _ = other.keeper.config
                other.kill()

        run(test)

    def test_a_hello_of_a_worker_that_there_is_not(self) -> None:
        async def test() -> None:
            async with Workers(1, Host(3)) as workers:
                first = workers.now[0]
                assert first.group._first is not None
                first.group._first._count = 2  # the host knows of one more than the configuration
                hello = Admission(FakePlatform().sealing_key(), 2).hello
                workers.host.mail.sender(2)(b"\0\0" + hello)
                other = Worker(workers.host, 1)
                await other.begin()
                assert list(first.group._first._admitted) == [1]
                assert not first.group._first._candidates
                other.kill()

        run(test)

    def test_worker_0_that_ends_with_its_first_word_is_waited_for(self) -> None:
        """Both come in one turn of the loop: the worker is not admitted, and whoever asks waits for the next time."""

        async def test() -> None:
            async with Workers(2) as workers:
                lied: list[bytes] = []

                def tamper(index: int, reply: bytes) -> list[bytes]:
                    if index != 1 or lied:
                        return [reply]
                    lied.append(reply)
                    return [reply, reply[:2]]

                other = workers.now[1]
                other.rpc.deliver([b"\0\0"])
                await until(lambda: other.group.counters()["workers_admitted"] == 0)
                workers.host.tamper = tamper
                asking = asyncio.ensure_future(other.table().get(b"a"))
                assert await asking is None
                assert lied
                assert other.group.counters()["workers_admissions_total"] == 2

        run(test)

    def test_who_lost_what_was_on_its_way_is_admitted_again_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As after an hour in which the host had nothing to say: it costs nobody a deadline."""
        monkeypatch.setattr(group_rig, "RPC_SECONDS", 30.0)

        async def test() -> None:
            async with Workers(2) as workers:
                member = workers.now[1].group._member
                assert member is not None
                member._carriage._lose()
                began = asyncio.get_running_loop().time()
                assert await workers.now[1].table().get(b"a") is None
                assert asyncio.get_running_loop().time() - began < 30
                assert member.admissions == 2

        run(test)

    def test_late_answers_to_earlier_hellos_do_not_stand_in_the_way(self) -> None:
        async def test() -> None:
            async with Workers(1, Host(2)) as workers:
                send = workers.host.mail.sender(0)
                hello = Admission(FakePlatform().sealing_key(), 1).hello
                late = admit(hello, FakePlatform().sealing_key(), 1, Welcome(workers.now[0].keeper.config))[0]
                for letter in (late, b"cut", late):
                    send(b"\1\0" + letter)
                other = Worker(workers.host, 1)
                await other.begin()
                assert await other.table().get(b"a") is None
                other.kill()

        run(test)

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
        self, monkeypatch: pytest.MonkeyPatch, change: Callable[[bytes], bytes], reason: str
    ) -> None:
        monkeypatch.setattr(membership, "ANSWER_SECONDS", 0.05)

        async def test() -> None:
            async with Workers(1, Host(2)) as workers:
                workers.host.tamper_letter = change
                other = Worker(workers.host, 1)
                with pytest.raises(SealBroken, match=f"did not admit.*{reason}"):
                    await other.begin()
                other.kill()

        run(test)

    def test_worker_0_of_other_code_is_not_believed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(membership, "ANSWER_SECONDS", 0.05)

        async def test() -> None:
            async with Workers(1, Host(2)) as workers:
                other = Worker(workers.host, 1, platform=FakePlatform(key=b"o" * 32))
                with pytest.raises(SealBroken, match="other code"):
                    await other.begin()
                other.kill()

        run(test)


class TestOneTruth:
    """No two workers admitted in one boot hold different truths; a worker goes on to a later boot along its descent."""

    def test_a_second_worker_0_on_a_copy_is_not_followed(self) -> None:
        async def test() -> None:
            async with Workers(2) as workers:
                copy = workers.host.clone()
                await workers.now[1].table().put(b"a", b"1")
                workers.now[0].kill()
                # The host starts worker 0 on yesterday's disk: with the same boot count, and another nonce.
                workers.host.rows, blob = copy.rows, workers.host.blob
                workers.host.blob = copy.blob
                impostor = Worker(workers.host, 0)
                await impostor.keeper.open()
                config = impostor.keeper.config
                assert config.boot_count == workers.now[1].keeper.config.boot_count + 1
                await impostor.keeper.change(lambda config: config)
                await impostor.store.open()
                impostor.group.begin()
                await until(lambda: bool(workers.now[1].broken))
                assert isinstance(workers.now[1].broken[0], SealBroken)
                assert "put back" in str(workers.now[1].broken[0])
                impostor.kill()
                assert blob

        run(test)

    def test_two_worker_0_of_one_boot_count(self) -> None:
        async def test() -> None:
            host = Host(2)
            async with Workers(2, host) as workers:
                await workers.again(0)
                await workers.now[1].state()
                fork = host.clone()
                copied = fork.blob
                await workers.again(0)  # boot 3
                await workers.now[1].state()
                # A twin of boot 3, from the blob of boot 2; and its own next boot, which counts higher than ours.
                workers.now[0].kill()
                host.blob = copied
                for count, reason in ((3, "another boot"), (4, "copy")):
                    twin = Worker(host, 0)
                    await twin.keeper.open()
                    assert twin.keeper.config.boot_count == count
                    await twin.keeper.change(lambda config: config)
                    await twin.store.open()
                    held, seen = workers.now[1].keeper, workers.now[1].group.state
                    version, root = twin.store.state or (0, bytes(32))
                    with pytest.raises(SealBroken, match=reason):
                        held.follow(Welcome(twin.keeper.config, version, root), seen)
                    twin.kill()

        run(test)

    @pytest.mark.parametrize(("deaths", "follows"), [(2, True), (FORMER_MAX - 1, True), (FORMER_MAX, False)])
    def test_a_worker_that_missed_boots_follows_as_far_as_their_descent_is_known(
        self, deaths: int, follows: bool
    ) -> None:
        async def test() -> None:
            async with Workers(2) as workers:
                first, other = workers.now
                await other.table().put(b"a", b"kept")
                first.kill()
                for _ in range(deaths):  # worker 0 dies after it has sealed its boot, and before it admits anybody
                    failing = Worker(workers.host, 0)
                    await failing.keeper.open()
                    await failing.keeper.change(lambda config: config)
                    failing.rpc.alive = False
                workers.now[0] = await workers._make(0)
                if not follows:
                    await until(lambda: bool(other.broken))
                    assert "so often" in str(other.broken[0])
                    other = await workers.again(1)
                item = await other.table().get(b"a")
                assert item is not None
                assert item.value == b"kept"
                assert await other.state() == await workers.now[0].state()
                assert not other.broken

        run(test)

    def test_a_copy_that_hides_behind_more_boots_is_not_followed(self) -> None:
        """The host starts a twin of the boot that is served, then its descendants until one counts higher."""

        async def test() -> None:
            host = Host(2)
            async with Workers(2, host) as workers:
                before = host.blob
                await workers.again(0)
                await workers.now[1].state()
                workers.now[0].kill()
                host.blob = before
                for _ in range(3):
                    twin = Worker(host, 0)
                    await twin.keeper.open()
                    await twin.keeper.change(lambda config: config)
                    twin.rpc.alive = False
                workers.now[0] = await workers._make(0)
                await until(lambda: bool(workers.now[1].broken))
                assert "from a copy" in str(workers.now[1].broken[0])

        run(test)

        run(test)

    def test_clones_of_a_whole_group_are_seen_by_a_client_alone(self) -> None:
        """The limit that is stated: inside nobody can know; a client that remembers does."""

        async def test() -> None:
            async with Workers(2) as workers:
                await workers.now[1].table().put(b"a", b"1")
                copy = workers.host.clone()
                await workers.again(0)
                async with Workers(2, copy) as clones:
                    await workers.now[1].table().put(b"a", b"ours")
                    await clones.now[1].table().put(b"a", b"theirs")
                    ours, theirs = await workers.now[1].state(), await clones.now[1].state()
                    assert not clones.now[1].broken
                    assert (ours.boot, ours.version) == (theirs.boot, theirs.version)
                    with pytest.raises(AttestationError, match="two enclaves"):
                        refuse_older(ours, theirs)

        run(test)


class TestHostileCarrier:
    @pytest.mark.parametrize("victim", [0, 1])
    @pytest.mark.parametrize("lie", ["drop", "repeat", "change", "reorder", "reflect", "cut"])
    def test_a_lie_ends_the_channel_and_the_worker_begins_anew(self, lie: str, victim: int) -> None:
        async def test() -> None:
            chosen = random.Random(f"{lie} {victim}")
            lied: list[str] = []
            seen: list[bytes] = []

            def tamper(index: int, reply: bytes) -> list[bytes]:
                seen.append(reply)
                if index != victim or lied or len(seen) < 12:
                    return [reply]
                lied.append(lie)
                if lie == "drop":
                    return []
                if lie == "repeat":
                    return [reply, reply]
                if lie == "reorder":
                    return [seen[-3], reply]
                if lie == "reflect":
                    return [reply[:2] + seen[-2][2:], reply]
                if lie == "cut":
                    return [reply[:-1]]
                broken = bytearray(reply)
                broken[chosen.randrange(20, len(broken))] ^= 1
                return [bytes(broken)]

            async with Workers(2) as workers:
                workers.host.tamper = tamper
                written: list[bytes] = []
                other = workers.now[1]
                for number in range(40):
                    value = b"%d" % number
                    try:
                        await other.table().put(b"a", value)
                        written.append(value)
                    except (HostRefused, StoreBusy):
                        written.append(value)
                    if other.broken:
                        break
                await until(lambda: bool(other.broken) or lie in ("reorder", "reflect") or bool(lied))
                if other.broken:
                    assert isinstance(other.broken[0], HostProtocolError)
                    other = await workers.again(1)
                assert not workers.now[0].broken, "worker 0 stays"
                item = await other.table().get(b"a")
                assert item is not None
                assert item.value in written

        run(test)

    def test_a_silent_carrier_costs_deadlines_and_then_a_new_admission(self) -> None:
        async def test() -> None:
            async with Workers(2) as workers:
                other = workers.now[1]
                await other.table().put(b"a", b"1")
                workers.host.tamper = lambda index, reply: []
                with pytest.raises(HostRefused, match="may have come into effect"):
                    await other.table().put(b"a", b"2")
                workers.host.tamper = None
                item = await other.table().get(b"a")
                assert item is not None
                assert item.value in (b"1", b"2")
                assert other.group.counters()["workers_admissions_total"] == 2

        run(test)

    def test_hellos_of_the_host_admit_nobody_and_disturb_nobody(self) -> None:
        async def test() -> None:
            async with Workers(2) as workers:
                await workers.now[1].table().put(b"a", b"1")
                send = workers.host.mail.sender(1)
                for number in range(50):
                    send(b"\0\0" + bytes([number]) * 64)
                    send(b"\0\0" + b"junk")
                    item = await workers.now[1].table().get(b"a")
                    assert item is not None
                counters = workers.now[0].group.counters()
                assert (counters["workers_admitted"], counters["workers_admissions_total"]) == (1, 1)

        run(test)
