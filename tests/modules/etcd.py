"""etcd for tests: Debian's etcd-server behind TLS, and one in memory that can lie."""

from __future__ import annotations

import asyncio
import base64
import datetime
import ipaddress
import json
import shutil
import signal
import socket
import ssl
import subprocess
import time
from pathlib import Path
from typing import Any, Final

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from enclave_os.errors import HostRefused
from tests.enclave.certificates import Authority

SECONDS_MAX: Final = 30.0


class Etcd:
    """One member on 127.0.0.1, with a certificate of a CA of its own. `stop` and `start` keep its data."""

    def __init__(self, folder: Path) -> None:
        program = shutil.which("etcd")
        assert program is not None, "these tests need Debian's etcd-server (.ci/system installs it)"
        self._program = program
        self._folder = folder
        self._port, self._peer_port = _free_port(), _free_port()
        self.authority = Authority.make("etcd's CA")
        self.ca_pem = self.authority.certificate_pem
        _write_leaf(self.authority, folder)
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Returns when it answers."""
        certificate = ["--cert-file", str(self._folder / "leaf.pem"), "--key-file", str(self._folder / "leaf.key")]
        peer = f"http://127.0.0.1:{self._peer_port}"
        command = [self._program, "--data-dir", str(self._folder / "data"), *certificate, "--name", "default"]
        command += ["--listen-client-urls", self.url, "--advertise-client-urls", self.url]
        command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        command += ["--initial-cluster", f"default={peer}", "--log-level", "error"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._wait()

    def _wait(self) -> None:
        until = time.monotonic() + SECONDS_MAX
        with self.client() as client:
            while True:
                assert self._process is not None
                assert self._process.poll() is None, "etcd ended"
                try:
                    if client.get("/health").json().get("health") == "true":
                        return
                except httpx.TransportError:
                    assert time.monotonic() < until, "etcd does not answer"

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """It takes connections, and answers nothing."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Returns when it answers."""
        self._signal(signal.SIGCONT)
        self._wait()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def client(self, ca_pem: bytes | None = None) -> httpx.Client:
        """An honest client that trusts this CA; each call has a second."""
        context = ssl.create_default_context(cadata=(ca_pem or self.ca_pem).decode())
        return httpx.Client(base_url=self.url, verify=context, timeout=1.0)

    def entries(self) -> list[dict[str, str]]:
        """Every key that it has."""
        with self.client() as client:
            zero = base64.b64encode(b"\0").decode()
            found: list[dict[str, str]] = (
                client.post("/v3/kv/range", json={"key": zero, "range_end": zero}).json().get("kvs", [])
            )
            return found

    def wait_for_change(self, before: list[dict[str, str]]) -> None:
        """Until somebody wrote."""
        until = time.monotonic() + SECONDS_MAX
        while self.entries() == before:
            assert time.monotonic() < until

    def clear(self) -> None:
        """Everything that it knows."""
        with self.client() as client:
            zero = base64.b64encode(b"\0").decode()
            assert client.post("/v3/kv/deleterange", json={"key": zero, "range_end": zero}).status_code == 200


class Exchange:
    """`kv.anchor.Exchange` for tests: over a client, or over a `FakeEtcd`, with faults.

    `lose_answers`: so many requests are done and then not answered; `refuse`: so many do not arrive. While `open`
    is not set, calls wait to be let through; `entered` says that one came.
    """

    def __init__(self, etcd: Etcd | FakeEtcd) -> None:
        self._etcd = etcd
        self.lose_answers = 0
        self.refuse = 0
        self.calls = 0
        self.open = asyncio.Event()
        self.open.set()
        self.entered = asyncio.Event()

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        self.entered.set()
        await self.open.wait()
        self.calls += 1
        if self.refuse:
            self.refuse -= 1
            raise HostRefused("etcd cannot be reached")
        if isinstance(self._etcd, FakeEtcd):
            answer = self._etcd.post(path, body)
        else:
            try:
                with self._etcd.client() as client:
                    reply = client.post(path, content=body)
            except httpx.TransportError as error:
                raise HostRefused(f"etcd cannot be reached: {error}") from error
            answer = reply.status_code, reply.content
        if self.lose_answers:
            self.lose_answers -= 1
            raise HostRefused("no answer in time")
        return answer


class FakeEtcd:
    """As much of etcd as the anchor asks for. `answer`, if set, is said instead."""

    def __init__(self) -> None:
        self.rows: dict[str, str] = {}
        self.answer: tuple[int, bytes] | None = None

    def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        if self.answer is not None:
            return self.answer
        question = json.loads(body)
        said: dict[str, Any] = {"header": {"revision": "1"}}
        if path == "/v3/kv/range":
            said.update(self._range(question))
        else:
            (compare,) = question["compare"]
            there = self.rows.get(compare["key"])
            wanted = compare["value"] if compare["target"] == "VALUE" else None
            if there == wanted:
                put = question["success"][0]["requestPut"]
                self.rows[put["key"]] = put["value"]
                said.update(succeeded=True, responses=[{"response_put": {}}])
            else:
                said.update(responses=[{"response_range": self._range(question["failure"][0]["requestRange"])}])
        return 200, json.dumps(said).encode()

    def _range(self, question: dict[str, str]) -> dict[str, Any]:
        key = question["key"]
        return {"kvs": [{"key": key, "value": self.rows[key]}], "count": "1"} if key in self.rows else {}


def _write_leaf(authority: Authority, folder: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    today = datetime.datetime.now(tz=datetime.UTC)
    leaf = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "etcd")]))
        .issuer_name(authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today - datetime.timedelta(days=1))
        .not_valid_after(today + datetime.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
                authority.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
            ),
            critical=False,
        )
        .sign(authority.key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "leaf.pem").write_bytes(leaf.public_bytes(pem))
    (folder / "leaf.key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
