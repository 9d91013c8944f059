"""What is sealed: the content of the blob, as one immutable value and its one byte form.

The form is JSON with sorted members and base64 for bytes. It is authenticated before it is read, so a form that cannot
be is our own bug or another version's content; it is still read strictly, and nothing is filled in.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final

from enclave_os.errors import InternalError, SealBroken
from enclave_os.evidence.store_state import State, combined
from enclave_os.wire.authority import KEY_ORIGINS, KeyOrigin
from enclave_os.wire.kv import CHAIN_SHIFT, RANGES_MAX
from enclave_os.wire.policy import PolicyError, read_policy
from enclave_os.wire.rpc import CHAIN_LENGTH_MAX, MEASUREMENT_SIZE

FORMAT: Final = 1
MASTER_KEY_SIZE: Final = 32
NONCE_SIZE: Final = 32
ROOT_SIZE: Final = 32
COUNT_MAX: Final = 2**63 - 1
EXPORTS_MAX: Final = 16
GIVEN_MAX: Final = 16
FORMER_MAX: Final = 64  # far more starts than worker 0 takes between two words with a worker; 3 KiB here
MODULE_DATA_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class Authority:
    """The intermediary CA that signs leaves.

    Attributes:
        chain_der: its certificate, then those above it.
        key_der: PKCS#8, unencrypted.
        key_origin: "generated" inside, or "imported": then the host has seen it.
    """

    chain_der: tuple[bytes, ...]
    key_der: bytes = field(repr=False)
    key_origin: KeyOrigin


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where imported content came from: shown by `seal status` and attested as a config leaf.

    Attributes:
        measurement: MRENCLAVE of the enclave that handed it over.
        boot_count: of that enclave when it did.
    """

    measurement: bytes
    boot_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedConfig:
    """Everything that outlives a start. Worker 0 writes it; changes make a new value.

    Attributes:
        master_key: made inside at first boot; every other key is derived from it.
        boot_count: starts that have sealed, this one included.
        boot_nonce: drawn in this boot: two clones of one blob differ in it.
        former: nonces of the boots before it, the last FORMER_MAX of them, the oldest first: its line of descent.
        clock_floor_ns: the greatest time that was believed, nanoseconds since the Unix epoch.
        policy: in force, as `wire.policy` writes it; `next_policy`: the one that a manager accepted for the next start.
        policy_changes: how often an accepted policy was taken over.
        authority: None until a certificate came in.
        pending_key_der: PKCS#8 of a key whose request waits for its certificate.
        exports: measurements that a manager approved to be given all this.
        given_to: the last GIVEN_MAX measurements that were.
        recoveries: how often the owner opened it, since the platform's key did not.
        module_data: by module name, what it keeps here.
        kv_root, kv_version: of the key-value store's state, of its first range where it has several.
        kv_further: version and root of the other ranges, in their order: as many as the first boot was to make.
        kv_restores: how often a manager let an older store count.
    """

    master_key: bytes = field(repr=False)
    boot_count: int
    boot_nonce: bytes
    former: tuple[bytes, ...] = ()
    clock_floor_ns: int
    policy: bytes
    next_policy: bytes | None = None
    policy_changes: int = 0
    authority: Authority | None = None
    pending_key_der: bytes | None = field(default=None, repr=False)
    exports: tuple[bytes, ...] = ()
    given_to: tuple[bytes, ...] = ()
    recoveries: int = 0
    module_data: Mapping[str, bytes] = field(default_factory=lambda: MappingProxyType({}), repr=False)
    kv_root: bytes = bytes(ROOT_SIZE)
    kv_version: int = 0
    kv_further: tuple[State, ...] = ()
    kv_restores: int = 0
    provenance: Provenance | None = None

    @property
    def kv_states(self) -> tuple[State, ...]:
        """Version and root of each range of the store, at least one."""
        return ((self.kv_version, self.kv_root), *self.kv_further)

    def state(self) -> tuple[int, bytes, int, bytes]:
        """(boot count, boot nonce, version, root): what a client remembers to notice an older state."""
        return self.boot_count, self.boot_nonce, *combined(self.kv_states)

    def with_kv_state(self, index: int, version: int, root: bytes) -> SealedConfig:
        """The same with another checkpoint of one range. Raises: InternalError: there is no such range."""
        if index == 0:
            return replace(self, kv_version=version, kv_root=root)
        if not 0 < index <= len(self.kv_further):
            raise InternalError(f"a checkpoint of range {index}, and there are {1 + len(self.kv_further)}")
        before, after = self.kv_further[: index - 1], self.kv_further[index:]
        return replace(self, kv_further=(*before, (version, root), *after))

    def restored(self, states: Sequence[State]) -> SealedConfig:
        """The same once a manager let other states of all ranges count."""
        (version, root), *further = states
        return replace(
            self, kv_version=version, kv_root=root, kv_further=tuple(further), kv_restores=self.kv_restores + 1
        )

    def booted(self) -> SealedConfig:
        """The same in its next boot."""
        former = (*self.former, self.boot_nonce)[-FORMER_MAX:]
        return replace(self, boot_count=self.boot_count + 1, boot_nonce=os.urandom(NONCE_SIZE), former=former)

    def nonce_of(self, boot_count: int) -> bytes | None:
        """The nonce that an earlier boot had on the way to this one; None: that is not known any more."""
        back = self.boot_count - boot_count
        return self.former[-back] if 0 < back <= len(self.former) else None

    def given(self, measurement: bytes) -> SealedConfig:
        """The same, once it was given to an enclave of that measurement."""
        if measurement in self.given_to:
            return self
        return replace(self, given_to=(*self.given_to, measurement)[-GIVEN_MAX:])

    def with_floor(self, now_ns: int) -> SealedConfig:
        """The same, its clock's floor raised to `now_ns` if that is later."""
        return replace(self, clock_floor_ns=max(self.clock_floor_ns, now_ns))


