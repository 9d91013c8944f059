"""httpx is a guest in the enclave: of its own ways to the network, the files and the environment none is reached."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.modules.egress_servers import Authority, TLSServer

# One call in a process of its own, where everything that httpx could reach for itself ends the process at once.
PROGRAM = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from tests.modules.egress_rig import EgressRig

rig = EgressRig(Path({folder!r}), ["localhost:{port}"], open({ca!r}).read())

import builtins, os, socket, ssl, asyncio.base_events, threading
import httpcore, httpx, certifi, anyio

own = threading.get_ident()

def forbid(owner, name):
    true = getattr(owner, name)
    def forbidden(*arguments, **more):
        if threading.get_ident() != own:        # the host's threads of this rig may
            return true(*arguments, **more)
        print("REACHED", name, flush=True)
        os._exit(9)
    setattr(owner, name, forbidden)

forbid(ssl, "create_default_context")
forbid(ssl.SSLContext, "wrap_socket")
forbid(ssl.SSLContext, "wrap_bio")
forbid(ssl.SSLContext, "load_verify_locations")
forbid(ssl.SSLContext, "load_default_certs")
forbid(certifi, "where")
forbid(socket.socket, "connect")
forbid(socket.socket, "connect_ex")
forbid(socket, "getaddrinfo")
forbid(socket, "create_connection")
forbid(asyncio.base_events.BaseEventLoop, "create_connection")
forbid(asyncio.base_events.BaseEventLoop, "getaddrinfo")
forbid(anyio, "connect_tcp")
forbid(builtins, "open")

environment = type(os.environ)
seen = []
true_get = environment.__getitem__
environment.__getitem__ = lambda self, key: (seen.append(key), true_get(self, key))[1]

async def calls():
    response = await rig.egress.request("GET", "https://localhost:{port}/")
    async with rig.egress.client() as client:
        await client.get("https://localhost:{port}/")
    return response.status_code

print(rig.run(calls()), sorted(set(seen)))
os._exit(0)
"""
PLANTED = {
    "HTTPS_PROXY": "http://127.0.0.1:1", "https_proxy": "http://127.0.0.1:1", "ALL_PROXY": "socks5://127.0.0.1:1",
    "SSL_CERT_FILE": "/nonexistent", "SSL_CERT_DIR": "/nonexistent", "NETRC": "/nonexistent",
    "SSLKEYLOGFILE": "/dev/full",
}  # fmt: skip


def test_nothing_of_httpx_s_own_is_reached(tmp_path: Path) -> None:
    authority = Authority()
    root = Path(__file__).parents[2]
    ca = tmp_path / "ca.pem"
    ca.write_text(authority.pem)
    with TLSServer(tmp_path / "server", authority.leaf("localhost")) as server:
        program = PROGRAM.format(root=str(root), folder=str(tmp_path), port=server.port, ca=str(ca))
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, **PLANTED},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.stdout == "200 []\n", done.stdout + done.stderr
    assert done.returncode == 0


def test_without_a_list_nothing_of_it_is_loaded() -> None:
    """Start-up and memory of a worker whose modules call nobody."""
    program = (
        "import sys; import enclave_os.runtime.serve; from enclave_os.runtime.egress import WorkerEgress;"
        "from enclave_os.runtime.clock import Clock; from enclave_os.wire.egress_settings import EnclaveEgress;"
        "made = WorkerEgress(EnclaveEgress(), Clock()); made.begin(None, None); made.of('m');"
        "print([name for name in ('httpx', 'httpcore', 'h11', 'anyio', 'certifi', 'ssl') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    loaded = done.stdout.strip()
    assert loaded in ("[]", "['ssl']"), loaded  # asyncio loads ssl by itself
