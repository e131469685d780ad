"""Pictures are resized as Pillow does it, fitted, and turned into a model's numbers, and places lead back."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from regatta_agent.processing.picture import PixelTable, as_picture, decode_picture, fit_picture
from regatta_agent.processing.resample import resize_bilinear, resize_nearest
from regatta_protocol.errors import Rejected, TooLarge
from regatta_protocol.plain import read
from regatta_protocol.processing import ImageInput
from regatta_protocol.values import TensorSpec
from regatta_runtimes.worker.session import quantize

_RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("size", "wanted"), [((100, 130), (33, 47)), ((30, 20), (64, 64)), ((7, 90), (96, 5))])
def test_bilinear_with_antialiasing_is_pillows(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    """Within one step of 256, shrinking and growing."""
    picture = _RNG.integers(0, 256, (*size, 3), dtype=np.uint8)
    theirs = np.asarray(Image.fromarray(picture).resize(wanted[::-1], Image.Resampling.BILINEAR), dtype=int)

    ours = resize_bilinear(picture, *wanted)

    assert ours.shape == (*wanted, 3)
    assert np.abs(ours - theirs).max() <= 1


def test_bilinear_without_antialiasing_takes_two_neighbors() -> None:
    """As tf.image.resize: halving 0, 10, 20, 30 looks between 0 and 10, and between 20 and 30."""
    row = np.array([[[0], [10], [20], [30]]], dtype=np.uint8)

    assert resize_bilinear(row, 1, 2, antialias=False).ravel().tolist() == [5, 25]
    assert resize_bilinear(row, 1, 8, antialias=False).ravel().tolist() == [0, 2, 8, 12, 18, 22, 28, 30]


def test_nearest_keeps_values() -> None:
    picture = np.arange(16, dtype=np.uint8).reshape(4, 4, 1)

    assert resize_nearest(picture, 2, 2).ravel().tolist() == [5, 7, 13, 15]


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    wanted=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    fit=st.sampled_from(["stretch", "letterbox", "crop"]),
    share=st.floats(0.3, 1.0),
    place=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_every_fit_has_the_models_size_and_leads_back_into_the_picture(
    size: tuple[int, int], wanted: tuple[int, int], fit: str, share: float, place: tuple[float, float]
) -> None:
    image = read(ImageInput, {"height": wanted[0], "width": wanted[1], "channels": 1, "fit": fit, "crop_share": share})

    fitted, view = fit_picture(np.zeros((*size, 1), dtype=np.uint8), image)

    assert fitted.shape == (*wanted, 1)
    assert 0 <= view.y(place[0]) <= size[0] and 0 <= view.x(place[1]) <= size[1]


def test_a_letterbox_has_bars_and_its_view_reaches_beyond_the_picture() -> None:
    """100 × 50 in 10 × 10: bars of two or three rows, whose places are outside and so held at the edge."""
    image = ImageInput(height=10, width=10, channels=1, fit="letterbox", fill=7)

    fitted, view = fit_picture(np.full((50, 100, 1), 200, dtype=np.uint8), image)

    assert (fitted[:2] == 7).all() and (fitted[2:7] == 200).all() and (fitted[7:] == 7).all()
    assert [view.y(share) for share in (0.0, 1.0, 0.45)] == pytest.approx([0.0, 50.0, 25.0])


@pytest.mark.parametrize(
    ("dtype", "scale", "zero_point"), [("uint8", 1 / 128, 128), ("int8", 0.05, -3), ("float32", None, None)]
)
@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_the_table_is_the_formula(dtype: str, scale: float | None, zero_point: int | None, color: str) -> None:
    """(pixel − mean) · scale of each channel, then quantized."""
    mean, scales = (1.0, 2.0, 3.0), (0.01, 0.02, 0.03)
    spec = TensorSpec(name="x", dtype=dtype, shape=(1, 4, 5, 3), scale=scale, zero_point=zero_point)
    image = read(
        ImageInput, {"height": 4, "width": 5, "channel_mean": [*mean], "channel_scale": [*scales], "color": color}
    )
    picture = _RNG.integers(0, 256, (4, 5, 3), dtype=np.uint8)

    ours = PixelTable(image, spec).apply(picture)

    turned = picture[:, :, ::-1] if color == "bgr" else picture
    np.testing.assert_array_equal(ours[0], quantize((turned.astype(float) - mean) * scales, spec))


def test_channels_first() -> None:
    spec = TensorSpec(name="x", dtype="float32", shape=(1, 3, 4, 5))
    picture = _RNG.integers(0, 256, (4, 5, 3), dtype=np.uint8)

    ours = PixelTable(ImageInput(height=4, width=5, layout="nchw"), spec).apply(picture)

    np.testing.assert_array_equal(ours[0], picture.transpose(2, 0, 1))


def test_files_are_decoded_upright_and_colors_are_pillows() -> None:
    """A JPEG on its side says so by EXIF; gray of colors is Pillow's to the last step."""
    picture = _RNG.integers(0, 256, (6, 4, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    jpeg, png = io.BytesIO(), io.BytesIO()
    Image.fromarray(picture).save(jpeg, "JPEG", exif=exif)
    Image.fromarray(picture).save(png, "PNG")

    assert decode_picture(jpeg.getvalue(), 3).shape == (4, 6, 3)
    np.testing.assert_array_equal(decode_picture(png.getvalue(), 3), picture)
    np.testing.assert_array_equal(as_picture(picture, 1), decode_picture(png.getvalue(), 1))


@pytest.mark.parametrize(
    ("array", "error"),
    [
        (np.zeros((4, 4, 3), dtype=np.float32), Rejected),
        (np.zeros((4, 4, 2), dtype=np.uint8), Rejected),
        (np.zeros((0, 4, 3), dtype=np.uint8), Rejected),
        (np.broadcast_to(np.uint8(0), (9000, 9000, 3)), TooLarge),
    ],
)
def test_what_is_no_picture_is_refused(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]], error: type) -> None:
    with pytest.raises(error, match="picture"):
        as_picture(array, 3)


@pytest.mark.parametrize("data", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, b"BM" + b"\xff" * 60])
def test_damaged_files_are_refused(data: bytes) -> None:
    with pytest.raises(Rejected):
        decode_picture(data, 3)
