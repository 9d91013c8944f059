"""Check a configuration: the operator's document on the host, and what the host tells the enclave at `run`.

`check` takes the merged document of file, environment and flags and reports every problem at once. `enclave_document`
writes the part that concerns the enclave, one per worker; `parse_enclave_document` reads it inside, strictly and
against the same table, because the host may have written anything there. Pure: no files, no clock, no network.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, TypeVar, cast

from enclave_os.wire.authority import KEY_ORIGINS, CertificateAuthority
from enclave_os.wire.egress_settings import EnclaveEgress, bundle_problem
from enclave_os.wire.errors import UsageError
from enclave_os.wire.gramine import PLATFORM_TEXT_MAX, PlatformFiles
from enclave_os.wire.jwks import canonical_jwks
from enclave_os.wire.kv_settings import EnclaveKV, check_anchor
from enclave_os.wire.layout import CONFIG_SIZE_MAX
from enclave_os.wire.rpc import MEASUREMENT_SIZE
from enclave_os.wire.setting_issuers import PEM_SIZE_MAX, Issuer
from enclave_os.wire.setting_kinds import (
    Hex,
    Integer,
    Json,
    Text,
    check_json,
    dump_table,
    keys_of,
    nearest,
    read_table,
    shown,
)
from enclave_os.wire.setting_table import (
    ENCLAVE_SECTIONS,
    SECTIONS,
    WORKERS_MAX,
    EnclaveSeal,
    EnclaveSettings,
    ModuleTables,
    Settings,
)
from enclave_os.wire.start import SERVE, START_KINDS, Start

__all__ = [
    "CertificateAuthority",
    "ConfigError",
    "EnclaveSettings",
    "Settings",
    "Start",
    "check",
    "enclave_document",
    "parse_enclave_document",
]

Value = TypeVar("Value")

DOCUMENT_FORMAT: Final = 1
DOCUMENT_DEPTH_MAX: Final = 16  # the deepest of ours is a module's section: 3 above it, 8 within
PUBLISHED_KEYS: Final = "auth"
"""The name in `[[egress.allow]]` of what fetches the keys that issuers publish."""
HTTPS_URL: Final = re.compile(r"https://[A-Za-z0-9.\-\[\]:]+/[!-\x22$-~]*", re.ASCII)
PUBLIC_KEY_LINE: Final = "-----BEGIN PUBLIC KEY-----"

# Strings whole (a bracket in one does not count), then brackets. Each match is possessive and a string without its end
# matches up to the end of the document, so this is linear in whatever the host wrote.
JSON_TOKEN: Final = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)


class ConfigError(UsageError):
    """A configuration that cannot be used.

    Attributes: problems: key (`section.key`, or empty for the whole) to what is wrong with it and what would be right.
    """

    problems: Mapping[str, str]

    def __init__(self, problems: Mapping[str, str]) -> None:
        self.problems = MappingProxyType(dict(problems))
        super().__init__("\n".join(f"{key}: {text}" if key else text for key, text in problems.items()))


@dataclass(frozen=True, slots=True)
class Relation:
    """A limit that another one sets. `holds` is asked only when all `keys` are right in themselves."""

    keys: tuple[str, ...]
    holds: Callable[..., bool]
    text: str


def _below(low: str, high: str, why: str, *, or_equal: bool = False) -> Relation:
    if or_equal:
        return Relation((low, high), lambda a, b: a <= b, f"must be at most {high}: {why}")
    return Relation((low, high), lambda a, b: a < b, f"must be less than {high}: {why}")


EGRESS_PARTS: Final = ("connect", "handshake", "head", "idle")
HOST_IDLE: Final = "the host's own net may not catch what a deadline of the enclave still allows"

RELATIONS: Final = (
    _below("limits.target_bytes", "limits.head_bytes", "the target is a part of the head"),
    _below("limits.body_bytes", "limits.body_memory_bytes", "one body must fit into the memory for all", or_equal=True),
    _below("timeouts.rpc", "timeouts.request", "a request must outlive a call to the host to answer 503"),
    *(_below(f"egress.{name}", "egress.total", "it is a part of the whole", or_equal=True) for name in EGRESS_PARTS),
    *(_below(f"egress.{name}", "timeouts.host_idle", HOST_IDLE) for name in ("head", "idle", "keep")),
    *(
        _below(f"timeouts.{name}", "timeouts.host_idle", HOST_IDLE)
        for name in ("handshake", "head", "body", "idle", "request")
    ),
    Relation(
        ("server.connections_max", "limits.connections", "server.workers"),
        lambda total, each, workers: total <= each * workers,
        "must be at most limits.connections times server.workers: the enclave refuses what is above",
    ),
    Relation(
        ("kv.restore", "server.workers"),
        lambda restore, workers: not restore or workers == 1,
        "may hold a start of one worker only: set server.workers = 1 meanwhile",
    ),
)


def check(document: Mapping[str, object]) -> Settings:
    """Check the operator's whole document.

    `public_key_file` must have been read before (into `public_key_pem`) for the result to reach an enclave, and
    `jwks_file` into `jwks`.

    Raises: ConfigError: with every problem, not only the first.
    """
    problems: dict[str, str] = {}
    sections = _read_sections(SECTIONS, document, problems, complete=False)
    sections["module"] = _read_modules(document.get("module", {}), sections.get("modules"), problems)
    for name in document:
        if name not in SECTIONS and name != "module":
            problems[str(name)] = f"is not a section{nearest(name, [*SECTIONS, 'module'])}"
    _check_relations(sections, problems)
    if problems:
        raise ConfigError(_with_home(problems))
    settings = Settings(**cast(dict[str, Any], sections))
    port = settings.server.port
    if port is None:
        return settings
    listen = tuple(dict.fromkeys(endpoint._replace(port=port) for endpoint in settings.server.listen))
    return dataclasses.replace(settings, server=dataclasses.replace(settings.server, listen=listen))


def enclave_document(
    settings: Settings,
    worker_index: int,
    worker_count: int,
    ca: CertificateAuthority,
    start: Start = SERVE,
    platform: PlatformFiles | None = None,
) -> bytes:
    """The argument of `run` for one worker: JSON with sorted members and no spaces, at most CONFIG_SIZE_MAX bytes.

    It holds the key of an imported CA: it may be written into the region and nowhere else.

    Args: platform: for an enclave under `gramine-direct`.

    Raises: ConfigError: it would be too big, or a public key was not read from its file.
    """
    for number, issuer in enumerate(settings.auth.issuers, 1):
        if not issuer.public_key_pem and not issuer.jwks and not issuer.jwks_url:
            unread = issuer.public_key_file or issuer.jwks_file
            raise ConfigError({"auth.issuers": f"entry {number}: {unread} was not read"})
    encoded = _encode(
        EnclaveSettings(
            worker_index=worker_index,
            worker_count=worker_count,
            ca=ca,
            start=start,
            platform=platform,
            rings=settings.rings,
            timeouts=settings.timeouts,
            limits=settings.limits,
            tls=settings.tls,
            auth=settings.auth,
            attestation=settings.attestation,
            simulated=settings.simulated,
            seal=EnclaveSeal(owner_public_key_pem=settings.seal.owner_public_key_pem, export=settings.seal.export),
            modules=settings.modules,
            module=settings.module,
            kv=enclave_part(EnclaveKV, settings.kv),
            egress=enclave_part(EnclaveEgress, settings.egress),
            log=settings.log,
        )
    )
    if len(encoded) > CONFIG_SIZE_MAX:
        raise ConfigError({"": f"the enclave's part has {len(encoded)} bytes; at most {CONFIG_SIZE_MAX} can be passed"})
    return encoded


def enclave_part(table: type[Value], section: Value) -> Value:
    """What of a section travels: its part for the enclave, when it is one with a host's part too."""
    return table(**{name: getattr(section, name) for name in keys_of(table)})


