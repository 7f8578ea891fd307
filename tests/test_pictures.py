"""Pictures of notebooks have two pixels for each one of the page, few bytes, and the width of old."""

import base64
import io

import numpy as np
import pytest
from fastcore.basics import AttrDict
from PIL import Image

from tools import pictures, readme


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels.astype("u1")).save(file, "PNG")
    return file.getvalue()


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), int)


@pytest.mark.parametrize("alpha", [False, True])
def test_a_figure_becomes_smaller_and_looks_the_same(alpha):
    rng = np.random.default_rng(0)
    line = np.clip(np.arange(300)[None] - np.arange(200)[:, None], 0, 255)  # shades of one colour
    image = np.stack([255 - line, 255 - line // 2, np.full_like(line, 255)], -1)
    image[rng.random(line.shape) < 0.1] = (0, 114, 178)
    whole = np.concatenate([image, np.full((*line.shape, 1), 255)], -1) if alpha else image
    old = png(whole)
    new = pictures.smaller(old)
    assert len(new) < 0.7 * len(old) and Image.open(io.BytesIO(new)).mode == "P"
    assert np.abs(pixels(new) - image).max() <= pictures.OFF


def test_what_a_palette_does_not_hold_keeps_its_colours():
    image = np.random.default_rng(0).integers(256, size=(120, 120, 3))
    np.testing.assert_array_equal(pixels(pictures.smaller(png(image))), image)
    see_through = png(np.concatenate([image, image[..., :1]], -1))
    assert pictures.smaller(see_through) == see_through


def test_an_output_keeps_all_but_its_pixels():
    image = np.zeros((20, 40, 3))
    data = {"image/png": base64.b64encode(png(image)).decode(), "text/plain": "<Figure>"}
    output = AttrDict(data=data, metadata={"image/png": {"width": 20, "height": 10}})
    pictures.shrink(output)
    assert pictures.width(output) == 20 and output.data["text/plain"] == "<Figure>"
    np.testing.assert_array_equal(pixels(base64.b64decode(output.data["image/png"])), image)
    for other in (AttrDict(text="no picture"), AttrDict(data={"text/plain": "nor here"})):
        pictures.shrink(other)
        assert pictures.width(other) is None


def test_the_readme_shows_pictures_at_their_width():
    assert readme.picture("a.png", 'a "b"', 20) == (
        '<img src="a.png" width="20" alt="a &quot;b&quot;">'
    )
    assert readme.picture("a.png", "words", None) == "![words](a.png)"


def test_the_site_shows_pictures_at_their_width():
    site = pytest.importorskip("tools.docs_smalldocs")
    output = {"metadata": {"image/png": {"width": 20}}}
    plain = '<img src="data:…" class="img-fluid">'
    shown = site.with_width(lambda *_: plain)
    assert shown(output, {}, 0) == '<img src="data:…" class="img-fluid" width="20">'
    assert shown({}, {}, 0) == plain