def first(policy: bytes, ranges: int = 1) -> SealedConfig:
    """The content of a first boot, with a master key that never existed before.

    Args: ranges: parts of the key-value store, for as long as there is this master key.
    """
    return SealedConfig(
        master_key=os.urandom(MASTER_KEY_SIZE),
        boot_count=1,
        boot_nonce=os.urandom(NONCE_SIZE),
        clock_floor_ns=0,
        policy=policy,
        kv_further=((0, bytes(ROOT_SIZE)),) * (ranges - 1),
    )


def encode(config: SealedConfig) -> bytes:
    """The one byte form.

    Raises: InternalError: a value that `decode` would refuse; it must not be sealed.
    """
    data = _encode(config)
    try:
        decode(data)
    except SealBroken as error:
        raise InternalError(f"would seal what could not be opened: {error}") from error
    return data


def decode(data: bytes) -> SealedConfig:
    """Read content that was authenticated before.

    Raises: SealBroken: not the form of this version.
    """
    try:
        config = _decode(json.loads(data.decode()))
    except (ValueError, KeyError, TypeError, RecursionError, PolicyError) as error:
        raise SealBroken(f"the content is not of this version: {type(error).__name__}: {error}") from error
    if _encode(config) != data:
        raise SealBroken("the content is not of this version: another form")
    return config


def _encode(config: SealedConfig) -> bytes:
    authority, provenance = config.authority, config.provenance
    document: dict[str, Any] = {
        "format": FORMAT,
        "master_key": _text(config.master_key),
        "boot_count": config.boot_count,
        "boot_nonce": _text(config.boot_nonce),
        "former": [_text(nonce) for nonce in config.former],
        "clock_floor_ns": config.clock_floor_ns,
        "policy": _text(config.policy),
        "next_policy": _optional_text(config.next_policy),
        "policy_changes": config.policy_changes,
        "authority": None
        if authority is None
        else {
            "chain": [_text(certificate) for certificate in authority.chain_der],
            "key": _text(authority.key_der),
            "key_origin": authority.key_origin,
        },
        "pending_key": _optional_text(config.pending_key_der),
        "exports": [_text(measurement) for measurement in config.exports],
        "given_to": [_text(measurement) for measurement in config.given_to],
        "recoveries": config.recoveries,
        "module_data": {name: _text(data) for name, data in config.module_data.items()},
        "kv_root": _text(config.kv_root),
        "kv_version": config.kv_version,
        "kv_restores": config.kv_restores,
        "provenance": None
        if provenance is None
        else {"measurement": _text(provenance.measurement), "boot_count": provenance.boot_count},
    }
    if config.kv_further:
        document["kv_further"] = [{"version": version, "root": _text(root)} for version, root in config.kv_further]
    return json.dumps(document, ensure_ascii=True, allow_nan=False, sort_keys=True, separators=(",", ":")).encode()


