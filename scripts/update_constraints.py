"""Write the versions of this environment, with which the tests have passed, to scripts/constraints.txt.

Run it after ``scripts/test.sh --newest --all`` by ``.venv-newest/bin/python scripts/update_constraints.py``,
and for vLLM's environment, after ``scripts/test_vllm.sh --newest``, by ``.venv-vllm/bin/python
scripts/update_constraints.py constraints-vllm.txt``.
"""

import argparse
from importlib.metadata import distributions
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

FOLDER = Path(__file__).parent
HEADER = """\
# Versions with which the tests have passed; the scripts here install no others, so that they do next
# year what they do today. Made by update_constraints.py; pyproject.toml has the ranges that are supported.
"""
NOT_PINNED = {"llava", "pip"}
OLDEST_PYTHON, THIS_PYTHON = Version("3.10"), Version("3.11")


def constraints() -> list[str]:
    """List the installed versions; those that Python 3.10 cannot have are marked as for newer ones."""
    lines = {}
    for distribution in distributions():
        name = canonicalize_name(distribution.metadata["Name"])
        supports = SpecifierSet(distribution.metadata["Requires-Python"] or "")
        marker = "" if OLDEST_PYTHON in supports else f' ; python_version >= "{THIS_PYTHON}"'
        # A local version, such as torch's +cpu, names one build of many.
        lines[name] = f"{name}=={Version(distribution.version).public}{marker}"
    return [lines[name] for name in sorted(lines.keys() - NOT_PINNED)]


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("name", nargs="?", default="constraints.txt", help="of a file beside this one")
    target = FOLDER / parser.parse_args().name
    target.write_text(HEADER + "\n".join(constraints()) + "\n", encoding="utf-8")
    print(f"{target}: {len(constraints())} versions")


if __name__ == "__main__":
    main()
