"""A client of a sealed store whose calls are recorded, for histories that are judged afterwards."""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import Final

from enclave_os.errors import HostRefused, StoreBusy, VersionConflict
from enclave_os.kv.sealed import SealedKV
from tests.linearizable import History

KEYS: Final = [b"%d" % number for number in range(6)]


async def client(
    number: int, kv: SealedKV, history: History, dice: random.Random, values: itertools.count[int]
) -> None:
    """Reads, writes, conditional writes, deletions, until it is cancelled, which leaves a write's outcome unknown."""
    place = kv.namespace("", "things")
    seen: dict[bytes, int] = {}
    while True:
        key = dice.choice(KEYS)
        call = history.begin(number, key)
        if dice.random() < 0.5:
            try:
                item = await kv.get(place, key)
            except (HostRefused, StoreBusy):
                call.refused()
                continue
            seen[key] = item.version if item else 0
            call.got(item.value if item else None, seen[key])
            continue
        value = None if dice.random() < 0.2 else b"%d" % next(values)
        expected = seen.get(key) if dice.random() < 0.5 else None
        try:
            if value is None:
                version = await kv.delete(place, key, expected)
            else:
                version = await kv.put(place, key, value, expected)
        except VersionConflict as conflict:
            assert expected is not None
            call.conflicted(conflict.version, expected)
        except StoreBusy:
            call.refused()
        except (HostRefused, asyncio.CancelledError) as error:
            call.lost(value, expected)
            if isinstance(error, asyncio.CancelledError):
                raise
        else:
            call.wrote(value, version, expected)
