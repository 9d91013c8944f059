"""The manifest: what Gramine, and through it the CPU, is told about the enclave. Rendered from one template."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from enclave_os.wire.gramine import MODULE_NEEDS, ModuleNeeds
from enclave_os.wire.layout import REGION_FOLDER
from enclave_os.wire.setting_table import Settings

from .build import FileList
from .image import PREFIX, ROOT
from .installed import Gramine

TEMPLATE: Final = Path(__file__).with_name("enclave_os.manifest.template")
FIELD: Final = re.compile(r"\{\{ (\w+) \}\}")
PLAIN: Final = re.compile(r"[ -!#-\[\]-~]*")
"""What may stand in a TOML string as it is: ASCII without quote, backslash and controls."""
MIB: Final = 1 << 20
# What an enclave needs, apart from what its configuration lets clients make it hold. Measured, and rounded up.
BASE_BYTES: Final = 256 * MIB
CONNECTION_BYTES: Final = 40 << 10
BASE_THREADS: Final = 3 + 3 + 6
"""Gramine's, the runtime's, asyncio's pool on two processors."""


class ManifestError(Exception):
    """The manifest cannot be made of these settings; the text says which key to change."""


def memory_needed(settings: Settings) -> int:
    """Bytes that the enclave may come to need: interpreter and libraries, bodies, connections, rows, modules."""
    own = settings.limits.body_memory_bytes + settings.limits.connections * CONNECTION_BYTES + settings.kv.memory
    modules = sum(_asked(settings, name, needs.memory_key, needs.memory) for name, needs in _needs(settings))
    return BASE_BYTES + own + modules


def threads_needed(settings: Settings) -> int:
    """Threads that the enclave may come to have at once."""
    modules = [(_asked(settings, name, needs.threads_key, needs.threads), needs) for name, needs in _needs(settings)]
    return BASE_THREADS + sum(threads + needs.more_threads for threads, needs in modules)


def _needs(settings: Settings) -> list[tuple[str, ModuleNeeds]]:
    return [(name, needs) for name, needs in MODULE_NEEDS.items() if name in settings.modules.enabled]


def _asked(settings: Settings, module: str, name: str, usual: int) -> int:
    """A number of a module's own section. What is none the module refuses itself, when it starts in the trial run."""
    found = settings.module.get(module, {}).get(name, usual)
    return found if type(found) is int else usual


def render(settings: Settings, files: FileList, gramine: Gramine | None) -> str:
    """The manifest's text.

    Args: gramine: the installation that will run it; None for a manifest to look at, which nothing can run.
    Raises: ManifestError. OSError: a file of Gramine's cannot be read.
    """
    chosen = settings.gramine
    trusted = [(_plain("path", f"file:{ROOT}/{file.path}"), file.sha256) for file in files.files]
    if gramine is not None:
        trusted += [(f"file:{gramine.runtime / name}", _sha256(gramine.runtime / name)) for name in files.c_library]
    values: Mapping[str, object] = {
        "prefix": f"/{PREFIX}",
        "root": ROOT,
        "libos": gramine.libos if gramine else "GRAMINE-IS-NOT-INSTALLED-HERE",
        "libos_sha256": _sha256(gramine.libos) if gramine else "",
        "runtime": gramine.runtime if gramine else "GRAMINE-IS-NOT-INSTALLED-HERE",
        "regions": REGION_FOLDER,
        "debug": _toml(chosen.debug),
        "edmm": _toml(chosen.edmm),
        "isv_prod_id": chosen.isv_prod_id,
        "isv_svn": chosen.isv_svn,
        **sizes(settings),
        "count": len(trusted),
        "bytes": files.size + sum((gramine.runtime / name).stat().st_size for name in files.c_library if gramine),
        "trusted_files": "\n".join(f'  {{ uri = "{uri}", sha256 = "{digest}" }},' for uri, digest in trusted),
    }
    return FIELD.sub(lambda found: _plain(found[1], str(values[found[1]])), TEMPLATE.read_text("utf-8"))


def sizes(settings: Settings) -> dict[str, object]:
    """Size and threads of the enclave, each with its reason. Raises: ManifestError: it may outgrow them."""
    chosen = settings.gramine
    needed, threads = memory_needed(settings), threads_needed(settings)
    own = "".join(f", module.{name}.{needs.memory_key}" for name, needs in _needs(settings))
    if not chosen.edmm and chosen.enclave_size < needed:
        raise ManifestError(
            f"gramine.enclave_size: {chosen.enclave_size // MIB} MiB are less than the {-(-needed // MIB)} MiB that "
            "this configuration may come to need: raise it, lower limits.body_memory_bytes, limits.connections, "
            f"kv.memory{own}, or set gramine.edmm"
        )
    if not chosen.edmm and chosen.threads < threads:
        lower = "".join(f", lower module.{name}.{needs.threads_key}" for name, needs in _needs(settings))
        raise ManifestError(
            f"gramine.threads: {chosen.threads} are less than the {threads} that this configuration may come to have: "
            f"raise it{lower}, or set gramine.edmm"
        )
    how = "added as it is used" if chosen.edmm else "all of it is added before the start"
    return {
        "enclave_size": f"{chosen.enclave_size // MIB}M",
        "enclave_size_reason": (f"A power of two. This configuration may come to need {-(-needed // MIB)} MiB; {how}."),
        "threads": chosen.threads,
        "threads_reason": (
            "Three of Gramine's, three of the runtime's (loop, doorbell, lifeline), asyncio's pool, and the modules': "
            f"this configuration may come to have {threads}."
        ),
    }


def _plain(name: str, text: str) -> str:
    """A value as it may stand in the template. Raises: ManifestError: a path that TOML would read otherwise."""
    if name not in ("trusted_files", "enclave_size_reason", "threads_reason") and not PLAIN.fullmatch(text):
        raise ManifestError(f"{text!r} cannot stand in a manifest: give a path of plain characters")
    return text


def _toml(flag: bool) -> str:
    return "true" if flag else "false"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
