"""What the certificates of connections prove: policies, applications' names (RT8), challenges (RT13), bounds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from enclave_os._tls import ClientHello, TLSContext, TLSEngine
from enclave_os._x509 import Identity
from enclave_os.errors import AttestationError, ClientProtocolError, ConfigError
from enclave_os.evidence import oids
from enclave_os.evidence.leaf import read_leaf
from enclave_os.ratls.certificate import (
    CACHE_S,
    CHALLENGE_LIFETIME_S,
    CLOCK_SLACK_S,
    CertificateStore,
    LeafEvidenceSource,
    LeafPolicy,
    choose_policy,
    hostname_of,
)
from enclave_os.ratls.token_bucket import TokenBucket
from tests.enclave import tls_peers as peers
from tests.enclave.certificates import Authority
from tests.enclave.tls_peers import client_hello, extension, in_records, key_share, pair

CHALLENGE = bytes(range(32))
BASE = [peers.VERSIONS_1_3, peers.GROUPS_X25519, peers.SIGNATURES_P256]
APPS = {
    "a.example": {oids.APP_CODE: b"code of a"},
    "b.example": {oids.APP_CODE: b"code of b", oids.APP_KEY_SOURCE: b"generated"},
}
BURST = 4


@dataclass
class Platform:
    """A store and all that it asks: clocks, quotes, configuration; each of them in the test's hand."""

    authority: Authority
    policy: LeafPolicy = "per-connection"
    now: float = 1_790_000_039.5
    monotonic: float = 0.0
    generation: int = 1
    root: bytes = b"1" * 32
    state: bytes | None = None
    asked: list[bytes] = field(default_factory=list)
    fails: bool = False
    burst: int = BURST
    store: CertificateStore = field(init=False)

    def __post_init__(self) -> None:
        self.store = CertificateStore(
            self.authority.certificate_pem.decode(),
            self.authority.key_pem.decode(),
            ["localhost"],
            lambda: self.now,
            evidence=LeafEvidenceSource(
                quote=self._quote,
                quotes=TokenBucket(1, self.burst, lambda: self.monotonic),
                policy=self.policy,
                extensions=lambda: [(oids.CONFIG_ROOT, self.root), (oids.IMAGE_PROFILE, b"dev")],
                passing=lambda: () if self.state is None else ((oids.KV_STATE, self.state),),
                generation=lambda: self.generation,
            ),
        )

    def _quote(self, report_data: bytes) -> bytes:
        self.asked.append(report_data)
        if self.fails:
            raise AttestationError("the platform is silent", "no_quote")
        return b"quote over " + report_data

    def context(self) -> TLSContext:
        return TLSContext.server(self.store.choose)

    def shown(self, sni: bytes | None = None, challenge: bytes | None = None) -> tuple[x509.Certificate, Identity]:
        """The leaf for a ClientHello by hand that goes through the engine, and the identity that was chosen."""
        chosen: list[Identity] = []

        def choose(hello: ClientHello) -> Identity:
            chosen.append(self.store.choose(hello))
            return chosen[-1]

        extensions = [*BASE, key_share()]
        if sni is not None:
            extensions.append(peers.server_name(sni))
        if challenge is not None:
            extensions.append(extension(0xFFBB, challenge))
        engine = TLSEngine(TLSContext.server(choose))
        engine.feed(in_records(client_hello(extensions)))
        assert engine.read() is None
        assert engine.app == chosen[0].app
        assert engine.leaf_spki_sha256 == chosen[0].spki_sha256
        return x509.load_der_x509_certificate(chosen[0].leaf_der), chosen[0]


@pytest.fixture
def make(development_ca: Authority) -> Callable[..., Platform]:
    def make(**settings: object) -> Platform:
        return Platform(development_ca, **settings)  # type: ignore[arg-type]

    return make


def values(leaf: x509.Certificate) -> dict[str, bytes]:
    """The extensions with values of their own, in the order in which they stand."""
    return {
        one.oid.dotted_string: one.value.value
        for one in leaf.extensions
        if isinstance(one.value, x509.UnrecognizedExtension)
    }


def names(leaf: x509.Certificate) -> list[str]:
    return leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)


# -- what the evidence binds -------------------------------------------------------------------------------------------


def test_without_a_challenge_the_evidence_binds_key_and_minute(make: Callable[..., Platform]) -> None:
    platform = make()
    leaf, identity = platform.shown()
    minute = leaf.not_valid_before_utc.strftime("%Y-%m-%dT%H:%MZ").encode()
    expected = hashlib.sha512(identity.spki_sha256 + minute).digest()
    assert leaf.not_valid_before_utc.second == 0
    assert platform.asked == [expected]
    assert list(values(leaf).items()) == [
        (oids.QUOTE, b"quote over " + expected),
        (oids.CONFIG_ROOT, b"1" * 32),
        (oids.IMAGE_PROFILE, b"dev"),
    ]
    assert not any(one.critical for one in leaf.extensions if one.oid.dotted_string in values(leaf))
    assert read_leaf(identity.leaf_der).quote == b"quote over " + expected


