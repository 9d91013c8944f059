"""What calls have cost, by app and function: kept in memory, stored now and then, and at the end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from enclave_os.wasm import Outcome


@dataclass(slots=True)
class FunctionMeter:
    """One function.

    Attributes:
        calls: that began, whatever came of them; errors: those that gave no answer.
        fuel, fuel_min, fuel_max: units; the least and the most of one call.
        memory, memory_min, memory_max: bytes of linear memory at the most of each call: their sum, the least, the most.
        seconds, seconds_max: of computing and of host functions, without the queue.
    """

    calls: int = 0
    errors: int = 0
    fuel: int = 0
    fuel_min: int = 0
    fuel_max: int = 0
    memory: int = 0
    memory_min: int = 0
    memory_max: int = 0
    seconds: float = 0.0
    seconds_max: float = 0.0

    def note(self, outcome: Outcome) -> None:
        """One more call."""
        fuel, memory, seconds = outcome.fuel, outcome.memory, outcome.seconds
        failed = int(outcome.failure is not None)
        self.add(FunctionMeter(1, failed, fuel, fuel, fuel, memory, memory, memory, seconds, seconds))

    def add(self, other: FunctionMeter) -> None:
        """What another start or worker measured."""
        if other.calls:
            self.fuel_min = other.fuel_min if not self.calls else min(self.fuel_min, other.fuel_min)
            self.memory_min = other.memory_min if not self.calls else min(self.memory_min, other.memory_min)
        self.calls += other.calls
        self.errors += other.errors
        self.fuel += other.fuel
        self.fuel_max = max(self.fuel_max, other.fuel_max)
        self.memory += other.memory
        self.memory_max = max(self.memory_max, other.memory_max)
        self.seconds += other.seconds
        self.seconds_max = max(self.seconds_max, other.seconds_max)


@dataclass(slots=True)
class AppMeter:
    """All functions of one app: what this worker has not stored yet."""

    functions: dict[str, FunctionMeter] = field(default_factory=dict)

    def note(self, function: str, outcome: Outcome) -> None:
        """One more call."""
        self.functions.setdefault(function, FunctionMeter()).note(outcome)

    def add(self, other: AppMeter) -> None:
        """What another start or worker measured."""
        for name, meter in other.functions.items():
            self.functions.setdefault(name, FunctionMeter()).add(meter)

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {name: asdict(meter) for name, meter in sorted(self.functions.items())}

    def encode(self) -> bytes:
        """The row."""
        return json.dumps(self.document(), separators=(",", ":")).encode()

    @classmethod
    def decode(cls, row: bytes) -> AppMeter:
        """From its row; it is sealed, so it is one of ours."""
        document: Mapping[str, Any] = json.loads(row)
        return cls({name: FunctionMeter(**values) for name, values in document.items()})
