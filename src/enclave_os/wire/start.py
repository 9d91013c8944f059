"""What a start of an enclave is for: the host's word, a part of the configuration document."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

StartKind = Literal["serve", "import", "recover"]
START_KINDS: Final[tuple[StartKind, ...]] = get_args(StartKind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What this start is for.

    Attributes:
        kind: `serve`; or `import`: take what another enclave has sealed, seal it and end; or `recover`: serve nothing
            but the route by which the owner opens what the platform's key no longer opens, and end.
        giver: for an import, MRENCLAVE of that other enclave in hexadecimal; else empty.
    """

    kind: StartKind = "serve"
    giver: str = ""


SERVE: Final = Start()
