"""Which config leaves the enclave's settings give: one for each section, whatever stands in it, and those of the CA.

A section that is added to the table is a leaf by that alone. What the host keeps to itself (ports, ring sizes, the
state folder) never reaches the enclave and is no leaf: it can cost availability, nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from enclave_os.evidence.config_leaf import canonical_json
from enclave_os.wire.authority import KeyOrigin
from enclave_os.wire.setting_kinds import dump_table
from enclave_os.wire.setting_table import ENCLAVE_SECTIONS, EnclaveSettings


def settings_leaves(settings: EnclaveSettings) -> dict[str, bytes]:
    """Name and data of the leaf of each section, of each module's own section, of the number of workers, and of what
    this start is for where that is not to serve.

    The worker's own index is left out, so that all workers have one root.

    Raises: UsageError: a number that JSON readers do not agree about.
    """
    leaves = {
        name: canonical_json(dump_table(table, getattr(settings, name))) for name, table in ENCLAVE_SECTIONS.items()
    }
    leaves |= {f"module.{name}": canonical_json(section) for name, section in settings.module.items()}
    if settings.egress.ca_pem:
        # The file itself, so that the leaf's hash is what extension P.2.1 says, and what sha256sum says of the file.
        leaves["egress.ca_bundle"] = settings.egress.ca_pem.encode()
    leaves["workers"] = canonical_json(settings.worker_count)
    if settings.start.kind != "serve":
        leaves["start"] = canonical_json(dataclasses.asdict(settings.start))
    return leaves


def ca_leaves(certificates_der: Sequence[bytes], key_origin: KeyOrigin) -> dict[str, bytes]:
    """The leaves of the CA that signs the enclave's certificates.

    `ca.certificate` holds its DER, so the leaf's hash is the fingerprint that every tool shows; `ca.chain` the DER of
    those above it, joined; `ca.key_origin` says whether the host has seen its key.

    Args: certificates_der: the signing CA's first, at least one.
    """
    signing, *above = certificates_der
    leaves = {"ca.certificate": signing, "ca.key_origin": key_origin.encode("ascii")}
    if above:
        leaves["ca.chain"] = b"".join(above)
    return leaves


def certificate_leaves(
    extensions: Mapping[str, bytes], apps: Mapping[str, Mapping[str, bytes]]
) -> dict[str, bytes | None]:
    """What modules put into certificates, as leaves; None where they put nothing.

    `extensions` is an object of OID to value in hexadecimal, `apps` one of host name to such an object.
    """
    return {
        "extensions": canonical_json(_hex(extensions)) if extensions else None,
        "apps": canonical_json({hostname: _hex(found) for hostname, found in apps.items()}) if apps else None,
    }


def _hex(values: Mapping[str, bytes]) -> dict[str, str]:
    return {name: value.hex() for name, value in values.items()}
