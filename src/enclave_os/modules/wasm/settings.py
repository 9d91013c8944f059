"""The section `[module.wasm]`: what the operator lets apps use, in all and at most each."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from enclave_os.errors import ConfigError
from enclave_os.wasm import CallLimits, PoolLimits
from enclave_os.wire.setting_kinds import nearest

MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class WasmSettings:
    """What stands in `[module.wasm]`; every key has a default.

    Attributes:
        apps_max: apps at once.
        component_bytes: of one component. Compiling takes some 50 times as much memory for a while.
        cores: calls that compute at once.
        threads: calls under way at once, of all apps.
        app_calls: calls of one app under way at once.
        app_waiting: calls of one app that wait; one more gets 503.
        fuel: of a call, where the app says nothing.
        fuel_max: the most that an app may say.
        memory: bytes of a linear memory, where the app says nothing.
        memory_max: the most that an app may say.
        memory_total: bytes of linear memories of all calls under way, two for each; a call that does not fit waits.
        seconds: of a call from its arrival to its answer, where the app says nothing, and the most.
        file_bytes: of one file of an app; one row of the store holds it.
        response_bytes: of what an app's HTTPS request may bring back.
        app_sockets: TCP sockets of one app that are open at once, over all its calls: each may hold 128 KiB of bytes on
            their way, and one of `egress.connections`, of which the module has `egress.requests_per_module`.
    """

    apps_max: int = 100
    component_bytes: int = 16 * MIB
    cores: int = 0
    threads: int = 16
    app_calls: int = 4
    app_waiting: int = 64
    fuel: int = 100_000_000
    fuel_max: int = 100_000_000_000
    memory: int = 64 * MIB
    memory_max: int = 512 * MIB
    memory_total: int = 2048 * MIB
    seconds: int = 10
    file_bytes: int = 8 * MIB
    response_bytes: int = 4 * MIB
    app_sockets: int = 16

    @classmethod
    def read(cls, section: Mapping[str, Any]) -> WasmSettings:
        """From the operator's section. Raises: ConfigError: an unknown key, or what is no whole number of its range."""
        known = [field.name for field in fields(cls)]
        for name, value in section.items():
            if name not in known:
                raise ConfigError(f"module.wasm.{name} is not known{nearest(name, known)}")
            least = 0 if name in ("cores", "app_waiting") else 1
            if type(value) is not int or not least <= value < 2**53:
                raise ConfigError(f"module.wasm.{name} is a whole number, at least {least}")
        made = cls(**section)
        for most, usual in ((made.fuel_max, made.fuel), (made.memory_max, made.memory)):
            if usual > most:
                raise ConfigError("module.wasm: fuel and memory are at most fuel_max and memory_max")
        if made.call().memories * made.memory_max > made.memory_total:
            raise ConfigError("module.wasm: two memories of memory_max fit into memory_total")
        return made

    def pool(self) -> PoolLimits:
        """How much may run at once; without a number as many cores as this process has."""
        return PoolLimits(
            cores=self.cores or len(os.sched_getaffinity(0)),
            threads=self.threads,
            app_calls=self.app_calls,
            app_waiting=self.app_waiting,
            memory=self.memory_total,
        )

    def call(self) -> CallLimits:
        """What a call may use, where its app says nothing."""
        return CallLimits(fuel=self.fuel, memory=self.memory, seconds=float(self.seconds))
