"""The section `[egress]`: targets in their one form, and what the section's values must be to one another."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_os.wire.egress_settings import EgressTarget, Target
from enclave_os.wire.settings import ConfigError, check

KIND = EgressTarget()
PEM = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("API.example", Target("api.example", 443, False)),
        ("api.example.:8443", Target("api.example", 8443, False)),
        ("*.example", Target("example", 443, True)),
        ("*.a.example:444", Target("a.example", 444, True)),
        ("*:443", Target("", 443, True)),
        ("*", Target("", 443, True)),
        ("127.0.0.1:8443", Target("127.0.0.1", 8443, False)),
        ("[::1]:8443", Target("::1", 8443, False)),
        ("[2001:DB8:0::1]", Target("2001:db8::1", 443, False)),
    ],
)
def test_a_target_has_one_form(text: str, target: Target) -> None:
    assert KIND.read(text) == target
    assert KIND.read(KIND.dump(target)) == target
    assert KIND.read(target) is target


@pytest.mark.parametrize(
    "text",
    [
        *("", ":443", "a.example:", "a.example:0", "a.example:65536", "a.example:443:1", "::1", "[::1", "[::1]x"),
        *("[a.example]", "*.", "*a.example", "a.*.example", "*.*.example", "*.127.0.0.1", "https://a.example"),
        *("a.example/", "ä.example", "a_b.example", "a.example:٤٤٣", " a.example", "a.example\n", "*.[::1]"),
        *("1.2.3", "[::1%eth0]"),
    ],
)  # fmt: skip
def test_what_is_no_target_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        KIND.read(text)


@given(st.text(max_size=40))
def test_every_text_is_a_target_that_reads_back_or_refused(text: str) -> None:
    try:
        target = KIND.read(text)
    except ValueError:
        return
    assert KIND.read(KIND.dump(target)) == target


@pytest.mark.parametrize(
    ("egress", "key"),
    [
        ({"allow": [{"module": "vault", "hosts": ["a.example"]}]}, "egress.allow"),
        ({"allow": [{"module": "helloworld", "hosts": ["a.example"]}] * 2}, "egress.allow"),
        ({"allow": [{"module": "helloworld", "hosts": []}]}, "egress.allow"),
        ({"allow": [{"hosts": ["a.example"]}]}, "egress.allow"),
        ({"ca_pem": "nothing"}, "egress.ca_pem"),
        ({"ca_pem": PEM, "ca_file": "ca.pem"}, "egress.ca_pem"),
        ({"ca_pem": PEM + "-----BEGIN PRIVATE KEY-----\n"}, "egress.ca_pem"),
        ({"connect": 61}, "egress.connect"),
        ({"keep": 120}, "egress.keep"),
        ({"tls_min": "1.1"}, "egress.tls_min"),
    ],
)
def test_a_wrong_section_names_the_key(egress: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check({"egress": egress})
    assert set(refused.value.problems) == {key}


def test_the_defaults_call_nobody() -> None:
    assert check({}).egress.allow == ()
    assert check({}).egress.ca_pem == ""