def test_with_a_challenge_it_binds_key_and_challenge_for_five_minutes(make: Callable[..., Platform]) -> None:
    platform = make(state=b"r" * 32 + b"v" * 8)
    leaf, identity = platform.shown(challenge=CHALLENGE)
    assert platform.asked == [hashlib.sha512(identity.spki_sha256 + CHALLENGE).digest()]
    assert leaf.not_valid_after_utc.timestamp() == int(platform.now) + CHALLENGE_LIFETIME_S
    assert values(leaf)[oids.KV_STATE] == b"r" * 32 + b"v" * 8


@pytest.mark.parametrize("policy", ["per-connection", "cached"])
def test_a_leaf_for_a_challenge_is_never_shown_again(make: Callable[..., Platform], policy: LeafPolicy) -> None:
    platform = make(policy=policy)
    seen = {platform.shown(challenge=CHALLENGE)[1].spki_sha256 for _ in range(2)}
    seen |= {platform.shown()[1].spki_sha256}
    assert len(seen) == 3
    assert len(platform.asked) == 3


def test_a_quote_that_cannot_be_made_is_told_as_our_failure(make: Callable[..., Platform]) -> None:
    engine = TLSEngine(make(fails=True).context())
    engine.feed(in_records(client_hello([*BASE, key_share()])))
    with pytest.raises(AttestationError, match="the platform is silent"):
        engine.read()
    assert engine.alert_sent == peers.INTERNAL_ERROR


# -- RT13: a challenge that is none costs no quote ---------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 17, 31, 33, 64])
def test_a_challenge_of_another_size_costs_no_quote(make: Callable[..., Platform], size: int) -> None:
    platform = make()
    engine = TLSEngine(platform.context())
    engine.feed(in_records(client_hello([*BASE, key_share(), extension(0xFFBB, b"n" * size)])))
    with pytest.raises(ClientProtocolError, match="not exactly 32 bytes"):
        engine.read()
    assert engine.alert_sent == peers.ILLEGAL_PARAMETER
    assert platform.asked == []
    assert platform.store.counters()["certificates_minted_total"] == 0


@pytest.mark.parametrize("second", [b"m" * 32, b"n" * 31, None], ids=["another", "shorter", "none"])
def test_a_challenge_that_changes_after_a_retry_costs_no_quote(
    make: Callable[..., Platform], second: bytes | None
) -> None:
    platform = make()
    engine = TLSEngine(platform.context())
    groups = extension(10, b"\0\x04\0\x18\0\x1d")
    base = [BASE[0], groups, BASE[2]]
    engine.feed(in_records(client_hello([*base, key_share(24, b"\4" + b"x" * 96), extension(0xFFBB, b"n" * 32)])))
    assert engine.read() is None
    again = [] if second is None else [extension(0xFFBB, second)]
    engine.feed(in_records(client_hello([*base, key_share(), *again])))
    with pytest.raises(ClientProtocolError):
        engine.read()
    assert engine.alert_sent == peers.ILLEGAL_PARAMETER
    assert platform.asked == []
    assert platform.store.counters()["certificates_minted_total"] == 0


def test_a_retry_costs_one_quote_once_the_second_hello_is_there(make: Callable[..., Platform]) -> None:
    platform = make()
    client = TLSContext.client(dangerously_skip_verification=True, groups="P-384:P-256")
    ours, theirs = TLSEngine(platform.context()), TLSEngine(client, "localhost", CHALLENGE)
    assert theirs.read() is None
    ours.feed(theirs.take_output())
    assert ours.read() is None
    assert platform.asked == []
    theirs.feed(ours.take_output())
    assert theirs.read() is None
    ours.feed(theirs.take_output())
    assert ours.read() is None
    theirs.feed(ours.take_output())
    assert theirs.read() is None
    assert theirs.handshake_done
    assert theirs.peer_certificate_der is not None
    evidence = read_leaf(theirs.peer_certificate_der)
    assert platform.asked == [hashlib.sha512(evidence.spki_sha256 + CHALLENGE).digest()]


# -- policies ----------------------------------------------------------------------------------------------------------


def test_per_connection_makes_each_leaf_anew(make: Callable[..., Platform]) -> None:
    platform = make()
    assert len({platform.shown()[1].spki_sha256 for _ in range(BURST)}) == BURST
    assert len(platform.asked) == BURST


