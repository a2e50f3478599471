"""Faces drawn with a few ellipses, which dlib's detector takes for faces."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFilter

Colour = tuple[int, int, int]

EYES = ((0.39, 0.465), (0.61, 0.465))
"""Middles of the eyes, x and y over the side of the image."""


def draw_face(
    side: int = 200, *, skin: Colour = (224, 180, 150), around: Colour = (70, 90, 120), turned: float = 0.0
) -> Image.Image:
    """A square image with one face in the middle.

    Args:
        side: pixels; from about 120 on the detector finds the face, from 60 on when it is enlarged.
        skin: color of the skin; the other colors follow from it.
        around: color of the background.
        turned: degrees against the clock.
    """
    fine = 4 * side
    image = Image.new("RGB", (fine, fine), around)
    pen = ImageDraw.Draw(image)
    dark, middle, light = (tuple(min(255, int(v * f)) for v in skin) for f in (0.35, 0.75, 1.1))

    def ellipse(x: float, y: float, across: float, down: float, colour: tuple[int, ...]) -> None:
        corners = [((x - across) * fine, (y - down) * fine), ((x + across) * fine, (y + down) * fine)]
        pen.ellipse(corners, fill=colour)

    ellipse(0.5, 0.42, 0.33, 0.38, dark)  # hair
    ellipse(0.5, 0.52, 0.27, 0.36, skin)
    for x, y in EYES:
        ellipse(x, y - 0.065, 0.075, 0.02, dark)  # brow
        ellipse(x, y - 0.005, 0.065, 0.045, middle)
        ellipse(x, y, 0.05, 0.022, (240, 240, 240))
        ellipse(x, y, 0.02, 0.022, (30, 20, 20))
    pen.polygon([(0.5 * fine, 0.45 * fine), (0.455 * fine, 0.62 * fine), (0.545 * fine, 0.62 * fine)], fill=light)
    ellipse(0.5, 0.625, 0.05, 0.018, middle)
    for x in (0.475, 0.525):
        ellipse(x, 0.63, 0.012, 0.008, dark)  # nostril
    ellipse(0.5, 0.73, 0.095, 0.03, (150, 60, 60))  # mouth
    ellipse(0.5, 0.73, 0.085, 0.006, dark)
    ellipse(0.5, 0.80, 0.06, 0.015, middle)
    image = image.resize((side, side), Image.Resampling.LANCZOS).filter(ImageFilter.GaussianBlur(side / 100))
    return image.rotate(turned, Image.Resampling.BICUBIC, fillcolor=around)


def beside(*faces: Image.Image, height: int = 260, around: Colour = (70, 90, 120)) -> Image.Image:
    """Images side by side in one, each at the middle of the height."""
    whole = Image.new("RGB", (sum(face.width for face in faces), height), around)
    left = 0
    for face in faces:
        whole.paste(face, (left, (height - face.height) // 2))
        left += face.width
    return whole
