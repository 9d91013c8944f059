"""CAs that one context has read, and another shares."""

from __future__ import annotations

import gc

import pytest

from enclave_os._tls import TLSContext, TLSEngine
from enclave_os._x509 import LeafMinter
from enclave_os.errors import ServerProtocolError, UsageError
from tests.enclave.certificates import Authority
from tests.enclave.tls_peers import shake_hands


@pytest.fixture
def server(development_ca: Authority, now: int) -> TLSContext:
    minter = LeafMinter(development_ca.certificate_der, development_ca.key_der, ["localhost"])
    return TLSContext.server(lambda hello: minter.mint(now, 86400))


def test_roots_that_were_read_once_count_for_another_context(server: TLSContext, development_ca: Authority) -> None:
    trusting = TLSContext.client(ca_pem=development_ca.certificate_pem)
    other = TLSContext.client(ca_pem=Authority.make("Another CA").certificate_pem)
    sharing, strange = TLSContext.client(roots=trusting), TLSContext.client(roots=other)
    del trusting, other  # what was read lives as long as somebody uses it
    gc.collect()
    ours, theirs = TLSEngine(server), TLSEngine(sharing, "localhost")
    shake_hands(ours, theirs)
    assert (theirs.handshake_done, sharing.verifies) == (True, True)
    with pytest.raises(ServerProtocolError, match="certificate"):
        shake_hands(TLSEngine(server), TLSEngine(sharing, "elsewhere.example"))
    with pytest.raises(ServerProtocolError, match="certificate"):
        shake_hands(TLSEngine(server), TLSEngine(strange, "localhost"))


def test_one_of_three_says_what_is_trusted(development_ca: Authority) -> None:
    trusting = TLSContext.client(ca_pem=development_ca.certificate_pem)
    unchecked = TLSContext.client(dangerously_skip_verification=True)
    with pytest.raises(UsageError, match="takes one of"):
        TLSContext.client(ca_pem=b"x", roots=trusting)
    with pytest.raises(UsageError, match="takes one of"):
        TLSContext.client(roots=trusting, dangerously_skip_verification=True)
    with pytest.raises(UsageError, match="that verifies"):
        TLSContext.client(roots=unchecked)