def parse_enclave_document(data: bytes) -> EnclaveSettings:
    """Read what the host alleges to be this worker's configuration, from a private copy of it.

    Nothing is filled in or passed over: every key must be there, once, within its bounds, and the bytes must be exactly
    what `enclave_document` writes for these values.

    Raises: ConfigError: not so.
    """
    document = _load_json(data)
    problems: dict[str, str] = {}
    simulated = ("platform",) if isinstance(document, dict) and "platform" in document else ()
    top = _members(document, "", ("format", "worker", "enclave", "ca", "start", *simulated), problems)
    if top.get("format") != DOCUMENT_FORMAT or isinstance(top.get("format"), bool):
        problems["format"] = f"{shown(top.get('format'))} is not {DOCUMENT_FORMAT}"
        raise ConfigError(problems)
    worker = _members(top.get("worker"), "worker.", ("index", "count"), problems)
    count = _read(Integer(1, WORKERS_MAX).read, worker.get("count"), "worker.count", problems)
    index = _read(Integer(0, (count or 1) - 1).read, worker.get("index"), "worker.index", problems)
    ca = _read_ca(top.get("ca"), problems)
    start = _read_start(top.get("start"), problems)
    platform = _read_platform(top["platform"], problems) if simulated else None
    enclave = _members(top.get("enclave"), "enclave.", (*ENCLAVE_SECTIONS, "module"), problems)
    sections = _read_sections(ENCLAVE_SECTIONS, enclave, problems, complete=True)
    sections["module"] = _read_modules(enclave.get("module"), sections.get("modules"), problems)
    _check_relations(sections, problems)
    if problems or ca is None or start is None or index is None or count is None:
        raise ConfigError(problems)
    settings = EnclaveSettings(
        worker_index=index,
        worker_count=count,
        ca=ca,
        start=start,
        platform=platform,
        **cast(dict[str, Any], sections),
    )
    if _encode(settings) != data:
        raise ConfigError({"": "the document says the same in another form than the host's side writes"})
    return settings


