"""etcd for the tests of the anchor: a real one, and the one in memory that can lie."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .etcd import Etcd, FakeEtcd


@pytest.fixture(scope="module")
def real_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    etcd = Etcd(tmp_path_factory.mktemp("etcd"))
    yield etcd
    etcd.stop()


@pytest.fixture(params=["etcd", "fake"])
def etcd(request: pytest.FixtureRequest) -> Etcd | FakeEtcd:
    """Each in turn, and empty."""
    if request.param == "fake":
        return FakeEtcd()
    real: Etcd = request.getfixturevalue("real_etcd")
    real.clear()
    return real
