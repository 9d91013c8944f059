"""Who signs the enclave's leaves, as the host tells it at `run`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal, get_args

KeyOrigin = Literal["generated", "imported"]
KEY_ORIGINS: Final[tuple[KeyOrigin, ...]] = get_args(KeyOrigin)


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateAuthority:
    """The CA that signs the enclave's leaves. The host has seen an imported key; nobody has seen a generated one.

    Attributes:
        certificate_pem, key_pem: of an imported one; both empty for one whose key is made inside.
    """

    certificate_pem: str = ""
    key_pem: str = field(default="", repr=False)
    key_origin: KeyOrigin = "generated"
