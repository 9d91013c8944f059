"""Compiled code that goes out and comes back: under a MAC of this enclave, over engine, component and code.

    magic, fingerprint of the engine (32), SHA-256 of the component (32), MAC (32), code

Code that was compiled runs as it is, so nothing of it is looked at before the MAC says that it is ours.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import Final

from enclave_os.http import HTTPError
from enclave_os.modules.wasm.store import AppStore

MAGIC: Final = b"enclave-os compiled component 1\n"
HASH_SIZE: Final = 32
HEAD_SIZE: Final = len(MAGIC) + 2 * HASH_SIZE


class Bundles:
    """Packs and opens them.

    Args: fingerprint: of the engine here; code for another is of no use.
    """

    def __init__(self, store: AppStore, random: Callable[[int], bytes], fingerprint: bytes) -> None:
        self._store = store
        self._random = random
        self._fingerprint = fingerprint

    async def pack(self, digest: bytes, compiled: bytes) -> bytes:
        """What a component of this SHA-256 became, under our MAC."""
        head = MAGIC + self._fingerprint + digest
        return head + await self._mac(head, compiled) + compiled

    async def open(self, bundle: bytes) -> tuple[bytes, bytes]:
        """(SHA-256 of the component, compiled code). Raises: HTTPError: 422: not ours, or for another engine."""
        head, mac = bundle[:HEAD_SIZE], bundle[HEAD_SIZE : HEAD_SIZE + HASH_SIZE]
        compiled = bundle[HEAD_SIZE + HASH_SIZE :]
        if not hmac.compare_digest(mac, await self._mac(head, compiled)):
            raise HTTPError(422, "this compiled code was not made by this enclave")
        fingerprint, digest = head[len(MAGIC) : -HASH_SIZE], head[-HASH_SIZE:]
        if fingerprint != self._fingerprint:
            raise HTTPError(422, "this code was compiled for another engine: load the component itself")
        return digest, compiled

    async def _mac(self, head: bytes, compiled: bytes) -> bytes:
        key = await self._store.mac_key(self._random(HASH_SIZE))
        return hmac.digest(key, head + hashlib.sha256(compiled).digest(), "sha256")
