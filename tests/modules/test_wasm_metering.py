"""What calls cost: counted by function, shown, and kept from start to start."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from enclave_os.wasm import CallLimits, Component, Linker
from tests.modules import wasm_guests as guests
from tests.modules import wasm_monsters as monsters
from tests.modules.storage import ModuleStorage
from tests.modules.test_wasm_component import ENGINE, go
from tests.modules.wasm_rig import Site, json_of, on_site

PAGE = 65536
COUNTED = {
    *("calls", "errors", "fuel", "fuel_min", "fuel_max"),
    *("memory", "memory_min", "memory_max", "seconds", "seconds_max"),
}


@pytest.fixture(scope="module")
def plain() -> Linker:
    return Component.compile(ENGINE, guests.plain()).link([])


def test_a_call_is_charged_the_memory_that_it_had_at_the_most(plain: Linker) -> None:
    assert go(plain, "hello").memory == PAGE
    grown = go(plain, "grow", limits=CallLimits(memory=8 << 20))
    assert grown.memory == PAGE * (1 + grown.answer)
    assert 7 << 20 < grown.memory <= 8 << 20
    assert go(plain, "hello").memory == PAGE  # nothing of the one before


def test_a_call_that_fails_is_charged_as_well(plain: Linker) -> None:
    assert go(plain, "crash").memory == PAGE
    assert go(plain, "spin", limits=CallLimits(fuel=1000)).memory == PAGE
    assert go(plain, "hello", limits=CallLimits(memory=1)).memory == 0  # it never got one


def test_what_is_in_a_memory_stays_when_it_grows(plain: Linker) -> None:
    data = bytes(range(256)) * 4096
    echoed = go(plain, "echo", data)
    assert echoed.answer == data
    assert len(data) <= echoed.memory <= 3 * len(data)


def test_all_memories_of_a_call_are_counted() -> None:
    both = guests.wat(
        """(component (core module $M (memory 2) (func (export "f"))) (core instance $a (instantiate $M))
        (core instance $b (instantiate $M)) (func (export "f") (canon lift (core func $a "f"))))"""
    )
    assert go(Component.compile(ENGINE, both).link([]), "f").memory == 4 * PAGE
    empty = guests.wat(
        """(component (core module $M (memory 0) (func (export "f") (drop (memory.grow (i32.const 3)))))
        (core instance $a (instantiate $M)) (func (export "f") (canon lift (core func $a "f"))))"""
    )
    assert go(Component.compile(ENGINE, empty).link([]), "f").memory == 3 * PAGE
    data = Component.compile(ENGINE, monsters.much_data(5 << 20)).link([])
    assert go(data, "f").memory == (5 << 20) + PAGE


def test_the_figures_are_there_by_function_in_metrics_and_of_the_app() -> None:
    async def test(site: Site) -> None:
        await site.loaded("app", guests.plain(), memory=4 << 20)
        await site.value("app", "hello")
        await site.value("app", "grow")
        await site.value("app", "echo", data="aGVq")
        await site.value("app", "echo", data="aGVqaGVqaGVq" * 20_000)
        assert (await site.call("app", "crash")).status == 500
        functions = json_of(await site.send("GET", "/wasm/apps/app/metrics"))["functions"]
        assert set(functions) == {"hello", "grow", "echo", "crash"}
        assert all(set(figures) == COUNTED for figures in functions.values())
        echo, crash = functions["echo"], functions["crash"]
        assert (echo["calls"], echo["errors"], crash["calls"], crash["errors"]) == (2, 0, 1, 1)
        assert 0 < echo["fuel_min"] < echo["fuel_max"] < echo["fuel"] == echo["fuel_min"] + echo["fuel_max"]
        assert echo["memory"] == echo["memory_min"] + echo["memory_max"] >= 2 * PAGE
        assert 3 << 20 < functions["grow"]["memory_max"] <= 4 << 20
        assert crash["memory"] == crash["memory_min"] == crash["memory_max"] == PAGE
        assert 0 < echo["seconds_max"] <= echo["seconds"]
        counters = site.module.counters()
        for name, value in (
            ("calls_total", 2), ("errors_total", 0), ("fuel_total", echo["fuel"]), ("fuel_min", echo["fuel_min"]),
            ("fuel_max", echo["fuel_max"]), ("memory_bytes_total", echo["memory"]),
            ("memory_bytes_max", echo["memory_max"]), ("seconds_total", echo["seconds"]),
        ):  # fmt: skip
            assert counters[f'wasm_function_{name}{{app="app",function="echo"}}'] == value

    on_site(test)


def test_a_call_whose_caller_is_gone_is_charged_as_well() -> None:
    async def test(site: Site) -> None:
        await site.loaded("app", guests.plain())
        parts = site.module._parts
        assert parts is not None
        call = asyncio.create_task(site.call("app", "spin"))
        while not parts.pool.used_seconds("app"):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        while parts.pool._running:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        figures = json_of(await site.send("GET", "/wasm/apps/app/metrics"))["functions"]["spin"]
        assert (figures["calls"], figures["errors"], figures["memory"]) == (1, 1, PAGE)

    on_site(test, config={"fuel": 100_000_000_000, "seconds": 60})


def test_they_survive_restarts_sealed_and_are_added_up() -> None:
    async def figures(site: Site) -> dict[str, Any]:
        found: dict[str, Any] = json_of(await site.send("GET", "/wasm/apps/app/metrics"))["functions"]["hello"]
        return found

    async def main() -> None:
        site = Site(await ModuleStorage.open())
        async with site:
            await site.loaded("app", guests.plain())
            for _ in range(3):
                await site.value("app", "hello")
            before = await figures(site)
        site = await site.again()
        async with site:
            assert await figures(site) == before
            await site.value("app", "hello")
            after = await figures(site)
        assert (before["calls"], after["calls"]) == (3, 4)
        assert after["fuel"] == 4 * before["fuel_min"] == 4 * before["fuel_max"]
        assert (after["memory"], after["memory_min"], after["memory_max"]) == (4 * PAGE, PAGE, PAGE)
        # What lies with the host is sealed: no name and no figure of it can be read there.
        rows = [row for table in site.storage.rows.tables.values() for pair in table.items() for row in pair]
        assert rows
        assert not any(word in row for row in rows for word in (b"hello", b"fuel", b"calls"))

    asyncio.run(main())
