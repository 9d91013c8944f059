"""One state folder whose server has the module `kv`: started, killed, copied, put back, and talked to with tokens."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from enclave_os_client import token
from tests.e2e.server import END_SECONDS, LOOPBACK, Overrides, Server, bare_environment, everywhere, merged, to_toml
from tests.e2e.test_roles import COMMAND

MODULES: Overrides = {"modules": {"enabled": ["kv"]}}
SCOPES = ("kv:ns:read", "kv:ns:write")


class Door:
    """One address for whichever server the host sends its clients to."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._target = 0
        self._thread = threading.Thread(target=self._accept, name="door", daemon=True)
        self._thread.start()

    def lead_to(self, server: Server) -> str:
        """From now on to this one; returns the address."""
        self._target = server.port
        return f"https://localhost:{self.port}"

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(END_SECONDS)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            server = socket.create_connection(("localhost", self._target))
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    @staticmethod
    def _carry(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


class KVSite:
    """Args: python: of the installation. folder: for everything."""

    def __init__(self, python: Path, folder: Path) -> None:
        self.python = python
        self.folder = folder
        self.state = folder / "state"
        pair = token.generate_key()
        self._key = pair.private_pem
        self.issuer = token.issuer_table(pair.public_pem, token.DEFAULT_ISSUER, token.DEFAULT_AUDIENCE)
        self.started: list[Server] = []
        self._door = Door()

    def start(self, settings: Overrides | None = None, *, state: Path | None = None) -> Server:
        """Start on the site's state, or on a copy of it."""
        made = _over({"state_dir": str(state or self.state)}, settings)
        folder = self.folder / f"start-{len(self.started)}"
        self.started.append(self.make(folder, made))
        return self.started[-1]

    def make(self, folder: Path, settings: Overrides) -> Server:
        """Start one."""
        return Server(self.python, folder, settings, self.issuer)

    def refused(self, settings: Overrides | None = None) -> str:
        """Start what must not serve, with exit code 78; its log."""
        done = subprocess.run(
            self.command_line(settings), capture_output=True, text=True, timeout=END_SECONDS, check=False,
            env=bare_environment(),
        )  # fmt: skip
        assert done.returncode == os.EX_CONFIG, done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr

    def command_line(self, settings: Overrides | None = None) -> list[str | Path]:
        """Of a start that nobody waits for to serve."""
        config = self.folder / "alone.toml"
        made = _over({"listen": LOOPBACK, "state_dir": str(self.state)}, settings)
        config.write_text(to_toml(merged(everywhere, made)) + self.issuer)
        return [self.python, "-I", "-m", "enclave_os_host", "serve", "--config", config]

    @property
    def sealed(self) -> Path:
        """The folder of the one measurement: configuration and store."""
        (found,) = self.state.glob("sealed/*")
        return found

    def copy(self, what: Path, name: str) -> Path:
        """A copy of a folder of a server that has ended."""
        shutil.copytree(what, self.folder / name)
        return self.folder / name

    def put_back(self, copy: Path, what: Path) -> None:
        """What a host does that wants an older state."""
        shutil.rmtree(what)
        shutil.copytree(copy, what)

    def token(self, *, scopes: Sequence[str] = SCOPES, roles: Sequence[str] = (), one_time: bool = False) -> str:
        """A fresh bearer token; one for one time by a clock that is as far ahead as it may be."""
        now = int(time.time()) + 5 * one_time
        return token.issue(self._key, roles=roles, scopes=scopes, subject="tester", now=now, one_time=one_time)

    @contextmanager
    def client(
        self, server: Server, *, scopes: Sequence[str] = SCOPES, roles: Sequence[str] = ()
    ) -> Iterator[httpx.Client]:
        """A client with a token, which checks the server's certificate."""
        context = ssl.create_default_context(cafile=server.ca_file)
        fields = {"Authorization": f"Bearer {self.token(scopes=scopes, roles=roles)}"}
        with httpx.Client(verify=context, base_url=server.url, headers=fields, trust_env=False, timeout=60) as made:
            yield made

    def command(
        self, server: Server, *arguments: str | Path, code: int = 0, given: bytes = b"", **issued: Any
    ) -> bytes:
        """`enclave-os` against a server that attests itself; what it printed, on both when it fails."""
        path = self.folder / "token"
        path.write_text(self.token(**issued))
        measurement = server.state.joinpath("sealed")
        (found,) = measurement.glob("*")
        done = subprocess.run(
            [
                *(COMMAND, *arguments, "--url", self._door.lead_to(server), "--token", path),
                *("--mrenclave", found.name, "--allow-simulated"),
            ],
            capture_output=True, input=given, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == code, (done.stdout, done.stderr)
        return done.stdout if code == 0 else done.stdout + done.stderr

    def verify(self, server: Server, memory: Path, code: int = 0) -> str:
        """`enclave-os verify` as a client that remembers."""
        done = subprocess.run(
            [COMMAND, "verify", self._door.lead_to(server), "--allow-simulated", "--state", memory],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == code, (done.stdout, done.stderr)
        return done.stdout + done.stderr

    def stop(self) -> None:
        """End what still runs."""
        self._door.close()
        for running in self.started:
            if running.process.poll() is None:
                running.stop()


def _over(server: Mapping[str, object], settings: Overrides | None) -> Overrides:
    return merged(MODULES, {"server": server}, settings or {})
