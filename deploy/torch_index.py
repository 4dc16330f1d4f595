"""Print the pip flag for a torch wheel index that answers, or nothing.

Plain torch from the public index brings several gigabytes of CUDA libraries that a machine without a GPU
never uses. An index that cannot be reached must not stop or slow the installation: it is asked once, briefly.
"""

from __future__ import annotations

import sys
import urllib.error
import urllib.request

TIMEOUT_SECONDS = 5


def answers(url: str) -> bool:
    """Return whether an index serves a page for torch within the timeout."""
    if not url.startswith(("http://", "https://")):
        return False
    request = urllib.request.Request(f"{url.rstrip('/')}/torch/", method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            return response.status == 200
    except (OSError, ValueError, urllib.error.URLError):
        return False


if __name__ == "__main__":
    index = sys.argv[1] if len(sys.argv) > 1 else ""
    if index and answers(index):
        sys.stdout.write(f"--extra-index-url {index}\n")
