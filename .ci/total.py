"""Add up the JUnit files of several pytest runs, as the last line of `make test`.

python .ci/total.py FOLDER NAME...      FOLDER/NAME.xml for each run that there must have been
"""

import sys
from pathlib import Path
from xml.etree import ElementTree


def main(folder: Path, names: list[str]) -> int:
    """Print `N passed, N failed, N skipped`. Returns: 0 only if every run was there, and none failed."""
    tests = failed = skipped = 0
    missing: list[str] = []
    for name in names:
        path = folder / f"{name}.xml"
        if not path.is_file():
            missing.append(name)
            continue
        # Written by our own pytest a moment ago.
        for suite in ElementTree.parse(path).getroot().iter("testsuite"):
            tests += int(suite.attrib["tests"])
            failed += int(suite.attrib["failures"]) + int(suite.attrib["errors"])
            skipped += int(suite.attrib["skipped"])
    if missing:
        print(f"did not run: {', '.join(missing)}")
    print(f"{tests - failed - skipped} passed, {failed} failed, {skipped} skipped")
    return 0 if tests and not failed and not missing else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