def _read_sections(
    tables: Mapping[str, type], document: Mapping[str, object], problems: dict[str, str], *, complete: bool
) -> dict[str, object]:
    sections: dict[str, object] = {}
    for name, table in tables.items():
        part = document.get(name, {})
        if not isinstance(part, Mapping):
            problems[name] = f"{shown(part)} is not a section"
            part = {}
        sections[name], found = read_table(table, part, f"{name}.", complete=complete)
        problems.update(found)
    auth: Any = sections.get("auth")
    for number, issuer in enumerate(auth.issuers if auth else (), 1):
        text = _issuer_problem(issuer)
        if text:
            problems["auth.issuers"] = f"entry {number}: {text}"
    _check_seal(sections.get("seal"), problems)
    published = any(issuer.jwks_url for issuer in auth.issuers) if auth else False
    _check_egress(sections.get("egress"), sections.get("modules"), problems, published=published)
    check_anchor(sections.get("kv"), problems)
    _check_ca(sections.get("ca"), problems)
    _check_collateral(sections.get("collateral"), problems)
    return sections


def _check_seal(seal: Any, problems: dict[str, str]) -> None:
    pem = seal.owner_public_key_pem if seal else ""
    if pem and getattr(seal, "owner_public_key_file", ""):
        problems["seal.owner_public_key_pem"] = "give either this or owner_public_key_file"
    elif "PRIVATE KEY" in pem:
        problems["seal.owner_public_key_pem"] = "is a private key, which belongs offline; give the public one"
    elif pem and not pem.startswith(PUBLIC_KEY_LINE):
        problems["seal.owner_public_key_pem"] = f"does not begin with {PUBLIC_KEY_LINE}"


def _check_egress(egress: Any, modules: Any, problems: dict[str, str], *, published: bool) -> None:
    if not egress:
        return
    if problem := bundle_problem(egress.ca_pem, getattr(egress, "ca_file", ""), "ca_file"):
        problems["egress.ca_pem"] = problem
    names = [entry.module for entry in egress.allow]
    for name in names:
        if names.count(name) > 1:
            problems["egress.allow"] = f"names the module {shown(name)} twice; give all its hosts in one table"
        elif published and name == PUBLISHED_KEYS:
            continue
        elif modules and "modules.enabled" not in problems and name not in modules.enabled:
            problems["egress.allow"] = f"modules.enabled does not name {shown(name)}{nearest(name, modules.enabled)}"


