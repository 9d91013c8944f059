"""A bounded share of the siege, on the module with its store; `make hostile-wasm` has all of it (WA1 to WA3)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from tests.modules import wasm_monsters as monsters
from tests.modules import wasm_siege as siege


def during(test: Callable[[siege.Siege], Awaitable[None]]) -> siege.Siege:
    async def main() -> siege.Siege:
        async with siege.besieged(component_bytes=64 << 20) as given:
            await asyncio.wait_for(test(given), 100)
        return given

    return asyncio.run(main())


def test_monsters_are_refused_and_the_good_app_goes_on() -> None:
    done = during(lambda given: siege.uploads(given, list(monsters.REFUSED)))
    assert len(done.steps) == len(monsters.REFUSED)


def test_a_hostile_app_costs_its_own_calls_and_the_memory_comes_back() -> None:
    sizes: list[int] = []

    async def test(given: siege.Siege) -> None:
        for _ in range(3):
            await siege.calls(given, 2)
            sizes.append(siege.resident())

    done = during(test)
    meanwhile = [served for what, _, served in done.steps if what == "evil spin"]
    assert all(served > 0 for served in meanwhile), meanwhile
    assert sizes[-1] < sizes[0] * 1.5, sizes


def test_paths_and_names_lead_nowhere() -> None:
    async def test(given: siege.Siege) -> None:
        await siege.paths(given)
        await siege.names(given, 2_000)

    during(test)
