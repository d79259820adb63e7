"""Pixels: decoding of every kind of file, and geometry that images and masks share."""

import io

import numpy as np
import pytest
from pictures import picture
from PIL import Image, ImageEnhance, ImageOps

from modules.config import ConceptConfig
from modules.data.buckets import Size
from modules.data.images import (
    Frame,
    View,
    decode,
    draw_circle,
    draw_frame,
    draw_view,
    needed_edge,
    render,
    render_mask,
)

WHOLE = View(Size(64, 64), 0, 0, Size(64, 64))


def saved(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def image_config(**settings):
    return ConceptConfig().update(**{f"image.{k}": v for k, v in settings.items()}).image


def pixels(image):
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_every_lossless_kind_decodes_to_the_same(kind):
    image = picture(0)
    options = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(decode(saved(image, kind, **options)), image)


def test_the_cameras_rotation_is_honoured():
    image = picture(0, 40, 24)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to see it upright
    shown = decode(saved(image, "PNG", exif=exif))
    assert np.array_equal(shown, image.transpose(Image.Transpose.ROTATE_270))


def test_white_stands_behind_transparency():
    image = picture(0).convert("RGBA")
    image.putalpha(Image.new("L", image.size, 0))
    assert (pixels(decode(saved(image))) == 255).all()
    half = picture(0).convert("RGBA")
    half.putalpha(Image.new("L", half.size, 128))
    expected = pixels(picture(0)) * (128 / 255) + 255 * (127 / 255)
    assert np.abs(pixels(decode(saved(half))) - expected).max() <= 1


def test_a_transparent_palette_colour_turns_white():
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 200, 10, 10])
    assert (pixels(decode(saved(image, transparency=1))) == 255).all()


def test_sixteen_bits_keep_their_brightness():
    levels = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    shown = pixels(decode(saved(Image.fromarray(levels))))
    assert np.abs(shown[..., 0] - levels / 257).max() <= 1
    assert (shown[..., 0] == shown[..., 2]).all()


def test_printing_colours_come_out_as_seen():
    image = Image.new("RGB", (16, 16), (250, 20, 20))
    shown = pixels(decode(saved(image.convert("CMYK"), "JPEG", quality=95)))
    assert np.abs(shown - (250, 20, 20)).max() < 12


def test_an_animation_gives_its_first_frame():
    first, second = picture(1), picture(2)
    content = saved(first, "WEBP", save_all=True, append_images=[second], lossless=True)
    assert np.array_equal(decode(content), first)


@pytest.mark.parametrize("cut", [0.2, 0.9])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_truncated_file_is_an_error(kind, cut):
    content = saved(picture(0, 256, 256), kind)
    with pytest.raises((OSError, SyntaxError)):
        decode(content[: int(len(content) * cut)])


def test_scaling_covers_the_size_and_the_crop_stays_inside():
    for width, height, jitter in [
        (100, 50, True),
        (50, 100, True),
        (64, 64, True),
        (90, 51, False),
    ]:
        config = image_config(enable_crop_jitter=jitter)
        for seed in range(20):
            view = draw_view(config, width, height, Size(48, 64), seed)
            assert view.scaled.height == 48 or view.scaled.width == 64
            assert 0 <= view.top <= view.scaled.height - 48
            assert 0 <= view.left <= view.scaled.width - 64
            assert render(picture(0, width, height), view).shape == (48, 64, 3)


def test_crop_jitter_reaches_both_ends_and_its_absence_the_middle():
    config = image_config(enable_crop_jitter=True)
    tops = [draw_view(config, 64, 164, Size(64, 64), seed).top for seed in range(300)]
    assert min(tops) < 5
    assert max(tops) > 95
    assert np.mean(tops) == pytest.approx(50, abs=6)
    centre = draw_view(image_config(enable_crop_jitter=False), 64, 164, Size(64, 64), 0)
    assert centre.top == 50


def test_nothing_to_crop_makes_one_view_whatever_the_draw():
    on, off = image_config(enable_crop_jitter=True), image_config(enable_crop_jitter=False)
    views = {draw_view(c, 128, 128, Size(64, 64), s) for c in (on, off) for s in range(5)}
    assert len(views) == 1


