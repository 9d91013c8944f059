"""AES-256-GCM: our C interface and our methods, beside `cryptography` and `openssl speed` on the same machine.

Back of an envelope: AES-NI with carry-less multiplication makes 3 to 5 GB/s of GCM, so 1 KiB is 0.2 to 0.35 us and
16 KiB about 4. Each message costs EVP's calls beside that, about 0.2 us: nonce, last block, tag. From Python, a method
call with three arguments and a new bytes object is 0.1 us more.

`openssl speed` without -aead only updates one endless message; with it, it does what we do: nonce, data, tag. Both rows
are there, since "EVP on this machine" may mean either.
"""

import re
import shutil
import subprocess
import time
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from tests.wire import native

from enclave_os._aead import AEADKey, Sealer, nonce_of

SIZES = (64, 1024, 16384)
KEY = bytes(range(32))
COUNT = 2_000

Measure = Callable[..., list[float]]


def repeated(call: Callable[[], object], per_call: int = 1) -> Callable[[], float]:
    def once() -> float:
        began = time.perf_counter_ns()
        for _ in range(COUNT // per_call):
            call()
        return (time.perf_counter_ns() - began) / COUNT

    return once


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("opening", [False, True], ids=["seal", "open"])
def test_c(per_operation: Measure, size: int, opening: bool) -> None:
    loops = native.load("bench/aead_speed.pyx")
    name = f"{'open' if opening else 'seal'} {size} B, C"
    per_operation(
        name, lambda: loops.seal(AEADKey(KEY), size, 20_000, opening), "1.3 x openssl" if size == 1024 else ""
    )


@pytest.mark.parametrize("size", SIZES)
def test_python(per_operation: Measure, size: int) -> None:
    sealer, plaintext = Sealer(KEY, b"bench"), bytes(size)
    per_operation(f"seal {size} B, Python", repeated(lambda: sealer.seal(plaintext, KEY)))


@pytest.mark.parametrize("size", SIZES)
def test_python_open(per_operation: Measure, size: int) -> None:
    key, nonce = AEADKey(KEY), nonce_of(0)
    sealed = key.seal(nonce, bytes(size), KEY)
    per_operation(f"open {size} B, Python", repeated(lambda: key.open(nonce, sealed, KEY)))


@pytest.mark.parametrize("size", SIZES)
def test_python_batch(per_operation: Measure, size: int) -> None:
    key, nonce = AEADKey(KEY), nonce_of(0)
    messages = [(nonce, key.seal(nonce, bytes(size), KEY), KEY)] * 100
    per_operation(f"open {size} B, Python, 100 at once", repeated(lambda: key.open_many(messages), 100))


@pytest.mark.parametrize("size", SIZES)
def test_cryptography(per_operation: Measure, size: int) -> None:
    theirs, nonce, plaintext = AESGCM(KEY), nonce_of(0), bytes(size)
    per_operation(f"seal {size} B, cryptography", repeated(lambda: theirs.encrypt(nonce, plaintext, KEY)))


@pytest.mark.parametrize("size", SIZES)
def test_cryptography_open(per_operation: Measure, size: int) -> None:
    theirs, nonce = AESGCM(KEY), nonce_of(0)
    sealed = theirs.encrypt(nonce, bytes(size), KEY)
    per_operation(f"open {size} B, cryptography", repeated(lambda: theirs.decrypt(nonce, sealed, KEY)))


def test_derive(per_operation: Measure) -> None:
    per_operation("derive an AEAD key (HKDF)", repeated(lambda: AEADKey.derive(KEY, KEY, b"bench")))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("aead", [False, True], ids=["update", "aead"])
def test_openssl_speed(per_operation: Measure, size: int, aead: bool) -> None:
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("no openssl program")
    command = [program, "speed", "-mr", "-seconds", "1", "-bytes", str(size), *(["-aead"] if aead else [])]

    def once() -> float:
        done = subprocess.run([*command, "-evp", "aes-256-gcm"], capture_output=True, text=True, check=True)
        (rate,) = re.findall(r"^\+F:\d+:AES-256-GCM:([\d.]+)$", done.stdout, re.MULTILINE | re.IGNORECASE)
        return size / float(rate) * 1e9

    per_operation(f"seal {size} B, openssl speed{' -aead' if aead else ''}", once, rounds=1)
