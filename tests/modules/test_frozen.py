"""The list of modules that was frozen at the build: read strictly, and the only one that counts under Gramine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_os.errors import ConfigError
from enclave_os.modules.registry import load_modules
from enclave_os.runtime.boot import find_mode
from enclave_os.runtime.frozen import FROZEN_FILE, MODULES_MAX, SIZE_MAX, parse_frozen, read_frozen
from enclave_os.wire.errors import HostProtocolError

GOOD: dict[str, Any] = {
    "files_sha256": "ab" * 32,
    "format": 1,
    "modules": {"helloworld": "enclave_os.modules.helloworld:HelloWorld"},
}


def text(**changes: Any) -> bytes:
    return json.dumps(GOOD | changes).encode()


def test_what_was_written_is_read(tmp_path: Path) -> None:
    (tmp_path / FROZEN_FILE).write_bytes(text())
    frozen = read_frozen(tmp_path)
    assert frozen.files_sha256 == b"\xab" * 32
    (module,) = load_modules(["helloworld"], frozen.modules)
    assert module.name == "helloworld"


def test_an_installed_module_that_was_not_frozen_is_none() -> None:
    with pytest.raises(ConfigError, match="no module 'helloworld'"):
        load_modules(["helloworld"], parse_frozen(text(modules={})).modules)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 60_000,
        text(format=2),
        text(format=True),
        text(more=1),
        text(files_sha256="ab" * 31),
        text(files_sha256="AB" * 32),
        text(files_sha256=5),
        text(modules=[]),
        text(modules={"Hello": "a:B"}),
        text(modules={"../hello": "a:B"}),
        text(modules={"hello": "a"}),
        text(modules={"hello": "os:system()"}),
        text(modules={"hello": "a:B [extra]"}),
        text(modules={"hello": 5}),
        text(modules={f"m{number}": "a:B" for number in range(MODULES_MAX + 1)}),
        b'{"files_sha256": "' + b"ab" * 32 + b'", "format": 1, "format": 1, "modules": {}}',
        b" " * (SIZE_MAX + 1),
    ],
)
def test_anything_else_stops_the_start(data: bytes) -> None:
    with pytest.raises(ConfigError):
        parse_frozen(data)


@given(st.binary(max_size=200))
def test_no_bytes_break_it(data: bytes) -> None:
    with pytest.raises(ConfigError):
        parse_frozen(data)


def test_a_list_that_is_not_there_says_how_it_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="enclave-os gramine manifest"):
        read_frozen(tmp_path)


class TestMode:
    def test_the_attestation_files_tell_sgx_from_direct(self, tmp_path: Path) -> None:
        assert find_mode("gramine", tmp_path) == "direct"
        (tmp_path / "attestation_type").write_text("none")
        assert find_mode("gramine", tmp_path) == "sgx"
        assert find_mode("simulated", tmp_path) == "simulated"

    @pytest.mark.parametrize("word", ["", "sgx", "direct", "Gramine", "gramine\n"])
    def test_the_host_cannot_say_which(self, tmp_path: Path, word: str) -> None:
        with pytest.raises(HostProtocolError):
            find_mode(word, tmp_path)
