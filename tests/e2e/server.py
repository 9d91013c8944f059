"""The real server as a subprocess: started by its command line, known by log and ready line, ended by signals."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from enclave_os.wire.layout import REGION_FOLDER
from enclave_os_host.shared_memory import region_label
from enclave_os_host.tcp_proxy import socket_family_works

# Nothing waits that long that goes well: tenfold what a start takes on a busy machine under Gramine, which hashes every
# file and loads it anew.
START_SECONDS = 240.0
END_SECONDS = 240.0
LOG_SECONDS = 120.0
STARTED = re.compile(r"worker (\d+) started, process (\d+)")
# Never in the log of a server that did what it was built for, whatever its clients did.
BUGS = ("Traceback", "InternalError", "a bug", "unexpected")

LOOPBACK = ["127.0.0.1:0", *(["[::1]:0"] if socket_family_works(socket.AF_INET6) else [])]
Overrides = Mapping[str, Mapping[str, object]]


def to_toml(settings: Overrides) -> str:
    """TOML of plain sections; JSON's strings, numbers, booleans and lists are TOML's too."""
    lines: list[str] = []
    for section, keys in settings.items():
        lines.append(f"[{section}]")
        lines += [f"{name} = {json.dumps(value)}" for name, value in keys.items()]
    return "\n".join(lines) + "\n"


# What every server under test has over its defaults: how the enclave runs, where that is not as a plain process.
everywhere: dict[str, dict[str, object]] = {}


def merged(*parts: Overrides) -> dict[str, dict[str, object]]:
    """One configuration of several, each over those before it."""
    sections: dict[str, dict[str, object]] = {}
    for part in parts:
        for section, keys in part.items():
            sections.setdefault(section, {}).update(keys)
    return sections


def bare_environment() -> dict[str, str]:
    """Ours without what would reach into a server: it has its own installation, and its configuration in a file."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("ENCLAVE_OS", "PYTHON"))}


def mode() -> str:
    """What every server under test says of how its enclave runs."""
    return str(everywhere.get("server", {}).get("enclave", "simulated"))


class Server:
    """One server on the loopback with a state folder of its own.

    Args:
        python: the interpreter of the installation to run.
        folder: for its state, configuration and log; made here.
        settings: over the defaults of this class: every address of the loopback, a free port, the module `trial`.
        more: TOML put behind them, for tables of tables.
        flags: further ones of `serve`.
        before: a command that runs the server's; environment: added to its own.
    """

    def __init__(
        self,
        python: Path,
        folder: Path,
        settings: Overrides | None = None,
        more: str = "",
        flags: Sequence[str] = (),
        *,
        before: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        start_seconds: float = START_SECONDS,
    ) -> None:
        self.folder = folder
        self._start_seconds = start_seconds
        folder.mkdir(parents=True)
        defaults: Overrides = {
            "server": {"listen": LOOPBACK, "state_dir": str(folder / "state")},
            "modules": {"enabled": ["helloworld", "trial"]},
        }
        sections = merged(defaults, everywhere, settings or {})
        self.state = Path(str(sections["server"]["state_dir"]))
        self.config = folder / "site.toml"
        self.config.write_text(to_toml(sections) + more)
        self.expected: list[str] = []
        """Parts of log lines that would be bugs anywhere else but that a test provoked."""
        self._asked = False
        self._lines: list[str] = []
        self._grown = threading.Condition()
        self._start(python, flags, before, environment or {})

    def _start(self, python: Path, flags: Sequence[str], before: Sequence[str], more: Mapping[str, str]) -> None:
        ready, ready_end = os.pipe()
        self.process = subprocess.Popen(
            [
                *before,
                python,
                "-I",
                "-m",
                "enclave_os_host",
                "serve",
                "--config",
                self.config,
                "--ready-fd",
                str(ready_end),
                *flags,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=[ready_end],
            env={**bare_environment(), **more},
            cwd=self.folder,
            text=True,
            errors="backslashreplace",
        )
        os.close(ready_end)
        self._reader = threading.Thread(target=self._read_log, name="server-log", daemon=True)
        self._reader.start()
        try:
            if not select.select([ready], [], [], self._start_seconds)[0]:
                self._give_up("not ready in time")
            line = os.read(ready, 4096).decode()
        finally:
            os.close(ready)
        if not line.endswith("\n"):
            self._give_up("ended before it was ready")
        self.urls = line.split()
        self.port = int(self.urls[0].rpartition(":")[2])
        self.ca_file = self.state / "ca" / "root.pem"

    def _give_up(self, why: str) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(LOG_SECONDS)
        raise AssertionError(f"the server {why}:\n{self.log}")

    # -- what it says -------------------------------------------------------------------------------------------------

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._grown:
                self._lines.append(line.rstrip("\n"))
                self._grown.notify_all()

    @property
    def log(self) -> str:
        """Everything logged so far."""
        with self._grown:
            return "\n".join(self._lines)

    def wait_for_log(self, text: str, count: int = 1, seconds: float = LOG_SECONDS) -> list[str]:
        """Wait until `text` stands in at least `count` lines; returns them."""
        due = time.monotonic() + seconds
        with self._grown:
            while True:
                found = [line for line in self._lines if text in line]
                if len(found) >= count:
                    return found
                left = due - time.monotonic()
                if left <= 0:
                    raise AssertionError(f"not in the log in {seconds} s: {text}\n" + "\n".join(self._lines))
                self._grown.wait(left)

    # -- what it is ---------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """As a client in this machine writes it, with the name that stands in the certificate."""
        return f"https://localhost:{self.port}"

    @property
    def host_pid(self) -> int:
        """Of the host process."""
        return self.process.pid

    @property
    def enclave_pids(self) -> dict[int, int]:
        """Worker index and process id, of the last start of each."""
        return {int(found[1]): int(found[2]) for found in STARTED.finditer(self.log)}

    def regions(self) -> list[str]:
        """The region files that belong to this server."""
        folder = Path(REGION_FOLDER)
        labels = tuple(region_label(self.state, worker) for worker in range(64))
        return [path.name for path in folder.iterdir() if path.name.startswith(labels)] if folder.is_dir() else []

    # -- its end ------------------------------------------------------------------------------------------------------

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._asked = True
        self.process.send_signal(number)

    def terminate(self) -> None:
        """Ask it to drain."""
        self.signal(signal.SIGTERM)

    def wait(self, seconds: float = END_SECONDS) -> int:
        """Its exit code, once it and its log have ended."""
        code = self.process.wait(seconds)
        self._reader.join(LOG_SECONDS)
        assert not self._reader.is_alive(), "somebody still holds the log of a server that has ended"
        return code

    def stop(self) -> None:
        """End it as an operator does, and check that it ended well and left nothing behind."""
        pids = list(self.enclave_pids.values())
        if not self._asked:  # a second signal would end what the first one drains
            self.terminate()
        try:
            code = self.wait()
        except subprocess.TimeoutExpired:
            self._give_up("did not end")
        log = self.log
        assert code == 0, f"exit code {code}\n{log}"
        self.check_clean(pids)

    def check_clean(self, pids: list[int]) -> None:
        """Nothing is left of it, and its log knows of no bug."""
        assert not self.regions(), "regions are left"
        assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()], "an enclave process is left"
        bugs = [line for line in self.log.splitlines() if any(bug in line for bug in BUGS)]
        bugs = [line for line in bugs if not any(part in line for part in self.expected)]
        assert not bugs, "\n".join(bugs)


def own_memory(pid: int) -> int:
    """Bytes of anonymous memory of a process: its own, without the region that both sides share."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE)
    assert found, status
    return int(found[1]) << 10
