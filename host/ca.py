"""The development CA: made at the first start that finds none, kept in `<state>/ca`, and said to be one.

Root (P-256, ten years) -> intermediary (P-256, path length 0), whose key goes to the enclave, which signs a fresh leaf
per connection with it. The host has seen that key, so the enclave calls it imported.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from enclave_os.wire.setting_table import CertificateAuthority

from .certificates import authority, key_pem, name, write_whole
from .state import StateError, make_private_folder

FOLDER: Final = "ca"
ROOT_FILE: Final = "root.pem"
ROOT_KEY_FILE: Final = "root.key"
CHAIN_FILE: Final = "chain.pem"
KEY_FILE: Final = "intermediary.key"
ROOT_NAME: Final = "Enclave OS development CA"
INTERMEDIARY_NAME: Final = "Enclave OS development intermediary"


@dataclass(frozen=True, slots=True)
class DevelopmentCA:
    """Where the root lies for clients, and what the enclave is given.

    Attributes:
        root_file: PEM, for `curl --cacert`.
        created: whether this call made it.
    """

    root_file: Path
    authority: CertificateAuthority
    created: bool


def open_development_ca(
    state_folder: Path, now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC)
) -> DevelopmentCA:
    """Read the CA of a state folder, or make it.

    Raises: StateError: some of its files are missing, or they do not belong together. OSError.
    """
    folder = state_folder / FOLDER
    make_private_folder(folder)
    files = [folder / name for name in (ROOT_FILE, CHAIN_FILE, KEY_FILE, ROOT_KEY_FILE)]
    there = [file for file in files if file.exists()]
    if not there:
        _make(folder, now())
    elif len(there) < len(files):
        missing = ", ".join(file.name for file in files if file not in there)
        raise StateError(f"{folder} lacks {missing}; put it back, or remove the folder for a new development CA")
    chain, key = files[1].read_text("ascii"), files[2].read_text("ascii")
    _check(folder, files[0].read_text("ascii"), chain, key, now())
    authority = CertificateAuthority(certificate_pem=chain, key_pem=key, key_origin="imported")
    return DevelopmentCA(files[0], authority, not there)


def _check(folder: Path, root: str, chain: str, key: str, now: datetime.datetime) -> None:
    try:
        intermediary, top = x509.load_pem_x509_certificates(chain.encode())
        private_key = serialization.load_pem_private_key(key.encode(), None)
        intermediary.verify_directly_issued_by(top)
        if top != x509.load_pem_x509_certificate(root.encode()):
            raise ValueError("the chain ends in another root")
        if private_key.public_key() != intermediary.public_key():
            raise ValueError("the key is not the intermediary's")
        if now > intermediary.not_valid_after_utc:
            raise ValueError(f"it expired at {intermediary.not_valid_after_utc}")
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
        reason = str(error) or "a signature does not verify"
        raise StateError(
            f"the development CA in {folder} cannot be used: {reason}; remove the folder for a new one"
        ) from error


def _make(folder: Path, now: datetime.datetime) -> None:
    root_key, intermediary_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root_name = name(ROOT_NAME)
    root = authority(root_name, root_key.public_key(), root_name, root_key, None, now)
    intermediary = authority(name(INTERMEDIARY_NAME), intermediary_key.public_key(), root_name, root_key, 0, now)
    pem = serialization.Encoding.PEM
    write_whole(folder / ROOT_KEY_FILE, key_pem(root_key), 0o600)
    write_whole(folder / KEY_FILE, key_pem(intermediary_key), 0o600)
    write_whole(folder / CHAIN_FILE, intermediary.public_bytes(pem) + root.public_bytes(pem), 0o644)
    write_whole(folder / ROOT_FILE, root.public_bytes(pem), 0o644)
