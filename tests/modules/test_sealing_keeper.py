"""Memory and disk say the same of what is sealed, whoever leaves, and also when the host says no or nothing at all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Final, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_os.errors import HostProtocolError, HostRefused, SealBroken
from enclave_os.rpc.client import RPCClient
from enclave_os.sealing import keeper as keeper_module
from enclave_os.sealing.keeper import SealKeeper
from enclave_os.sealing.opening import open_blob
from enclave_os.sealing.sealed_config import SealedConfig, first
from enclave_os.wire.rpc import MEASUREMENT_SIZE, Method
from tests.enclave.sealing import FakePlatform, policy

PLATFORM = FakePlatform()
STORED, REFUSED, LOST, UNANSWERED = "stored", "refused", "not stored, not answered", "stored, not answered"
NO: Final = HostRefused("the host refused SEAL_STORE: FAILED", -1)
SILENT: Final = HostRefused("the host did not answer SEAL_STORE in time")


class Host:
    """Keeps a blob, and answers each SEAL_STORE when it is let, as it is told to."""

    def __init__(self) -> None:
        self.disk: SealedConfig | None = None
        self.calls: asyncio.Queue[asyncio.Future[str]] = asyncio.Queue()
        self.under_way = 0

    async def call(self, method: Method, payload: bytes = b"", *, deadline: float | None = None) -> bytes:
        assert method is Method.SEAL_STORE
        assert self.under_way == 0, "one at a time, or the last one to land is not the last one"
        self.under_way += 1
        outcome: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.calls.put_nowait(outcome)
        try:
            how = await outcome
        finally:
            self.under_way -= 1
        if how in (STORED, UNANSWERED):
            self.disk = open_blob(payload[MEASUREMENT_SIZE:], PLATFORM)
        if how == "lie":
            raise HostProtocolError("a lie")
        if how != STORED:
            raise NO if how == REFUSED else SILENT
        return b""


class Rig:
    """A keeper over a host in our hand; the loop's handler of exceptions must hear nothing."""

    def __init__(self) -> None:
        self.host = Host()
        self.keeper = SealKeeper(cast(RPCClient, self.host), PLATFORM, policy())
        self.keeper.adopt(first(policy()))
        self.host.disk = self.keeper.config
        self.bugs: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: self.bugs.append(context))

    def approve(self, number: int) -> asyncio.Task[SealedConfig]:
        def change(held: SealedConfig) -> SealedConfig:
            return replace(held, exports=(*held.exports, name(number)))

        return asyncio.create_task(self.keeper.change(change))

    async def next_call(self) -> asyncio.Future[str]:
        return await asyncio.wait_for(self.host.calls.get(), 60)

    @property
    def approved(self) -> tuple[bytes, ...]:
        return self.keeper.config.exports

    @property
    def agrees(self) -> bool:
        return self.host.disk == self.keeper.config


def name(number: int) -> bytes:
    return bytes([number]) * 32


def run(test: Callable[[Rig], Awaitable[None]]) -> None:
    async def whole() -> None:
        rig = Rig()
        await test(rig)
        for _ in range(3):
            await asyncio.sleep(0)  # the callbacks of what has ended
        assert rig.bugs == []

    asyncio.run(whole())


async def leave(task: asyncio.Task[SealedConfig]) -> None:
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


def test_one_that_is_under_way_is_taken_though_its_caller_left() -> None:
    async def test(rig: Rig) -> None:
        task = rig.approve(1)
        store = await rig.next_call()
        await leave(task)
        second = rig.approve(2)
        await asyncio.sleep(0)
        assert rig.host.calls.empty(), "the next one waits for it"
        store.set_result(STORED)
        (await rig.next_call()).set_result(STORED)
        await second
        assert rig.approved == (name(1), name(2))
        assert rig.agrees

    run(test)


def test_one_that_waits_for_its_turn_is_not_begun_when_its_caller_left() -> None:
    async def test(rig: Rig) -> None:
        task = rig.approve(1)
        store = await rig.next_call()
        waiting = rig.approve(2)
        await asyncio.sleep(0)
        await leave(waiting)
        store.set_result(STORED)
        await task
        assert rig.host.calls.empty()
        assert rig.approved == (name(1),)
        assert rig.agrees

    run(test)


def test_who_waits_for_one_that_was_left_behind_need_not_wait_for_ever() -> None:
    async def test(rig: Rig) -> None:
        task = rig.approve(1)
        store = await rig.next_call()
        await leave(task)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await rig.approve(2)
        store.set_result(STORED)
        third = rig.approve(3)
        (await rig.next_call()).set_result(STORED)
        await third
        assert rig.approved == (name(1), name(3))
        assert rig.agrees

    run(test)


