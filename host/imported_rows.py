"""The rows of the key-value store that belong to what an enclave imported: copied, opaque, at its next start.

    <state folder>/sealed/<receiver>/imported-from     MRENCLAVE of the enclave that gave, written with what it gave
                  /sealed/<giver>/store                its rows, once its server has stopped: then nobody writes to them
                  /sealed/<receiver>/store             the copy

The former ones stay where they are. On another machine bring the folder of the giver there, or `store` of it alone into
the receiver's folder. Whether they are the right rows the enclave finds out: it has their root.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from .handlers.seal import FOLDER, NOTE_FILE, STORE_FOLDER
from .rocksdb_options import store_exists
from .state import StateError

PARTIAL: Final = "store.partial"
MEASUREMENT: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


def bring_rows(state_folder: Path, say: Callable[[str], None]) -> None:
    """Copy the rows that a note asks for, whole or not at all. The state folder is locked: nobody has them open.

    Args: say: a line for the operator.
    Raises:
        StateError: a note that is none of ours. OSError: not copied; what was begun is begun anew the next time.
    """
    sealed = state_folder / FOLDER
    for note in sorted(sealed.glob(f"*/{NOTE_FILE}")):
        giver = note.read_text(encoding="ascii", errors="replace")
        if not MEASUREMENT.fullmatch(giver):
            raise StateError(f"{note} names no measurement: remove it, and copy the former store beside it yourself")
        source, target = sealed / giver / STORE_FOLDER, note.parent / STORE_FOLDER
        if not store_exists(target):
            if not store_exists(source):
                continue  # it keeps none, or the operator has not brought them yet
            say(f"copying the rows of the key-value store from {giver[:16]}... to {note.parent.name[:16]}...")
            _copy(source, note.parent / PARTIAL, target)
        note.unlink()


def _copy(source: Path, partial: Path, target: Path) -> None:
    if partial.exists():
        shutil.rmtree(partial)
    shutil.copytree(source, partial)
    for path in (*partial.rglob("*"), partial):
        _sync(path)
    partial.rename(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