def _check_ca(ca: Any, problems: dict[str, str]) -> None:
    if ca and bool(ca.certificate_file) != bool(ca.key_file):
        missing = "ca.key_file" if ca.certificate_file else "ca.certificate_file"
        problems[missing] = "is missing: a key from outside needs both files, and none lets the key be made inside"


def _check_collateral(collateral: Any, problems: dict[str, str]) -> None:
    if collateral and collateral.url and not collateral.url.startswith(("https://", "http://")):
        problems["collateral.url"] = f"{shown(collateral.url)} begins with neither https:// nor http://"


def _issuer_problem(issuer: Issuer) -> str | None:
    sources = (issuer.public_key_pem, issuer.public_key_file, issuer.jwks, issuer.jwks_file, issuer.jwks_url)
    if sum(map(bool, sources)) != 1:
        return "give either public_key_pem, public_key_file, jwks, jwks_file or jwks_url"
    if issuer.jwks_url and not HTTPS_URL.fullmatch(issuer.jwks_url):
        return "jwks_url is https://HOST[:PORT]/PATH, without a name, a password or a fragment"
    if issuer.jwks:
        try:
            canonical_jwks(issuer.jwks)
        except ValueError as error:
            return f"jwks {error}"
    if "PRIVATE KEY" in issuer.public_key_pem:
        return "public_key_pem holds a private key, which nobody but the issuer may have; give the public one"
    if issuer.public_key_pem and not issuer.public_key_pem.startswith(PUBLIC_KEY_LINE):
        return f"public_key_pem does not begin with {PUBLIC_KEY_LINE}"
    return None


def _read_modules(document: object, modules: Any, problems: dict[str, str]) -> ModuleTables:
    """The modules' own sections, unread: their modules check them."""
    if not isinstance(document, Mapping):
        problems["module"] = f"{shown(document)} is not a table of sections"
        return {}
    tables: dict[str, Mapping[str, Json]] = {}
    for name, table in document.items():
        if name not in modules.enabled and "modules.enabled" not in problems:
            problems[f"module.{name}"] = f"modules.enabled does not name it{nearest(name, modules.enabled)}"
        try:
            checked = check_json(table)
        except ValueError as error:
            problems[f"module.{name}"] = str(error)
            continue
        if not isinstance(checked, Mapping):
            problems[f"module.{name}"] = f"{shown(table)} is not a section"
            continue
        tables[str(name)] = checked
    return tables


def _check_relations(sections: Mapping[str, object], problems: dict[str, str]) -> None:
    for relation in RELATIONS:
        values: list[object] = []
        for path in relation.keys:
            section, _, name = path.partition(".")
            holder = sections.get(section)
            if path in problems or holder is None or not hasattr(holder, name):
                break  # wrong in itself, or a key that this side does not have
            values.append(getattr(holder, name))
        else:
            if not relation.holds(*values):
                first, *others = relation.keys
                stated = ", ".join(f"{path} is {value}" for path, value in zip(others, values[1:], strict=True))
                problems[first] = f"{values[0]} {relation.text} ({stated})"


def _with_home(problems: dict[str, str]) -> dict[str, str]:
    """Add the right section to keys that stand in a wrong one."""
    homes: dict[str, list[str]] = {}
    for section, table in SECTIONS.items():
        for name in keys_of(table):
            homes.setdefault(name, []).append(f"{section}.{name}")
    told: dict[str, str] = {}
    for path, text in problems.items():
        name = path.rpartition(".")[2]
        misplaced = text.startswith("is not a key here") and path.count(".") == 1 and name in homes
        told[path] = f"is not a key here; did you mean {' or '.join(homes[name])}?" if misplaced else text
    return told


