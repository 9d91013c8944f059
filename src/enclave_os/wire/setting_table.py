"""Every configuration key: section, kind, bounds, default, which side reads it, and what it is for.

The sections are dataclasses, so the table is also the type that the code uses. A section that both sides read is in two
parts: `EnclaveX` travels to the enclave, `X` adds what only the host reads. `settings.py` checks documents against this
table; docs/configuration.md and enclave-os.example.toml are generated from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from enclave_os.wire.authority import CertificateAuthority
from enclave_os.wire.collateral_settings import Collateral
from enclave_os.wire.cost_settings import EnclaveLimits, EnclaveTimeouts, Limits, Timeouts
from enclave_os.wire.egress_settings import Egress, EnclaveEgress
from enclave_os.wire.gramine import Gramine, PlatformFiles
from enclave_os.wire.kv_settings import KV, EnclaveKV
from enclave_os.wire.limits import CONN_SLOT_BITS, RING_CAPACITY_MAX, RING_CAPACITY_MIN, RPC_RING_CAPACITY_MIN
from enclave_os.wire.rpc import MEASUREMENT_SIZE
from enclave_os.wire.setting_issuers import NOBODY, PEM_SIZE_MAX, Auth
from enclave_os.wire.setting_kinds import (
    Choice,
    Endpoint,
    Flag,
    Hex,
    Integer,
    Json,
    ListenEndpoint,
    ListOf,
    Network,
    OptionalInteger,
    ServerName,
    Size,
    Text,
    key,
)
from enclave_os.wire.start import SERVE, Start

WORKERS_MAX: Final = 64
PLATFORM_ID_SIZE: Final = 16
QUOTES_PER_SECOND_MAX: Final = 1_000_000
DEVELOPMENT_SIGNER: Final = "78f98431b87f1769f050d961e23e2508913ee40d232b0be5339e1096653b2a96"
"""MRSIGNER of simulated enclaves unless another is given: SHA-256 of `Enclave OS development signer`, of no key."""
EXPORTS: Final = ("none", "approved", "signer")
CAPACITY: Final = Size(RING_CAPACITY_MIN, RING_CAPACITY_MAX, power_of_two=True)
# Half a ring takes one record: the sealed configuration (wire.rpc.SEALED_SIZE_MAX) is the largest there is.
RPC_CAPACITY: Final = Size(RPC_RING_CAPACITY_MIN, RING_CAPACITY_MAX, power_of_two=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Where the host listens and what it starts."""

    listen: tuple[Endpoint, ...] = key(
        ListOf(ListenEndpoint(), 1, 64),
        ["0.0.0.0:443", "[::]:443"],
        "host",
        "Addresses and ports to listen on; port 0 lets the system choose one.",
    )
    port: int | None = key(
        OptionalInteger(Integer(0, 65535)),
        None,
        "host",
        "Replaces the port of every entry of `listen`; left out, their own ports count.",
    )
    backlog: int = key(
        Integer(1, 65535),
        1024,
        "host",
        "Connections that the kernel queues before the proxy accepts them; the kernel caps it at net.core.somaxconn.",
    )
    reuseport: bool = key(
        Flag(),
        False,
        "host",
        "Let other processes of the same user listen on the same ports (SO_REUSEPORT).",
    )
    proxy_protocol_from: tuple[str, ...] = key(
        ListOf(Network(), 0, 16),
        [],
        "host",
        "Fronts (layer 4) that must begin each connection with a PROXY protocol v2 header; see docs/deploy-sgx.md.",
    )
    workers: int = key(
        Integer(1, WORKERS_MAX),
        1,
        "host",
        "Enclave processes, each with its own region and rings.",
    )
    connections_max: int = key(
        Integer(0, (1 << CONN_SLOT_BITS) - 1),
        0,
        "host",
        "Client connections at once, all workers together; 0 takes what RLIMIT_NOFILE allows, with head-room.",
    )
    state_dir: str = key(
        Text("a folder", 4096, empty=True),
        "",
        "host",
        "Folder for what outlives a start. Empty: $STATE_DIRECTORY, or /var/lib/enclave-os for root, or "
        "$XDG_STATE_HOME/enclave-os.",
    )
    platform_dir: str = key(
        Text("a folder", 4096, empty=True),
        "",
        "host",
        "Folder of the simulated platform, which stands in for the processor; servers may share one. Empty: `platform` "
        "in the state folder. Of no use on SGX.",
    )
    enclave: str = key(
        Choice(("auto", "simulated", "direct", "sgx")),
        "auto",
        "host",
        "How the enclave runs: under gramine-sgx, under gramine-direct (the same image, no protection), or as a plain "
        "process; auto takes sgx where this machine has it and the image is signed, else simulated.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EnclaveRings:
    """Waiting on the rings."""

    spin_us: int = key(
        Integer(0, 1000, "microseconds"),
        0,
        "both",
        "How long a side looks again before it sleeps on the doorbell. Helps only where a core is to spare.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rings(EnclaveRings):
    """The four rings of each worker's region. The largest record is half a ring."""

    data_to_enclave: int = key(CAPACITY, "2MiB", "host", "TLS bytes from the clients.")
    data_to_host: int = key(CAPACITY, "2MiB", "host", "TLS bytes to the clients.")
    rpc_to_host: int = key(RPC_CAPACITY, "1MiB", "host", "The enclave's calls.")
    rpc_to_enclave: int = key(RPC_CAPACITY, "1MiB", "host", "The host's replies.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """The server's certificate."""

    names: tuple[str, ...] = key(
        ListOf(ServerName(), 1, 64),
        ["localhost", "127.0.0.1", "::1"],
        "enclave",
        "DNS names and IP addresses in the certificate. Left out, the machine's host name is added.",
    )
    alpn: tuple[str, ...] = key(
        ListOf(Choice(("http/1.1",)), 1, 1), ["http/1.1"], "enclave", "Application protocols, in order of preference."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Attestation:
    """Our evidence, and whose evidence we accept (docs/attestation.md). Without a measurement or a signer: nobody's."""

    certificates: str = key(
        Choice(("auto", "per-connection", "cached")),
        "auto",
        "enclave",
        "A fresh key, quote and certificate for each connection, or one kept for up to 12 hours; auto takes fresh ones "
        "where a quote takes less than 5 ms.",
    )
    quotes_per_second: int = key(
        Integer(1, QUOTES_PER_SECOND_MAX),
        2000,
        "enclave",
        "Quotes of one worker, for certificates and for attest requests apart; beyond it certificates are reused, and "
        "requests for a fresh quote get 429.",
    )
    client_ca_pem: str = key(
        Text("CA certificates in PEM", PEM_SIZE_MAX, empty=True, lines=True),
        "",
        "enclave",
        "CA to which the certificates of attested clients must lead. Empty: their evidence alone counts.",
    )
    client_mr_enclaves: tuple[str, ...] = key(
        ListOf(Hex("an MRENCLAVE", MEASUREMENT_SIZE), 0, 64), [], "enclave", "Measurements of clients to accept."
    )
    client_mr_signer: str = key(
        Hex("an MRSIGNER", MEASUREMENT_SIZE, empty=True),
        "",
        "enclave",
        "Signer of clients to accept; needs `client_isv_prod_id`.",
    )
    client_isv_prod_id: int | None = key(
        OptionalInteger(Integer(0, 65535)), None, "enclave", "Product id (ISVPRODID) that clients must have."
    )
    client_isv_svn_min: int = key(
        Integer(0, 65535), 0, "enclave", "Least security version (ISVSVN) that clients must have."
    )
    client_platform_ids: tuple[str, ...] = key(
        ListOf(Hex("a PPID or platform instance id", PLATFORM_ID_SIZE), 0, 1024),
        [],
        "enclave",
        "Machines on which clients may run. Empty: any that Intel has not revoked, so also those of strangers.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """What a signed manifest fixes on hardware, for an enclave that is an ordinary process."""

    mr_signer: str = key(
        Hex("an MRSIGNER", MEASUREMENT_SIZE), DEVELOPMENT_SIGNER, "enclave", "MRSIGNER of a simulated enclave."
    )
    isv_prod_id: int = key(Integer(0, 65535), 1, "enclave", "ISVPRODID of a simulated enclave.")
    isv_svn: int = key(Integer(0, 65535), 1, "enclave", "ISVSVN of a simulated enclave.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ca:
    """Who signs the enclave's intermediary certificate. Its key is made inside and never leaves (docs/sealing.md)."""

    mode: str = key(
        Choice(("development", "operator")),
        "development",
        "host",
        "development: a root made on this machine signs it at once; operator: it waits for `enclave-os ca install`.",
    )
    certificate_file: str = key(
        Text("a file", 4096, empty=True),
        "",
        "host",
        "PEM of an intermediary and those above it, for a key from outside; with `key_file` only.",
    )
    key_file: str = key(
        Text("a file", 4096, empty=True),
        "",
        "host",
        "Its private key (P-256 or P-384, PEM). The host has seen it: certificates and `/status` say `imported`.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EnclaveSeal:
    """The sealed configuration. These two are sealed at first boot: changed by `enclave-os config accept` only."""

    owner_public_key_pem: str = key(
        Text("an RSA public key in PEM", PEM_SIZE_MAX, empty=True, lines=True),
        "",
        "enclave",
        "Owner's RSA key (3072 bits or more) for a second wrap of the sealed data. Empty: none; what the processor's "
        "key no longer opens, after a microcode update say, is then lost. Who holds its private half can read all.",
    )
    export: str = key(
        Choice(EXPORTS),
        "approved",
        "enclave",
        "Who may be given the sealed data for an upgrade: nobody; measurements that a manager approved; or also any "
        "enclave of the same signer and product with at least our security version.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal(EnclaveSeal):
    """The sealed configuration. What the enclave reads is sealed at first boot: `config accept` changes it."""

    owner_public_key_file: str = key(
        Text("a file", 4096, empty=True),
        "",
        "host",
        "File with the owner's key, relative to the configuration file; the host reads it at start.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Modules:
    """What the enclave serves. A module's own keys stand in `[module.<name>]` and are passed to it as they are."""

    enabled: tuple[str, ...] = key(
        ListOf(Text("a module's name", 64), 0, 64),
        ["helloworld"],
        "enclave",
        "Modules by the names of their entry points, in the order in which they are asked.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EnclaveLog:
    """What the enclave logs."""

    level: str = key(Choice(("debug", "info", "warning", "error")), "info", "both", "The least level that is logged.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Log(EnclaveLog):
    """The log, on stderr."""

    format: str = key(Choice(("text", "json")), "text", "host", "Lines for people or for machines.")


ModuleTables = Mapping[str, Mapping[str, Json]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The whole configuration as the host uses it, checked."""

    server: Server = Server()
    rings: Rings = Rings()
    timeouts: Timeouts = field(default_factory=Timeouts)
    limits: Limits = field(default_factory=Limits)
    tls: Tls = Tls()
    auth: Auth = NOBODY
    attestation: Attestation = Attestation()
    simulated: Simulated = Simulated()
    ca: Ca = Ca()
    seal: Seal = Seal()
    modules: Modules = Modules()
    module: ModuleTables = field(default_factory=dict)
    gramine: Gramine = field(default_factory=Gramine)
    kv: KV = field(default_factory=KV)
    collateral: Collateral = field(default_factory=Collateral)
    egress: Egress = field(default_factory=Egress)
    log: Log = Log()


@dataclass(frozen=True, slots=True, kw_only=True)
class EnclaveSettings:
    """What one worker's enclave was told at `run`: alleged by the host, but well-formed and within the bounds.

    Attributes: platform: under `gramine-direct` only.
    """

    worker_index: int
    worker_count: int
    ca: CertificateAuthority
    start: Start = SERVE
    platform: PlatformFiles | None = None
    rings: EnclaveRings = EnclaveRings()
    timeouts: EnclaveTimeouts = field(default_factory=EnclaveTimeouts)
    limits: EnclaveLimits = field(default_factory=EnclaveLimits)
    tls: Tls = Tls()
    auth: Auth = NOBODY
    attestation: Attestation = Attestation()
    simulated: Simulated = Simulated()
    seal: EnclaveSeal = EnclaveSeal()
    modules: Modules = Modules()
    module: ModuleTables = field(default_factory=dict)
    kv: EnclaveKV = field(default_factory=EnclaveKV)
    egress: EnclaveEgress = field(default_factory=EnclaveEgress)
    log: EnclaveLog = EnclaveLog()


SECTIONS: Final[Mapping[str, type]] = MappingProxyType(
    {
        "server": Server,
        "rings": Rings,
        "timeouts": Timeouts,
        "limits": Limits,
        "tls": Tls,
        "auth": Auth,
        "attestation": Attestation,
        "simulated": Simulated,
        "ca": Ca,
        "seal": Seal,
        "modules": Modules,
        "egress": Egress,
        "kv": KV,
        "gramine": Gramine,
        "collateral": Collateral,
        "log": Log,
    }
)
ENCLAVE_SECTIONS: Final[Mapping[str, type]] = MappingProxyType(
    {
        "rings": EnclaveRings,
        "timeouts": EnclaveTimeouts,
        "limits": EnclaveLimits,
        "tls": Tls,
        "auth": Auth,
        "attestation": Attestation,
        "simulated": Simulated,
        "seal": EnclaveSeal,
        "modules": Modules,
        "kv": EnclaveKV,
        "egress": EnclaveEgress,
        "log": EnclaveLog,
    }
)
