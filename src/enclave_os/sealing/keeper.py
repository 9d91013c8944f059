"""The sealed configuration of a running worker 0: loaded from the host, changed in memory, stored before it counts.

Everything that the host answers is its word: what it loads must open, and what it says it stored may be gone at the
next start, which the boot count and clients that remember notice (docs/sealing.md). One writer: changes wait for one
another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

from enclave_os.errors import SealBroken
from enclave_os.evidence.store_state import StoreState
from enclave_os.rpc.client import RPCClient
from enclave_os.sealing.opening import Loaded, Opening, Platform, check_ranges, differing, open_sealed, seal_config
from enclave_os.sealing.sealed_config import SealedConfig
from enclave_os.sealing.welcome import Welcome
from enclave_os.wire.rpc import Method, SealLoadFlag

KNOWN_FLAGS: Final = int(SealLoadFlag.BLOB | SealLoadFlag.STORE)  # an IntFlag's complement has only known bits


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

    @property
    def config(self) -> SealedConfig:
        """As it is sealed now. Raises: SealBroken: not opened yet."""
        if self._config is None:
            raise SealBroken("the sealed configuration is not open")
        return self._config

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

        Raises: HostRefused, HostProtocolError: it is not stored, and not open.
        """
        self._config = config
        try:
            await self.change(lambda held: held)
        except BaseException:
            self._config = None
            raise

    async def change(
        self, change: Callable[[SealedConfig], SealedConfig], *, deadline: float | None = None
    ) -> SealedConfig:
        """Seal what `change` makes of the present content, and wait until the host says that it is durable.

        Raises: HostRefused, HostProtocolError: then nothing has changed. Whatever `change` raises.
        """
        async with self._writing:
            changed = change(self.config)
            request = self._platform.measurement + seal_config(changed, self._platform)
            await self._rpc.call(Method.SEAL_STORE, request, deadline=deadline)
            self._config = changed
            return changed

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
