"""A disk of a few megabytes for one process: a tmpfs in a mount namespace of its own."""

from __future__ import annotations

import shutil
import subprocess

import pytest

IN_A_NAMESPACE = ["unshare", "--map-root-user", "--mount"]


def skip_where_there_is_none() -> None:
    """Skip the test where the system lets nobody mount: containers and other systems than Linux may not."""
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed, so no small disk can be made")
    tried = subprocess.run([*IN_A_NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False)
    if tried.returncode:
        pytest.skip(f"this system allows no mount: {tried.stderr.decode().strip()}")