def _read_ca(document: object, problems: dict[str, str]) -> CertificateAuthority | None:
    members = _members(document, "ca.", ("certificate_pem", "key_pem", "key_origin"), problems)
    origin = members.get("key_origin")
    if origin not in KEY_ORIGINS:
        problems["ca.key_origin"] = f"{shown(origin)} is not one of {', '.join(KEY_ORIGINS)}"
    generated = origin == "generated"
    pem = Text("PEM", PEM_SIZE_MAX, empty=generated, lines=True)
    certificate = _read(pem.read, members.get("certificate_pem"), "ca.certificate_pem", problems)
    private_key = members.get("key_pem")
    # Not by `_read`: its messages show the value.
    if not isinstance(private_key, str) or not len(private_key) <= PEM_SIZE_MAX or not private_key.isascii():
        problems["ca.key_pem"] = "is not PEM"
        private_key = None
    elif bool(private_key) is generated or bool(certificate) is generated:
        problems["ca"] = "a generated key and its certificate are not the host's to give; an imported one comes whole"
    if certificate is None or private_key is None or origin not in KEY_ORIGINS:
        return None
    return CertificateAuthority(certificate_pem=certificate, key_pem=private_key, key_origin=origin)


def _read_start(document: object, problems: dict[str, str]) -> Start | None:
    members = _members(document, "start.", ("kind", "giver"), problems)
    kind = members.get("kind")
    if kind not in START_KINDS:
        problems["start.kind"] = f"{shown(kind)} is not one of {', '.join(START_KINDS)}"
        return None
    reader = Hex("an MRENCLAVE", MEASUREMENT_SIZE, empty=kind != "import")
    giver = _read(reader.read, members.get("giver"), "start.giver", problems)
    if giver and kind != "import":
        problems["start.giver"] = "is for an import alone"
    return None if giver is None else Start(kind=kind, giver=giver)


def _read_platform(document: object, problems: dict[str, str]) -> PlatformFiles | None:
    names = ("platform", "collateral", "seal_key")
    members = _members(document, "platform.", names, problems)
    for name in names:
        value = members.get(name)
        # Not by `_read`: its messages show the value.
        if name in members and (not isinstance(value, str) or len(value) > PLATFORM_TEXT_MAX):
            problems[f"platform.{name}"] = f"is not a text of at most {PLATFORM_TEXT_MAX} characters"
    if problems:
        return None
    return PlatformFiles(**cast(dict[str, Any], members))


def _read(reader: Callable[[object], Value], value: object, path: str, problems: dict[str, str]) -> Value | None:
    try:
        return reader(value)
    except ValueError as error:
        problems[path] = str(error)
        return None


def _members(document: object, path: str, names: tuple[str, ...], problems: dict[str, str]) -> Mapping[str, object]:
    """A JSON object with exactly these members; problems name what is missing or unknown."""
    if not isinstance(document, dict):
        problems[path.removesuffix(".")] = f"{shown(document)} is not an object"
        return {}
    for name in names:
        if name not in document:
            problems[f"{path}{name}"] = "is missing"
    for name in document:
        if name not in names:
            problems[f"{path}{name}"] = "is not a member here"
    return document


def _encode(settings: EnclaveSettings) -> bytes:
    document: dict[str, Json] = {
        "format": DOCUMENT_FORMAT,
        "worker": {"index": settings.worker_index, "count": settings.worker_count},
        "enclave": {
            "module": settings.module,
            **{name: dump_table(table, getattr(settings, name)) for name, table in ENCLAVE_SECTIONS.items()},
        },
        "ca": dataclasses.asdict(settings.ca),
        "start": dataclasses.asdict(settings.start),
    }
    if settings.platform is not None:
        document["platform"] = dataclasses.asdict(settings.platform)
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
    return text.encode()


def _load_json(data: bytes) -> object:
    if len(data) > CONFIG_SIZE_MAX:
        raise ConfigError({"": f"the document has {len(data)} bytes; at most {CONFIG_SIZE_MAX} are allowed"})
    depth = 0
    for token in JSON_TOKEN.finditer(data):
        depth += {b"[": 1, b"{": 1, b"]": -1, b"}": -1}.get(token[0], 0)
        if depth > DOCUMENT_DEPTH_MAX:
            raise ConfigError({"": f"the document is nested more than {DOCUMENT_DEPTH_MAX} deep"})
    try:
        return json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except ConfigError:
        raise
    except ValueError as error:  # bad UTF-8, bad JSON, or an integer of thousands of digits
        raise ConfigError({"": f"the document is not JSON: {error}"}) from None


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ConfigError({"": "the document names a member twice"})
    return members


def _refuse_constant(name: str) -> object:
    raise ConfigError({"": f"the document has the number {name}, which JSON does not have"})
