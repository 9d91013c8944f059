"""The enclave from its image, without Gramine: only what the image holds can be imported, so what lacks is found here.

A stand-in for the loader reads the manifest as Gramine does: it holds every trusted file against its hash, gives the
process the measured command line and environment, and starts it on the image's interpreter, libraries and modules.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.image import make_image
from tests.e2e.server import Server, everywhere
from tests.e2e.test_egress import CA, allow, fetch
from tests.e2e.wire import HELLO, Connection, get
from tests.modules.egress_servers import TLSServer

DIRECT = {"enclave": "direct"}
LOADER = """#!{python}
import hashlib, os, sys, tomllib
manifest = tomllib.load(open(sys.argv[1] + ".manifest", "rb"))
for entry in manifest["sgx"]["trusted_files"]:
    with open(entry["uri"].removeprefix("file:"), "rb") as file:
        if hashlib.sha256(file.read()).hexdigest() != entry["sha256"]:
            sys.exit("hash mismatch: " + entry["uri"])
root = manifest["fs"]["root"]["uri"].removeprefix("file:")
root = os.path.abspath(root)
environment = {{}}
for name, value in manifest["loader"]["env"].items():
    if isinstance(value, str):
        environment[name] = value
    elif name in os.environ:
        environment[name] = os.environ[name]
environment["LD_LIBRARY_PATH"] = root + environment["LD_LIBRARY_PATH"].split(":")[1]
argv = manifest["loader"]["argv"]
os.dup2(1, 2)  # Gramine joins the two
os.execve(root + manifest["libos"]["entrypoint"], [root + argv[0], *argv[1:]], environment)
"""


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a `gramine-direct`, and the rest of an installation beside it."""
    place = tmp_path_factory.mktemp("gramine")
    loader = place / "bin" / "gramine-direct"
    loader.parent.mkdir()
    loader.write_text(LOADER.format(python=sys.executable))
    loader.chmod(loader.stat().st_mode | stat.S_IXUSR)
    library = place / "lib" / "gramine"
    (library / "runtime" / "glibc").mkdir(parents=True)
    (library / "libsysdb.so").write_bytes(b"stand-in")
    for name in ("libc.so.6", "ld-linux-x86-64.so.2", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1",
                 "libutil.so.1", "libresolv.so.2", "libanl.so.1", "libmvec.so.1"):  # fmt: skip
        (library / "runtime" / "glibc" / name).write_bytes(name.encode())
    return loader.parent


@pytest.fixture(scope="module")
def image(python: Path, commands: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{commands}:{before}"
    try:
        return make_image(python, tmp_path_factory.mktemp("image"))
    finally:
        os.environ["PATH"] = before


@pytest.fixture
def direct(
    python: Path, image: Path, commands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Iterator[Server]:  # fmt: skip
    if everywhere:
        pytest.skip("this run is under Gramine itself")
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    running = Server(python, tmp_path / "server", {"server": DIRECT, "gramine": {"image": str(image)}})
    yield running
    running.stop()


def test_it_serves_from_the_image_alone(direct: Server) -> None:
    with Connection(direct) as connection:
        for _ in range(200):  # each answer needs the doorbell both ways
            assert connection.ask(HELLO).body == b"world"
        assert b'"mode":"direct"' in connection.ask(get("/healthz")).body
    maps = Path(f"/proc/{direct.enclave_pids[0]}/maps").read_text().splitlines()
    mapped = {line.split(maxsplit=5)[5] for line in maps if len(line.split(maxsplit=5)) == 6}
    assert not {path for path in mapped if "/lib/python" in path and "/image/root/" not in path}
    environment = Path(f"/proc/{direct.enclave_pids[0]}/environ").read_bytes().split(b"\0")
    names = {entry.partition(b"=")[0] for entry in environment if entry}
    assert names == {
        b"ENCLAVE_OS_REGION", b"ENCLAVE_OS_MODE", b"ENCLAVE_OS_DOORBELL", b"LANG", b"LD_LIBRARY_PATH",
        b"MALLOC_ARENA_MAX",
    }  # fmt: skip


def test_a_module_that_raises_is_logged_with_what_the_image_has(direct: Server) -> None:
    """A traceback needs modules that nothing else does."""
    with Connection(direct) as connection:
        assert connection.ask(get("/trial/fail")).status == 500
        assert connection.ask(HELLO).body == b"world"
    direct.expected.append("module trial failed")


def test_it_calls_out_with_what_the_image_has(
    python: Path, image: Path, commands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """httpx and what it needs are loaded by the first call: the trial run made none."""
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    ca = tmp_path / "ca.pem"
    ca.write_text(CA.pem)
    with TLSServer(tmp_path / "peer", CA.leaf("localhost")) as peer:
        settings = {"server": DIRECT, "gramine": {"image": str(image)}, "egress": {"ca_file": str(ca)}}
        running = Server(python, tmp_path / "server", settings, allow(f"localhost:{peer.port}"))
        try:
            assert fetch(running, url=peer.url(path="/asked"))["text"] == "GET /asked HTTP/1.1"
        finally:
            running.stop()


def test_a_changed_file_does_not_start(
    python: Path, image: Path, commands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    victim = image / "root" / "enclave-os" / "modules.json"
    before = victim.read_bytes()
    victim.write_bytes(before + b"\n")
    try:
        config = tmp_path / "site.toml"
        config.write_text(
            f'[server]\nlisten = ["127.0.0.1:0"]\nenclave = "direct"\nstate_dir = "{tmp_path / "state"}"\n'
            f'[modules]\nenabled = ["helloworld"]\n[gramine]\nimage = "{image}"\n'
        )
        command = [str(python), "-I", "-m", "enclave_os_host", "serve", "--config", str(config)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    finally:
        victim.write_bytes(before)
    assert done.returncode == os.EX_SOFTWARE
    assert "hash mismatch: file:root/enclave-os/modules.json" in done.stderr
    assert "before it served" in done.stderr