def test_flips():
    assert draw_view(image_config(enable_fixed_flip=True), 64, 64, Size(64, 64), 0).flip
    config = image_config(enable_random_flip=True)
    share = np.mean([draw_view(config, 64, 64, Size(64, 64), s).flip for s in range(600)])
    assert share == pytest.approx(0.5, abs=0.06)
    flipped = render(picture(0), View(Size(64, 64), 0, 0, Size(64, 64), flip=True))
    assert np.array_equal(flipped, np.asarray(ImageOps.mirror(picture(0))))


CHANGES = [
    ("brightness", "brightness", lambda v: v - 1, 0.3, 0.3),
    ("contrast", "contrast", lambda v: v - 1, 0.3, 0.3),
    ("saturation", "saturation", lambda v: v - 1, 0.3, 0.3),
    ("hue", "hue", lambda v: v, 0.3, 0.15),
]


@pytest.mark.parametrize(("what", "field", "offset", "strength", "most"), CHANGES)
def test_colour_draws_fill_their_range(what, field, offset, strength, most):
    settings = {f"enable_random_{what}": True, f"random_{what}_max_strength": strength}
    views = [draw_view(image_config(**settings), 64, 64, Size(64, 64), s) for s in range(500)]
    values = [offset(getattr(view, field)) for view in views]
    assert max(np.abs(values)) <= most
    assert max(values) > 0.9 * most
    assert min(values) < -0.9 * most
    assert np.std(values) == pytest.approx(most / np.sqrt(3), rel=0.1)  # of a uniform draw
    fixed = {f"enable_fixed_{what}": True, f"random_{what}_max_strength": strength}
    assert offset(getattr(draw_view(image_config(**fixed), 64, 64, Size(64, 64), 0), field)) == (
        pytest.approx(most)
    )


def test_the_angle():
    config = image_config(enable_random_rotate=True, random_rotate_max_angle=30)
    angles = [draw_view(config, 64, 64, Size(64, 64), s).angle for s in range(400)]
    assert -30 <= min(angles) < -27
    assert 27 < max(angles) <= 30
    both = image_config(
        enable_random_rotate=True, enable_fixed_rotate=True, random_rotate_max_angle=30
    )
    assert len({draw_view(both, 64, 64, Size(64, 64), s).angle for s in range(9)}) == 9


def test_one_change_moves_no_draw_of_another():
    plain = image_config()
    more = image_config(enable_random_flip=True, enable_random_hue=True, random_hue_max_strength=1)
    for seed in range(20):
        one = draw_view(plain, 64, 100, Size(64, 64), seed)
        other = draw_view(more, 64, 100, Size(64, 64), seed)
        assert (one.top, one.left) == (other.top, other.left)


@pytest.mark.parametrize(
    ("view", "reference"),
    [
        ({"brightness": 1.4}, lambda i: ImageEnhance.Brightness(i).enhance(1.4)),
        ({"contrast": 0.6}, lambda i: ImageEnhance.Contrast(i).enhance(0.6)),
        ({"saturation": 0.0}, lambda i: i.convert("L").convert("RGB")),
    ],
)
def test_colours_against_pillow(view, reference):
    found = render(picture(0), View(Size(64, 64), 0, 0, Size(64, 64), **view))
    assert np.abs(pixels(found) - pixels(reference(picture(0)))).max() <= 1


def test_hue_turns_red_to_green_and_back():
    red = Image.new("RGB", (8, 8), (255, 0, 0))
    size = Size(8, 8)
    third = render(red, View(size, 0, 0, size, hue=1 / 3))
    assert np.abs(pixels(third) - (0, 255, 0)).max() <= 6
    assert np.abs(pixels(render(red, View(size, 0, 0, size, hue=-1 / 3))) - (0, 0, 255)).max() <= 6


def test_a_quarter_turn_is_exact_and_counter_clockwise():
    turned = render(picture(0), View(Size(64, 64), 0, 0, Size(64, 64), angle=90))
    expected = picture(0).transpose(Image.Transpose.ROTATE_90)
    assert np.abs(pixels(turned) - pixels(expected)).mean() < 1.5


@pytest.mark.parametrize("angle", [10, 45, -33])
def test_a_turn_leaves_no_black_corner(angle):
    bright = Image.new("RGB", (64, 64), (200, 180, 160))
    found = render(bright, View(Size(64, 64), 0, 0, Size(64, 64), angle=angle))
    assert np.abs(pixels(found) - (200, 180, 160)).max() <= 1
    mask = Image.new("L", (64, 64), 255)
    turned = render_mask(mask, View(Size(64, 64), 0, 0, Size(64, 64), angle=angle), None, (64, 64))
    assert turned[0, 0] == 0  # what the mirror invented is not trained
    assert turned[32, 32] == 255


