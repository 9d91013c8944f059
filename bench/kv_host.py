"""The host's half of bench_kv, in a process of its own: the dispatcher and the store as the server runs them.

    python -m bench.kv_host REGION TO_ENCLAVE TO_HOST FOLDER SYNC

REGION is a file that the parent laid out, the two numbers are eventfds that it inherited. Ends when stdin does.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from enclave_os.wire.layout import RegionLayout, plan_region
from enclave_os_host.doorbell import silence
from enclave_os_host.handlers.kv import kv_handlers
from enclave_os_host.kv_store import KVStore, StoreSync
from enclave_os_host.rpc_dispatcher import Registry, RPCDispatcher

RING = 1 << 20
CACHE_BYTES = 64 << 20
AWAKE_SECONDS = 0.01


def layout() -> RegionLayout:
    """Of the region: rings as large as the server's own."""
    return plan_region(data_to_enclave=64 << 10, data_to_host=64 << 10, rpc_to_host=RING, rpc_to_enclave=RING)


def main() -> None:
    path, to_enclave, to_host, folder, sync = sys.argv[1:]
    plan = layout()
    with open(path, "r+b") as file:
        region: Any = SimpleNamespace(buffer=mmap.mmap(file.fileno(), plan.size), layout=plan)
    bell: Any = SimpleNamespace(
        rpc_to_host=int(to_host),
        ring_enclave=lambda: os.eventfd_write(int(to_enclave), 1),
        silence=lambda: silence(int(to_host)),
    )
    store = KVStore(
        Path(folder),
        sync=cast(StoreSync, sync),
        cache_bytes=CACHE_BYTES,
        report=lambda text: print(text, file=sys.stderr),
    )
    dispatcher = RPCDispatcher(lambda *_: os._exit(1), lambda: os._exit(2))
    dispatcher.add_worker(0, region, bell, Registry(kv_handlers(store)))
    dispatcher.start()
    # SIGUSR1: stay awake between calls, or sleep again.
    signal.signal(signal.SIGUSR1, lambda *_: setattr(dispatcher, "_spin", 0.0 if dispatcher._spin else AWAKE_SECONDS))
    print("ready", flush=True)
    sys.stdin.read()
    dispatcher.stop()
    store.close()


if __name__ == "__main__":
    main()
