"""The servers that are measured side by side: ours, nginx, nginx behind its own TCP proxy, uvicorn, granian.

Each is started with one worker, the same kind of certificate (P-256 leaf under a P-256 CA, made here), TLS 1.3, no
session tickets where that can be said, no access log, and time-outs that no measurement reaches. What cannot be started
is skipped by name, with the reason and what would install it.
"""

from __future__ import annotations

import contextlib
import datetime
import getpass
import importlib.metadata
import importlib.util
import ipaddress
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from bench.applications import BLOB, SMALL
from bench.processes import command_line, descendants

ROOT: Final = Path(__file__).resolve().parent.parent
STREAM_MODULE: Final = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 15.0
OPEN_FILES: Final = 19_500  # below the usual hard limit of 20,000
KEEP_ALIVE_SECONDS: Final = 3600

OURS: Final = "enclave-os"
OURS_CACHED: Final = "enclave-os, kept leaf"
"""With `attestation.certificates = "cached"`: one leaf and quote for all connections without a challenge."""
NGINX: Final = "nginx"
NGINX_PROXIED: Final = "nginx stream + nginx"
UVICORN: Final = "uvicorn"
GRANIAN: Final = "granian"


class Skipped(Exception):
    """This server cannot be measured here; the text says why and what would help."""


class StartFailed(Exception):
    """This server is installed and yet did not start, or did not answer; the text has the end of its log."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """Chain and key in PEM files; the key unencrypted PKCS #8, the form that all of them read."""

    chain: Path
    key: Path


@dataclass(slots=True)
class Running:
    """A started server: `started` as spawned, `roles` all its processes by what they do; their sum is its cost."""

    name: str
    port: int
    version: str
    started: dict[str, subprocess.Popen[bytes]]
    log: Path
    small_path: str = "/bench/small"
    blob_path: str | None = "/bench/blob"
    sink_path: str | None = "/bench/sink"
    roles: dict[str, list[int]] = field(default_factory=dict)

    def log_tail(self) -> str:
        """The last lines that the server wrote."""
        return self.log.read_text(errors="replace")[-2000:]

    @property
    def pids(self) -> list[int]:
        """All processes, in the order of `roles`."""
        return [pid for pids in self.roles.values() for pid in pids]


