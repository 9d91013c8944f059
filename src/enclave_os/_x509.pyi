"""Identities and the minter of leaves. Docstrings are in `_x509.pyx`."""

from collections.abc import Callable, Iterable
from typing import Final, final

LIFETIME_S_MAX: Final[int]

@final
class Identity:
    generation: int
    def __new__(cls) -> Identity: ...
    @staticmethod
    def from_der(
        leaf_der: bytes, key_der: bytes, chain_der: Iterable[bytes] = (), app: str | None = None
    ) -> Identity: ...
    @property
    def leaf_der(self) -> bytes: ...
    @property
    def app(self) -> str | None: ...
    @property
    def chain_der(self) -> list[bytes]: ...
    @property
    def spki_sha256(self) -> bytes: ...

@final
class LeafMinter:
    def __new__(
        cls,
        issuer_certificate_der: bytes,
        issuer_key_der: bytes,
        names: Iterable[str],
        extensions: Iterable[tuple[str, bytes]] = (),
        common_name: str = ...,
        chain_der: Iterable[bytes] = (),
    ) -> LeafMinter: ...
    def prepare(self, names: Iterable[str]) -> None: ...
    def encode(self, extensions: Iterable[tuple[str, bytes]]) -> bytes: ...
    def mint(
        self,
        not_before: int,
        lifetime_s: int,
        extensions: Iterable[tuple[str, bytes]] | None = None,
        name: str | None = None,
        encoded: bytes = b"",
        evidence: Callable[[bytes], bytes] | None = None,
    ) -> Identity: ...
