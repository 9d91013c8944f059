"""A store in a process of its own, to be killed, or to have its disk fail. A command a line on stdin, an answer each.

put N        three rows whose values say N, in one batch; answers the status
get N        how many of the three are there
many         puts 0, 1, 2, ... on end, sixteen in flight; answers `ack N` for each
fill         puts of 16 KiB until one is refused; answers the status and how many were not
size BYTES   makes the tmpfs of `--tmpfs` so big
reports      what the operator was told
"""

from __future__ import annotations

import argparse
import queue
import subprocess
import sys
import threading
from pathlib import Path

from enclave_os.wire.kv import Operation, OperationKind
from enclave_os.wire.rpc import Status
from enclave_os_host.kv_store import KVStore, StoreSync

NAMESPACE = bytes(16)
ROWS = 3
IN_FLIGHT = 16


def rows(number: int) -> list[Operation]:
    """The batch of a number."""
    value = b"%d" % number * 50
    return [Operation(OperationKind.PUT, NAMESPACE, b"%08d.%d" % (number, part), value) for part in range(ROWS)]


def found(store: KVStore, number: int) -> int:
    """How many rows of a number are there, as they were written."""
    wanted = rows(number)
    values = store.multi_get(NAMESPACE, [operation.key for operation in wanted])
    return sum(value == operation.value for operation, value in zip(wanted, values, strict=True))


def put(store: KVStore, operations: list[Operation]) -> Status:
    """Write and wait."""
    done: queue.SimpleQueue[Status] = queue.SimpleQueue()
    store.write(operations, done.put)
    return done.get()


def write_on_end(store: KVStore) -> None:
    """Never returns: this process is to be killed."""
    room = threading.Semaphore(IN_FLIGHT)
    lock = threading.Lock()
    number = 0
    while True:
        room.acquire()

        def done(status: Status, number: int = number) -> None:
            assert status == Status.OK
            with lock:
                print(f"ack {number}", flush=True)
            room.release()

        store.write(rows(number), done)
        number += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sync", default="group", choices=["always", "group", "off"])
    parser.add_argument("--tmpfs", type=int, help="mount one of so many bytes there: in a mount namespace of our own")
    arguments = parser.parse_args()
    sync: StoreSync = arguments.sync
    if arguments.tmpfs:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={arguments.tmpfs},mode=0700", "tmpfs", str(arguments.folder)]
        if subprocess.run(mount, check=False).returncode:
            print("no tmpfs", flush=True)
            return
    reports: list[str] = []
    store = KVStore(arguments.folder / "store", sync=sync, cache_bytes=8 << 20, report=reports.append)
    print("ready", flush=True)
    for line in sys.stdin:
        command, _, argument = line.strip().partition(" ")
        if command == "put":
            print(put(store, rows(int(argument))).name, flush=True)
        elif command == "get":
            print(found(store, int(argument)), flush=True)
        elif command == "many":
            write_on_end(store)
        elif command == "fill":
            count = 0
            while True:
                key = b"fill %d" % count
                status = put(store, [Operation(OperationKind.PUT, NAMESPACE, key, bytes(16384))])
                if status != Status.OK:
                    break
                count += 1
            print(status.name, count, flush=True)
        elif command == "size":
            remount = ["mount", "-o", f"remount,size={argument}", str(arguments.folder)]
            print(subprocess.run(remount, check=True).returncode, flush=True)
        elif command == "reports":
            print(" | ".join(reports).replace("\n", " "), flush=True)
        else:
            raise SystemExit(f"no such command: {command}")
    store.close()


if __name__ == "__main__":
    main()
