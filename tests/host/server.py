"""A whole server in its own process, with the fake enclave or the real one, and its log as it comes."""

from __future__ import annotations

import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

FAKE = Path(__file__).parent / "fake_enclave.py"
SECONDS_MAX = 30.0
# Settings by `section.key` would be the command line's affair; tests of the supervisor skip it.
PROGRAM = """
import json, sys
from pathlib import Path
from enclave_os.wire.settings import check
from enclave_os_host.gramine.launch import choose_launch
from enclave_os_host.launch import Launch
from enclave_os_host.supervisor import serve

document, command, folder, ready = json.loads(sys.argv[1])
settings = check(document)
launch = Launch("simulated", command, 30.0) if command else choose_launch(settings)[0]
sys.exit(serve(settings, ready, folder=Path(folder), launch=launch))
"""


class Server:
    """Started by the constructor; `ready` waits until it serves."""

    def __init__(
        self,
        folder: Path,
        behaviour: str = "echo",
        *,
        settings: Mapping[str, Mapping[str, object]] | None = None,
        environment: Mapping[str, str] | None = None,
        real: bool = False,
        command: Sequence[str] | None = None,
    ) -> None:
        self.regions = Path("/dev/shm/enclave-os") if real else folder / "regions"  # noqa: S108 - the product's own folder
        if command is None and not real:
            command = [sys.executable, str(FAKE), behaviour, str(self.regions)]
        document = {section: dict(table) for section, table in (settings or {}).items()}
        usual = {"listen": ["127.0.0.1:0"], "state_dir": str(folder / "state")}
        document["server"] = {**usual, **document.get("server", {})}
        reading, writing = os.pipe()
        self._ready = os.fdopen(reading)
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, json.dumps([document, command, str(self.regions), writing])],
            pass_fds=[writing],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        os.close(writing)
        self.log: list[str] = []
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def ready(self) -> tuple[str, int]:
        """Where it listens, when the first worker serves."""
        line = self._ready.readline()
        assert line.startswith("https://"), self.rest()
        host, _, port = line.split()[0].removeprefix("https://").rpartition(":")
        return host, int(port)

    def expect(self, *texts: str) -> str:
        """The next log line that has one of these texts."""
        due = time.monotonic() + SECONDS_MAX
        while True:
            line = self._lines.get(timeout=max(0.01, due - time.monotonic()))
            assert line is not None, f"the log ended without {texts}: {self.log}"
            self.log.append(line)
            if any(text in line for text in texts):
                return line

    def rest(self) -> list[str]:
        """Wait for the end; the log's last lines."""
        self.process.wait(SECONDS_MAX)
        last = []
        while (line := self._lines.get(timeout=SECONDS_MAX)) is not None:
            last.append(line)
        self.log += last
        return last

    def enclave_pid(self, line: str = "worker 0 started, process") -> int:
        """Of the next worker that starts."""
        return int(self.expect(line).rsplit(" ", 1)[1])

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait; the exit code."""
        self.process.send_signal(number)
        self.rest()
        return self.process.returncode

    def leftovers(self) -> list[str]:
        """Regions that exist."""
        return sorted(path.name for path in self.regions.iterdir())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._ready.close()
        assert self.process.stderr is not None
        if kind is not None:
            while not self._lines.empty():
                self.log.append(str(self._lines.get()))
            print("\n".join(self.log))


def wait_for_end(pid: int, seconds: float = SECONDS_MAX) -> None:
    """Wait until a process that is not our child has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        ready, _, _ = select.select([descriptor], [], [], seconds)
        assert ready, f"process {pid} still lives"
    finally:
        os.close(descriptor)
