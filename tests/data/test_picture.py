import hashlib
import io
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, features

from darkroom.data.colours import background_colour
from darkroom.data.picture import Picture, PictureStyle, Rejection, develop, looks_like_image, read_upright, read_whole

ALL = [(0.0, 1.0)]  # of the hashes
STYLE = {"side": 16, "min_side": 1, "max_megapixels": 100.0, "background": "white", "format": "png", "jpeg_quality": 95}
WHITE, BLACK, RED, GREEN, BLUE = (255, 255, 255), (0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)


def try_develop(path: Path, **changes) -> Picture | Rejection:
    return develop(path, PictureStyle(**{**STYLE, **changes}))


def pixels_of(picture: Picture | Rejection) -> np.ndarray:
    assert isinstance(picture, Picture), picture
    return np.asarray(Image.open(io.BytesIO(picture.encoded)))


def pixels(path: Path, **changes) -> np.ndarray:
    return pixels_of(try_develop(path, **changes))


def smooth(width: int, height: int) -> Image.Image:
    """A picture without symmetry and without fine detail."""
    y, x = np.mgrid[0:height, 0:width] / np.array([height, width]).reshape(2, 1, 1)
    return Image.fromarray(np.stack([255 * x, 255 * y, 255 * x * (1 - y)], axis=-1).round().astype(np.uint8))


def save(image: Image.Image, path: Path, **options) -> Path:
    image.save(path, **options)
    return path


def full_of(path: Path, **changes) -> np.ndarray:
    """The picture at full size that some photos get."""
    picture = develop(path, PictureStyle(**{**STYLE, **changes}), full=ALL)
    assert isinstance(picture, Picture)
    assert picture.full is not None
    return np.asarray(Image.open(io.BytesIO(picture.full)))


# ---- geometry


def test_the_middle_square_is_kept(tmp_path):
    thirds = Image.new("RGB", (48, 16), RED)
    thirds.paste(GREEN, (16, 0, 32, 16))
    for image in (thirds, thirds.transpose(Image.Transpose.ROTATE_90)):
        assert (pixels(save(image, tmp_path / "a.png")) == GREEN).all()


def test_a_picture_of_the_right_size_is_left_as_it_is(tmp_path):
    image = smooth(16, 16)
    np.testing.assert_array_equal(pixels(save(image, tmp_path / "a.png")), np.asarray(image))


