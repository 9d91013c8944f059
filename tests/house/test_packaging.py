"""What is installed is what the tree holds, and every dependency is named, pinned and licensed."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import re
import subprocess
import tomllib
from pathlib import Path

import enclave_os
from tests.house.layers import modules
from tests.house.tidy import CODE_SUFFIXES, files

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PIN = re.compile(r"^([A-Za-z0-9_.-]+)==([^ ;\\]+)", re.MULTILINE)
# https://www.gnu.org/licenses/agpl-3.0.txt
AGPL_SHA256 = "0d96a4ff68ad6d4b6f1f30f713b18d5184912ba8dd389f86aa7710db079abcb0"


def _requirement_name(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9_.-]", requirement, maxsplit=1)[0].lower()


def _direct() -> dict[str, list[str]]:
    """The direct dependencies by the requirements file that must pin them."""
    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    run = [*project["dependencies"], *extras["build"], *extras["client"]]
    return {"run.txt": run, "test.txt": run + extras["test"], "bench.txt": run + extras["test"] + extras["bench"]}


def test_every_package_folder_is_listed() -> None:
    folders = {
        name.removesuffix(".__init__")
        for path, name in modules(ROOT).items()
        if path.suffix == ".py" and name.endswith(".__init__")
    }
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == folders


def test_every_folder_with_code_is_a_package() -> None:
    folders = {path.parent for path in modules(ROOT)}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_every_native_is_in_the_table_of_extensions() -> None:
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    table = next(
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "TABLE"
    )
    assert isinstance(table, ast.List)
    rows = {
        ast.literal_eval(row.elts[0]): ast.literal_eval(row.elts[1]) for row in table.elts if isinstance(row, ast.Tuple)
    }
    natives = {name: path.relative_to(ROOT).as_posix() for path, name in modules(ROOT).items() if path.suffix == ".pyx"}
    assert rows == natives


def test_the_version_is_said_once() -> None:
    assert PROJECT["project"]["version"] == enclave_os.__version__
    assert importlib.metadata.version("enclave-os") == enclave_os.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {enclave_os.__version__}" in changelog


def test_the_entry_points_load() -> None:
    distribution = importlib.metadata.distribution("enclave-os")
    points = [point for point in distribution.entry_points if point.group in ("console_scripts", "enclave_os.modules")]
    assert {point.group for point in points} == {"console_scripts", "enclave_os.modules"}
    for point in points:
        assert callable(point.load()), point


def test_the_licence_is_the_agpl() -> None:
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == AGPL_SHA256
    assert PROJECT["project"]["license"] == "AGPL-3.0-or-later"


def test_every_direct_dependency_is_pinned() -> None:
    for file, requirements in _direct().items():
        text = (ROOT / "requirements" / file).read_text(encoding="utf-8")
        pinned = {name.lower() for name, _ in PIN.findall(text)}
        assert {_requirement_name(requirement) for requirement in requirements} - pinned == set(), file


def test_every_pin_has_a_hash() -> None:
    for path in (ROOT / "requirements").glob("*.txt"):
        text = re.sub(r"^\s*#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        entries = re.split(r"\n(?=[A-Za-z0-9])", text.strip())
        assert len(entries) == len(PIN.findall(text)) > 0
        assert [entry.splitlines()[0] for entry in entries if "--hash=sha256:" not in entry] == []


def test_the_three_requirement_files_pin_the_same_versions() -> None:
    versions: dict[str, set[str]] = {}
    for path in (ROOT / "requirements").glob("*.txt"):
        seen: dict[str, set[str]] = {}
        for name, version in PIN.findall(path.read_text(encoding="utf-8")):
            seen.setdefault(name, set()).add(version)
        for name, found in seen.items():
            assert versions.setdefault(name, found) == found, name


def test_every_direct_dependency_is_explained() -> None:
    text = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8").lower()
    names = {_requirement_name(requirement) for requirement in _direct()["bench.txt"]} | {"llhttp", "openssl"}
    assert [name for name in sorted(names) if f"| {name} " not in text] == []


def test_every_make_target_that_a_page_names_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "bench").glob("*.md")]
    named = {
        (page.name, target)
        for page in pages
        for target in re.findall(r"`make ([a-z-]+)", page.read_text(encoding="utf-8"))
    }
    assert [(page, target) for page, target in sorted(named) if target not in targets] == []


def test_every_link_between_pages_leads_somewhere() -> None:
    broken: list[str] = []
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "bench").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if not link.startswith(("http://", "https://")) and not (page.parent / link).exists():
                broken.append(f"{page.name}: {link}")
    assert broken == []


def test_make_lists_its_targets() -> None:
    done = subprocess.run(["make", "-C", str(ROOT)], capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0
    for target in ("serve", "test", "bench", "hostile", "tidy"):
        assert re.search(rf"^make {target}\s", done.stdout, re.MULTILINE), target


def test_every_test_that_a_page_names_exists() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    named = {path for page in pages for path in re.findall(r"`(tests/[\w/.]+)`", page.read_text(encoding="utf-8"))}
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_every_page_that_the_code_names_exists() -> None:
    made = {"serve.md", "docs/a.md"}  # what bench_serve writes beside its figures, what test_tidy plants
    missing: set[str] = set()
    for name, path in files(ROOT, (*CODE_SUFFIXES, ".md", ".toml")):
        for page in re.findall(r"(?<![\w/.-])([\w./-]+\.md)\b", path.read_text(encoding="utf-8")):
            places = (ROOT / page, ROOT / "docs" / page, path.parent / page)
            if page not in made and not any(place.is_file() for place in places):
                missing.add(f"{name}: {page}")
    assert missing == set()
