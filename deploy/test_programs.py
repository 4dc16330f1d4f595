"""Install the two programs of Debian that tests drive besides Python packages, or say how.

The page is tested in Chromium, rules and boards by Prometheus. As root on Debian or Ubuntu what is missing is
installed; elsewhere the tests that need it are skipped, and this program says what would run them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

PACKAGES = {"chromium": "chromium", "promtool": "prometheus"}
"""Program -> the Debian package that has it."""


def missing() -> list[str]:
    """Return the packages whose program is not on the path."""
    return [package for program, package in PACKAGES.items() if shutil.which(program) is None]


def main() -> int:
    """Install what is missing where that is possible; never fail."""
    packages = missing()
    if not packages:
        return 0
    if os.geteuid() == 0 and shutil.which("apt-get"):
        print(f"installing {', '.join(packages)} for the tests", flush=True)
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for words in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
            subprocess.run(["apt-get", "-qq", *words], env=quiet, stdout=subprocess.DEVNULL, check=False)
        packages = missing()
    if packages:
        print(f"some tests are skipped; to run them: sudo apt-get install {' '.join(packages)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