def test_cached_shows_one_leaf_until_its_time_is_over(make: Callable[..., Platform]) -> None:
    platform = make(policy="cached")
    first, _ = platform.shown()
    platform.now += CACHE_S - 1
    assert platform.shown()[0] == first
    assert len(platform.asked) == 1
    platform.now += 1
    second, _ = platform.shown()
    assert second != first
    assert len(platform.asked) == 2
    # Whoever gets the oldest one can still check it: it was not yet half through its life.
    assert first.not_valid_after_utc.timestamp() - platform.now > CACHE_S - CLOCK_SLACK_S - 61


def test_cached_ends_with_the_configuration(make: Callable[..., Platform]) -> None:
    platform = make(policy="cached")
    first, identity = platform.shown()
    assert identity.generation == 1
    platform.generation, platform.root = 2, b"2" * 32
    second, identity = platform.shown()
    assert identity.generation == 2
    assert (values(first)[oids.CONFIG_ROOT], values(second)[oids.CONFIG_ROOT]) == (b"1" * 32, b"2" * 32)
    assert platform.shown()[0] == second


@pytest.mark.parametrize("policy", ["per-connection", "cached"])
def test_every_leaf_states_the_configuration_as_it_is(make: Callable[..., Platform], policy: LeafPolicy) -> None:
    platform = make(policy=policy, burst=100)
    for generation in range(2, 6):
        platform.generation, platform.root = generation, b"%d" % generation * 32
        for challenge in (None, CHALLENGE):
            assert values(platform.shown(challenge=challenge)[0])[oids.CONFIG_ROOT] == b"%d" % generation * 32


@pytest.mark.parametrize(
    ("wanted", "seconds", "policy"),
    [
        ("auto", 0.0049, "per-connection"),
        ("auto", 0.005, "cached"),
        ("per-connection", 1.0, "per-connection"),
        ("cached", 0.0, "cached"),
    ],
)
def test_which_policy_is_in_force_and_why(wanted: str, seconds: float, policy: str) -> None:
    chosen, reason = choose_policy(wanted, seconds)
    assert chosen == policy
    assert ("ms here" in reason) is (wanted == "auto")


# -- the rate of quotes ------------------------------------------------------------------------------------------------


def test_out_of_quotes_a_plain_client_gets_the_last_leaf(make: Callable[..., Platform]) -> None:
    platform = make()
    last = [platform.shown()[0] for _ in range(BURST)][-1]
    for _ in range(10):
        assert platform.shown()[0] == last
    assert len(platform.asked) == BURST
    assert platform.store.counters() == {
        "certificates_minted_total": BURST,
        "certificates_reused_total": 10,
        "certificates_rate_limited_total": 10,
    }
    platform.monotonic += 1
    assert platform.shown()[0] != last
    assert len(platform.asked) == BURST + 1


def test_out_of_quotes_a_challenge_is_refused_and_costs_none(make: Callable[..., Platform]) -> None:
    platform = make()
    for _ in range(BURST):
        platform.shown(challenge=CHALLENGE)
    engine = TLSEngine(platform.context())
    engine.feed(in_records(client_hello([*BASE, key_share(), extension(0xFFBB, CHALLENGE)])))
    with pytest.raises(AttestationError, match="quotes_per_second"):
        engine.read()
    assert engine.alert_sent == peers.INTERNAL_ERROR
    assert len(platform.asked) == BURST
    platform.monotonic += 1
    platform.shown(challenge=CHALLENGE)


def test_out_of_quotes_plain_clients_are_served_even_without_a_leaf_at_hand(make: Callable[..., Platform]) -> None:
    # A flood of challenges takes every quote; the first plain client still gets its leaf, the others the same one.
    platform = make()
    for _ in range(BURST):
        platform.shown(challenge=CHALLENGE)
    assert len({platform.shown()[1].spki_sha256 for _ in range(5)}) == 1
    assert len(platform.asked) == BURST + 1


def test_a_new_configuration_is_never_behind_an_old_leaf(make: Callable[..., Platform]) -> None:
    platform = make()
    for _ in range(BURST + 1):
        platform.shown()
    platform.generation, platform.root = 2, b"2" * 32
    assert values(platform.shown()[0])[oids.CONFIG_ROOT] == b"2" * 32


# -- RT8: whose leaf ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["per-connection", "cached"])
@pytest.mark.parametrize("sni", [b"a.example", b"A.EXAMPLE", b"a.example.", b"A.Example."])
def test_an_application_gets_its_own_leaf(make: Callable[..., Platform], policy: LeafPolicy, sni: bytes) -> None:
    platform = make(policy=policy)
    platform.store.set_apps(APPS)
    leaf, identity = platform.shown(sni)
    assert identity.app == "a.example"
    assert names(leaf) == ["a.example"]
    assert leaf.subject.rfc4514_string() == "CN=a.example"
    assert list(values(leaf)) == [oids.QUOTE, oids.CONFIG_ROOT, oids.IMAGE_PROFILE, oids.APP_CODE]
    assert values(leaf)[oids.APP_CODE] == b"code of a"


