"""File < environment < flags, each value with its origin, and the generated pages."""

from __future__ import annotations

import json
from pathlib import Path

import certifi
import pytest

from enclave_os.wire.authority import CertificateAuthority
from enclave_os.wire.setting_issuers import PEM_SIZE_MAX
from enclave_os.wire.setting_kinds import Endpoint
from enclave_os.wire.settings import ConfigError, enclave_document, parse_enclave_document
from enclave_os_host import config, config_report

ROOT = Path(__file__).parents[2]
PEM = "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"


def load(
    folder: Path, *, environment: dict[str, str] | None = None, toml: str | None = None, **more: object
) -> config.Loaded:
    if toml is not None:
        (folder / "enclave-os.toml").write_text(toml, encoding="utf-8")
    arguments: dict[str, object] = {
        "environment": {"HOME": str(folder / "home"), **(environment or {})},
        "flags": {},
        "folder": folder,
        "user_id": 1000,
        **more,
    }
    return config.load(**arguments)  # type: ignore[arg-type]


def problems(folder: Path, **arguments: object) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        load(folder, **arguments)  # type: ignore[arg-type]
    return dict(caught.value.problems)


class TestSources:
    def test_nothing_given_gives_the_defaults(self, tmp_path: Path) -> None:
        loaded = load(tmp_path)
        assert loaded.file is None
        assert loaded.origins == {}
        assert loaded.settings.server.workers == 1

    def test_each_source_is_over_the_one_before_it(self, tmp_path: Path) -> None:
        loaded = load(
            tmp_path,
            toml="[server]\nworkers = 2\nbacklog = 7\n[timeouts]\nhead = 4\n",
            environment={"ENCLAVE_OS_SERVER__WORKERS": "3", "ENCLAVE_OS_SERVER__BACKLOG": "8"},
            flags={"server.workers": (4, "--workers")},
        )
        assert loaded.settings.server.workers == 4
        assert loaded.settings.server.backlog == 8
        assert loaded.settings.timeouts.head == 4.0
        assert loaded.origins == {
            "server.workers": "flag --workers",
            "server.backlog": "environment ENCLAVE_OS_SERVER__BACKLOG",
            "timeouts.head": f"file {tmp_path / 'enclave-os.toml'}",
        }

    @pytest.mark.parametrize(
        ("variable", "text", "path", "expected"),
        [
            ("SERVER__PORT", "8443", "server.port", 8443),
            ("SERVER__LISTEN", "127.0.0.1:1, [::1]:2", "server.listen", (Endpoint("127.0.0.1", 1), Endpoint("::1", 2))),
            ("SERVER__REUSEPORT", "true", "server.reuseport", True),
            ("RINGS__DATA_TO_HOST", "4MiB", "rings.data_to_host", 4 << 20),
            ("TIMEOUTS__HEAD", "2.5", "timeouts.head", 2.5),
            ("LIMITS__HEADERS", "50", "limits.headers", 50),
            ("MODULES__ENABLED", "", "modules.enabled", ()),
            ("LOG__LEVEL", "debug", "log.level", "debug"),
        ],
    )
    def test_the_environment_sets_every_kind(
        self, tmp_path: Path, variable: str, text: str, path: str, expected: object
    ) -> None:
        loaded = load(tmp_path, environment={f"ENCLAVE_OS_{variable}": text})
        section, _, name = path.partition(".")
        assert getattr(getattr(loaded.settings, section), name) == expected

    @pytest.mark.parametrize(
        ("variable", "words"),
        [
            ("ENCLAVE_OS_SERVER__WORKER", "did you mean ENCLAVE_OS_SERVER__WORKERS?"),
            ("ENCLAVE_OS_SERVER_WORKERS", "did you mean ENCLAVE_OS_SERVER__WORKERS?"),
            ("ENCLAVE_OS_SERVER__", "sets no key"),
        ],
    )
    def test_a_variable_that_sets_no_key_is_an_error(self, tmp_path: Path, variable: str, words: str) -> None:
        assert words in problems(tmp_path, environment={variable: "2"})[variable]

    def test_variables_that_are_other_things_are_left_alone(self, tmp_path: Path) -> None:
        assert load(tmp_path, environment={"ENCLAVE_OS_DEBUG": "1", "ENCLAVE_OS_MODE": "simulated"}).origins == {}

    @pytest.mark.parametrize("text", ["", "two", "2.0", "-1", "2" * 30, "٣"])
    def test_what_the_environment_says_badly_is_refused_with_its_origin(self, tmp_path: Path, text: str) -> None:
        found = problems(tmp_path, environment={"ENCLAVE_OS_SERVER__WORKERS": text})
        assert list(found) == ["server.workers"]
        assert found["server.workers"].endswith("(environment ENCLAVE_OS_SERVER__WORKERS)")

    def test_assignments_set_any_key(self, tmp_path: Path) -> None:
        flags = config.read_assignments(["timeouts.head=3", "tls.names=a.example,b.example", "log.level=debug"])
        loaded = load(tmp_path, flags=flags)
        assert loaded.settings.timeouts.head == 3.0
        assert loaded.settings.tls.names == ("a.example", "b.example")
        assert loaded.origins["log.level"] == "flag --set log.level"

    @pytest.mark.parametrize("assignment", ["timeouts.head", "timeout.head=3", "=", "head=3", "module.helloworld=3"])
    def test_assignments_to_nothing_are_errors(self, assignment: str) -> None:
        with pytest.raises(ConfigError, match=r"is not section\.key=value"):
            config.read_assignments([assignment])

    def test_all_wrong_assignments_are_told_at_once_and_in_few_words(self) -> None:
        with pytest.raises(ConfigError) as caught:
            config.read_assignments(["foo.bar=1", "server.wrokers=2", "log.level=debug", "x"])
        text = str(caught.value)
        for words in ("--set foo.bar=1", "did you mean server.workers?", "--set x:"):
            assert text.count(words) == 1
        assert " more" in text
        assert max(map(len, text.splitlines())) < 700

    def test_new_addresses_bring_their_own_ports(self, tmp_path: Path) -> None:
        flags = {"server.listen": (["127.0.0.1:9"], "--listen")}
        loaded = load(tmp_path, toml="[server]\nport = 8443\n", flags=flags)
        assert loaded.settings.server.listen == (Endpoint("127.0.0.1", 9),)
        assert "server.port" not in loaded.origins

    def test_port_over_the_files_addresses(self, tmp_path: Path) -> None:
        flags = {"server.port": (0, "--port")}
        loaded = load(tmp_path, toml='[server]\nlisten = ["127.0.0.1:9"]\n', flags=flags)
        assert loaded.settings.server.listen == (Endpoint("127.0.0.1", 0),)


