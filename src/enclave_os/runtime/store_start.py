"""How a worker comes to its part of the store: made before there is a group, and owned before modules start."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from enclave_os.rpc.client import RPCClient
from enclave_os.rpc.kv import KVCalls
from enclave_os.runtime.clock import Clock
from enclave_os.runtime.group import DEADLINES, Group
from enclave_os.runtime.key_value import KeyValue
from enclave_os.runtime.range_claim import Claim
from enclave_os.sealing.keeper import SealKeeper
from enclave_os.wire.rpc import Method
from enclave_os.wire.setting_table import EnclaveSettings


def make_store(
    settings: EnclaveSettings,
    rpc: RPCClient,
    keeper: SealKeeper,
    clock: Clock,
    loop: asyncio.AbstractEventLoop,
    *,
    keep: Callable[[Coroutine[Any, Any, None]], None],
    group: Callable[[], Group],
) -> KeyValue:
    """This worker's part of the store; see `KeyValue`.

    Args: group: this worker's, which is made after the store.
    """

    def ask(payload: bytes, *, again: bool, seconds: float | None = None) -> Coroutine[Any, Any, bytes]:
        return group().ask_first(payload, again=again, seconds=seconds)

    def claim(index: int) -> Claim:
        return Claim(index, ask, group().seen, seconds=DEADLINES * settings.timeouts.rpc, loop=loop)

    return KeyValue(
        KVCalls(rpc),
        keeper,
        clock,
        logging.getLogger("kv"),
        keep=keep,
        checkpoint_seconds=settings.kv.checkpoint,
        memory=settings.kv.memory,
        hold=settings.kv.restore,
        commits=settings.kv.anchor_every == "commit",
        changed=lambda: group().written(),
        worker=settings.worker_index,
        workers=settings.worker_count,
        claim=claim if settings.worker_index else None,
        quiet_others=lambda: group().quiet_others(),
        resume_others=lambda: group().resume_others(),
    )


async def claim_ranges(store: KeyValue, group: Group, rpc: RPCClient) -> None:
    """Every range has an owner when this returns: modules may need any of them to start.

    Raises: SealBroken, ConfigError: the start is refused. HostRefused, HostProtocolError.
    """
    if group.is_first:
        await rpc.call(Method.PEER_START)  # else the host starts the others when this worker serves
        await store.all_claimed()
    else:
        await store.open_claimed()
        await group.ranges_claimed()
