"""The llhttp that is built is the one that third_party/llhttp/README.md names, and nothing makes it lenient."""

import hashlib
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "third_party" / "llhttp"


def test_files_are_those_of_the_readme() -> None:
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    named = dict(re.findall(r"^\| ([\w./-]+) \| ([0-9a-f]{64}) \|$", readme, re.MULTILINE))
    present = {
        path.relative_to(FOLDER).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in FOLDER.rglob("*")
        if path.is_file() and path.name != "README.md"
    }
    assert len(named) == 6
    assert present == named


def test_version_is_that_of_the_readme() -> None:
    header = (FOLDER / "include" / "llhttp.h").read_text(encoding="utf-8")
    version = ".".join(re.findall(r"#define LLHTTP_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", header))
    assert f"| version | {version} |" in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_no_leniency_is_switched_on() -> None:
    for path in (ROOT / "src/enclave_os/http").glob("*.p*"):
        assert "lenient" not in re.sub(r"#.*", "", path.read_text(encoding="utf-8")), path.name
