"""What Intel says of a platform, signed and dated: TCB info, QE identity, CRLs and the chains that sign them.

It may come from anybody, the host included: every part is signed under the same root as the quote, and dated. The JSON
form is the one that dcap-qvl, PCCS clients and the RA-TLS v2 reply use: strings, and bytes as lower-case hex.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, Self

from dcap_qvl import QuoteCollateralV3

from enclave_os.errors import AttestationError
from enclave_os.evidence.protocol import read_hex
from enclave_os.evidence.strict_json import load_object

COLLATERAL_SIZE_MAX: Final = 512 * 1024
"""As JSON. Intel's is about 14 KiB; a CRL grows with what is revoked."""

_BYTES: Final = frozenset({"root_ca_crl", "pck_crl", "tcb_info_signature", "qe_identity_signature"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Collateral:
    """The nine members. Chains are PEM, issuer's end first; CRLs are DER; signatures are r || s.

    `tcb_info` and `qe_identity` are the exact texts that were signed.
    """

    pck_crl_issuer_chain: str
    root_ca_crl: bytes
    pck_crl: bytes
    tcb_info_issuer_chain: str
    tcb_info: str
    tcb_info_signature: bytes
    qe_identity_issuer_chain: str
    qe_identity: str
    qe_identity_signature: bytes

    @classmethod
    def from_json(cls, data: bytes | str) -> Self:
        """Read the JSON form: these nine members, once each, and no other.

        A tenth is refused for what it could be: dcap-qvl takes a PCK chain in the collateral for the quote's own.

        Raises: AttestationError: `bad_collateral`.
        """
        if len(data) > COLLATERAL_SIZE_MAX:
            raise _bad(f"{len(data)} bytes; at most {COLLATERAL_SIZE_MAX} are read")
        try:
            document = load_object(data if isinstance(data, bytes) else data.encode())
        except ValueError as error:
            raise _bad(f"not JSON: {type(error).__name__}") from error
        return cls.from_document(document)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Read the JSON form once it was parsed, by a reader that refuses a member twice.

        Raises: AttestationError: `bad_collateral`.
        """
        if set(document) != {field.name for field in fields(cls)}:
            raise _bad(f"not an object of {', '.join(field.name for field in fields(cls))}")
        size = sum(len(value) if isinstance(value, str) else 0 for value in document.values())
        if size > COLLATERAL_SIZE_MAX:
            raise _bad(f"{size} characters; at most {COLLATERAL_SIZE_MAX} are read")
        members: dict[str, Any] = {name: _read(name, value) for name, value in document.items()}
        return cls(**members)

    def to_document(self) -> dict[str, str]:
        """The JSON form before it is text."""
        members = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value.hex() if name in _BYTES else value for name, value in members.items()}

    def to_json(self) -> str:
        """The JSON form, on one line."""
        return json.dumps(self.to_document())

    def to_qvl(self) -> QuoteCollateralV3:
        """As dcap-qvl takes it. No PCK chain: the quote's own counts."""
        return QuoteCollateralV3(
            self.pck_crl_issuer_chain,
            self.root_ca_crl,
            self.pck_crl,
            self.tcb_info_issuer_chain,
            self.tcb_info,
            self.tcb_info_signature,
            self.qe_identity_issuer_chain,
            self.qe_identity,
            self.qe_identity_signature,
        )


def _read(name: str, value: object) -> str | bytes:
    if not isinstance(value, str):
        raise _bad(f"{name} is not a string")
    if name not in _BYTES:
        return value
    try:
        return read_hex(value)
    except ValueError as error:
        raise _bad(f"{name} {error}") from error


def _bad(text: str) -> AttestationError:
    return AttestationError(f"collateral: {text}", "bad_collateral")