class TestFile:
    def test_the_usual_places_in_their_order(self, tmp_path: Path) -> None:
        environment = {"HOME": str(tmp_path / "home"), "XDG_CONFIG_HOME": str(tmp_path / "xdg")}
        places = [tmp_path / "xdg" / "enclave-os" / "enclave-os.toml", tmp_path / "enclave-os.toml"]
        for place in places:  # each new one goes before the former
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()
            assert config.find_file(None, environment, tmp_path) == place

    def test_home_stands_in_for_xdg(self, tmp_path: Path) -> None:
        place = tmp_path / ".config" / "enclave-os" / "enclave-os.toml"
        place.parent.mkdir(parents=True)
        place.touch()
        assert config.find_file(None, {"HOME": str(tmp_path)}, tmp_path / "elsewhere") == place

    def test_the_flag_is_over_the_variable(self, tmp_path: Path) -> None:
        environment = {"ENCLAVE_OS_CONFIG": "b.toml"}
        assert config.find_file(Path("a.toml"), environment, tmp_path) == tmp_path / "a.toml"
        assert config.find_file(None, environment, tmp_path) == tmp_path / "b.toml"

    def test_a_named_file_that_is_missing_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            load(tmp_path, file=Path("missing.toml"))

    def test_bad_toml_says_where(self, tmp_path: Path) -> None:
        found = problems(tmp_path, toml="[server]\nworkers = \n")
        assert "line 2" in found[str(tmp_path / "enclave-os.toml")]

    def test_not_even_text(self, tmp_path: Path) -> None:
        (tmp_path / "enclave-os.toml").write_bytes(b"\xff\xfe")
        assert "is not TOML" in problems(tmp_path)[str(tmp_path / "enclave-os.toml")]

    def test_a_file_that_is_too_big_is_not_read(self, tmp_path: Path) -> None:
        assert (
            "bigger than"
            in problems(tmp_path, toml="#" * (config.FILE_SIZE_MAX + 1))[str(tmp_path / "enclave-os.toml")]
        )

    def test_a_key_outside_of_a_section(self, tmp_path: Path) -> None:
        assert "outside of a [section]" in problems(tmp_path, toml="workers = 2\n")["workers"]

    def test_an_unknown_key_names_the_file_and_the_right_key(self, tmp_path: Path) -> None:
        found = problems(tmp_path, toml="[server]\nworker = 2\n")
        assert (
            found["server.worker"] == f"is not a key here; did you mean workers? (file {tmp_path / 'enclave-os.toml'})"
        )

    def test_toml_dates_have_no_place_in_a_modules_section(self, tmp_path: Path) -> None:
        assert "no JSON form" in problems(tmp_path, toml="[module.helloworld]\nday = 2026-01-01\n")["module.helloworld"]


