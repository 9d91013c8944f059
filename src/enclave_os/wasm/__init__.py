"""WebAssembly components: compiled once, linked to exactly what they import, called in a fresh instance each time.

The one Python door to `_component`. Bytes in, values out: what an app may reach is handed in as `Interface`s.
"""

from enclave_os.wasm.calls import CallLimits, Outcome, run
from enclave_os.wasm.component import COMPONENT_HEADER, Component, Export, Interface, Linker
from enclave_os.wasm.engine import Engine
from enclave_os.wasm.errors import ComponentRefused, GuestTrap, ValueMismatch
from enclave_os.wasm.pool import Pool, PoolFull, PoolLimits, Turn
from enclave_os.wasm.types import Function, WitType

__all__ = [
    "COMPONENT_HEADER",
    "CallLimits",
    "Component",
    "ComponentRefused",
    "Engine",
    "Export",
    "Function",
    "GuestTrap",
    "Interface",
    "Linker",
    "Outcome",
    "Pool",
    "PoolFull",
    "PoolLimits",
    "Turn",
    "ValueMismatch",
    "WitType",
    "run",
]
