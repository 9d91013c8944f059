"""Where the configuration comes from: `enclave-os.toml` < environment < flags, merged, checked, with each origin.

Only this file reads the outside: the TOML file, the key files that it names, the environment and the host name. What a
value may be is said once, in `enclave_os.wire.setting_table`, and checked by `enclave_os.wire.settings`.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import certifi

from enclave_os.wire.egress_settings import BUNDLE_SIZE_MAX
from enclave_os.wire.setting_issuers import PEM_SIZE_MAX
from enclave_os.wire.setting_kinds import Kind, ServerName, keys_of, nearest, shown
from enclave_os.wire.setting_table import SECTIONS
from enclave_os.wire.settings import ConfigError, Settings, check

FILE_NAME: Final = "enclave-os.toml"
FILE_SIZE_MAX: Final = 1 << 20  # far above any configuration; a wrong path must not fill the memory
ENVIRONMENT_PREFIX: Final = "ENCLAVE_OS_"
CONFIG_VARIABLE: Final = "ENCLAVE_OS_CONFIG"
DEFAULT: Final = "default"
PLACED: Final = (
    ("ca", "certificate_file"),
    ("ca", "key_file"),
    ("collateral", "ca_file"),
    ("gramine", "key_file"),
    ("gramine", "image"),
)
READ: Final = (("seal", "owner_public_key_file", "owner_public_key_pem"), ("kv", "anchor_ca_file", "anchor_ca_pem"))

Document = dict[str, dict[str, object]]


@dataclass(frozen=True, slots=True)
class Layer:
    """One source of values. `origins` says for each `section.key` where exactly it stood."""

    document: Document
    origins: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checked configuration. Keys that `origins` does not name have their defaults."""

    settings: Settings
    origins: Mapping[str, str]
    file: Path | None


def load(
    *,
    file: Path | None = None,
    environment: Mapping[str, str],
    flags: Mapping[str, tuple[object, str]],
    folder: Path,
    host_name: str = "",
    user_id: int = 0,
) -> Loaded:
    """Merge the sources and check the result.

    Args:
        file: the file that `--config` names; None looks in the usual places (see `find_file`).
        environment: usually os.environ; `ENCLAVE_OS_SECTION__KEY` sets a key.
        flags: by `section.key`: the value in the operator's form, and the flag as it was written.
        folder: the working directory.
        host_name: added to the default of `tls.names` where it is a valid name.
        user_id: decides the default of `server.state_dir`.
    Raises: ConfigError: every problem with its origin. OSError: a file could not be read.
    """
    found = find_file(file, environment, folder)
    layers = [read_file(found)] if found else []
    layers += [read_environment(environment), read_flags(flags)]
    document: Document = {}
    origins: dict[str, str] = {}
    for layer in layers:
        if "listen" in layer.document.get("server", {}) and "port" not in layer.document["server"]:
            # New addresses bring their own ports; a port from a lower layer meant that layer's addresses.
            document.get("server", {}).pop("port", None)
            origins.pop("server.port", None)
        for section, values in layer.document.items():
            document.setdefault(section, {}).update(values)
        origins.update(layer.origins)
    base = found.parent if found else folder
    _read_files(document, base)
    _read_egress_cas(document, base)
    _place_files(document, base)
    _fill_names(document, host_name)
    _fill_state_dir(document, environment, user_id, folder)
    try:
        settings = check(document)
    except ConfigError as error:
        raise ConfigError(
            {key: f"{text} ({origins[key]})" if key in origins else text for key, text in error.problems.items()}
        ) from None
    return Loaded(settings, origins, found)


def find_file(named: Path | None, environment: Mapping[str, str], folder: Path) -> Path | None:
    """The configuration file: the named one, $ENCLAVE_OS_CONFIG, or the first that exists of the usual places."""
    if named is None and environment.get(CONFIG_VARIABLE):
        named = Path(environment[CONFIG_VARIABLE])
    if named is not None:
        return folder / named
    user_folder = environment.get("XDG_CONFIG_HOME") or (
        environment.get("HOME", "") and f"{environment['HOME']}/.config"
    )
    places = [folder / FILE_NAME]
    if user_folder:
        places.append(Path(user_folder) / "enclave-os" / FILE_NAME)
    places.append(Path("/etc/enclave-os") / FILE_NAME)
    return next((place for place in places if place.is_file()), None)


def read_file(path: Path) -> Layer:
    """Read a TOML file as a layer. Raises: ConfigError: not TOML. OSError: not readable."""
    try:
        data = _read_bounded(path, FILE_SIZE_MAX)
    except ValueError as error:
        raise ConfigError({str(path): str(error)}) from None
    try:
        parsed = tomllib.loads(data.decode())
    except ValueError as error:  # bad UTF-8 or bad TOML, which says line and column
        raise ConfigError({str(path): f"is not TOML: {error}"}) from None
    problems = {
        name: f"{shown(part)} stands outside of a [section] (file {path})"
        for name, part in parsed.items()
        if not isinstance(part, dict)
    }
    if problems:
        raise ConfigError(problems)
    origins = {f"{section}.{key}": f"file {path}" for section, part in parsed.items() for key in part}
    return Layer(parsed, origins)


def read_environment(environment: Mapping[str, str]) -> Layer:
    """Read `ENCLAVE_OS_SECTION__KEY` variables as a layer. Raises: ConfigError: a name that is no key."""
    document: Document = {}
    origins: dict[str, str] = {}
    problems: dict[str, str] = {}
    names = {f"{ENVIRONMENT_PREFIX}{section}__{name}".upper(): (section, name) for section, name, _ in all_keys()}
    for variable, text in sorted(environment.items()):
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        if variable not in names:
            # Variables without a double underscore are other things (the build's switches, for one), unless they only
            # missed the second underscore.
            if "__" in variable or variable in {name.replace("__", "_") for name in names}:
                problems[variable] = f"sets no key{nearest(variable, names)}"
            continue
        section, name = names[variable]
        document.setdefault(section, {})[name] = kind_of(section, name).from_text(text)
        origins[f"{section}.{name}"] = f"environment {variable}"
    if problems:
        raise ConfigError(problems)
    return Layer(document, origins)


