"""What an enclave process forbids before it sees a secret (threat-model.md SE1), looked at from outside."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from enclave_os.errors import InternalError
from enclave_os.runtime import hardening

SCRIPT = """
    import ctypes, resource, sys
    from enclave_os.runtime.hardening import harden
    harden()
    dumpable = ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)
    print(dumpable, *resource.getrlimit(resource.RLIMIT_CORE), flush=True)
    sys.stdin.read()
"""


def start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
        preexec_fn=allow_core,
        # A sanitizer would catch the signal and end otherwise.
        env={**os.environ, "ASAN_OPTIONS": f"{os.environ.get('ASAN_OPTIONS', '')}:handle_segv=0"},
    )


def allow_core() -> None:
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))


class TestHarden:
    def test_not_dumpable_and_no_core_file_for_good(self, tmp_path: Path) -> None:
        process = start(tmp_path)
        assert process.stdout is not None
        assert process.stdout.readline() == "0 0 0\n"  # dumpable, soft limit, hard limit
        process.communicate(timeout=30)

    def test_a_crash_leaves_no_core(self, tmp_path: Path) -> None:
        process = start(tmp_path)
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGSEGV)
        process.communicate(timeout=30)
        assert process.returncode == -signal.SIGSEGV
        assert list(tmp_path.iterdir()) == []

    def test_a_system_that_refuses_is_not_served_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Refusing:
            def __init__(self, *_: object, **__: object) -> None:
                ctypes.set_errno(1)

            def prctl(self, *_: int) -> int:
                return -1

        monkeypatch.setattr(ctypes, "CDLL", Refusing)
        monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
        with pytest.raises(InternalError, match="PR_SET_DUMPABLE"):
            hardening.harden()

    def test_a_system_without_prctl_is_gramine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Absent:
            def __init__(self, *_: object, **__: object) -> None:
                ctypes.set_errno(38)  # ENOSYS

            def prctl(self, *_: int) -> int:
                return -1

        monkeypatch.setattr(ctypes, "CDLL", Absent)
        monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
        hardening.harden()
