"""Hostile apps beside a good one: each is refused or trapped by name, and the good one goes on (WA1 to WA3).

python -m tests.modules.wasm_siege        all of it in full, minutes: make hostile-wasm
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from enclave_os.http import HTTPError, Response
from enclave_os.modules.wasm import Wasm
from tests.modules import wasm_guests as guests
from tests.modules import wasm_monsters as monsters
from tests.modules.storage import ModuleStorage
from tests.modules.wasm_rig import NamedTokens, Site

PROBE = Path(__file__).parent / "guests" / "probe.wasm"
MIB = 1 << 20

# An app that misbehaves in each way that a call can: (function, arguments, status, what its owner's log says of it).
CALLS: list[tuple[str, dict[str, Any], int, str]] = [
    ("spin", {}, 500, "fuel: the call used up its 20000000 units of fuel"),
    ("dig", {"n": 0}, 500, "stack"),
    ("crash", {}, 500, "unreachable"),
    ("big", {"size": 16 * MIB}, 500, "too much data at once"),
    ("big", {"size": 0x7FFF0000}, 500, "trap|memory"),
    ("beyond", {}, 500, "trap"),
    ("garbled", {}, 500, "trap"),
]
PATHS = ["../../good/secret", "/../good/secret", "/..", "//..//secret", "/good/../../secret", "a/\u0000b",
         "/\u2025/secret", "%2e%2e/secret", "..\\secret", "/proc/self/environ", "/etc/passwd", "\uff0e\uff0e/secret",
         "/" * 4000, "x" * 5000, "/a" * 2000]  # fmt: skip


@dataclass
class Siege:
    """What was done, and what the good app did meanwhile.

    Attributes:
        served: calls of the good app that were answered.
        steps: (what, status, calls of the good app while it went on).
    """

    site: Site
    served: int = 0
    wrong: list[bytes] = field(default_factory=list)
    steps: list[tuple[str, int, int]] = field(default_factory=list)

    async def serve(self) -> None:
        """Call the good app, for as long as this is not cancelled."""
        while True:
            answer = await self.site.call("good", "hello")
            if answer.status == 200:
                self.served += 1
            else:
                self.wrong.append(answer.body)

    async def step(self, what: str, hostile: Awaitable[Response], status: int, text: str = "") -> Response:
        """One hostile thing; the good app is served at least once meanwhile or right after."""
        before = self.served
        answer = await hostile
        self.steps.append((what, answer.status, self.served - before))
        assert answer.status == status, (what, answer.status, answer.body[:300])
        said = answer.body.decode() if status == 422 else await self._last_of_log(what.split()[0])
        assert not text or any(part in said for part in text.split("|")), (what, said)
        while self.served == before:
            await asyncio.sleep(0)
        return answer

    async def _last_of_log(self, app: str) -> str:
        lines = json.loads((await self.site.send("GET", f"/wasm/apps/{app}/log")).body).get("lines", [])
        return str(lines[-1]) if lines else ""


@contextlib.asynccontextmanager
async def besieged(**settings: int) -> AsyncIterator[Siege]:
    """A worker with a good app that is called all the time."""
    site = Site(await ModuleStorage.open(), {"fuel": 20_000_000, "seconds": 60, **settings}, module=Wasm())
    async with site:
        await site.loaded("good", guests.plain())
        siege = Siege(site)
        serving = asyncio.create_task(siege.serve())
        try:
            yield siege
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
            assert siege.wrong == []


async def uploads(siege: Siege, names: list[str]) -> None:
    """Monsters that are uploaded: refused before they are compiled."""
    for what in names:
        make, text = monsters.REFUSED[what]
        await siege.step(f"evil upload of {what}", upload(siege.site, make()), 422, text)


async def upload(site: Site, wasm: bytes) -> Response:
    """As PUT does it, but for the bound of a request's body, which an operator may raise."""
    parts = site.module._parts
    assert parts is not None
    try:
        app, _ = await parts.load("evil", None, wasm, await NamedTokens(site.clock).verify_text("boss:manager"))
    except HTTPError as error:
        return Response(error.status, error.message.encode())
    return Response(200, app.state.encode())


