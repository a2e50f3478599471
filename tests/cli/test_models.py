"""`featcache models`, and names of backbones that are not quite right."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

from featcache.cli import main

if TYPE_CHECKING:
    import pytest


def test_no_match_ends_with_1_and_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "bundled:zzz*"]) == 1
    said = capsys.readouterr().out
    assert "No backbone matches 'bundled:zzz*'" in said
    assert "featcache models 'timm:*convnext*'" in said
    assert main(["models", "bundled:zzz*", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {"models": []}
    assert main(["models", "bundled:*lite0"]) == 0
    assert "bundled:efficientnet_lite0" in capsys.readouterr().out


def test_a_bundled_backbone_without_its_family_is_told_at_once() -> None:
    """Nothing slow is imported for it."""
    code = """
        import sys
        import featcache.backbones
        try:
            featcache.backbones.get("efficientnet_lite2")
        except featcache.core.errors.UnknownNameError as error:
            assert "Did you mean 'bundled:efficientnet_lite2'?" in str(error), error
        else:
            raise AssertionError
        loaded = {"torch", "timm", "torchvision"} & sys.modules.keys()
        assert not loaded, loaded
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