class TestKeyFiles:
    TOML = '[[auth.issuers]]\nissuer = "i"\naudience = "a"\npublic_key_file = "keys/issuer.pem"\n'

    def test_the_host_reads_the_key_for_the_enclave(self, tmp_path: Path) -> None:
        (tmp_path / "keys").mkdir()
        (tmp_path / "keys" / "issuer.pem").write_text(PEM, encoding="ascii")
        loaded = load(tmp_path, toml=self.TOML)
        assert loaded.settings.auth.issuers[0].public_key_pem == PEM
        ca = CertificateAuthority(certificate_pem="C", key_pem="K", key_origin="imported")
        inside = parse_enclave_document(enclave_document(loaded.settings, 0, 1, ca))
        assert inside.auth.issuers[0].public_key_pem == PEM

    def test_a_missing_key_file_is_named(self, tmp_path: Path) -> None:
        found = problems(tmp_path, toml=self.TOML)
        assert found == {
            "auth.issuers": f"entry 1: public_key_file {tmp_path / 'keys' / 'issuer.pem'}: No such file or directory"
        }

    def test_a_key_file_that_is_none(self, tmp_path: Path) -> None:
        (tmp_path / "keys").mkdir()
        (tmp_path / "keys" / "issuer.pem").write_bytes(b"\xff" * 10)
        assert "public_key_file" in problems(tmp_path, toml=self.TOML)["auth.issuers"]
        (tmp_path / "keys" / "issuer.pem").write_bytes(b"A" * (1 << 20))
        assert "bigger than" in str(problems(tmp_path, toml=self.TOML))

    def test_a_private_key_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "keys").mkdir()
        (tmp_path / "keys" / "issuer.pem").write_text("-----BEGIN PRIVATE KEY-----\n", encoding="ascii")
        assert "holds a private key" in problems(tmp_path, toml=self.TOML)["auth.issuers"]


class TestDefaultsOfThisMachine:
    @pytest.mark.parametrize(
        ("host_name", "names"),
        [
            ("box.example", ("localhost", "127.0.0.1", "::1", "box.example")),
            ("LOCALHOST", ("localhost", "127.0.0.1", "::1")),
            ("no_such_name", ("localhost", "127.0.0.1", "::1")),
            ("", ("localhost", "127.0.0.1", "::1")),
        ],
    )
    def test_the_host_name_is_in_the_certificate(self, tmp_path: Path, host_name: str, names: tuple[str, ...]) -> None:
        assert load(tmp_path, host_name=host_name).settings.tls.names == names

    def test_given_names_stand_alone(self, tmp_path: Path) -> None:
        loaded = load(tmp_path, toml='[tls]\nnames = ["a.example"]\n', host_name="box.example")
        assert loaded.settings.tls.names == ("a.example",)

    @pytest.mark.parametrize(
        ("environment", "user_id", "expected"),
        [
            ({"STATE_DIRECTORY": "/run/one:/run/two"}, 1000, "/run/one"),
            ({"STATE_DIRECTORY": "/run/one"}, 0, "/run/one"),
            ({}, 0, "/var/lib/enclave-os"),
            ({"XDG_STATE_HOME": "/xdg"}, 1000, "/xdg/enclave-os"),
            ({"HOME": "/home/somebody"}, 1000, "/home/somebody/.local/state/enclave-os"),
        ],
    )
    def test_the_state_folder(self, tmp_path: Path, environment: dict[str, str], user_id: int, expected: str) -> None:
        assert load(tmp_path, environment=environment, user_id=user_id).settings.server.state_dir == expected

    def test_a_given_state_folder_is_made_absolute(self, tmp_path: Path) -> None:
        loaded = load(tmp_path, flags={"server.state_dir": ("state", "--state-dir")})
        assert loaded.settings.server.state_dir == str(tmp_path / "state")


