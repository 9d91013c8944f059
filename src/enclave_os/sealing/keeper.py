"""The sealed configuration of a running worker 0: loaded from the host, changed in memory, stored before it counts.

Everything that the host answers is its word: what it loads must open, and what it says it stored may be gone at the
next start, which the boot count and clients that remember notice (docs/sealing.md). One writer: changes wait for one
another.

A change that was handed to the host comes to its end, whoever waits for it and leaves: what the host says of it is what
memory takes. Where the host refuses or does not answer, memory keeps what it had, the disk has the one or the other,
and `doubt` says so until what memory holds is sealed once more: by the next change, or by ourselves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

from enclave_os.errors import HostProtocolError, HostRefused, SealBroken
from enclave_os.evidence.store_state import StoreState
from enclave_os.rpc.client import RPCClient
from enclave_os.sealing.opening import Loaded, Opening, Platform, check_ranges, differing, open_sealed, seal_config
from enclave_os.sealing.sealed_config import SealedConfig
from enclave_os.sealing.welcome import Welcome
from enclave_os.wire.rpc import Method, SealLoadFlag

KNOWN_FLAGS: Final = int(SealLoadFlag.BLOB | SealLoadFlag.STORE)  # an IntFlag's complement has only known bits
AGAIN_SECONDS: Final = 10.0  # from a change that was not acknowledged to the sealing of what is held


class SealKeeper:
    """Owns the sealed configuration. Event loop's thread only.

    Args:
        platform: who we are to the processor.
        policy: of the configuration that this start was given.
        ranges: parts of the key-value store, by that configuration.
    """

    def __init__(self, rpc: RPCClient, platform: Platform, policy: bytes, ranges: int = 1) -> None:
        self._rpc = rpc
        self._platform = platform
        self._policy = policy
        self._ranges = ranges
        self._config: SealedConfig | None = None
        self._writing = asyncio.Lock()
        self._storing: asyncio.Task[HostRefused | HostProtocolError | None] | None = None
        self._again: asyncio.TimerHandle | None = None
        self._settling: asyncio.Task[None] | None = None
        self._doubt: str | None = None

    @property
    def config(self) -> SealedConfig:
        """As it is sealed now. Raises: SealBroken: not opened yet."""
        if self._config is None:
            raise SealBroken("the sealed configuration is not open")
        return self._config

    @property
    def doubt(self) -> str | None:
        """Why the disk may have a change that memory does not have; None: they are the same, by the host's word."""
        return self._doubt

    async def load(self) -> Loaded:
        """What the host alleges to have. Raises: SealBroken, HostRefused, HostProtocolError: it did not answer."""
        reply = await self._rpc.call(Method.SEAL_LOAD, self._platform.measurement)
        flags, data = SealLoadFlag(reply[0] & KNOWN_FLAGS), reply[1:]
        if reply[0] & ~KNOWN_FLAGS or bool(flags & SealLoadFlag.BLOB) != bool(data):
            raise SealBroken("the host answered with flags that contradict what came with them")
        return Loaded(data or None, bool(flags & SealLoadFlag.STORE))

    async def open(self) -> Opening:
        """Load and open, or make it at a first boot; nothing is stored yet.

        Raises: SealBroken, ConfigError: the start is refused. HostRefused, HostProtocolError: the host did not answer.
        """
        opening = open_sealed(await self.load(), self._platform, self._policy, self._ranges)
        self._config = opening.config
        return opening

    async def begin(self, config: SealedConfig) -> None:
        """Seal what did not come from a blob of this platform: taken over, or opened by the owner. Then it is open.

        Raises: HostRefused, HostProtocolError: it is not open, and may be stored or not.
        """
        await self._change(lambda: config, None)

    async def change(
        self, change: Callable[[SealedConfig], SealedConfig], *, deadline: float | None = None
    ) -> SealedConfig:
        """Seal what `change` makes of the present content, and wait until the host says that it is durable.

        Cancelled before its turn, it has not been; cancelled later, it goes on, and is taken if the host stores it.

        Raises: HostRefused, HostProtocolError: nothing has changed here, and the disk is in `doubt`. Whatever `change`
            raises.
        """
        return await self._change(lambda: change(self.config), deadline)

    async def _change(self, make: Callable[[], SealedConfig], deadline: float | None) -> SealedConfig:
        async with self._writing:
            if self._storing is not None and not self._storing.done():  # whoever began it has left
                await asyncio.wait([self._storing])
            changed = make()
            self._storing = asyncio.get_running_loop().create_task(self._store(changed, deadline))
            refusal = await asyncio.shield(self._storing)
        if refusal is not None:
            raise refusal
        return changed

    async def _store(self, changed: SealedConfig, deadline: float | None) -> HostRefused | HostProtocolError | None:
        """To its end. Returns: what keeps it from being in force; raised it would be a bug where nobody waits."""
        request = self._platform.measurement + seal_config(changed, self._platform)
        try:
            await self._rpc.call(Method.SEAL_STORE, request, deadline=deadline)
        except HostProtocolError as error:
            return error
        except HostRefused as error:
            self._doubt = str(error)
            if self._again is None and self._config is not None:
                self._again = asyncio.get_running_loop().call_later(AGAIN_SECONDS, self._settle)
            return error
        self._config, self._doubt = changed, None
        return None

    def _settle(self) -> None:
        self._again = None
        if self._doubt is not None:
            self._settling = asyncio.get_running_loop().create_task(self._seal_again())

    async def _seal_again(self) -> None:
        with suppress(HostRefused, HostProtocolError):  # the next time is set; or the client told `on_lie`
            await self.change(lambda held: held)

    def follow(self, welcome: Welcome, seen: StoreState | None, versions: Mapping[int, int] | None = None) -> None:
        """Take what worker 0 handed over at an admission, if it is what this worker serves with, or descends from it.

        Args:
            seen: where the store stood when this worker last knew.
            versions: of each range the highest version of an entry that this worker was shown.
        Raises: ConfigError, SealBroken: as `adopt`; and for a boot that does not follow the one that is held, or of
            which that is not known; and for a store of which a range is older than what was seen, or another.
        """
        held, config = self._config, welcome.config
        if held is not None and config.boot_count > held.boot_count:
            nonce = config.nonce_of(held.boot_count)
            if nonce is None:
                raise SealBroken("worker 0 was started so often meanwhile that whether it descends is not known")
            if nonce != held.boot_nonce:
                raise SealBroken("worker 0 was started from a copy: its boot does not follow the one that was served")
        was = () if seen is None else seen.states
        if was and len(was) != len(welcome.states):
            raise SealBroken(f"worker 0's store has {len(welcome.states)} ranges, and had {len(was)}: it is another")
        for index, (version, root) in enumerate(welcome.states):
            which = "worker 0's store" if len(welcome.states) == 1 else f"range {index} of the store"
            last = max((versions or {}).get(index, 0), was[index][0] if was else 0)
            if version < last:
                raise SealBroken(f"{which} is at version {version}, and was at {last}: it was put back")
            if was and version == was[index][0] and root != was[index][1]:
                raise SealBroken(f"{which} has other contents under the same version {version}")
        self.adopt(config)

    def adopt(self, config: SealedConfig) -> None:
        """Take what worker 0 handed over: for workers that do not write.

        Raises:
            ConfigError: this worker was given a configuration with another policy, or another number of ranges: the
                host may not open with one and serve with another.
            SealBroken: it is of an earlier boot than what we have, or of another one that counts the same: a copy.
        """
        if config.policy != self._policy:
            raise differing(
                "this worker's configuration differs in its policy from worker 0's:", config.policy, self._policy
            )
        check_ranges(config, self._ranges)
        held = self._config
        if held is not None and (
            config.boot_count < held.boot_count
            or (config.boot_count == held.boot_count and config.boot_nonce != held.boot_nonce)
        ):
            raise SealBroken("what worker 0 handed over is of another boot than what this worker serves with")
        self._config = config
