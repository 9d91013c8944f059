"""One client connection as modules see it. Docstrings are in `_connection.pyx`."""

from typing import Any, Never, final

from enclave_os.http import AttestationTag

@final
class Connection:
    stale: bool
    evidence: Any
    attested: Any
    tag: AttestationTag
    def __init__(self, *args: Never, **kwargs: Never) -> None: ...
    @property
    def app(self) -> str | None: ...
    @property
    def challenged(self) -> bool: ...
    @property
    def leaf_spki_sha256(self) -> bytes: ...
    @property
    def leaf_generation(self) -> int: ...
    @property
    def peer_spki_sha256(self) -> bytes | None: ...
    def export(self, label: bytes, context: bytes, size: int) -> bytes: ...