class TestReports:
    def test_show_says_where_each_value_came_from(self, tmp_path: Path) -> None:
        loaded = load(tmp_path, toml="[server]\nworkers = 2\n[module.helloworld]\nx = 1\n")
        lines = {line.split()[0]: line for line in config_report.show_text(loaded).splitlines()}
        assert lines["server.workers"].endswith(f"file {tmp_path / 'enclave-os.toml'}")
        assert lines["server.backlog"].endswith("default")
        assert lines["module.helloworld"].endswith(f"file {tmp_path / 'enclave-os.toml'}")
        assert set(lines) == {"key", "module.helloworld"} | {
            f"{section}.{name}" for section, name, _ in config.all_keys()
        }

    def test_show_for_machines(self, tmp_path: Path) -> None:
        toml = f'[server]\nport = 1\n[[auth.issuers]]\nissuer="i"\naudience="a"\npublic_key_pem="""{PEM}"""\n'
        document = json.loads(config_report.show_json(load(tmp_path, toml=toml)))
        assert document["server.listen"] == {"value": ["0.0.0.0:1", "[::]:1"], "from": "default"}
        assert document["server.port"] == {"value": 1, "from": f"file {tmp_path / 'enclave-os.toml'}"}
        assert document["auth.issuers"]["value"][0]["issuer"] == "i"

    def test_the_reference_page_is_the_tables(self) -> None:
        page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
        assert page == config_report.reference(), "run: make docs"

    def test_the_example_file_is_the_tables(self) -> None:
        example = (ROOT / "enclave-os.example.toml").read_text(encoding="utf-8")
        assert example == config_report.example(), "run: make docs"

    def test_the_example_says_the_defaults(self, tmp_path: Path) -> None:
        """Every commented line of the form `# key = value`, taken at its word, changes nothing."""
        lines = (ROOT / "enclave-os.example.toml").read_text(encoding="utf-8").splitlines()
        taken: list[str] = []
        for line in lines:
            if line.startswith("# [["):
                break
            name, equals, value = line.removeprefix("# ").partition(" = ")
            is_key = line.startswith("# ") and equals and name.isidentifier() and value
            taken.append(line.removeprefix("# ") if is_key else line)
        before = load(tmp_path)
        loaded = load(tmp_path, toml="\n".join(taken))
        assert len(loaded.origins) >= len(list(config.all_keys())) - 4  # issuers, allow, two without a default
        assert loaded.settings == before.settings


def test_a_key_file_that_is_too_big_is_named_by_its_key(tmp_path: Path) -> None:
    (tmp_path / "big.pem").write_bytes(bytes(PEM_SIZE_MAX + 1))
    with pytest.raises(ConfigError) as refused:
        config.read_pem(tmp_path / "big.pem", "ca.key_file")
    assert refused.value.problems == {"ca.key_file": f"{tmp_path}/big.pem: is bigger than {PEM_SIZE_MAX} bytes"}


class TestEgressCAs:
    """The CAs that outgoing calls trust: from the file that is named, or from certifi, and only where they serve."""

    ALLOW = "[[egress.allow]]\nmodule = 'helloworld'\nhosts = ['api.example']\n"

    def load(self, folder: Path, text: str) -> str:
        (folder / "enclave-os.toml").write_text(text)
        return config.load(file=None, environment={}, flags={}, folder=folder).settings.egress.ca_pem

    def test_nobody_calls_so_nothing_is_read(self, tmp_path: Path) -> None:
        assert self.load(tmp_path, "") == ""

    def test_certifi_s_list_is_the_default(self, tmp_path: Path) -> None:
        assert self.load(tmp_path, self.ALLOW) == Path(certifi.where()).read_text()

    def test_a_file_is_relative_to_the_configuration(self, tmp_path: Path) -> None:
        pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
        (tmp_path / "own.pem").write_text(pem)
        assert self.load(tmp_path, f"{self.ALLOW}[egress]\nca_file = 'own.pem'\n") == pem

    def test_a_file_that_cannot_be_read_names_the_key(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError) as refused:
            self.load(tmp_path, f"{self.ALLOW}[egress]\nca_file = 'none.pem'\n")
        assert set(refused.value.problems) == {"egress.ca_file"}
