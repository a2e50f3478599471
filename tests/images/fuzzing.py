"""Reads damaged images in a process of its own, which may crash or hang without harm to whoever started it.

    python -m tests.images.fuzzing FIRST COUNT

For each number from FIRST on a line: the number, what became of the image, and the most memory the process has
taken so far, in MiB, with tabs between. The image whose line is missing is the one that crashed or hangs; the
same command with its number and 1 does it again.
"""

from __future__ import annotations

import resource
import sys
from collections import Counter
from pathlib import Path

from featcache.core.errors import UnusableImageError
from featcache.core.recipe import StandardTransform
from featcache.images.decode import decode_rgb
from featcache.images.transforms import PixelTransform
from tests.images.mutations import damaged, sound_images

USABLE = "usable"
WRONG = "WRONG"
MOST_MIB = 2048
"""Two copies of the largest image that is read, and what a decoder needs itself."""

_REASONS = {
    "it is not an image": "no image",
    "the file is cut off": "cut off",
    "it has no pixels": "no pixels",
    "it has ": "too many pixels",
    "its pixels": "no defined range",
    "it cannot be decoded": "cannot be decoded",
}
_TRANSFORM = PixelTransform(StandardTransform((64,), (56, 56), "bicubic", (0.5,) * 3, (0.5,) * 3))


def outcome(data: bytes) -> str:
    """`USABLE`, the class of the reason why not, or `WRONG` and what happened that must not."""
    try:
        image = decode_rgb(data)
        pixels = _TRANSFORM(image)
    except UnusableImageError as error:
        known = [name for begins, name in _REASONS.items() if str(error).startswith(begins)]
        return known[0] if known else f"{WRONG}: a reason of no class: {error}"
    except BaseException as error:
        return f"{WRONG}: {error!r}"
    if image.mode != "RGB" or pixels.shape != (56, 56, 3):
        return f"{WRONG}: {image.mode}, {pixels.shape}"
    return USABLE


def _peak_mib() -> int:
    # ru_maxrss would begin at the size of the process that started this one.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) >> 10


def main() -> None:
    first, count = int(sys.argv[1]), int(sys.argv[2])
    # Beyond any bound that is promised: an image that needs more than this shall not take the machine with it.
    resource.setrlimit(resource.RLIMIT_AS, (3 * MOST_MIB << 20, 3 * MOST_MIB << 20))
    assert Counter(outcome(data) for data in sound_images().values()) == {USABLE: len(sound_images())}
    for number in range(first, first + count):
        became = outcome(damaged(number)[1]).replace("\n", " ").replace("\t", " ")
        peak = _peak_mib()
        print(number, became, peak, sep="\t", flush=True)


if __name__ == "__main__":
    main()