def test_a_mask_goes_wherever_its_image_goes():
    image = Image.new("RGB", (120, 90), "black")
    mask = Image.new("L", (120, 90), 0)
    for x in range(30, 60):
        for y in range(20, 45):
            image.putpixel((x, y), (255, 255, 255))
            mask.putpixel((x, y), 255)
    config = image_config(
        enable_random_flip=True, enable_random_rotate=True, random_rotate_max_angle=40
    )
    for seed in range(12):
        view = draw_view(config, 120, 90, Size(64, 64), seed)
        seen = render(image, view)[..., 0].astype(int)
        covered = render_mask(mask, view, None, (120, 90)).astype(int)
        inner = np.abs(seen - covered)[8:-8, 8:-8]  # the rim may hold the mirror image
        assert inner.mean() < 3


def test_a_mask_of_another_size_is_scaled_to_its_image():
    mask = Image.new("L", (32, 32), 0)
    mask.paste(255, (0, 0, 16, 32))
    found = render_mask(mask, WHOLE, None, (64, 64))
    assert (found[:, :28] == 255).all()
    assert (found[:, 36:] == 0).all()


def test_a_shrunk_mask_is_a_circle_inside_the_mask():
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (8, 8, 56, 56))
    shares = []
    for seed in range(30):
        circle = draw_circle(mask, seed)
        kept = render_mask(mask, WHOLE, circle, (64, 64)) > 0
        rows, columns = np.nonzero(kept)
        assert kept.sum() > 0
        assert not (kept & (np.asarray(mask) == 0)).any()
        distances = np.hypot(rows - circle.y, columns - circle.x)
        assert distances.max() <= circle.radius + 1e-6
        shares.append(kept.sum() / (48 * 48))
    assert min(shares) < 0.3
    assert max(shares) > 0.8
    assert draw_circle(Image.new("L", (64, 64), 0), 0) is None


def test_a_crop_to_the_mask_keeps_all_of_it_with_some_surroundings():
    mask = Image.new("L", (200, 160), 0)
    mask.paste(255, (80, 60, 120, 90))
    for seed in range(20):
        frame = draw_frame(mask, None, seed)
        width, height = frame.right - frame.left, frame.bottom - frame.top
        assert abs(frame.angle) <= 20
        assert width < 120
        assert height < 100
        size = Size(64, 64)
        view = draw_view(image_config(), width, height, size, seed, frame=frame)
        assert view.frame == frame
        whole = View(Size(height, width), 0, 0, Size(height, width), frame=frame)
        covered = (render_mask(mask, whole, None, (200, 160)) > 127).sum()
        assert covered == pytest.approx(40 * 30, rel=0.05)  # nothing of it is cut off
        assert render(picture(0, 200, 160), view).shape == (64, 64, 3)
    assert draw_frame(Image.new("L", (64, 64), 0), None, 0) is None


def test_a_view_is_named_by_what_is_not_as_usual():
    assert [name for name, _ in WHOLE.changes()] == ["scaled", "top", "left", "size"]
    tinted = View(Size(64, 64), 0, 0, Size(64, 64), flip=True, hue=0.1)
    assert [name for name, _ in tinted.changes()][4:] == ["flip", "hue"]
    assert tinted.geometry() == View(Size(64, 64), 0, 0, Size(64, 64), flip=True)


def test_a_large_jpeg_is_decoded_small_and_looks_the_same():
    content = saved(picture(0, 1024, 1024), "JPEG", quality=95)
    view = View(Size(64, 64), 0, 0, Size(64, 64))
    small = decode(content, needed_edge([view]))
    assert small.size == (128, 128)
    difference = pixels(render(small, view)) - pixels(render(decode(content), view))
    assert np.abs(difference).mean() < 1


def test_all_pixels_are_decoded_where_they_count():
    framed = View(Size(64, 64), 0, 0, Size(64, 64), frame=Frame(0.0, 0, 0, 64, 64))
    assert needed_edge([WHOLE, framed]) == 0
    wide = View(Size(64, 200), 0, 0, Size(64, 64))
    assert needed_edge([WHOLE, wide]) == 400
    content = saved(picture(0, 300, 100), "JPEG")
    assert decode(content, 90).size == (300, 100)  # half of it would be too small
