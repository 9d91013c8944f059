"""The table of extensions and the two switches; everything else is in pyproject.toml.

ENCLAVE_OS_DEBUG=1     -O0, all Cython checks, `if ENCLAVE_OS_DEBUG:` blocks live, shared loads and stores counted
ENCLAVE_OS_SANITIZE=1  the debug build with AddressSanitizer and UBSan (load with LD_PRELOAD, see docs/hacking.md)
"""

import os

from Cython.Build import cythonize
from setuptools import Extension, setup

SANITIZE = os.environ.get("ENCLAVE_OS_SANITIZE", "") not in ("", "0")
DEBUG = SANITIZE or os.environ.get("ENCLAVE_OS_DEBUG", "") not in ("", "0")
FLAVOUR = "sanitize" if SANITIZE else "debug" if DEBUG else "fast"

CFLAGS = ["-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-unused-function", "-Wno-sign-compare"]
# A result that is ignored on purpose is cast to void, which gcc does not take for an answer.
CFLAGS += ["-Wno-unused-result"]
# The rings read one memory as bytes and as words; the compiler must not reason from their types.
CFLAGS += ["-fno-strict-aliasing"]
# Stops a class of mistakes from becoming an attack: checked returns, bounded libc calls, no writable GOT.
HARDENING = ["-fstack-protector-strong", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2"]
# Calls into OpenSSL and CPython go straight through the table that RELRO makes read-only, and nobody replaces a
# function of ours from outside: 1 to 2 % fewer instructions (docs/performance.md).
DIRECT = ["-fno-plt", "-fno-semantic-interposition"]
CFLAGS += ["-O0", "-g", "-UNDEBUG"] if DEBUG else ["-O3", "-g1", *DIRECT, *HARDENING]
# Two builds of one tree are the same to the bit, whatever folder it lies in: no path of this machine in debug
# information or __FILE__, and nothing else that differs (docs/reproduce.md).
HERE = os.path.dirname(os.path.abspath(__file__))
CFLAGS += [f"-ffile-prefix-map={HERE}=.", "-frandom-seed=enclave-os"]
LDFLAGS = ["-Wl,-z,relro,-z,now", "-Wl,--build-id=sha1"]
if SANITIZE:
    CFLAGS += ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
    LDFLAGS += ["-fsanitize=address,undefined"]

LLHTTP = "third_party/llhttp"
OPENSSL = ["ssl", "crypto"]

#         module                          source                                    libraries  extra C sources
TABLE = [
    ("enclave_os._ring", "src/enclave_os/_ring.pyx", [], []),
    ("enclave_os._codec", "src/enclave_os/_codec.pyx", [], []),
    ("enclave_os._rows", "src/enclave_os/_rows.pyx", [], []),
    ("enclave_os._aead", "src/enclave_os/_aead.pyx", ["crypto"], []),
    ("enclave_os.kv._freshness", "src/enclave_os/kv/_freshness.pyx", ["crypto"], []),
    ("enclave_os.kv._record", "src/enclave_os/kv/_record.pyx", ["crypto"], []),
    ("enclave_os.kv._reads", "src/enclave_os/kv/_reads.pyx", [], []),
    ("enclave_os.kv._writes", "src/enclave_os/kv/_writes.pyx", [], []),
    ("enclave_os._tls", "src/enclave_os/_tls.pyx", OPENSSL, []),
    ("enclave_os._x509", "src/enclave_os/_x509.pyx", OPENSSL, []),
    ("enclave_os.http._head", "src/enclave_os/http/_head.pyx", [], []),
    ("enclave_os.http._message", "src/enclave_os/http/_message.pyx", [], []),
    (
        "enclave_os.http._parser",
        "src/enclave_os/http/_parser.pyx",
        [],
        [f"{LLHTTP}/src/{name}.c" for name in ("llhttp", "api", "http")],
    ),
    ("enclave_os.wasm._component", "src/enclave_os/wasm/_component.pyx", [], []),
    ("enclave_os.wasm._scan", "src/enclave_os/wasm/_scan.pyx", [], []),
    ("enclave_os.modules._routes", "src/enclave_os/modules/_routes.pyx", [], []),
    ("enclave_os.runtime._connection", "src/enclave_os/runtime/_connection.pyx", OPENSSL, []),
    ("enclave_os.runtime._connections", "src/enclave_os/runtime/_connections.pyx", OPENSSL, []),
    ("enclave_os.runtime._exchange", "src/enclave_os/runtime/_exchange.pyx", OPENSSL, []),
    ("enclave_os.runtime._egress", "src/enclave_os/runtime/_egress.pyx", [], []),
    ("enclave_os.runtime._ingress", "src/enclave_os/runtime/_ingress.pyx", OPENSSL, []),
    ("enclave_os_host._proxy", "host/_proxy.pyx", [], []),
]
# ENCLAVE_OS_ONLY=_ring,_codec builds just those while working on one native.
ONLY = [name for name in os.environ.get("ENCLAVE_OS_ONLY", "").split(",") if name]

EXTENSIONS = [
    Extension(
        module,
        [source, *extra],
        libraries=libraries,
        include_dirs=["src/enclave_os", f"{LLHTTP}/include"],
        define_macros=[("ENCLAVE_OS_DEBUG", "1")] if DEBUG else [],
        extra_compile_args=CFLAGS,
        extra_link_args=LDFLAGS,
        depends=["setup.py"],
    )
    for module, source, libraries, extra in TABLE
    if not ONLY or module.rpartition(".")[2] in ONLY
]

setup(
    ext_modules=cythonize(
        EXTENSIONS,
        build_dir=f"build/cython-{FLAVOUR}",
        include_path=["src"],
        annotate=True,
        compiler_directives={
            "language_level": 3,
            "boundscheck": DEBUG,
            "wraparound": False,
            "initializedcheck": DEBUG,
            "cdivision": not DEBUG,
            "auto_pickle": False,
            "autotestdict": False,
            "embedsignature": True,
        },
    ),
)