def read_flags(flags: Mapping[str, tuple[object, str]]) -> Layer:
    """Turn parsed flags into a layer."""
    document: Document = {}
    origins: dict[str, str] = {}
    for path, (value, flag) in flags.items():
        section, _, name = path.partition(".")
        document.setdefault(section, {})[name] = value
        origins[path] = f"flag {flag}"
    return Layer(document, origins)


def read_assignments(assignments: Sequence[str]) -> dict[str, tuple[object, str]]:
    """Turn `--set section.key=value` texts into flags. Raises: ConfigError: no such key, or no `=`."""
    flags: dict[str, tuple[object, str]] = {}
    problems: dict[str, str] = {}
    paths = [f"{section}.{name}" for section, name, _ in all_keys()]
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or path not in paths:
            problems[f"--set {assignment}"] = f"is not section.key=value{nearest(path, paths)}"
            continue
        section, _, name = path.partition(".")
        flags[path] = (kind_of(section, name).from_text(text), f"--set {path}")
    if problems:
        raise ConfigError(problems)
    return flags


def all_keys() -> Iterator[tuple[str, str, type]]:
    """Every key with its section and the section's dataclass, in the order of the documentation."""
    for section, table in SECTIONS.items():
        for name in keys_of(table):
            yield section, name, table


def kind_of(section: str, name: str) -> Kind:
    """The kind of one key."""
    return keys_of(SECTIONS[section])[name].kind


def read_pem(path: Path, key: str, where: str = "", size_max: int = PEM_SIZE_MAX) -> str:
    """A file of PEM text that the configuration names under `key`; `where` in it, for the message.

    Raises: ConfigError: it cannot be read, is too big, or is not ASCII.
    """
    try:
        return _read_bounded(path, size_max).decode("ascii")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError({key: f"{where}{path}: {reason}"}) from None


def _read_files(document: Document, folder: Path) -> None:
    """Replace names of files by what they hold, for the enclave, which cannot open them."""
    issuers = document.get("auth", {}).get("issuers")
    for file, text in (("public_key_file", "public_key_pem"), ("jwks_file", "jwks")):
        for number, issuer in enumerate(issuers if isinstance(issuers, list) else (), 1):
            _read_file(issuer, file, text, folder, "auth.issuers", f"entry {number}: {file} ")
    for section, file, text in READ:
        _read_file(document.get(section), file, text, folder, f"{section}.{file}")


def _read_file(table: object, file: str, text: str, folder: Path, key: str, where: str = "") -> None:
    """Replace a table's `file` by what that holds, as its `text`; `key` and `where` as of `read_pem`."""
    if not isinstance(table, dict):
        return  # not ours to judge: `check` has the words for it
    name = table.get(file)
    if not isinstance(name, str) or not name or table.get(text):
        return
    table[text] = read_pem(folder / name, key, where)
    del table[file]


def _place_files(document: Document, folder: Path) -> None:
    """Make what names a file or a folder absolute: it is relative to the configuration file."""
    for section, name in PLACED:
        given = document.get(section, {}).get(name)
        if isinstance(given, str) and given:
            document[section][name] = os.path.abspath(folder / given)


def _read_egress_cas(document: Document, folder: Path) -> None:
    """Put the CAs that outgoing calls trust into `egress.ca_pem`: those of `egress.ca_file`, or certifi's list.

    Nothing where no module may call anybody: the list would be two hundred kilobytes for nobody.
    """
    egress = document.get("egress", {})
    if not isinstance(egress, dict) or not egress.get("allow") or egress.get("ca_pem"):
        return
    name = egress.get("ca_file")
    path = folder / name if isinstance(name, str) and name else Path(certifi.where())
    egress["ca_pem"] = read_pem(path, "egress.ca_file", size_max=BUNDLE_SIZE_MAX)
    egress.pop("ca_file", None)


def _fill_names(document: Document, host_name: str) -> None:
    if "names" in document.get("tls", {}):
        return
    try:
        name = ServerName().read(host_name)
    except ValueError:
        return  # a host name that no certificate can carry (an underscore, say)
    default: Any = SECTIONS["tls"]().names
    if name not in default:
        document.setdefault("tls", {})["names"] = [*default, name]


def _fill_state_dir(document: Document, environment: Mapping[str, str], user_id: int, folder: Path) -> None:
    server = document.setdefault("server", {})
    given = server.get("state_dir")
    if given is None or given == "":
        if environment.get("STATE_DIRECTORY"):  # systemd.exec(5), StateDirectory=
            given = environment["STATE_DIRECTORY"].partition(":")[0]
        elif user_id == 0:
            given = "/var/lib/enclave-os"
        else:
            home = environment.get("XDG_STATE_HOME") or f"{environment.get('HOME', str(folder))}/.local/state"
            given = f"{home}/enclave-os"
    if isinstance(given, str):
        server["state_dir"] = os.path.abspath(folder / given)


def _read_bounded(path: Path, size_max: int) -> bytes:
    """Raises: ValueError: it is bigger. OSError."""
    with path.open("rb") as stream:
        data = stream.read(size_max + 1)
    if len(data) > size_max:
        raise ValueError(f"is bigger than {size_max} bytes")
    return data