def test_pictures_are_resized_by_lanczos(tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    expected = image.resize((16, 16), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(pixels(save(image, tmp_path / "a.png")), np.asarray(expected))


def checks(width: int, height: int) -> Image.Image:
    """Hard edges at all phases of the pixels of the result: the worst case of a resize in two steps."""
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray((255 * ((x // 23 + y // 23) % 2)).astype(np.uint8)).convert("RGB")


def exact(path: Path, side: int) -> np.ndarray:
    """The middle square of the fully decoded photo, by Lanczos in one step."""
    with Image.open(path) as image:
        short = min(image.size)
        left, top = (image.width - short) / 2, (image.height - short) / 2
        box = (left, top, left + short, top + short)
        return np.asarray(image.resize((side, side), Image.Resampling.LANCZOS, box=box)).astype(float)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("shape", [(601, 401), (401, 601)])
def test_large_photos_that_are_reduced_in_two_steps_look_like_the_exact_result(tmp_path, shape, suffix):
    path = save(checks(*shape), tmp_path / f"a.{suffix}", quality=92)
    error = pixels(path, side=32) - exact(path, 32)
    assert 10 * np.log10(255**2 / (error**2).mean()) > 40  # dB


@pytest.mark.parametrize("shape", [(607, 401), (401, 607)])
def test_jpegs_that_are_decoded_small_are_not_shifted(tmp_path, shape):
    path = save(smooth(*shape), tmp_path / "a.jpg", quality=95)
    error = pixels(path, side=32) - exact(path, 32)
    assert np.abs(error.mean(axis=(0, 1))).max() < 0.2  # grey levels; a shift by one pixel would be 0.6


def test_small_pictures_are_enlarged_and_long_ones_cropped(tmp_path):
    image = Image.new("RGB", (2000, 3), BLUE)
    picture = try_develop(save(image, tmp_path / "a.png"))
    assert (pixels_of(picture) == BLUE).all()
    assert isinstance(picture, Picture)
    assert (picture.width, picture.height) == (2000, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_every_exif_orientation_gives_the_same_upright_picture(tmp_path, orientation, suffix):
    upright = smooth(60, 40)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # ROTATE_270 is undone by ROTATE_90; the others by themselves
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"jpg": {"quality": 98}, "webp": {"lossless": True}}.get(suffix, {})
    picture = try_develop(save(stored, tmp_path / f"a.{suffix}", exif=exif, **options))
    expected = pixels(save(upright, tmp_path / "upright.png")).astype(int)
    assert isinstance(picture, Picture)
    assert (picture.width, picture.height) == (60, 40)
    assert np.abs(pixels_of(picture) - expected).max() <= 4


@pytest.mark.parametrize("orientation", [0, 9])
def test_an_orientation_that_does_not_exist_is_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    picture = try_develop(save(smooth(20, 16), tmp_path / "a.png", exif=exif))
    assert isinstance(picture, Picture)
    assert (picture.width, picture.height) == (20, 16)
    np.testing.assert_array_equal(pixels_of(picture), np.asarray(smooth(20, 16))[:, 2:18])


def test_broken_exif_is_noted_and_the_photo_taken_as_upright(tmp_path):
    path = save(smooth(16, 16), tmp_path / "a.png", exif=b"Exif\0\0no TIFF header")
    picture = try_develop(path)
    np.testing.assert_array_equal(pixels_of(picture), np.asarray(smooth(16, 16)))
    assert isinstance(picture, Picture)
    assert picture.notes == ("EXIF cannot be read (SyntaxError): taken as upright",)


# ---- colours


def swapped_profile() -> bytes:
    """sRGB with the red and the blue primary exchanged: a right conversion to sRGB exchanges the two channels."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    data[:] = data.replace(b"rXYZ", b"????", 1).replace(b"bXYZ", b"rXYZ", 1).replace(b"????", b"bXYZ", 1)
    return bytes(data)


def profile(space: bytes, pcs: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A minimal ICC profile (version 2.4): header, table of tags, tags."""
    tags = {b"wtpt": b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061), **tags}
    table, body, offset = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, data in tags.items():
        data += b"\0" * (-len(data) % 4)
        table += name + struct.pack(">2I", offset + len(body), len(data))
        body += data
    header = struct.pack(">I4s4s4s4s4s", 0, b"", b"\x02\x40\0\0", b"prtr", space, pcs)
    header += b"\0" * 12 + b"acsp" + b"\0" * 28 + struct.pack(">3i", 63190, 65536, 54061)
    header = header.ljust(128, b"\0")
    return struct.pack(">I", 132 + 12 * len(tags) + len(body)) + header[4:] + table + body


def linear_grey_profile() -> bytes:
    return profile(b"GRAY", b"XYZ ", {b"kTRC": b"curv\0\0\0\0" + struct.pack(">I", 0)})


def inverted_cmyk_profile() -> bytes:
    """No ink is black, any ink is white: nothing that a conversion without a profile could give."""
    identity = bytes(range(256))
    corners = b"".join(bytes([255 if corner else 0, 128, 128]) for corner in range(16))  # L*, a*, b*
    matrix = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    return profile(b"CMYK", b"Lab ", {b"A2B0": b"mft1\0\0\0\0\x04\x03\x02\0" + matrix + identity * 4 + corners + identity * 3})


def test_a_colour_profile_is_converted_to_srgb(tmp_path):
    path = save(Image.new("RGB", (16, 16), (200, 90, 30)), tmp_path / "a.png", icc_profile=swapped_profile())
    assert np.abs(pixels(path).astype(int) - (30, 90, 200)).max() <= 1


def test_a_profile_of_a_picture_with_alpha_converts_its_colours_only(tmp_path):
    image = Image.new("RGBA", (16, 16), (200, 90, 30, 255))
    image.putpixel((0, 0), (200, 90, 30, 0))
    found = pixels(save(image, tmp_path / "a.png", icc_profile=swapped_profile())).astype(int)
    assert (found[0, 0] == WHITE).all()
    assert np.abs(found[5, 5] - (30, 90, 200)).max() <= 1


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_a_grey_profile_is_converted_to_srgb(tmp_path, mode):
    grey = Image.new("L", (16, 16), 128).convert(mode)
    expected = 255 * (1.055 * (128 / 255) ** (1 / 2.4) - 0.055)  # IEC 61966-2-1
    assert np.abs(pixels(save(grey, tmp_path / "a.png", icc_profile=linear_grey_profile())) - expected).max() <= 1


def test_an_rgb_profile_of_a_grey_picture_is_used(tmp_path):
    picture = try_develop(save(Image.new("L", (16, 16), 77), tmp_path / "a.jpg", icc_profile=swapped_profile()))
    assert isinstance(picture, Picture)
    assert picture.notes == ()
    np.testing.assert_allclose(pixels_of(picture), 77, atol=1)


@pytest.mark.parametrize("suffix", ["jpg", "tiff"])
def test_cmyk_with_and_without_profile(tmp_path, suffix):
    red_ink = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    plain = pixels(save(red_ink, tmp_path / f"a.{suffix}", **({"quality": 100} if suffix == "jpg" else {})))
    np.testing.assert_allclose(plain, np.broadcast_to(RED, plain.shape), atol=3)
    by_profile = pixels(save(red_ink, tmp_path / f"b.{suffix}", icc_profile=inverted_cmyk_profile()))
    np.testing.assert_allclose(by_profile, 255, atol=3)


@pytest.mark.parametrize(("bad", "error"), [(b"no profile", "OSError"), (linear_grey_profile(), "ValueError")])
def test_a_profile_that_cannot_be_used_is_noted_and_ignored(tmp_path, bad, error):
    picture = try_develop(save(smooth(16, 16), tmp_path / "a.png", icc_profile=bad))
    np.testing.assert_array_equal(pixels_of(picture), np.asarray(smooth(16, 16)))
    assert isinstance(picture, Picture)
    assert picture.notes == (f"colour profile cannot be used ({error}): taken as sRGB",)


def test_lab_is_converted(tmp_path):
    lab = ImageCms.profileToProfile(smooth(16, 16), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB")
    assert lab is not None
    lab_profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    picture = try_develop(save(lab, tmp_path / "a.tiff", icc_profile=lab_profile))
    assert isinstance(picture, Picture)
    assert picture.notes == ()
    assert np.abs(pixels_of(picture).astype(int) - np.asarray(smooth(16, 16))).mean() < 3


# ---- depth and alpha


def test_16_bit_grey_is_scaled_to_8_bits(tmp_path):
    values = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    found = pixels(save(Image.fromarray(values), tmp_path / "a.png"))
    np.testing.assert_array_equal(found[..., 1], np.arange(256).reshape(16, 16))
    assert (found[..., 0] == found[..., 2]).all()


def test_16_bit_grey_in_a_pgm_and_big_endian_tiff_is_scaled(tmp_path):
    values = np.arange(256, dtype=">u2").reshape(16, 16) * 257
    pgm = tmp_path / "a.pgm"
    pgm.write_bytes(b"P5 16 16 65535\n" + values.astype(">u2").tobytes())
    tiff = save(Image.frombytes("I;16B", (16, 16), values.astype(">u2").tobytes()), tmp_path / "a.tiff")
    for path in (pgm, tiff):
        np.testing.assert_array_equal(pixels(path)[..., 1], np.arange(256).reshape(16, 16))


def test_the_transparent_grey_value_of_a_16_bit_png_shows_the_background(tmp_path):
    values = np.full((16, 16), 500 * 64, np.uint16)
    values[:, :8] = 77
    found = pixels(save(Image.fromarray(values), tmp_path / "a.png", transparency=77), background="#102030")
    assert (found[:, :8] == (0x10, 0x20, 0x30)).all()
    assert (found[:, 8:] == round(500 * 64 / 257)).all()


def test_float_grey_runs_from_0_to_1(tmp_path):
    values = np.arange(256, dtype=np.float32).reshape(16, 16) / 255
    np.testing.assert_array_equal(pixels(save(Image.fromarray(values), tmp_path / "a.tiff"))[..., 0].ravel(), np.arange(256))


@pytest.mark.parametrize("bad", [-0.1, 1.1, np.nan])
def test_float_grey_of_another_range_is_rejected(tmp_path, bad):
    values = np.full((16, 16), 0.5, np.float32)
    values[3, 3] = bad
    rejection = try_develop(save(Image.fromarray(values), tmp_path / "a.tiff"))
    assert rejection == Rejection("unreadable", "grey values (F) outside 0 to 1: what is white is not known")


def test_transparency_shows_the_background_in_every_mode(tmp_path):
    rgba = Image.new("RGBA", (16, 16), (*RED, 255))
    rgba.paste((*GREEN, 0), (0, 0, 8, 16))
    palette = rgba.convert("RGB").quantize(4)
    grey = Image.new("L", (16, 16), 10)
    grey.paste(200, (0, 0, 8, 16))
    one_bit = Image.new("1", (16, 16), 0)
    one_bit.paste(1, (0, 0, 8, 16))
    paths = [
        save(rgba, tmp_path / "rgba.png"),
        save(palette, tmp_path / "palette.png", transparency=palette.getpixel((0, 0))),
        save(rgba.convert("RGB"), tmp_path / "key.png", transparency=GREEN),
        save(rgba.convert("LA"), tmp_path / "la.png"),
        save(grey, tmp_path / "grey.png", transparency=200),
        save(one_bit, tmp_path / "one_bit.png", transparency=1),
        save(palette, tmp_path / "palette.gif", transparency=palette.getpixel((0, 0))),
    ]
    for path in paths:
        found = pixels(path, background="#0000ff")
        assert (found[:, :8] == BLUE).all(), path
        assert not (found[:, 8:] == BLUE).all(axis=-1).any(), path


def test_the_colour_of_transparent_pixels_does_not_bleed(tmp_path):
    """Opaque green beside transparent red, made smaller, on green: all green."""
    image = Image.fromarray(np.random.default_rng(0).choice([[*GREEN, 255], [*RED, 0]], (64, 64)).astype(np.uint8))
    assert np.abs(pixels(save(image, tmp_path / "a.png"), background="#00ff00").astype(int) - GREEN).max() <= 2


def test_one_bit_pictures_have_grey_edges_when_made_smaller(tmp_path):
    image = Image.fromarray(np.random.default_rng(0).random((64, 64)) > 0.5)
    assert image.mode == "1"
    assert len(np.unique(pixels(save(image, tmp_path / "a.png")))) > 10


# ---- formats


def test_of_an_animation_the_first_frame_is_taken(tmp_path):
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN, BLUE)]
    for suffix in ("gif", "png", "webp", "tiff"):
        options = {"lossless": True} if suffix == "webp" else {}
        path = save(frames[0], tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **options)
        assert (pixels(path) == RED).all(), suffix


@pytest.mark.parametrize(
    ("format", "suffix"), [("GIF", "jpg"), ("PNG", "jpg"), ("MPO", "jpg"), ("MPO", "mpo"), ("JPEG", "png"), ("WEBP", "jpeg"), ("BMP", "")]
)
def test_the_content_decides_not_the_suffix(tmp_path, format, suffix):
    found = pixels(save(smooth(64, 64), tmp_path / f"a.{suffix}".rstrip("."), format=format))
    expected = np.asarray(smooth(64, 64).resize((16, 16), Image.Resampling.LANCZOS)).astype(int)
    assert np.abs(found - expected).mean() < 3


@pytest.mark.parametrize("suffix", ["avif", "jp2", "qoi", "tga", "ico", "ppm", "icns"])
def test_less_common_formats_are_read(tmp_path, suffix):
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("this Pillow was built without AVIF")
    found = pixels(save(smooth(64, 64), tmp_path / f"a.{suffix}"))
    expected = np.asarray(smooth(64, 64).resize((16, 16), Image.Resampling.LANCZOS)).astype(int)
    assert np.abs(found - expected).mean() < 3


def test_tga_is_believed_by_its_suffix_only(tmp_path):
    path = save(smooth(16, 16), tmp_path / "a.tga")
    path.rename(tmp_path / "a.jpg")
    assert try_develop(tmp_path / "a.jpg") == Rejection("unreadable", "not a picture of a known format")


def test_postscript_is_never_run(tmp_path):
    save(smooth(16, 16), tmp_path / "a.eps")
    assert try_develop(tmp_path / "a.eps") == Rejection("unsupported", "drawings cannot be read; export them as PNG")
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    assert try_develop(tmp_path / "a.jpg") == Rejection("unreadable", "not a picture of a known format")


@pytest.mark.parametrize(("name", "advice"), [("a.HEIC", "export them as JPEG"), ("b.cr2", "export it as JPEG")])
def test_what_phones_and_cameras_write_and_we_cannot_read_is_told_with_advice(tmp_path, name, advice):
    save(smooth(16, 16), tmp_path / name, format="TIFF")  # many raw files are TIFFs that hold a thumbnail
    rejection = try_develop(tmp_path / name)
    assert isinstance(rejection, Rejection)
    assert rejection.reason == "unsupported"
    assert advice in rejection.detail


def test_images_without_a_telling_suffix_are_known_by_their_content(tmp_path):
    assert looks_like_image(save(smooth(16, 16), tmp_path / "photo", format="JPEG"))
    assert looks_like_image(declared_png(tmp_path / "bomb", 100_000, 100_000))
    (tmp_path / "movie.mp4").write_bytes(b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(100))
    (tmp_path / "empty").touch()
    assert not looks_like_image(tmp_path / "movie.mp4")
    assert not looks_like_image(tmp_path / "empty")


# ---- what is rejected


def declared_png(path: Path, width: int, height: int) -> Path:
    """A PNG that declares a size and holds next to nothing."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("side", [20_000, 1_000_000])  # Pillow would warn of the first and refuse the second
def test_a_decompression_bomb_is_rejected_before_it_is_decoded(tmp_path, side):
    rejection = try_develop(declared_png(tmp_path / "a.png", side, side), max_megapixels=150)
    assert rejection == Rejection("too_large", f"Image size ({side**2} pixels) is more than ingest.max_megapixels (150)")


def test_the_pixel_limit_is_ours_not_pillows(tmp_path):
    path = declared_png(tmp_path / "a.png", 20_000, 20_000)
    rejection = try_develop(path, max_megapixels=500)
    assert isinstance(rejection, Rejection)
    assert rejection.reason == "unreadable"  # it was tried
    assert isinstance(try_develop(save(smooth(100, 100), tmp_path / "b.png"), max_megapixels=0.01), Picture)
    assert isinstance(try_develop(save(smooth(101, 100), tmp_path / "b.png"), max_megapixels=0.01), Rejection)
    assert Image.MAX_IMAGE_PIXELS == 1024 * 1024 * 1024 // 4 // 3


def test_a_short_side_below_the_limit_is_rejected(tmp_path):
    path = save(smooth(50, 20), tmp_path / "a.png")
    assert isinstance(try_develop(path, min_side=20), Picture)
    assert try_develop(path, min_side=21) == Rejection("too_small", "50 x 20 px; ingest.min_side is 21")


def test_a_truncated_photo_is_rejected_with_the_decoders_words(tmp_path):
    path = save(smooth(200, 200), tmp_path / "a.jpg")
    path.write_bytes(path.read_bytes()[:-500])
    rejection = try_develop(path)
    assert isinstance(rejection, Rejection)
    assert rejection.reason == "unreadable"
    assert "image file is truncated" in rejection.detail


def test_an_empty_file_and_one_that_is_no_picture_are_rejected(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("I am not a picture")
    assert try_develop(tmp_path / "empty.jpg") == Rejection("unreadable", "the file is empty")
    assert try_develop(tmp_path / "text.jpg") == Rejection("unreadable", "not a picture of a known format")


def test_whatever_a_decoder_raises_rejects_one_photo_in_words_without_folder_or_address(tmp_path, monkeypatch):
    path = save(smooth(16, 16), tmp_path / "a.png")

    def explode(self: Image.Image) -> None:
        raise TypeError(f"{path} in <object at 0x7fabc123>")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", explode)
    assert try_develop(path) == Rejection("unreadable", "TypeError: a.png in <object>")


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "tiff", "webp", "bmp", "ico", "qoi", "psd"])
def test_damaged_files_never_raise(tmp_path, suffix):
    """Random bytes changed, random ends cut off: a picture or a reason, nothing else."""
    rng = np.random.default_rng(0)
    source = tmp_path / f"a.{suffix}"
    if suffix == "psd":
        source.write_bytes(b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 16, 16, 8, 3) + bytes(14) + bytes(16 * 16 * 3))
    else:
        smooth(40, 30).save(source)
    whole = np.frombuffer(source.read_bytes(), np.uint8)
    for _ in range(60):
        damaged = whole[: rng.integers(1, len(whole) + 1)].copy()
        places = rng.integers(0, min(len(damaged), 400), rng.integers(1, 20))
        damaged[places] = rng.integers(0, 256, len(places))
        source.write_bytes(damaged.tobytes())
        outcome = try_develop(source, max_megapixels=1)
        assert isinstance(outcome, Picture | Rejection)
        if isinstance(outcome, Rejection):
            assert str(tmp_path) not in outcome.detail


# ---- what is kept


def test_hashes_are_those_of_the_file_and_of_the_finished_picture(tmp_path):
    png, bmp = save(smooth(40, 40), tmp_path / "a.png"), save(smooth(40, 40), tmp_path / "a.bmp")
    first, second = try_develop(png), try_develop(bmp)
    assert isinstance(first, Picture)
    assert isinstance(second, Picture)
    assert first.sha256 == hashlib.sha256(png.read_bytes()).hexdigest()
    assert first.sha256 != second.sha256
    assert first.pixels_sha256 == second.pixels_sha256 == hashlib.sha256(pixels_of(first).tobytes()).hexdigest()


@pytest.mark.parametrize("format", ["png", "jpeg"])
def test_nothing_but_pixels_is_kept(tmp_path, format):
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "SECRET camera"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "SECRET place"
    path = save(smooth(40, 40), tmp_path / "a.jpg", exif=exif, comment="SECRET words", icc_profile=swapped_profile(), dpi=(300, 300))
    assert b"SECRET place" in path.read_bytes()
    picture = try_develop(path, format=format)
    assert isinstance(picture, Picture)
    assert b"SECRET" not in picture.encoded
    with Image.open(io.BytesIO(picture.encoded)) as image:
        assert image.format == format.upper()
        assert not image.getexif()
        assert {"icc_profile", "comment", "dpi", "exif"}.isdisjoint(image.info)


def test_jpeg_keeps_coloured_lines_and_obeys_its_quality(tmp_path):
    lines = np.zeros((16, 16, 3), np.uint8)
    lines[:, ::2] = RED
    path = save(Image.fromarray(lines), tmp_path / "a.png")
    assert np.abs(pixels(path, format="jpeg", jpeg_quality=100).astype(int) - lines).max() < 8
    low, high = (try_develop(path, format="jpeg", jpeg_quality=quality) for quality in (20, 95))
    assert isinstance(low, Picture)
    assert isinstance(high, Picture)
    assert len(low.encoded) < len(high.encoded)


def test_a_background_that_is_no_colour_is_refused():
    assert background_colour("#80ff00") == (128, 255, 0)
    with pytest.raises(ValueError, match=r"ingest\.background 'wite' is not a colour"):
        background_colour("wite")


@pytest.mark.parametrize("suffix", ["jpg", "tiff", "png"])
@pytest.mark.parametrize("orientation", [1, 6, 7])
def test_a_picture_of_any_shape_is_the_upright_middle_and_tells_the_size_of_the_whole(tmp_path, orientation, suffix):
    width, height = (90, 40) if orientation == 1 else (40, 90)  # as stored
    lying = (
        smooth(90, 40)
        if orientation == 1
        else smooth(90, 40).transpose({6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE}[orientation])
    )
    assert lying.size == (width, height)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = save(lying, tmp_path / f"a.{suffix}", exif=exif, **({"quality": 100, "subsampling": 0} if suffix == "jpg" else {}))
    found, size = read_upright(path, (20, 30))
    assert size == (40, 90)
    truth = smooth(90, 40).crop((15, 0, 75, 40)).resize((30, 20), Image.Resampling.LANCZOS)
    assert np.abs(found.astype(int) - np.asarray(truth)).max() <= 3
    assert found.shape == (20, 30, 3)


def test_no_shape_asks_for_pixels_beyond_the_edge(tmp_path):
    path = save(smooth(33, 77), tmp_path / "a.png")
    for size in [(height, width) for height in range(1, 40, 3) for width in range(1, 40, 3)]:
        assert read_upright(path, size)[0].shape == (*size, 3)


def test_a_picture_that_somebody_names_and_that_cannot_be_read_is_an_error_with_the_reason(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"a\.png is unreadable: not a picture of a known format\."):
        read_upright(tmp_path / "a.png", (8, 8))
    with pytest.raises(ValueError, match=r"a\.heic is unsupported: HEIF pictures cannot be read; export them as JPEG\."):
        read_upright(tmp_path / "a.heic", (8, 8))
    with pytest.raises(ValueError, match=r"b\.png is too large: .* is more than 500 megapixels\."):
        read_upright(declared_png(tmp_path / "b.png", 30000, 30000), (8, 8))


# ---- full size


@pytest.mark.parametrize(
    ("shape", "least"),  # dB; hard edges lose most where a JPEG of 300 px, an eighth of the photo's side, serves both sizes
    [((601, 401), 33), ((300, 200), 33), ((2400, 3200), 25)],
    ids=["decoded twice", "smaller than 256 px", "decoded once"],
)
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_picture_at_full_size_shows_the_same_square_at_its_own_side_or_256_px(tmp_path, shape, least, suffix):
    path = save(checks(*shape), tmp_path / f"a.{suffix}", quality=92)
    side = min(256, *shape)
    full = full_of(path, side=64)
    assert full.shape == (side, side, 3)
    assert 10 * np.log10(255**2 / ((full - exact(path, side)) ** 2).mean()) > least


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_at_full_size_is_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    full = full_of(save(smooth(600, 400), tmp_path / "a.jpg", exif=exif, quality=95))
    small = pixels(tmp_path / "a.jpg", side=256)
    assert np.abs(full.astype(int) - small).max() <= 6


def test_the_picture_at_full_size_changes_nothing_else(tmp_path):
    path = save(checks(601, 401), tmp_path / "a.jpg")
    style = PictureStyle(**{**STYLE, "side": 64})
    with_full = develop(path, style, full=ALL)
    assert isinstance(with_full, Picture)
    assert replace(with_full, full=None) == develop(path, style)


def test_no_picture_at_full_size_is_made_where_the_working_side_shows_everything(tmp_path):
    for side in (64, 256, 300):
        picture = develop(save(checks(90, 64), tmp_path / "a.png"), PictureStyle(**{**STYLE, "side": side}), full=ALL)
        assert isinstance(picture, Picture)
        assert picture.full is None


def test_the_hash_decides_which_photos_get_a_picture_at_full_size(tmp_path):
    for n in range(40):
        path = save(Image.new("RGB", (40, 40), (n, 0, 0)), tmp_path / f"{n}.png")
        picture = develop(path, PictureStyle(**STYLE), full=[(0.0, 0.2), (0.5, 0.7)])
        assert isinstance(picture, Picture)
        fraction = int(picture.sha256, 16) / 2**256
        assert (picture.full is not None) == (fraction < 0.2 or 0.5 <= fraction < 0.7)


# ---- crop to the subject


def found_at(box: tuple[float, float, float, float], certainty: float = 0.9):
    """In the place of a classifier: finds something at `box`, shares of the sides, in every photo."""
    return lambda image: (box, certainty, "tabby")


def cropped(path: Path, box: tuple[float, float, float, float], **changes) -> Picture:
    picture = develop(path, PictureStyle(**{**STYLE, **changes}), full=ALL, find=found_at(box))
    assert isinstance(picture, Picture), picture
    return picture


def find_red(image: np.ndarray) -> tuple[tuple[float, float, float, float], float, str] | None:
    """The box around what is red."""
    red = (image[..., 0].astype(int) - image[..., 1] > 128).nonzero()
    if not len(red[0]):
        return None
    height, width = image.shape[:2]
    box = (red[1].min() / width, red[0].min() / height, (red[1].max() + 1) / width, (red[0].max() + 1) / height)
    return box, 1.0, "red"


def with_square(width: int, height: int, left: int, top: int, side: int) -> Image.Image:
    image = Image.new("RGB", (width, height), (90, 90, 90))
    image.paste(RED, (left, top, left + side, top + side))
    return image


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_the_box_is_that_of_the_upright_photo_in_every_exif_orientation(tmp_path, orientation, suffix):
    upright = with_square(600, 400, 370, 60, 160)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = save(stored, tmp_path / f"a.{suffix}", exif=exif, **{"jpg": {"quality": 98}}.get(suffix, {}))
    picture = develop(path, PictureStyle(**STYLE), find=find_red)
    assert isinstance(picture, Picture)
    assert picture.crop is not None
    np.testing.assert_allclose(picture.crop, (370, 60, 530, 220), atol=4)
    assert (pixels_of(picture)[2:-2, 2:-2].astype(int) - RED).max() < 40
    assert (picture.width, picture.height) == (600, 400)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_the_crop_is_the_same_as_a_crop_of_the_whole_photo_by_lanczos(tmp_path, suffix):
    path = save(smooth(400, 300), tmp_path / f"a.{suffix}", **({"quality": 98} if suffix == "jpg" else {}))
    picture = cropped(path, (0.25, 0.2, 0.65, 0.7), side=64)
    assert picture.crop == (100, 55, 260, 215)  # the longer side of the box is 160 px, its middle is at (180, 135)
    with Image.open(path) as image:
        expected = np.asarray(image.resize((64, 64), Image.Resampling.LANCZOS, box=picture.crop)).astype(int)
    assert np.abs(pixels_of(picture) - expected).max() <= 1
    assert picture.certainty == 0.9
    assert picture.subject == "tabby"


def test_a_box_at_the_border_is_moved_into_the_photo(tmp_path):
    path = save(smooth(300, 200), tmp_path / "a.png")
    assert cropped(path, (0.0, 0.0, 0.1, 0.4)).crop == (0, 0, 80, 80)
    assert cropped(path, (0.9, 0.6, 1.0, 1.0)).crop == (220, 120, 300, 200)
    assert cropped(path, (0.0, 0.0, 1.0, 1.0)).crop == (50, 0, 250, 200)


def test_a_crop_is_not_enlarged_if_the_photo_has_the_pixels(tmp_path):
    path = save(smooth(300, 200), tmp_path / "a.png")
    assert cropped(path, (0.5, 0.5, 0.51, 0.51), side=64).crop == (120, 69, 184, 133)
    small = cropped(save(smooth(60, 40), tmp_path / "b.png"), (0.1, 0.1, 0.2, 0.2), side=64)
    assert small.crop is not None
    assert small.crop[3] == 40
    assert small.full is None


def test_a_jpeg_is_decoded_large_enough_for_its_crop(tmp_path):
    path = save(checks(2000, 1600), tmp_path / "a.jpg", quality=95)
    picture = cropped(path, (0.5, 0.5, 0.75, 0.75), side=64)  # of 250 px with the whole photo at 1/8, where 128 are needed
    assert picture.crop is not None
    with Image.open(path) as image:
        expected = np.asarray(image.resize((64, 64), Image.Resampling.LANCZOS, box=picture.crop)).astype(float)
    error = pixels_of(picture) - expected
    assert 10 * np.log10(255**2 / (error**2).mean()) > 40  # dB


def test_the_picture_at_full_size_shows_the_same_square(tmp_path):
    path = save(with_square(1200, 900, 700, 500, 300), tmp_path / "a.jpg", quality=98)
    picture = cropped(path, (700 / 1200, 500 / 900, 1000 / 1200, 800 / 900), side=32)
    assert picture.full is not None
    full = np.asarray(Image.open(io.BytesIO(picture.full))).astype(int)
    assert full.shape == (256, 256, 3)
    assert np.abs(full[8:-8, 8:-8] - RED).max() < 12
    tiny = cropped(path, (0.5, 0.5, 0.5 + 100 / 1200, 0.5 + 100 / 900), side=32)
    assert tiny.full is not None
    assert Image.open(io.BytesIO(tiny.full)).size == (100, 100)  # the photo has no more


def test_transparent_pixels_of_a_crop_show_the_background(tmp_path):
    image = Image.new("RGBA", (400, 300), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (300, 100, 400, 200))
    picture = develop(save(image, tmp_path / "a.png"), PictureStyle(**{**STYLE, "background": "blue"}), find=find_red)
    assert np.abs(pixels_of(picture)[3:-3, 3:-3].astype(int) - RED).max() < 10
    assert (pixels_of(cropped(tmp_path / "a.png", (0.0, 0.0, 0.25, 0.25), background="blue")) == BLUE).all()


def test_a_photo_without_a_subject_is_cropped_at_the_centre_as_if_none_had_been_looked_for(tmp_path):
    path = save(checks(900, 700), tmp_path / "a.jpg", quality=90)
    style = PictureStyle(**{**STYLE, "side": 64})
    assert develop(path, style, full=ALL, find=find_red) == develop(path, style, full=ALL)


@pytest.mark.parametrize(("size", "seen"), [((600, 400), (227, 340)), ((400, 600), (340, 227)), ((100, 100), (227, 227)),
                                            ((3000, 1000), (151, 454))])  # fmt: skip
def test_the_whole_photo_is_looked_at(tmp_path, size, seen):
    looks = []
    develop(save(smooth(*size), tmp_path / "a.png"), PictureStyle(**STYLE), find=looks.append)
    assert looks[0].shape == (*seen, 3)
    corners = [looks[0][row, column].astype(int) for row in (0, -1) for column in (0, -1)]
    np.testing.assert_allclose(corners, [(0, 0, 0), (255, 0, 255), (0, 255, 0), (255, 255, 0)], atol=10)
    np.testing.assert_array_equal(read_whole(tmp_path / "a.png", 100.0), looks[0])


def test_nothing_is_looked_for_in_a_strip(tmp_path):
    path = save(Image.new("RGB", (2000, 30), RED), tmp_path / "a.png")
    picture = develop(path, PictureStyle(**STYLE), find=find_red)
    assert isinstance(picture, Picture)
    assert picture.crop is None


def test_a_photo_that_cannot_be_read_is_rejected_before_anything_is_looked_for(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"no picture")
    assert develop(path, PictureStyle(**STYLE), find=pytest.fail) == develop(path, PictureStyle(**STYLE))
    tiny = save(smooth(20, 20), tmp_path / "b.png")
    result = develop(tiny, PictureStyle(**{**STYLE, "min_side": 30}), find=pytest.fail)
    assert isinstance(result, Rejection)
    assert result.reason == "too_small"
    with pytest.raises(ValueError, match=r"a\.png is unreadable: not a picture of a known format"):
        read_whole(path, 100.0)
    with pytest.raises(ValueError, match=r"b\.png is too large: .* is more than 0\.0001 megapixels"):
        read_whole(tiny, 0.0001)


def test_an_error_of_the_search_is_no_fault_of_the_photo(tmp_path):
    def broken(image: np.ndarray) -> None:
        raise RuntimeError("the classifier is broken")

    with pytest.raises(RuntimeError, match="the classifier is broken"):
        develop(save(smooth(20, 20), tmp_path / "a.png"), PictureStyle(**STYLE), find=broken)
