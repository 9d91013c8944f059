"""Add up the JUnit files of several pytest runs, as the last line of `make test`."""

import sys
from xml.etree import ElementTree


def main(paths: list[str]) -> int:
    """Print `N passed, N failed, N skipped`. Returns: 0 only if something ran and nothing failed."""
    tests = failed = skipped = 0
    for path in paths:
        # Written by our own pytest a moment ago.
        for suite in ElementTree.parse(path).getroot().iter("testsuite"):
            tests += int(suite.attrib["tests"])
            failed += int(suite.attrib["failures"]) + int(suite.attrib["errors"])
            skipped += int(suite.attrib["skipped"])
    print(f"{tests - failed - skipped} passed, {failed} failed, {skipped} skipped")
    return 0 if tests and not failed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
