"""Whether a wheel equals the installed one: `python tests/support/same_wheel.py WHEEL`.

Compares the hashes of all files in the wheel's RECORD with those in the installed one.
"""

from __future__ import annotations

import csv
import sys
import zipfile
from importlib.metadata import Distribution, distribution
from pathlib import Path

#: Files that an installer writes besides the wheel's.
_INSTALLERS = ("/RECORD", "/INSTALLER", "/REQUESTED", "/direct_url.json")


def hashes(record: str) -> dict[str, str]:
    """Path to hash, from a RECORD's lines, without the files that an installer adds (such as bytecode and scripts)."""
    rows = [row for row in csv.reader(record.splitlines()) if row]
    return {
        path: digest
        for path, digest, _ in rows
        if not path.endswith((*_INSTALLERS, ".pyc")) and not path.startswith("../")
    }


def differences(wheel: Path, installed: Distribution) -> list[str]:
    """One line for each file that is missing from one of the two or differs."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/RECORD")]
        packed = hashes(archive.read(name).decode())
    found = hashes(installed.read_text("RECORD") or "")
    words = {(True, False): "only in the wheel", (False, True): "only installed", (True, True): "differs"}
    return [
        f"{words[path in packed, path in found]}: {path}"
        for path in sorted(packed.keys() | found.keys())
        if packed.get(path) != found.get(path)
    ]


def main() -> int:
    (wheel,) = map(Path, sys.argv[1:])
    found = differences(wheel, distribution("pal_fast"))
    print("\n".join(found) or f"{wheel.name} holds what is installed, file by file")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
