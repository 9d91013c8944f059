"""The store as a whole, for who looks after it: its state, backups, and a start that a manager has to let go on."""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from enclave_os.errors import HostRefused, SealBroken
from enclave_os.evidence.store_state import combined
from enclave_os.http import HTTPError
from enclave_os.modules.shared_work import result_of
from enclave_os.runtime.key_value import KeyValue
from enclave_os.sealing.keeper import SealKeeper

END_SECONDS: Final = 1.0  # for the answer to a consent to go out, before the start begins anew


class StoreCare:
    """Answers `modules.store`. Event loop's thread only.

    Args:
        begin_anew: ends this start in so many seconds; the host begins another.
    """

    def __init__(
        self,
        store: KeyValue,
        keeper: SealKeeper,
        *,
        worker_index: int,
        logger: logging.Logger,
        begin_anew: Callable[[float], None],
    ) -> None:
        self._store = store
        self._keeper = keeper
        self._worker = worker_index
        self._logger = logger
        self._begin_anew = begin_anew

    def status(self) -> Mapping[str, Any]:
        """How it stands; of a held start what was sealed and what was found."""
        config = self._keeper.config
        sealed = _state(*combined(config.kv_states))
        found: dict[str, Any] = {"worker": self._worker, "sealed": sealed, "restores": config.kv_restores}
        if len(config.kv_states) > 1:
            found["ranges"] = len(config.kv_states)
        held = self._store.held
        if held is not None:
            anchored = {"anchored": held.anchored} if held.anchored else {}
            return {**found, "held": held.why, "found": _state(*held.state), "rows": held.rows, **anchored}
        state = self._store.state
        if state is None:
            return {**found, "held": None}
        whole = len(self._store.ranges) == len(config.kv_states)  # else /metrics has the rows, worker by worker
        return {**found, "held": None, "state": _state(*state)} | ({"rows": self._store.rows} if whole else {})

    async def backup(self) -> Mapping[str, Any]:
        """A copy at the host of this very state, complete and durable by its word. Raises: HTTPError."""
        if self._store.held is not None:
            raise HTTPError(409, "this start is held: what was found is not what is sealed")
        try:
            state = await self._store.backup()
        except HostRefused as error:
            raise HTTPError(503, f"the host did not keep a copy: {error}") from error
        boot = self._keeper.config.boot_count
        self._logger.warning("the host keeps a backup of the key-value store at version %d", state[0])
        return {"boot": boot, **_state(*state)}

    async def restore(self, version: int, root: bytes) -> Mapping[str, Any]:
        """Seal that what was found counts; then this start ends and the next one serves. Raises: HTTPError."""
        held = self._store.held
        if held is None:
            raise HTTPError(
                409, "no start is held: stop, put the backup's store in place, start with kv.restore = true"
            )
        if (version, True) != (held.state[0], hmac.compare_digest(root, held.state[1])):
            raise HTTPError(409, f"the store that was found is at version {held.state[0]}, root {held.state[1].hex()}")
        return await result_of(asyncio.get_running_loop().create_task(self._adopt(version, root)))

    async def _adopt(self, version: int, root: bytes) -> Mapping[str, Any]:
        """To its end, also if whoever consented leaves: a consent that is sealed begins the next start."""
        try:
            state = await self._store.adopt()
        except HostRefused as error:
            raise HTTPError(503, f"the consent was not anchored, or not sealed, try again: {error}") from error
        except SealBroken as error:
            raise HTTPError(
                409, f"the anchor has moved since this start looked ({error}): stop who serves this store, start again"
            ) from error
        self._logger.warning(
            "a manager's word: the key-value store of version %d counts, as version %d; starting again",
            version,
            state[0],
        )
        self._begin_anew(END_SECONDS)
        return {"restored": _state(version, root), "now": _state(*state), "restores": self._keeper.config.kv_restores}


def _state(version: int, root: bytes) -> dict[str, Any]:
    return {"version": version, "root": root.hex()}
