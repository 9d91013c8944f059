"""The table of keys: what is right passes, every wrong value is refused with its bounds, all problems at once; and the
enclave's document is read strictly, since the host may have written anything there."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_os.wire.authority import CertificateAuthority
from enclave_os.wire.layout import CONFIG_SIZE_MAX
from enclave_os.wire.setting_issuers import Issuer
from enclave_os.wire.setting_kinds import Endpoint, default_of, dump_table, keys_of, read_table
from enclave_os.wire.setting_table import ENCLAVE_SECTIONS, SECTIONS, EnclaveSettings, Settings
from enclave_os.wire.settings import (
    RELATIONS,
    ConfigError,
    check,
    enclave_document,
    parse_enclave_document,
)

ROOT = Path(__file__).parents[2]
PEM = "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"
CA = CertificateAuthority(certificate_pem="-----BEGIN CERTIFICATE-----", key_pem="SECRET", key_origin="imported")


def problems_of(document: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        check(document)
    return dict(caught.value.problems)


def refusal_or(function: Callable[[Any], Any], argument: object) -> Any:
    """What a function gives, or the problems that it names."""
    try:
        return function(argument)
    except ConfigError as error:
        return dict(error.problems) or pytest.fail("a refusal without a reason")


def issuer(**changes: str) -> dict[str, str]:
    return {"issuer": "https://issuer.example", "audience": "enclave-os", "public_key_pem": PEM} | changes


class TestTable:
    def test_nothing_given_gives_the_defaults(self) -> None:
        settings = check({})
        assert settings == Settings()
        assert settings.server.listen == (Endpoint("0.0.0.0", 443), Endpoint("::", 443))  # noqa: S104
        assert settings.rings.data_to_host == 2 << 20
        assert settings.modules.enabled == ("helloworld",)

    @pytest.mark.parametrize("section", SECTIONS)
    def test_every_default_passes_its_own_check_and_is_explained(self, section: str) -> None:
        for name, row in keys_of(SECTIONS[section]).items():
            default = default_of(SECTIONS[section], name)
            assert row.kind.read(default) == default
            assert row.doc.endswith(".")
            assert row.kind.describe()

    @pytest.mark.parametrize("section", ENCLAVE_SECTIONS)
    def test_what_travels_is_what_the_enclave_reads(self, section: str) -> None:
        told = {name for name, row in keys_of(SECTIONS[section]).items() if row.side != "host"}
        assert told == set(keys_of(ENCLAVE_SECTIONS[section])) - {"public_key_file"}

    def test_sections_that_do_not_travel_are_the_hosts_alone(self) -> None:
        for section in set(SECTIONS) - set(ENCLAVE_SECTIONS):
            assert {row.side for row in keys_of(SECTIONS[section]).values()} == {"host"}

    @pytest.mark.parametrize(
        ("section", "name"), [(section, name) for section in SECTIONS for name in keys_of(SECTIONS[section])]
    )
    def test_every_key_is_read_by_the_side_that_it_names(self, section: str, name: str) -> None:
        """A key that nobody reads would promise a bound that nobody keeps."""
        if (section, name) == ("server", "port"):
            return  # `check` puts it into `listen`
        if (section, name) in (("seal", "owner_public_key_file"), ("egress", "ca_file"), ("kv", "anchor_ca_file")):
            return  # the host's configuration puts what it holds into the key that ends in `_pem`
        use = re.compile(rf"\.{name}\b|\"{name}\"")
        side = keys_of(SECTIONS[section])[name].side
        for folder, own in (("src/enclave_os", "enclave"), ("host", "host")):
            if side in (own, "both"):
                files = [path for path in (ROOT / folder).rglob("*.py*") if path.suffix in (".py", ".pyx")]
                readers = [path for path in files if path.parent.name != "wire" and "config" not in path.name]
                assert any(use.search(path.read_text(encoding="utf-8")) for path in readers), folder

    @pytest.mark.parametrize("relation", RELATIONS, ids=lambda relation: " ".join(relation.keys))
    def test_every_relation_speaks_of_keys_that_exist(self, relation: Any) -> None:
        for path in relation.keys:
            section, _, name = path.partition(".")
            assert name in keys_of(SECTIONS[section])

    def test_settings_cannot_be_changed(self) -> None:
        with pytest.raises(dataclasses.FrozenInstanceError):
            check({}).server.workers = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("path", "given", "expected"),
    [
        ("server.listen", ["127.0.0.1:8443"], (Endpoint("127.0.0.1", 8443),)),
        ("server.listen", ["[::1]:0"], (Endpoint("::1", 0),)),
        ("server.listen", ["[0:0::1]:443"], (Endpoint("::1", 443),)),
        ("server.workers", 64, 64),
        ("server.connections_max", 0, 0),
        ("server.reuseport", True, True),
        ("rings.data_to_host", "64KiB", 65536),
        ("rings.data_to_host", "1 GiB", 1 << 30),
        ("rings.data_to_host", 131072, 131072),
        ("rings.spin_us", 1000, 1000),
        ("timeouts.head", 0.05, 0.05),
        ("timeouts.head", 3, 3.0),
        ("limits.body_bytes", 0, 0),
        ("limits.head_bytes", "16384", 16384),
        ("limits.head_bytes", "16384 B", 16384),
        ("tls.names", ["Example.COM.", "10.0.0.1", "2001:DB8::0:1"], ("example.com", "10.0.0.1", "2001:db8::1")),
        ("modules.enabled", [], ()),
        ("log.level", "debug", "debug"),
    ],
)
def test_right_values_come_out_in_one_form(path: str, given: object, expected: object) -> None:
    section, _, name = path.partition(".")
    assert getattr(getattr(check({section: {name: given}}), section), name) == expected


@pytest.mark.parametrize(
    ("path", "given", "words"),
    [
        ("server.listen", [], "give 1 to 64"),
        ("server.listen", "127.0.0.1:1", "not a list"),
        ("server.listen", ["127.0.0.1"], "address:port"),
        ("server.listen", ["localhost:443"], "address:port"),
        ("server.listen", ["::1:443"], "address:port"),
        ("server.listen", ["[127.0.0.1]:443"], "address:port"),
        ("server.listen", ["[fe80::1%eth0]:443"], "address:port"),
        ("server.listen", ["127.0.0.1:65536"], "port from 0 to 65535"),
        ("server.listen", ["127.0.0.1:-1"], "port from 0 to 65535"),
        ("server.listen", ["127.0.0.1:٣"], "port from 0 to 65535"),
        ("server.listen", ["127.0.0.1:1", "127.0.0.1:1"], "twice"),
        ("server.port", 65536, "from 0 to 65535"),
        ("server.port", True, "not a whole number"),
        ("server.workers", 0, "too small; give a number from 1 to 64"),
        ("server.workers", 65, "too big"),
        ("server.workers", 1.0, "not a whole number"),
        ("server.workers", "1", "not a whole number"),
        ("server.enclave", "SGX", "auto, simulated, direct, sgx"),
        ("server.reuseport", 1, "neither true nor false"),
        ("server.state_dir", "a\0b", "control character"),
        ("rings.data_to_host", "3MiB", "the nearest are 2 MiB or 4 MiB"),
        ("rings.data_to_host", "2MB", "unknown unit MB"),
        ("rings.data_to_host", "2GiB", "64 KiB to 1 GiB"),
        ("rings.data_to_host", 32768, "64 KiB to 1 GiB"),
        ("rings.data_to_host", "lots", "not a size"),
        ("rings.data_to_host", -65536, "64 KiB to 1 GiB"),
        ("rings.spin_us", 1001, "from 0 to 1000"),
        ("timeouts.head", 0, "0.05 to 300 seconds"),
        ("timeouts.head", float("nan"), "0.05 to 300 seconds"),
        ("timeouts.head", float("inf"), "0.05 to 300 seconds"),
        ("timeouts.head", "10", "not a number of seconds"),
        ("timeouts.head", True, "not a number of seconds"),
        ("tls.names", ["*.example.com"], "no wildcard"),
        ("tls.names", ["-a.example"], "neither a DNS name"),
        ("tls.names", ["a..b"], "neither a DNS name"),
        ("tls.names", ["ä.example"], "neither a DNS name"),
        ("tls.names", ["1.2.3"], "looks like an IP address"),
        ("tls.names", ["a" * 64], "neither a DNS name"),
        ("tls.names", ["a.example", "A.example."], "twice"),
        ("tls.alpn", ["h2"], "http/1.1"),
        ("modules.enabled", [""], "is empty"),
        ("modules.enabled", [3], "not text"),
        ("auth.issuers", {"issuer": "x"}, "array of tables"),
        ("auth.issuers", ["x"], "entry 1 is not a table"),
        ("auth.issuers", [{}], "entry 1: issuer: is missing"),
        ("auth.issuers", [{"isuer": "x"}], "did you mean issuer?"),
        ("auth.issuers", [issuer(), issuer(public_key_pem="")], "entry 2: give either"),
        ("auth.issuers", [issuer(public_key_file="x.pem")], "entry 1: give either"),
        ("auth.issuers", [issuer(public_key_pem="-----BEGIN PRIVATE KEY-----")], "holds a private key"),
        ("auth.issuers", [issuer(public_key_pem="AAAA")], "does not begin with"),
    ],
)
def test_a_wrong_value_is_refused_with_what_would_be_right(path: str, given: object, words: str) -> None:
    section, _, name = path.partition(".")
    problems = problems_of({section: {name: given}})
    assert list(problems) == [path]
    assert words in problems[path]


@pytest.mark.parametrize(
    ("document", "path", "words"),
    [
        ({"serve": {}}, "serve", "did you mean server?"),
        ({"server": 3}, "server", "is not a section"),
        ({"server": {"worker": 1}}, "server.worker", "did you mean workers?"),
        ({"server": {"handshake": 1}}, "server.handshake", "did you mean timeouts.handshake or egress.handshake?"),
        ({"module": {"helloword": {}}}, "module.helloword", "did you mean helloworld?"),
        ({"module": 3}, "module", "not a table of sections"),
        ({"module": {"helloworld": 3}}, "module.helloworld", "is not a section"),
        ({"module": {"helloworld": {"x": float("nan")}}}, "module.helloworld", "no JSON form"),
        ({"module": {"helloworld": {"x": 2**60}}}, "module.helloworld", "2**53"),
        ({"module": {"helloworld": {"x": object()}}}, "module.helloworld", "no JSON form"),
        ({"module": {"helloworld": {"x": "\ud800"}}}, "module.helloworld", "surrogate"),
        ({"module": {"helloworld": {"x": [[[[[[[[[[]]]]]]]]]]}}}, "module.helloworld", "nested"),
        ({"limits": {"target_bytes": "16KiB"}}, "limits.target_bytes", "less than limits.head_bytes"),
        ({"limits": {"body_bytes": "512MiB"}}, "limits.body_bytes", "limits.body_memory_bytes is 268435456"),
        ({"timeouts": {"rpc": 30}}, "timeouts.rpc", "less than timeouts.request"),
        ({"timeouts": {"idle": 120}}, "timeouts.idle", "less than timeouts.host_idle"),
        ({"timeouts": {"request": 300}}, "timeouts.request", "less than timeouts.host_idle"),
        ({"server": {"connections_max": 20000}}, "server.connections_max", "limits.connections is 16384"),
    ],
)
def test_what_does_not_fit_together_is_refused(document: dict[str, Any], path: str, words: str) -> None:
    problems = problems_of(document)
    assert list(problems) == [path]
    assert words in problems[path]


def test_all_problems_are_reported_at_once() -> None:
    problems = problems_of(
        {"server": {"workers": 0, "prt": 1}, "rings": {"spin_us": -1}, "timeouts": {"rpc": 30}, "x": {}}
    )
    assert set(problems) == {"server.workers", "server.prt", "rings.spin_us", "timeouts.rpc", "x"}


def test_a_wrong_key_does_not_accuse_its_relations_too() -> None:
    assert list(problems_of({"timeouts": {"host_idle": 0}})) == ["timeouts.host_idle"]


def test_port_replaces_every_port() -> None:
    settings = check({"server": {"listen": ["127.0.0.1:1", "[::1]:2", "127.0.0.1:3"], "port": 9}})
    assert settings.server.listen == (Endpoint("127.0.0.1", 9), Endpoint("::1", 9))


def test_an_endpoint_reads_as_it_is_written() -> None:
    assert str(Endpoint("::1", 443)) == "[::1]:443"
    assert str(Endpoint("127.0.0.1", 443)) == "127.0.0.1:443"


NAMES = st.text(max_size=8) | st.sampled_from(
    [*SECTIONS, "module", "helloworld", "workers", "head", "names", "issuers"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(NAMES, VALUES, max_size=3))
def test_no_document_does_more_than_be_refused(document: dict[str, Any]) -> None:
    """Invariant: any tree of values gives settings or a ConfigError that says why."""
    outcome = refusal_or(check, document)
    assert isinstance(outcome, Settings) or all(outcome.values())


class TestEnclaveDocument:
    SETTINGS = check(
        {
            "timeouts": {"head": 3},
            "auth": {"issuers": [issuer()]},
            "module": {"helloworld": {"greeting": "wörld", "numbers": [1, 2.5, None, True, {"deep": "er"}]}},
        }
    )

    def document(self) -> bytes:
        return enclave_document(self.SETTINGS, 1, 2, CA)

    def changed(self, change: Any) -> bytes:
        """The document after `change` has had its way with the parsed form, written canonically again."""
        document = json.loads(self.document())
        change(document)
        return json.dumps(document, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()

    def refused(self, data: bytes) -> dict[str, str]:
        with pytest.raises(ConfigError) as caught:
            parse_enclave_document(data)
        return dict(caught.value.problems)

    def test_what_was_written_is_read(self) -> None:
        settings = parse_enclave_document(self.document())
        assert (settings.worker_index, settings.worker_count) == (1, 2)
        assert settings.ca == CA
        assert settings.timeouts.head == 3.0
        assert settings.auth.issuers == (
            Issuer(issuer="https://issuer.example", audience="enclave-os", public_key_pem=PEM),
        )
        assert settings.module == self.SETTINGS.module
        assert settings.limits.body_bytes == self.SETTINGS.limits.body_bytes
        assert settings.tls == self.SETTINGS.tls

    def test_what_is_the_hosts_stays_with_the_host(self) -> None:
        told = json.loads(self.document())["enclave"]
        assert set(told) == {*ENCLAVE_SECTIONS, "module"}
        for section in ENCLAVE_SECTIONS:
            assert not {name for name, row in keys_of(SECTIONS[section]).items() if row.side == "host"} & set(
                told[section]
            )
        assert "public_key_file" not in told["auth"]["issuers"][0]

    def test_the_key_of_the_ca_is_not_shown(self) -> None:
        assert "SECRET" not in repr(CA)
        assert "SECRET" not in repr(parse_enclave_document(self.document()))

        def spoil(document: Any) -> None:
            document["ca"]["key_pem"] = "SECRETä"

        assert self.refused(self.changed(spoil)) == {"ca.key_pem": "is not PEM"}

    def test_a_key_that_was_not_read_from_its_file_stops_the_start(self) -> None:
        settings = check({"auth": {"issuers": [issuer(public_key_pem="", public_key_file="a.pem")]}})
        with pytest.raises(ConfigError, match=r"a\.pem was not read"):
            enclave_document(settings, 0, 1, CA)

    def test_a_document_that_is_too_big_is_not_made(self) -> None:
        settings = check({"module": {"helloworld": {"x": "a" * CONFIG_SIZE_MAX}}})
        with pytest.raises(ConfigError, match="at most"):
            enclave_document(settings, 0, 1, CA)

    @pytest.mark.parametrize("section", [*ENCLAVE_SECTIONS, "module"])
    def test_every_section_must_be_there(self, section: str) -> None:
        assert f"enclave.{section}" in self.refused(self.changed(lambda document: document["enclave"].pop(section)))

    @pytest.mark.parametrize("section", ENCLAVE_SECTIONS)
    def test_every_key_must_be_there(self, section: str) -> None:
        for name in keys_of(ENCLAVE_SECTIONS[section]):

            def remove(document: Any, name: str = name) -> None:
                del document["enclave"][section][name]

            assert f"{section}.{name}" in self.refused(self.changed(remove))

    @pytest.mark.parametrize("section", ENCLAVE_SECTIONS)
    def test_every_key_is_checked_again_inside(self, section: str) -> None:
        for name in keys_of(ENCLAVE_SECTIONS[section]):

            def lie(document: Any, name: str = name) -> None:
                document["enclave"][section][name] = {"a": "lie"}

            assert f"{section}.{name}" in self.refused(self.changed(lie))

    @pytest.mark.parametrize(
        "change",
        [
            lambda document: document.update(format=2),
            lambda document: document.update(format=True),
            lambda document: document.update(format=1.0),
            lambda document: document.update(extra=1),
            lambda document: document.pop("ca"),
            lambda document: document["worker"].update(index=2),
            lambda document: document["worker"].update(index=-1),
            lambda document: document["worker"].update(index=True),
            lambda document: document["worker"].update(count=0),
            lambda document: document["worker"].update(count=65),
            lambda document: document["worker"].update(count=None),
            lambda document: document["worker"].update(more=1),
            lambda document: document["ca"].update(key_origin="found"),
            lambda document: document["ca"].update(certificate_pem=3),
            lambda document: document["ca"].update(key_pem=""),
            lambda document: document["enclave"].update(server={}),
            lambda document: document["enclave"]["limits"].update(head_bytes="16KiB"),
            lambda document: document["enclave"]["limits"].update(surprise=1),
            lambda document: document["enclave"]["limits"].update(target_bytes=65536),
            lambda document: document["enclave"]["timeouts"].update(head=3),
            lambda document: document["enclave"]["timeouts"].update(rpc=60.0),
            lambda document: document["enclave"]["timeouts"].update(host_idle=120.0),
            lambda document: document["enclave"]["tls"].update(names=["LOCALHOST"]),
            lambda document: document["enclave"]["auth"]["issuers"][0].update(public_key_file="/etc/passwd"),
            lambda document: document["enclave"]["auth"]["issuers"][0].pop("roles_claim"),
            lambda document: document["enclave"]["module"].update(other={}),
        ],
    )  # fmt: skip
    def test_any_other_content_is_refused(self, change: Any) -> None:
        assert self.refused(self.changed(change))

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"null",
            b"[]",
            b"{}",
            b"\xff\xfe{}",
            b"{",
            b'{"format":1,"format":1}',
            b'{"format":NaN}',
            b'{"format":Infinity}',
            b"1" * 100_000,
            b"[" * 100_000,
            b'{"a":' * 100_000,
            b'"' + b'\\"' * 100_000,
            b"\xef\xbb\xbf{}",
            b" " * (CONFIG_SIZE_MAX + 1),
        ],
        ids=lambda data: f"{data[:12]!r} {len(data)}",
    )
    def test_what_is_no_document_is_refused(self, data: bytes) -> None:
        assert self.refused(data)

    def test_the_same_said_in_another_form_is_refused(self) -> None:
        data = self.document()
        document = json.loads(data)
        for other in (data + b"\n", b" " + data, json.dumps(document).encode(), data.replace(b"\xc3\xb6", b"\\u00f6")):
            assert json.loads(other) == document
            assert self.refused(other)

    @given(st.data())
    def test_no_flipped_bytes_do_more_than_be_refused(self, data: st.DataObject) -> None:
        """Invariant: a changed document is refused with a ConfigError, or read to just what it says."""
        document = bytearray(self.document())
        for _ in range(data.draw(st.integers(1, 4))):
            document[data.draw(st.integers(0, len(document) - 1))] = data.draw(st.integers(0, 255))
        outcome = refusal_or(parse_enclave_document, bytes(document))
        if isinstance(outcome, EnclaveSettings):
            written = json.loads(bytes(document))
            assert written["enclave"]["timeouts"] == dump_table(ENCLAVE_SECTIONS["timeouts"], outcome.timeouts)
        else:
            assert all(outcome.values())


def test_read_table_gives_defaults_where_there_are_problems() -> None:
    section, problems = read_table(SECTIONS["rings"], {"spin_us": -1, "data_to_host": "4MiB"}, "rings.")
    assert list(problems) == ["rings.spin_us"]
    assert (section.spin_us, section.data_to_host) == (0, 4 << 20)  # type: ignore[union-attr]
