"""What the workers of one server tell each other of apps, beside what is in the store.

    worker 0 to all    b""                 look at the store again; ask for the keys of apps that wait for theirs
                       b"L" name           the app's last lines?
                       b"M"                store what calls have cost
    to worker 0        b"K" name           the key that the developer of this app brought?
                       b"B" u16 name, key  here is one

A key that a developer brought is in no store: it lives in the workers' memory, and a worker that is started anew has it
of the others. When all have ended, it has to come again.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Final

from enclave_os.modules.api import Services
from enclave_os.modules.shared_work import Look
from enclave_os.modules.wasm.apps import LOG_LINES_MAX, Apps

LOOK: Final = b""
LINES: Final = b"L"
METERS: Final = b"M"
KEY_ASKED: Final = b"K"
KEY_BROUGHT: Final = b"B"
_NAME_SIZE: Final = 2  # u16 LE


class Sharing:
    """One worker's end.

    Args: store_meters: adds what this worker measured to what is stored.
    """

    def __init__(self, services: Services, apps: Apps, store_meters: Callable[[], Awaitable[None]]) -> None:
        self._services = services
        self._peers = services.peers
        self._apps = apps
        self._store_meters = store_meters
        self._look = Look(self._follow)

    def close(self) -> None:
        """End what is under way."""
        self._look.close()

    async def look(self) -> None:
        """Have what the store has, and keys that others have, as it is at some moment after this call.

        Raises: EnclaveError.
        """
        await self._look.done()

    async def spread(self) -> None:
        """Have every other worker follow what was changed here."""
        await self._peers.tell_others(LOOK)

    async def lines(self, name: str) -> list[str]:
        """What an app wrote in the other workers."""
        found = await self._peers.tell_others(LINES + name.encode())
        return [line for lines in found if lines for line in json.loads(lines)]

    async def have_meters_stored(self) -> None:
        """Have the other workers store what calls have cost there."""
        await self._peers.tell_others(METERS)

    async def answer(self, what: bytes) -> bytes:
        """What another worker is answered. Raises: EnclaveError: it cannot be done now."""
        kind, rest = what[:1], what[1:]
        if kind == LINES:
            app = self._apps.by_name.get(rest.decode())
            return json.dumps([] if app is None else list(app.log)[-LOG_LINES_MAX:]).encode()
        if kind == METERS:
            await self._store_meters()
        elif kind == KEY_ASKED:
            return self._apps.brought_key(rest.decode())
        elif kind == KEY_BROUGHT:
            size = int.from_bytes(rest[:_NAME_SIZE], "little") + _NAME_SIZE
            await self._apps.take_key(rest[_NAME_SIZE:size].decode(), rest[size:])
        else:
            await self.look()
        return b""

    async def _follow(self) -> None:
        await self._apps.follow()
        if self._peers.first:
            return  # the others bring it what it lacks
        for name, app in list(self._apps.by_name.items()):
            key = self._apps.brought_key(name)
            if app.state == "locked":
                key = await self._peers.ask_first(KEY_ASKED + name.encode())
                if key:
                    await self._apps.take_key(name, key)
            elif key:
                # Worker 0 may have been started anew since it came.
                encoded = name.encode()
                await self._peers.ask_first(KEY_BROUGHT + len(encoded).to_bytes(_NAME_SIZE, "little") + encoded + key)
