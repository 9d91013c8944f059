"""What the host configures of Gramine, and what it tells an enclave there in place of files.

The section `[gramine]` is the host's alone: what of it counts inside is fixed, and measured, when the image is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from enclave_os.wire.setting_kinds import GIB, KIB, MIB, Flag, Integer, Size, Text, key

PLATFORM_TEXT_MAX: Final = 256 * KIB
"""Of each text of a simulated platform: collateral has some 30 KiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformFiles:
    """A simulated platform as text, for an enclave under `gramine-direct`, which can open none of the host's files.

    Attributes:
        platform, collateral: JSON. seal_key: hexadecimal.
    """

    platform: str = field(repr=False)
    collateral: str = field(repr=False)
    seal_key: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleNeeds:
    """What a module may come to take of its enclave, which without EDMM is all there before the start.

    Attributes:
        memory_key, threads_key: of its section, where the operator says how much; memory, threads: what they are else.
        more_threads: that it has beside them.
    """

    memory_key: str
    memory: int
    threads_key: str
    threads: int
    more_threads: int


# Of our own modules that take more than a little; tests/modules/test_gramine_image.py holds the numbers to theirs.
MODULE_NEEDS: Final[Mapping[str, ModuleNeeds]] = MappingProxyType(
    {
        "wasm": ModuleNeeds(
            memory_key="memory_total", memory=2 * GIB, threads_key="threads", threads=16, more_threads=2
        ),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gramine:
    """The enclave image, for `enclave-os gramine` (docs/deploy-sgx.md). Each but `image` and `key_file` is measured:
    it is fixed when the image is made, and another value gives another MRENCLAVE."""

    image: str = key(
        Text("a folder", 4096, empty=True),
        "",
        "host",
        "Folder of the enclave image. Empty: `gramine` in the state folder.",
    )
    edmm: bool = key(
        Flag(),
        False,
        "host",
        "Add the enclave's memory as it is used (SGX2, Linux 6.0 or newer): starts in seconds, and only what is used "
        "takes EPC. Without it all of `enclave_size` is added before the start.",
    )
    enclave_size: int = key(
        Size(256 * MIB, 512 * GIB, power_of_two=True),
        "2GiB",
        "host",
        "Address space of one enclave, a power of two: interpreter and libraries (about 200 MiB), twice "
        "`limits.body_memory_bytes`, `kv.memory`, some 40 KiB for each of `limits.connections`, and with `wasm` its "
        "`memory_total`. With EDMM a larger one costs nothing.",
    )
    threads: int = key(
        Integer(8, 1024),
        32,
        "host",
        "Threads of one enclave at once: 3 of Gramine's, 3 of the runtime's, 6 of asyncio's pool, and those of its "
        "modules (`module.wasm.threads` and 2). Each costs about 300 KiB of the enclave, used or not, without EDMM.",
    )
    debug: bool = key(
        Flag(),
        False,
        "host",
        "A debug enclave: whoever owns the machine can read it, its evidence says so, and no client accepts it.",
    )
    isv_prod_id: int = key(Integer(0, 65535), 1, "host", "ISVPRODID: tells the products of one signer apart.")
    isv_svn: int = key(
        Integer(0, 65535), 1, "host", "ISVSVN: raise it when an older version must not be accepted any more."
    )
    key_file: str = key(
        Text("a file", 4096, empty=True),
        "",
        "host",
        "RSA-3072 key (exponent 3) that signs the enclave: its hash is MRSIGNER. Relative to the configuration file.",
    )