ODD = [
    None, b"", b".", b"unknown.example", b"localhost", b"a.example..", b".a.example", b"a.example\n", b" a.example",
    b"x.a.example", b"aa.example", b"a-example", b"*.example", b"127.0.0.1", b"::1", b"[::1]", b"a" * 255,
    b"a.example" + b"." * 200, b"\xff" * 9, "ａ.example".encode(), b"xn--a.example",
]  # fmt: skip


@pytest.mark.parametrize("policy", ["per-connection", "cached"])
@pytest.mark.parametrize("sni", ODD, ids=repr)
def test_an_odd_name_gets_the_enclaves_leaf(make: Callable[..., Platform], policy: LeafPolicy, sni: bytes) -> None:
    platform = make(policy=policy)
    platform.store.set_apps(APPS)
    leaf, identity = platform.shown(sni)
    assert identity.app is None
    assert names(leaf) == ["localhost"]
    assert oids.APP_CODE not in values(leaf)


def test_nothing_is_kept_for_a_clients_inventions(make: Callable[..., Platform]) -> None:
    platform = make(policy="cached")
    platform.store.set_apps(APPS)
    shown = {platform.shown(b"%d.example" % number)[1].spki_sha256 for number in range(50)}
    shown |= {platform.shown(sni)[1].spki_sha256 for sni in ODD}
    assert len(shown) == 1, "one leaf for all that are unknown"
    assert len(platform.asked) == 1
    platform.shown(b"a.example")
    platform.shown(b"b.example")
    assert len(platform.asked) == 3


spelled = st.sampled_from(sorted(APPS)).flatmap(
    lambda name: st.tuples(
        st.just(name),
        st.lists(st.booleans(), min_size=len(name), max_size=len(name)),
        st.sampled_from(["", "."]),
    )
)


@given(spelled)
def test_a_name_is_itself_however_it_is_spelled(case: tuple[str, list[bool], str]) -> None:
    name, upper, dot = case
    sni = "".join(letter.upper() if big else letter for letter, big in zip(name, upper, strict=True)) + dot
    assert hostname_of(sni.encode()) == name


@given(st.one_of(st.binary(max_size=300), st.text("aAbB.exmplEXMPL\0-", max_size=20).map(str.encode)))
def test_no_other_name_is_an_applications(development_ca: Authority, sni: bytes) -> None:
    # By another rule than the code's own: only ASCII case and one final dot may differ.
    plain = sni[:-1] if sni.endswith(b".") else sni
    expected = next((name for name in APPS if plain.upper() == name.upper().encode()), None)
    store = Platform(development_ca, policy="cached").store
    store.set_apps(APPS)
    assert (hostname_of(sni) if hostname_of(sni) in APPS else None) == expected


def test_the_cache_is_bounded_by_the_applications(make: Callable[..., Platform]) -> None:
    # Old applications leave nothing behind, neither leaves nor encodings.
    platform = make(policy="cached", burst=1000)
    for number in range(20):
        platform.store.set_apps({f"{number}.example": {}})
        assert platform.shown(b"%d.example" % number)[1].app == f"{number}.example"
        assert platform.shown(b"%d.example" % (number - 1))[1].app is None
    assert len(platform.asked) == 40


@pytest.mark.parametrize(
    "apps",
    [
        {"A.example": {}},
        {"a.example.": {}},
        {"": {}},
        {"127.0.0.1": {}},
        {"a b": {}},
        {"a" * 254: {}},
        {"caf\u00e9.example": {}},
        {"a.example": {oids.CONFIG_ROOT: b"its own"}},
        {"a.example": {"2.5.29.17": b"other names"}},
        {"a.example": {"not an oid": b""}},
    ],
    ids=repr,
)
def test_an_application_that_cannot_have_a_leaf_is_refused_and_changes_nothing(
    make: Callable[..., Platform], apps: dict[str, dict[str, bytes]]
) -> None:
    platform = make()
    platform.store.set_apps(APPS)
    with pytest.raises(ConfigError, match=r"host name|certificate can be made"):
        platform.store.set_apps(apps)
    assert platform.shown(b"b.example")[1].app == "b.example"


def test_the_clients_see_whose_leaf_it_is(make: Callable[..., Platform], development_ca: Authority) -> None:
    platform = make()
    platform.store.set_apps(APPS)
    client = TLSContext.client(dangerously_skip_verification=True)
    ours, theirs = pair(platform.context(), client, "b.example")
    assert ours.app == "b.example"
    assert theirs.peer_certificate_der is not None
    assert names(x509.load_der_x509_certificate(theirs.peer_certificate_der)) == ["b.example"]
