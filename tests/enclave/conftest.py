"""What tests of the trusted side share: a CA that lives for one run."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from tests.enclave.certificates import Authority


@pytest.fixture(scope="session")
def development_ca() -> Authority:
    """A self-signed CA on P-256, valid from yesterday on."""
    return Authority.make("Test CA")


@pytest.fixture(scope="session")
def development_ca_file(development_ca: Authority, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The certificate of `development_ca` as a PEM file, for programs that want a path."""
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    path.write_bytes(development_ca.certificate_pem)
    return path


@pytest.fixture(scope="session")
def now() -> int:
    """The present, as seconds since the epoch, for certificates that real clients are to check."""
    return int(datetime.datetime.now(tz=datetime.UTC).timestamp())
