"""The one configuration of wasmtime, in every mode, and the clock of its epochs.

Guard pages do not fault in an enclave without EDMM: mprotect to PROT_NONE is silently nothing there. So every access to
a linear memory is checked by instructions, nothing is reserved ahead, and no signal is needed for a trap. The same
settings everywhere mean that what the tests see is what runs on hardware, and one compiled form serves all.
"""

from __future__ import annotations

import ctypes
import hashlib
import threading
from collections.abc import Mapping
from importlib.metadata import version
from types import MappingProxyType
from typing import Final

import wasmtime
from wasmtime import Config

from enclave_os.errors import InternalError
from enclave_os.wasm._component import count_memories

SETTINGS: Final[Mapping[str, bool | int | str]] = MappingProxyType(
    {
        # Bounds by instructions, never by pages (see above).
        "signals_based_traps": False,
        "memory_reservation": 0,
        "memory_guard_size": 0,
        "memory_reservation_for_growth": 1 << 20,
        "memory_init_cow": False,
        # Both: fuel is exact and the same each time, the epoch also ends what waits or burns time without fuel.
        "consume_fuel": True,
        "epoch_interruption": True,
        # Less than a worker's stack, with room for our own frames above it.
        "max_wasm_stack": 512 << 10,
        # A load takes one core, not all of them, and starts no threads of its own.
        "parallel_compilation": False,
        "cranelift_opt_level": "speed",
        "wasm_component_model": True,
        # Components that were composed of others: wasmtime's adapters between two memories need it, and without it
        # the compiler does not refuse them but ends the process.
        "wasm_multi_memory": True,
        # What no component needs here, and what would be more to trust.
        "wasm_threads": False,
        "wasm_memory64": False,
        "wasm_gc": False,
        "wasm_stack_switching": False,
        "wasm_custom_page_sizes": False,
        "wasm_relaxed_simd_deterministic": True,
    }
)

EPOCH_SECONDS: Final = 0.01
"""How often running wasm looks up: how late a deadline is kept, and how long one call holds a core that others want."""

# 1 MiB of list<u8> is four blocks of 32 MiB on its way in and out (a value is 32 bytes). Blocks from the system are
# faulted in page by page: 105 ms a call instead of 45. So they come from one heap, which keeps its top while there are
# calls and is trimmed when there are none (mallopt(3); threads with arenas of their own could keep 64 MiB at most).
M_TRIM_THRESHOLD: Final = -1
M_MMAP_MAX: Final = -4
M_ARENA_MAX: Final = -8
KEPT_BYTES: Final = 192 << 20
IDLE_SECONDS: Final = 2.0
"""Without a call for so long, what the heap keeps goes back to the system."""


def make_config() -> Config:
    """wasmtime's configuration: `SETTINGS`, and nothing else."""
    config = Config()
    for name, value in SETTINGS.items():
        setattr(config, name, value)
    return config


def keep_blocks() -> ctypes.CDLL:
    """Let this process's allocator keep big blocks for the next call. Raises: InternalError: it is not glibc's."""
    libc = ctypes.CDLL(None)
    for parameter, value in ((M_TRIM_THRESHOLD, KEPT_BYTES), (M_MMAP_MAX, 0), (M_ARENA_MAX, 1)):
        if libc.mallopt(parameter, value) != 1:
            raise InternalError(f"mallopt({parameter}, {value})")
    return libc


class Engine:
    """wasmtime's engine, and the thread that ticks its epoch while anything runs.

    Attributes:
        raw: wasmtime-py's engine.
        address: of the C API's engine, for `_component`.
        fingerprint: SHA-256 of the library's version and the settings: compiled code is good for this alone.
    """

    def __init__(self) -> None:
        self._libc = keep_blocks()
        config = make_config()
        count_memories(ctypes.addressof(config.ptr().contents))
        self.raw = wasmtime.Engine(config)
        self.address: int = ctypes.addressof(self.raw.ptr().contents)
        text = f"wasmtime {version('wasmtime')}\n" + "".join(f"{name}={value}\n" for name, value in SETTINGS.items())
        self.fingerprint = hashlib.sha256(text.encode()).digest()
        self._running = 0
        self._wanted = threading.Condition()
        self._ended = False
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """A call begins: the epoch ticks from here on. From any thread."""
        with self._wanted:
            self._running += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._tick, name="wasm-epoch", daemon=True)
                self._thread.start()
            elif self._running == 1:
                self._wanted.notify()

    def end(self) -> None:
        """A call has ended; after the last one nothing ticks, so an idle enclave uses no CPU."""
        with self._wanted:
            self._running -= 1

    def close(self) -> None:
        """Stop the thread."""
        with self._wanted:
            self._ended = True
            self._wanted.notify()
        if self._thread is not None:
            self._thread.join()

    def _tick(self) -> None:
        ended = threading.Event()
        while self._await_work():
            ended.wait(EPOCH_SECONDS)
            self.raw.increment_epoch()

    def _await_work(self) -> bool:
        """Sleep until a call runs; what the heap keeps is given back after a while. False: it is over."""
        with self._wanted:
            kept = True
            while not self._running and not self._ended:
                if not self._wanted.wait(IDLE_SECONDS if kept else None) and kept:
                    self._libc.malloc_trim(0)
                    kept = False
            return not self._ended
