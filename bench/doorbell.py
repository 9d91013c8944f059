"""What a ring and its answer cost: by two pipes and a blocking reader, and by TCP on the loopback.

The enclave's side is uvloop, as in the enclave; the host's an epoll. `python -m bench.doorbell` measures it as a plain
process and, with `--image FOLDER` of an enclave image and gramine-direct on the path, under Gramine. Alternating, so
that a busy moment of the machine costs both.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROUNDS = 3
RINGS = 20_000
WARM = 500
ONE = (1).to_bytes(8, "little")
# The kind comes as the region's name, the one word that the manifest lets through.
ENCLAVE = """
import asyncio, os, socket, threading, uvloop
kind = os.environ["ENCLAVE_OS_REGION"]
one = (1).to_bytes(8, "little")
async def main():
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    if kind == "pipes":
        bell = os.eventfd(0, os.EFD_NONBLOCK)
        def listen():
            while os.read(0, 4096):
                os.write(bell, one)
            loop.call_soon_threadsafe(done.set_result, None)
        threading.Thread(target=listen, daemon=True).start()
        def on_bell():
            os.read(bell, 8)
            os.write(1, one)
        loop.add_reader(bell, on_bell)
    else:
        link = socket.create_connection(("127.0.0.1", int(kind[3:])))
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link.setblocking(False)
        def on_bell():
            if os.read(link.fileno(), 4096):
                os.write(link.fileno(), one)
            else:
                loop.remove_reader(link.fileno())
                done.set_result(None)
        loop.add_reader(link.fileno(), on_bell)
    await done
uvloop.run(main())
"""


def measure(command: Sequence[str], kind: str, folder: Path | None = None) -> list[int]:
    """Nanoseconds of each ring, sorted."""
    environment = {"PATH": os.environ["PATH"], "ENCLAVE_OS_REGION": kind}
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        if kind == "tcp":
            environment["ENCLAVE_OS_REGION"] = f"tcp{listener.getsockname()[1]}"
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd=folder, bufsize=0
        )
        assert process.stdin is not None
        assert process.stdout is not None
        if kind == "tcp":
            link, _ = listener.accept()
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            reader = writer = link.fileno()
        else:
            link = None
            reader, writer = process.stdout.fileno(), process.stdin.fileno()
        taken: list[int] = []
        with select.epoll() as waiting:
            waiting.register(reader, select.EPOLLIN)
            for _ in range(RINGS + WARM):
                begin = time.perf_counter_ns()
                os.write(writer, ONE)
                waiting.poll()
                os.read(reader, 4096)
                taken.append(time.perf_counter_ns() - begin)
        if link is not None:
            link.close()
        process.stdin.close()
        process.wait(10)
    return sorted(taken[WARM:])


def under_gramine(image: Path, folder: Path) -> Path:
    """A copy of an image whose program is the one above."""
    shutil.copytree(image / "root", folder / "root")
    program = folder / "root" / "enclave-os" / "doorbell.py"
    program.write_text(ENCLAVE)
    digest = hashlib.sha256(program.read_bytes()).hexdigest()
    entry = f'{{ uri = "file:root/enclave-os/doorbell.py", sha256 = "{digest}" }}'
    text = (image / "enclave_os.manifest").read_text()
    text = text.replace('"-m", "enclave_os"', '"/enclave-os/doorbell.py"')
    text = text.replace("sgx.trusted_files = [", f"sgx.trusted_files = [\n  {entry},")
    (folder / "enclave_os.manifest").write_text(text)
    return folder


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", type=Path, help="an enclave image, to measure under gramine-direct as well")
    image = parser.parse_args().image
    with tempfile.TemporaryDirectory() as place:
        ways: list[tuple[str, Sequence[str], Path | None]] = [("plain", [sys.executable, "-c", ENCLAVE], None)]
        if image is not None:
            ways.append(("direct", ["gramine-direct", "enclave_os"], under_gramine(image, Path(place))))
        for _ in range(ROUNDS):
            for name, command, folder in ways:
                pipes, tcp = (measure(command, kind, folder) for kind in ("pipes", "tcp"))
                middle = RINGS // 2
                print(
                    f"{name:6}  pipes {pipes[middle] / 1e3:.1f} us  tcp {tcp[middle] / 1e3:.1f} us  "
                    f"ratio {pipes[middle] / tcp[middle]:.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