def make_certificate(folder: Path) -> Certificate:
    """Make a development CA and a leaf for localhost, both P-256, valid for a day."""
    now = datetime.datetime.now(datetime.UTC)

    def builder(subject: str, issuer: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
        )

    ca_key, leaf_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca = builder("bench CA", "bench CA", ca_key).add_extension(x509.BasicConstraints(True, 0), True)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    leaf = (
        builder("localhost", "bench CA", leaf_key)
        .add_extension(x509.SubjectAlternativeName(names), False)
        .add_extension(usage, False)
    )
    certificate = Certificate(folder / "chain.pem", folder / "key.pem")
    pem = serialization.Encoding.PEM
    certificate.chain.write_bytes(
        leaf.sign(ca_key, hashes.SHA256()).public_bytes(pem) + ca.sign(ca_key, hashes.SHA256()).public_bytes(pem)
    )
    certificate.key.write_bytes(
        leaf_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    certificate.key.chmod(0o600)
    return certificate


def _free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _answers(port: int, path: str) -> bool:
    """True when a TLS request for `path` is answered with 200."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=2) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as tls,
        ):
            tls.sendall(request)
            return tls.recv(4096).startswith(b"HTTP/1.1 200 ")
    except OSError:  # refused, reset or timed out: not up yet; the caller has the deadline
        return False


def _spawn(
    name: str, arguments: list[str], folder: Path, environment: Mapping[str, str]
) -> tuple[subprocess.Popen[bytes], Path]:
    log = folder / f"{name.replace(' ', '-')}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            arguments,
            cwd=folder,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    return process, log


def _await_answer(server: Running) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _answers(server.port, server.small_path):
        codes = [code for process in server.started.values() if (code := process.poll()) is not None]
        if codes or time.monotonic() > deadline:
            state = f"ended with code {codes[0]}" if codes else "did not answer in time"
            raise StartFailed(f"{server.name} {state}; its log ends with:\n{server.log_tail()}")
        time.sleep(0.05)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End one server by the signal that all of them take for "now, but tidily"; kill it when it does not obey."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _package_version(package: str) -> str:
    if importlib.util.find_spec(package) is None:
        raise Skipped(f"the package {package} is not installed; `make bench-peers` installs it")
    return importlib.metadata.version(package)


def _start_ours(
    folder: Path, _: Certificate | None, name: str = OURS, certificates: str = "per-connection", more: str = ""
) -> Running:
    if importlib.util.find_spec("enclave_os_host._proxy") is None:
        raise Skipped("enclave-os is not built; `make` builds it")
    modules = {entry.name for entry in importlib.metadata.entry_points(group="enclave_os.modules")}
    port, config, state = _free_port(), folder / "enclave-os.toml", folder / "state"
    enabled = ["helloworld", "bench"] if "bench" in modules else ["helloworld"]
    state.mkdir(mode=0o700, exist_ok=True)
    config.write_text(
        f"""[server]
listen = ["127.0.0.1:{port}"]
state_dir = "{state}"
backlog = 4096
workers = 1
enclave = "simulated"
[timeouts]
idle = {KEEP_ALIVE_SECONDS}
host_idle = {2 * KEEP_ALIVE_SECONDS}
[tls]
names = ["localhost", "127.0.0.1"]
[modules]
enabled = [{", ".join(f'"{name}"' for name in enabled)}]
[attestation]
certificates = "{certificates}"
quotes_per_second = 100_000
[log]
level = "warning"
{more}"""
    )
    arguments = [sys.executable, "-m", "enclave_os_host", "serve", "--config", str(config)]
    process, log = _spawn(name, arguments, folder, {})
    server = Running(name, port, importlib.metadata.version("enclave-os"), {"host": process}, log)
    if "bench" not in modules:
        server.small_path, server.blob_path, server.sink_path = "/hello", None, None
    return server


def _nginx_version() -> str:
    if shutil.which("nginx") is None:
        raise Skipped("nginx is not installed; `make bench-peers` installs Debian's")
    shown = subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=True).stderr
    return shown.strip().rpartition("/")[2]


def _nginx_config(folder: Path, certificate: Certificate, port: int) -> str:
    user = f"user {getpass.getuser()};" if os.geteuid() == 0 else ""
    temporary = "\n".join(
        f"    {kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""daemon off;
worker_processes 1;
worker_rlimit_nofile {OPEN_FILES};
error_log stderr error;
pid {folder}/nginx.pid;
{user}
events {{ worker_connections {OPEN_FILES - 500}; }}
http {{
    access_log off;
{temporary}
    server {{
        listen 127.0.0.1:{port} ssl backlog=4096;
        ssl_protocols TLSv1.3;
        ssl_ecdh_curve X25519:prime256v1;
        ssl_certificate {certificate.chain};
        ssl_certificate_key {certificate.key};
        ssl_session_tickets off;
        ssl_session_cache off;
        keepalive_timeout {KEEP_ALIVE_SECONDS}s;
        keepalive_requests 1000000000;
        client_max_body_size 4m;
        root {folder}/www;
        default_type application/json;
        location = /bench/small {{ return 200 '{SMALL.decode()}'; }}
        location = /bench/sink {{ return 200 '{{"received": true}}'; }}
    }}
}}
"""


def _start_nginx(folder: Path, certificate: Certificate) -> Running:
    version = _nginx_version()
    port, config = _free_port(), folder / "nginx.conf"
    (folder / "www" / "bench").mkdir(parents=True, exist_ok=True)
    (folder / "www" / "bench" / "blob").write_bytes(BLOB)
    config.write_text(_nginx_config(folder, certificate, port))
    process, log = _spawn(NGINX, ["nginx", "-p", str(folder), "-c", str(config), "-e", "stderr"], folder, {})
    return Running(NGINX, port, version, {"server": process}, log)


def _start_nginx_proxied(folder: Path, certificate: Certificate) -> Running:
    version = _nginx_version()
    if not STREAM_MODULE.exists():
        raise Skipped("nginx has no stream module; `apt-get install libnginx-mod-stream`")
    port, behind, config = _free_port(), _free_port(), folder / "nginx-stream.conf"
    inner = folder / "behind"
    inner.mkdir(exist_ok=True)
    (inner / "www" / "bench").mkdir(parents=True, exist_ok=True)
    (inner / "www" / "bench" / "blob").write_bytes(BLOB)
    config.write_text(
        f"""load_module {STREAM_MODULE};
daemon off;
worker_processes 1;
worker_rlimit_nofile {OPEN_FILES};
error_log stderr error;
pid {folder}/nginx-stream.pid;
{f"user {getpass.getuser()};" if os.geteuid() == 0 else ""}
events {{ worker_connections {OPEN_FILES - 500}; }}
stream {{
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        tcp_nodelay on;
        proxy_timeout {KEEP_ALIVE_SECONDS}s;
        proxy_pass 127.0.0.1:{behind};
    }}
}}
"""
    )
    server_config = inner / "nginx.conf"
    server_config.write_text(_nginx_config(inner, certificate, behind))
    # Two nginx rather than one with both sections: one would hide which of its workers did what.
    server, _ = _spawn("nginx behind", ["nginx", "-p", str(inner), "-c", str(server_config), "-e", "stderr"], inner, {})
    proxy, log = _spawn(NGINX_PROXIED, ["nginx", "-p", str(folder), "-c", str(config), "-e", "stderr"], folder, {})
    return Running(NGINX_PROXIED, port, version, {"proxy": proxy, "server": server}, log)


def _start_uvicorn(folder: Path, certificate: Certificate) -> Running:
    version, _, _ = (_package_version(package) for package in ("uvicorn", "httptools", "uvloop"))
    port = _free_port()
    arguments = [
        sys.executable, "-m", "uvicorn", "bench.applications:asgi", "--host", "127.0.0.1", "--port", str(port),
        "--http", "httptools", "--loop", "uvloop", "--lifespan", "off", "--no-access-log", "--log-level", "warning",
        "--backlog", "4096", "--timeout-keep-alive", str(KEEP_ALIVE_SECONDS),
        "--ssl-keyfile", str(certificate.key), "--ssl-certfile", str(certificate.chain),
    ]  # fmt: skip
    process, log = _spawn(UVICORN, arguments, folder, {"PYTHONPATH": str(ROOT)})
    return Running(UVICORN, port, version, {"server": process}, log)


def _start_granian(folder: Path, certificate: Certificate) -> Running:
    version, _ = (_package_version(package) for package in ("granian", "uvloop"))
    port = _free_port()
    arguments = [
        sys.executable, "-m", "granian", "--interface", "rsgi", "bench.applications:rsgi", "--host", "127.0.0.1",
        "--port", str(port), "--http", "1", "--no-ws", "--loop", "uvloop", "--workers", "1", "--runtime-threads", "1",
        "--backlog", "4096", "--backpressure", "65535", "--log-level", "warning",
        "--ssl-certificate", str(certificate.chain), "--ssl-keyfile", str(certificate.key),
    ]  # fmt: skip
    process, log = _spawn(GRANIAN, arguments, folder, {"PYTHONPATH": str(ROOT)})
    return Running(GRANIAN, port, version, {"server": process}, log)


STARTERS: Final[Mapping[str, Callable[[Path, Certificate], Running]]] = {
    OURS: _start_ours,
    OURS_CACHED: lambda folder, certificate: _start_ours(folder, certificate, OURS_CACHED, "cached"),
    NGINX: _start_nginx,
    NGINX_PROXIED: _start_nginx_proxied,
    UVICORN: _start_uvicorn,
    GRANIAN: _start_granian,
}


def _find_roles(server: Running) -> dict[str, list[int]]:
    """Which process does what. Only after the server has answered, so that all of them exist."""
    roles = {role: list(descendants(process.pid)) for role, process in server.started.items()}
    if server.name in (OURS, OURS_CACHED):
        # The host starts nothing but enclaves, by the fixed command line `python -I -B -m enclave_os`.
        enclave = [pid for pid in roles["host"] if command_line(pid)[-2:] == ["-m", "enclave_os"]]
        if not enclave:
            raise StartFailed(f"{server.name} has no enclave process; its processes: {roles['host']}")
        roles = {"host": [pid for pid in roles["host"] if pid not in enclave], "enclave": enclave}
    return roles


@contextlib.contextmanager
def start(name: str, folder: Path, certificate: Certificate) -> Iterator[Running]:
    """Run one server until the block ends; it has answered a request when the block begins.

    Args: name: a key of STARTERS. folder: the server's own, empty. certificate: for all but ours, which makes its own.
    Raises: Skipped: it is not installed. StartFailed: it is, and does not serve.
    """
    with _running(STARTERS[name](folder, certificate)) as server:
        yield server


@contextlib.contextmanager
def start_ours(folder: Path, more: str) -> Iterator[Running]:
    """As `start`, ours with TOML of its own behind the usual configuration."""
    with _running(_start_ours(folder, None, more=more)) as server:
        yield server


@contextlib.contextmanager
def _running(server: Running) -> Iterator[Running]:
    try:
        _await_answer(server)
        server.roles = _find_roles(server)
        yield server
    finally:
        for process in server.started.values():
            _stop(process)