def _decode(document: Any) -> SealedConfig:
    names = (
        "format", "master_key", "boot_count", "boot_nonce", "former", "clock_floor_ns", "policy", "next_policy",
        "policy_changes", "authority", "pending_key", "exports", "given_to", "recoveries", "module_data", "kv_root",
        "kv_version", "kv_restores", "provenance",
    )  # fmt: skip
    several = isinstance(document, dict) and "kv_further" in document  # only a store of several ranges has it
    _members(document, (*names, "kv_further") if several else names)
    if document["format"] != FORMAT:
        raise ValueError(f"format {document['format']!r}")
    policy, next_policy = _bytes(document["policy"]), _optional_bytes(document["next_policy"])
    for one in (policy, next_policy):
        if one is not None:
            read_policy(one)
    return SealedConfig(
        master_key=_bytes(document["master_key"], MASTER_KEY_SIZE),
        boot_count=_count(document["boot_count"], 1),
        boot_nonce=_bytes(document["boot_nonce"], NONCE_SIZE),
        former=tuple(_bytes(item, NONCE_SIZE) for item in _list(document["former"], FORMER_MAX)),
        clock_floor_ns=_count(document["clock_floor_ns"]),
        policy=policy,
        next_policy=next_policy,
        policy_changes=_count(document["policy_changes"]),
        authority=_authority(document["authority"]),
        pending_key_der=_optional_bytes(document["pending_key"]),
        exports=tuple(_bytes(item, MEASUREMENT_SIZE) for item in _list(document["exports"], EXPORTS_MAX)),
        given_to=tuple(_bytes(item, MEASUREMENT_SIZE) for item in _list(document["given_to"], GIVEN_MAX)),
        recoveries=_count(document["recoveries"]),
        module_data=_module_data(document["module_data"]),
        kv_root=_bytes(document["kv_root"], ROOT_SIZE),
        kv_version=_count(document["kv_version"]),
        kv_further=_further(document["kv_further"]) if several else (),
        kv_restores=_count(document["kv_restores"]),
        provenance=_provenance(document["provenance"]),
    )


def _authority(document: Any) -> Authority | None:
    if document is None:
        return None
    _members(document, ("chain", "key", "key_origin"))
    chain = tuple(_bytes(item) for item in _list(document["chain"], CHAIN_LENGTH_MAX))
    if not chain or document["key_origin"] not in KEY_ORIGINS:
        raise ValueError("a CA without a chain, or of no known origin")
    return Authority(chain, _bytes(document["key"]), document["key_origin"])


def _provenance(document: Any) -> Provenance | None:
    if document is None:
        return None
    _members(document, ("measurement", "boot_count"))
    return Provenance(_bytes(document["measurement"], MEASUREMENT_SIZE), _count(document["boot_count"], 1))


def _further(document: Any) -> tuple[State, ...]:
    found: list[State] = []
    for item in _list(document, RANGES_MAX - 1):
        _members(item, ("version", "root"))
        version = _count(item["version"])
        if version >> CHAIN_SHIFT:
            raise ValueError("not a version of a range")
        found.append((version, _bytes(item["root"], ROOT_SIZE)))
    return tuple(found)


def _module_data(document: Any) -> Mapping[str, bytes]:
    if not isinstance(document, dict) or len(document) > MODULE_DATA_MAX:
        raise ValueError("module_data")
    return MappingProxyType({name: _bytes(data) for name, data in document.items()})


def _members(document: Any, names: tuple[str, ...]) -> None:
    if not isinstance(document, dict) or set(document) != set(names):
        raise ValueError(f"an object with other members than {', '.join(names)}")


def _list(value: Any, count_max: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > count_max:
        raise ValueError(f"not a list of at most {count_max}")
    return value


def _count(value: Any, least: int = 0) -> int:
    if type(value) is not int or not least <= value <= COUNT_MAX:
        raise ValueError("not a count")
    return value


def _bytes(value: Any, size: int | None = None) -> bytes:
    try:
        data = base64.b64decode(value, validate=True) if isinstance(value, str) else None
    except binascii.Error:
        data = None
    # The text is never shown: it may be a key.
    if data is None or (size is not None and len(data) != size):
        raise ValueError("not base64 of the right size")
    return data


def _optional_bytes(value: Any) -> bytes | None:
    return None if value is None else _bytes(value)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _optional_text(data: bytes | None) -> str | None:
    return None if data is None else _text(data)
