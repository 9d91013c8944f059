"""The certificate extensions of an RA-TLS leaf: non-critical, extnValue holds the raw value, each at most once."""

from typing import Final

QUOTE: Final = "1.2.840.113741.1.13.1.0"
"""The SGX DCAP quote. The arc is Intel's."""

_ARC: Final = "1.3.6.1.4.1.65230"

CONFIG_ROOT: Final = f"{_ARC}.1.1"
"""Merkle root of the configuration, 32 bytes."""

EGRESS_CA: Final = f"{_ARC}.2.1"
"""SHA-256 of the PEM bytes of the CA bundle that egress trusts."""

WASM_CODE_FIRST: Final = f"{_ARC}.2.3"
"""Combined hash of the WASM apps, where the first release of the family put it."""

WASM_CODE: Final = f"{_ARC}.2.5"
"""The same value where later releases put it."""

KV_STATE: Final = f"{_ARC}.2.6"
"""Root of the KV store's state (32 bytes) || its version, u64 BE, when the leaf was made."""

ATTESTATION_SERVERS: Final = f"{_ARC}.2.7"
"""SHA-256 of the attestation servers' canonical URLs, sorted, joined by newline."""

IMAGE_PROFILE: Final = f"{_ARC}.2.8"
"""ASCII `production` or `dev`."""

APP_CONFIG_ROOT: Final = f"{_ARC}.3.1"
"""Merkle root of one app's configuration, 32 bytes."""

APP_CODE: Final = f"{_ARC}.3.2"
"""SHA-256 of one app's code."""

APP_KEY_SOURCE: Final = f"{_ARC}.3.4"
"""ASCII `generated` or `byok:<sha256>`."""

APP_CONFIG: Final = f"{_ARC}.3.5"
"""SHA-256 of one app's configuration."""

NAMES: Final = {
    QUOTE: "quote",
    CONFIG_ROOT: "config root",
    EGRESS_CA: "egress CA bundle",
    WASM_CODE_FIRST: "WASM code (first release)",
    WASM_CODE: "WASM code",
    KV_STATE: "KV state",
    ATTESTATION_SERVERS: "attestation servers",
    IMAGE_PROFILE: "image profile",
    APP_CONFIG_ROOT: "app config root",
    APP_CODE: "app code",
    APP_KEY_SOURCE: "app key source",
    APP_CONFIG: "app configuration",
}
"""What a person calls them."""