async def calls(siege: Siege, rounds: int) -> None:
    """Everything that a call can do wrong."""
    site = siege.site
    await site.loaded("evil", guests.plain(), memory=64 * MIB)
    for _ in range(rounds):
        for function, arguments, status, text in CALLS:
            await siege.step(f"evil {function}", site.call("evil", function, **arguments), status, text)
        grown = await siege.step("evil grow", site.call("evil", "grow"), 200)
        assert json.loads(grown.body) * 65536 <= 64 * MIB
    for name, wasm, text in (
        ("tables", guests.growing_table(), ""),
        ("instances", monsters.many_instances(500), "resource limit|instance"),
        ("endless", guests.endless_start(), "fuel"),
    ):
        await site.loaded(name, wasm)
        done = await siege.step(f"{name} f", site.call(name, "f"), 200 if name == "tables" else 500, text)
        if name == "tables":
            assert json.loads(done.body) == -1


async def paths(siege: Siege) -> None:
    """An app that looks for another's files."""
    site = siege.site
    wasm = PROBE.read_bytes()
    for app in ("victim", "thief"):
        await site.loaded(app, wasm)
    assert (await site.call("victim", "write", path="/secret", text="of the victim")).status == 200
    for path in PATHS:
        answer = await site.call("thief", "read", path=path)
        siege.steps.append((f"thief reads {path[:20]!r}", answer.status, 0))
        assert answer.status in (422, 500), answer.body
        assert b"victim" not in answer.body
        await site.call("thief", "write", path=path, text="planted")
    assert json.loads((await site.call("victim", "read", path="/secret")).body) == {"ok": "of the victim"}
    assert json.loads((await site.call("victim", "entries", path="/")).body) == {"ok": "secret\n"}


async def names(siege: Siege, count: int) -> None:
    """So many names of functions, apps and parameters that are not there."""
    site = siege.site
    for index in range(count):
        crafted = f"{'x' * (index % 200)}{index}-~%2e%2e{index}"
        answer = await (
            site.send("POST", f"/rpc/good/{crafted}", who=None)
            if index % 2
            else site.call("good", "length", **{crafted: "y"})
        )
        assert answer.status in (400, 404), answer.body
    siege.steps.append((f"{count} crafted names", 404, siege.served))


async def just_below(siege: Siege, report: Callable[[str], None]) -> None:
    """What the limits let through, one kind at its limit each: what it costs, and that it is served like any other."""
    below: dict[str, Callable[[], bytes]] = {
        "50,000 functions": lambda: monsters.many_functions(50_000),
        "10,000 wide types": lambda: monsters.many_types(9_999, 255),
        "16,000 branches in a function": lambda: monsters.branches(16_000),
        "5,300 indirect calls in a function": lambda: monsters.indirect_calls(5_300),
        "16,000 conversions in a function": lambda: monsters.conversions(16_000),
        "16,000 loops in a function": lambda: monsters.loops(16_000),
        "1e6 branches times locals": lambda: monsters.crossings(999, 990),
        "10 s by branches and locals": lambda: monsters.crossings(38, 16_000),
        "1 MiB in a function": lambda: monsters.long_function(1_000_000),
        "values that cross loops": lambda: monsters.crossing_values(600, 16),
        "values that nobody takes": lambda: monsters.giving_calls(62_000, 16),
        "1e6 jump targets": lambda: monsters.jumps(9, 110_000),
        "50 MiB of data": lambda: monsters.much_data(50 * MIB),
    }
    for what, make in below.items():
        wasm, before, began = make(), resident(), time.thread_time()
        served, wall = siege.served, time.monotonic()
        answer = await upload(siege.site, wasm)
        assert answer.status == 200, (what, answer.body)
        report(
            f"{what}: {len(wasm)} bytes, {time.monotonic() - wall:.1f} s, loop {time.thread_time() - began:.1f} s, "
            f"{(resident() - before) / MIB:+.0f} MiB, {siege.served - served} good calls meanwhile"
        )
        assert siege.served > served


def resident() -> int:
    """Bytes of memory that this process has now, what its heap keeps given back."""
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


async def everything(report: Callable[[str], None]) -> None:
    """The whole siege."""
    async with besieged(component_bytes=64 * MIB, memory_max=512 * MIB) as siege:
        await calls(siege, 1)
        before = resident()
        await uploads(siege, list(monsters.REFUSED))
        await calls(siege, 20)
        await paths(siege)
        await names(siege, 100_000)
        await just_below(siege, report)
        await siege.site.loaded("evil", guests.plain())
        after = resident()
        for what, status, served in siege.steps[-200:]:
            report(f"{status} {what}: {served} good calls meanwhile")
        report(f"{siege.served} good calls in all; memory {before / MIB:.0f} MiB before, {after / MIB:.0f} MiB after")
        assert after < 10 * before


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    asyncio.run(everything(lambda line: print(line, flush=True)))
