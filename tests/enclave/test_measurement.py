"""The measurement of a simulated enclave: every byte that can run counts, and its place."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import enclave_os
from enclave_os.errors import AttestationError
from enclave_os.ratls.measurement import find_packages, measure


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the real thing."""
    copy = tmp_path / "enclave_os"
    shutil.copytree(Path(enclave_os.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def test_a_copy_has_the_same(package: Path) -> None:
    assert measure({"enclave_os": package}) == measure(find_packages(["enclave_os.runtime.boot"]))


def test_one_changed_byte(package: Path) -> None:
    before = measure({"enclave_os": package})
    file = package / "modules" / "helloworld.py"
    data = bytearray(file.read_bytes())
    data[-2] ^= 1
    file.write_bytes(data)
    assert measure({"enclave_os": package}) != before


def test_a_rebuilt_extension_a_new_file_and_a_renamed_one(package: Path) -> None:
    seen = {measure({"enclave_os": package})}
    extension = next(package.glob("_ring*.so"))
    extension.write_bytes(extension.read_bytes() + b"\0")
    seen.add(measure({"enclave_os": package}))
    (package / "more.py").write_text("")
    seen.add(measure({"enclave_os": package}))
    (package / "more.py").rename(package / "other.py")
    seen.add(measure({"enclave_os": package}))
    assert len(seen) == 4


def test_caches_and_sources_do_not_count(package: Path) -> None:
    before = measure({"enclave_os": package})
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "x.cpython-311.pyc").write_bytes(b"x")
    (package / "notes.txt").write_text("x")
    assert measure({"enclave_os": package}) == before


def test_modules_of_others_count(package: Path, tmp_path: Path) -> None:
    module = tmp_path / "greeter.py"
    module.write_text("a = 1\n")
    alone = measure({"enclave_os": package})
    together = measure({"enclave_os": package, "greeter": module})
    module.write_text("a = 2\n")
    assert len({alone, together, measure({"enclave_os": package, "greeter": module})}) == 3


def test_nothing_is_no_measurement(tmp_path: Path) -> None:
    with pytest.raises(AttestationError):
        measure({})
    with pytest.raises(AttestationError):
        measure({"enclave_os": tmp_path})
    with pytest.raises(AttestationError):
        find_packages(["no_such_package_here"])
