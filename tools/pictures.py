"""Pictures in stored outputs: of twice a page's resolution, and small all the same.

A notebook that runs here draws with two pixels, in each direction, for one of the page, and notes
the size at which a picture is shown. Figures have few colours: a palette of 256 holds those of
nearly all to within a few steps of 255, and takes less than half of the bytes.
"""

import base64
import io

import numpy as np
from fastcore.basics import AttrDict
from PIL import Image

OFF = 20  # of 255, the most that a colour may be off: what has more shades keeps its colours


def shrink(output: AttrDict) -> None:
    """Make the picture of an output smaller, if it has one, and keep all that is seen."""
    data = output.get("data", {})
    if png := data.get("image/png"):
        data["image/png"] = base64.b64encode(smaller(base64.b64decode(png))).decode()


def smaller(png: bytes) -> bytes:
    """The picture with a palette, or with its own colours where a palette does not hold them."""
    picture = Image.open(io.BytesIO(png))
    if picture.mode == "RGBA" and picture.getextrema()[3] == (255, 255):
        picture = picture.convert("RGB")
    if picture.mode != "RGB":  # such as a palette already, or transparency
        return png
    few = picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    apart = np.abs(np.asarray(few.convert("RGB"), int) - np.asarray(picture, int))
    candidates = [png, written(few if apart.max() <= OFF else picture)]
    return min(candidates, key=len)


def written(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()


def width(output: AttrDict) -> int | None:
    """How many pixels of a page a picture takes; None where its output does not say."""
    return output.get("metadata", {}).get("image/png", {}).get("width")
