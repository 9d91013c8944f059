"""An issuer that publishes its keys, for those who fetch them: through an egress that answers what a test says."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any, Final

from enclave_os.errors import EgressError
from tests.enclave.tokens import new_key
from tests.modules.test_issuer_keys import jwk

KEY, NEXT, STRANGER = new_key(), new_key(), new_key()
URL: Final = "https://login.example/keys.json"

UNUSABLE: Final[list[tuple[Any, int]]] = [
    (EgressError("no", "connect", "host"), 200),
    ({"keys": [jwk(NEXT)]}, 404),
    ({"keys": []}, 200),
    ({"keys": [jwk(NEXT, d="x")]}, 200),
    ([], 200),
]
"""Answers, with their status, that no keys are taken from."""


class Web:
    """An egress that answers with what an issuer publishes, once `open` is set."""

    def __init__(self) -> None:
        self.answers: Any = {"keys": [jwk(KEY, kid="one")]}
        self.status = 200
        self.asked: list[tuple[str, str, dict[str, Any]]] = []
        self.open = asyncio.Event()
        self.open.set()

    async def request(self, method: str, url: str, **how: Any) -> Any:
        self.asked.append((method, url, how))
        await self.open.wait()
        if isinstance(self.answers, Exception):
            raise self.answers
        return SimpleNamespace(status_code=self.status, text=json.dumps(self.answers))