@pytest.mark.parametrize("how", [REFUSED, LOST, UNANSWERED, "lie"])
def test_nobody_hears_of_a_refusal_when_its_caller_left(how: str) -> None:
    async def test(rig: Rig) -> None:
        task = rig.approve(1)
        store = await rig.next_call()
        await leave(task)
        store.set_result(how)
        second = rig.approve(2)
        (await rig.next_call()).set_result(STORED)
        await second
        assert rig.approved == (name(2),)
        assert rig.agrees

    run(test)


@pytest.mark.parametrize("how", [REFUSED, LOST, UNANSWERED])
def test_what_is_not_acknowledged_is_not_in_force_and_in_doubt_until_the_next_change(how: str) -> None:
    async def test(rig: Rig) -> None:
        task = rig.approve(1)
        (await rig.next_call()).set_result(how)
        with pytest.raises(HostRefused):
            await task
        assert rig.approved == ()
        assert rig.keeper.doubt == str(NO if how == REFUSED else SILENT)
        assert rig.agrees == (how != UNANSWERED), "what is in doubt"
        second = rig.approve(2)
        (await rig.next_call()).set_result(STORED)
        await second
        assert rig.approved == (name(2),)
        assert rig.agrees, "the former is gone from the disk as well"
        assert rig.keeper.doubt is None

    run(test)


def test_what_is_held_is_sealed_again_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper_module, "AGAIN_SECONDS", 0.0)

    async def test(rig: Rig) -> None:
        task = rig.approve(1)
        (await rig.next_call()).set_result(UNANSWERED)
        with pytest.raises(HostRefused):
            await task
        assert not rig.agrees
        (await rig.next_call()).set_result(REFUSED)
        assert not rig.agrees
        (await rig.next_call()).set_result(STORED)
        following = rig.approve(2)  # waits for that one
        (await rig.next_call()).set_result(STORED)
        await following
        assert rig.approved == (name(2),)
        assert (rig.agrees, rig.keeper.doubt) == (True, None)
        for _ in range(10):
            await asyncio.sleep(0)
        assert rig.host.calls.empty(), "and no more often than that"

    run(test)


def test_a_bug_in_a_change_changes_nothing_and_lets_the_next_go_on() -> None:
    async def test(rig: Rig) -> None:
        with pytest.raises(ZeroDivisionError):
            await rig.keeper.change(lambda held: replace(held, kv_version=1 // 0))
        task = rig.approve(1)
        (await rig.next_call()).set_result(STORED)
        await task
        assert rig.agrees

    run(test)


@pytest.mark.parametrize("how", [REFUSED, LOST, UNANSWERED])
def test_what_begins_is_open_when_it_is_stored(how: str) -> None:
    async def test(rig: Rig) -> None:
        keeper = SealKeeper(cast(RPCClient, rig.host), PLATFORM, policy())
        config = first(policy())
        begins = asyncio.create_task(keeper.begin(config))
        (await rig.next_call()).set_result(how)
        with pytest.raises(HostRefused):
            await begins
        with pytest.raises(SealBroken):
            _ = keeper.config
        begins = asyncio.create_task(keeper.begin(config))
        store = await rig.next_call()
        begins.cancel()
        await asyncio.wait([begins])
        store.set_result(STORED)
        following = asyncio.create_task(keeper.change(lambda held: held.with_floor(7)))
        (await rig.next_call()).set_result(STORED)
        assert (await following) == keeper.config == rig.host.disk
        assert keeper.config.master_key == config.master_key

    run(test)


HOW = st.sampled_from([STORED, REFUSED, LOST, UNANSWERED])
STEPS = st.lists(st.tuples(HOW, st.sampled_from(["stays", "leaves", "left before"])), max_size=12)


@given(STEPS)
def test_after_each_acknowledged_change_the_disk_has_what_memory_has(steps: list[tuple[str, str]]) -> None:
    async def test(rig: Rig) -> None:
        expected: tuple[bytes, ...] = ()
        for number, (how, caller) in enumerate(steps):
            task = rig.approve(number)
            if caller == "left before":
                await leave(task)
                assert rig.host.calls.empty()
                continue
            store = await rig.next_call()
            if caller == "leaves":
                await leave(task)
            store.set_result(how)
            if caller == "leaves":
                await rig.keeper._storing  # type: ignore[misc]
            elif how == STORED:
                await task
            else:
                with pytest.raises(HostRefused):
                    await task
            if how == STORED:
                expected = (*expected, name(number))
                assert rig.agrees
            assert rig.approved == expected
            assert (rig.keeper.doubt is None) == (how == STORED)

    run(test)
