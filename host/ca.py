"""The development CA: a root made at the first start that finds none, kept in `<state>/ca`, and said to be one.

Root (P-256, ten years) -> intermediary (path length 0), whose key is made inside the enclave: only its request comes
out, and this root signs it at once. Whoever has the folder can sign another: not for production.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from enclave_os.wire.authority import CertificateAuthority
from enclave_os.wire.setting_table import Settings

from .certificates import authority, key_pem, name, write_whole
from .config import read_pem
from .state import StateError, make_private_folder

FOLDER: Final = "ca"
ROOT_FILE: Final = "root.pem"
ROOT_KEY_FILE: Final = "root.key"
ROOT_NAME: Final = "Enclave OS development CA"
INTERMEDIARY_NAME: Final = "Enclave OS development intermediary"

Now = Callable[[], datetime.datetime]


def _utc_now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


@dataclass(frozen=True, slots=True)
class DevelopmentCA:
    """A development root that is ready to sign.

    Attributes:
        root_file: PEM, for `curl --cacert`.
        created: whether this call made it.
    """

    root_file: Path
    created: bool
    root: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)
    now: Now = _utc_now

    @property
    def line(self) -> str:
        """What it is, for the log."""
        what = "made a development CA" if self.created else "development CA"
        return f"{what}: clients trust {self.root_file}; not for production: this host knows its key"

    def sign(self, request: x509.CertificateSigningRequest) -> bytes:
        """An intermediary's certificate for the request's key, and the root, PEM. Raises: ValueError: not an EC key."""
        key = request.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise ValueError("the request's key is not an EC key")
        made = authority(name(INTERMEDIARY_NAME), key, self.root.subject, self.key, 0, self.now())
        pem = serialization.Encoding.PEM
        return made.public_bytes(pem) + self.root.public_bytes(pem)


def open_development_ca(state_folder: Path, now: Now = _utc_now) -> DevelopmentCA:
    """Read the CA of a state folder, or make it.

    Raises: StateError: some of its files are missing, or they do not belong together. OSError.
    """
    folder = state_folder / FOLDER
    make_private_folder(folder)
    files = [folder / name for name in (ROOT_FILE, ROOT_KEY_FILE)]
    there = [file for file in files if file.exists()]
    if not there:
        key = ec.generate_private_key(ec.SECP256R1())
        root_name = name(ROOT_NAME)
        root = authority(root_name, key.public_key(), root_name, key, None, now())
        write_whole(files[1], key_pem(key), 0o600)
        write_whole(files[0], root.public_bytes(serialization.Encoding.PEM), 0o644)
        return DevelopmentCA(files[0], True, root, key, now)
    if len(there) < len(files):
        missing = ", ".join(file.name for file in files if file not in there)
        raise StateError(f"{folder} lacks {missing}; put it back, or remove the folder for a new development CA")
    try:
        root = x509.load_pem_x509_certificate(files[0].read_bytes())
        loaded = serialization.load_pem_private_key(files[1].read_bytes(), None)
        if not isinstance(loaded, ec.EllipticCurvePrivateKey) or loaded.public_key() != root.public_key():
            raise ValueError("the key is not the root's")
        if now() > root.not_valid_after_utc:
            raise ValueError(f"it expired at {root.not_valid_after_utc}")
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise StateError(
            f"the development CA in {folder} cannot be used: {error}; remove the folder for a new one"
        ) from error
    return DevelopmentCA(files[0], False, root, loaded, now)


def read_imported_ca(settings: Settings) -> CertificateAuthority:
    """The CA whose key comes from outside, if the configuration names one; else an empty one: the key is made inside.

    Raises: ConfigError: a file cannot be read.
    """
    if not settings.ca.key_file:
        return CertificateAuthority()
    return CertificateAuthority(
        certificate_pem=read_pem(Path(settings.ca.certificate_file), "ca.certificate_file"),
        key_pem=read_pem(Path(settings.ca.key_file), "ca.key_file"),
        key_origin="imported",
    )
