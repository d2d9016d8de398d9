import pickle

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin, features
from torchvision import transforms

from pela_vl.base.errors import UserError
from pela_vl.data import images
from pela_vl.data.augment import OPERATIONS, random_augment
from pela_vl.data.images import ImageError, ImageReader, read_image
from pela_vl.data.normalization import CLIP, Normalization
from pela_vl.data.paths import resolve
from pela_vl.data.transforms import crop_box, eval_transform, normalize, resize, to_image, to_tensor, train_transform


def noise(width=40, height=30, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def pixels_of(image):
    return np.asarray(image).astype(int)


# --- transforms


def test_tensor_equals_torchvisions():
    transforms = pytest.importorskip("torchvision.transforms")
    twin = transforms.Compose(
        [
            transforms.Resize((24, 24), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        ]
    )
    tensor, flipped = eval_transform(24)(noise())
    assert tensor.dtype == torch.float32 and tensor.is_contiguous() and flipped is False
    assert torch.equal(tensor, twin(noise()))


def test_a_picture_of_the_size_is_not_resampled():
    assert np.array_equal(to_image(eval_transform(32)(noise(32, 32))[0]), noise(32, 32))


def test_training_without_crop_flip_and_augmentation_is_the_plain_resize():
    transform = train_transform(24, min_scale=1, hflip=0, augment=False)
    for seed in range(5):
        tensor, flipped = transform(noise(80, 20), np.random.default_rng(seed))
        assert torch.equal(tensor, eval_transform(24)(noise(80, 20))[0]) and not flipped


def test_flip_is_reported_and_mirrors():
    plain = eval_transform(32)(noise())[0]
    tensor, flipped = train_transform(32, 1, 1.0, False)(noise(), np.random.default_rng(0))
    assert flipped and torch.equal(tensor, plain.flip(-1))
    flips = [train_transform(8, 1, 0.5, False)(noise(), np.random.default_rng(s))[1] for s in range(400)]
    assert 150 < sum(flips) < 250


def test_training_depends_on_the_generator_alone_and_leaves_the_picture():
    transform, image = train_transform(24), noise()
    before = np.array(image)
    results = [transform(image, np.random.default_rng(seed))[0] for seed in (3, 4, 3)]
    assert torch.equal(results[0], results[2]) and not torch.equal(results[0], results[1])
    assert np.array_equal(before, image)


@pytest.mark.parametrize("size", [(100, 80), (1, 1), (3, 500), (500, 3)])
def test_crops_lie_inside_and_keep_enough(size):
    generator = np.random.default_rng(0)
    for _ in range(300):
        left, top, right, bottom = crop_box(*size, 0.4, generator)
        assert 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]
        if size == (100, 80):
            assert (right - left) * (bottom - top) >= 0.97 * 0.4 * 8000  # sides are rounded
            assert 0.95 * 3 / 4 <= (right - left) / (bottom - top) <= 1.05 * 4 / 3


def test_crops_reach_every_corner():
    generator = np.random.default_rng(0)
    boxes = np.array([crop_box(20, 20, 0.3, generator) for _ in range(500)])
    assert boxes.min(0)[:2].tolist() == [0, 0] and boxes.max(0)[2:].tolist() == [20, 20]


@pytest.mark.parametrize("arguments", [(0,), (8, 0.0), (8, 1.5), (8, 0.5, -0.1), (8, 0.5, 2)])
def test_senseless_settings_are_refused(arguments):
    with pytest.raises(ValueError):
        train_transform(*arguments)


@pytest.mark.parametrize("name", list(OPERATIONS))
def test_operations_keep_size_and_source_and_change_the_picture(name):
    ramp = np.tile(np.linspace(60, 180, 32, dtype=np.uint8)[None, :, None], (32, 1, 3)).copy()
    ramp[8:16, 8:16] = (200, 70, 90)
    image = Image.fromarray(ramp)
    results = [OPERATIONS[name](image, sign) for sign in (-1.0, 1.0)]
    assert all(result.size == (32, 32) and result.mode == "RGB" for result in results)
    assert np.array_equal(image, ramp)
    assert np.array_equal(results[0], ramp) == (name == "Identity")
    directed = name.startswith(("Shear", "Translate", "Rotate"))
    assert np.array_equal(*results) == (not directed)


@pytest.mark.parametrize("size", [96, 256, 384])
def test_translation_is_by_seven_pixels_whatever_the_size(size):
    image = Image.new("RGB", (size, size))
    right, down = (pixels_of(OPERATIONS[name](image, 1.0)) for name in ("TranslateX", "TranslateY"))
    assert (right[:, :-7] == 0).all() and (right[:, -7:] == 128).all()
    assert (down[:-7] == 0).all() and (down[-7:] == 128).all()


def test_augmentation_draws_every_operation_about_half_the_time(monkeypatch):
    seen = []
    for name in OPERATIONS:
        monkeypatch.setitem(OPERATIONS, name, lambda image, sign, name=name: seen.append(name) or image)
    generator = np.random.default_rng(0)
    for _ in range(1000):
        random_augment(noise(4, 4), generator)
    assert 900 < len(seen) < 1100 and min(seen.count(name) for name in OPERATIONS) > 60


# --- reading


def save(image, path, **options):
    image.save(path, **options)
    return path


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    path = save(noise(), tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(path), noise().transpose(Image.Transpose.ROTATE_270))


def test_transparency_is_laid_over_white(tmp_path):
    pixels = np.zeros((2, 2, 4), dtype=np.uint8)
    pixels[0, :, 3] = 255
    pixels[1, 1] = (0, 0, 0, 51)
    expected = [[[0] * 3, [0] * 3], [[255] * 3, [204] * 3]]
    assert pixels_of(read_image(save(Image.fromarray(pixels), tmp_path / "a.png"))).tolist() == expected
    grey = Image.fromarray(pixels[..., 2:].copy())
    assert pixels_of(read_image(save(grey, tmp_path / "b.png"))).tolist() == expected


def test_palettes_with_and_without_transparency(tmp_path):
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    assert pixels_of(read_image(save(palette, tmp_path / "a.png"))).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    path = save(palette, tmp_path / "b.png", transparency=1)
    assert pixels_of(read_image(path)).tolist() == [[[10, 20, 30], [255] * 3]]


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    values = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)
    for name in ("a.png", "a.tif"):
        read = read_image(save(Image.fromarray(values), tmp_path / name))
        assert pixels_of(read)[0].tolist() == [[0] * 3, [1] * 3, [128] * 3, [255] * 3]


def test_floats_grey_and_bilevel(tmp_path):
    values = np.array([[0, 0.2, 1, np.nan]], dtype=np.float32)
    read = read_image(save(Image.fromarray(values), tmp_path / "a.tif"))
    assert pixels_of(read)[0, :, 0].tolist() == [0, 51, 255, 0]
    for mode in ("L", "1"):
        read = read_image(save(noise().convert(mode), tmp_path / f"{mode}.png"))
        assert read.mode == "RGB" and np.array_equal(read, noise().convert(mode).convert("RGB"))


@pytest.mark.skipif(not features.check("jpg"), reason="Pillow without JPEG")
def test_cmyk_keeps_its_colours(tmp_path):
    red = Image.new("RGB", (16, 16), (230, 20, 30))
    read = read_image(save(red.convert("CMYK"), tmp_path / "a.jpg", quality=95))
    assert read.mode == "RGB" and np.abs(pixels_of(read) - (230, 20, 30)).max() < 12


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp"])
def test_truncated_files_are_errors(tmp_path, suffix):
    path = save(noise(200, 200), tmp_path / f"a.{suffix}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert caught.value.path == str(path) and caught.value.reason and "\n" not in str(caught.value)


def test_absent_empty_and_foreign_files_are_errors(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("not an image")
    for name, reason in {
        "none.jpg": "no such file",
        ".": "is not a file",
        "empty.jpg": "not an image",
        "text.jpg": "not an image",
    }.items():
        with pytest.raises(ImageError, match=reason):
            read_image(tmp_path / name)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_does_not_lose_the_picture(tmp_path):
    path = save(noise(), tmp_path / "a.png", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert np.array_equal(read_image(path), noise())


def test_bombs_are_errors_before_they_are_decoded(tmp_path, monkeypatch):
    path = save(noise(), tmp_path / "a.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 40 * 30 - 1)
    with pytest.raises(ImageError, match="40x30 pixels"):
        read_image(path)
    information = PngImagePlugin.PngInfo()
    information.add_text("comment", "x" * 2**21, zip=True)
    path = save(noise(8, 8), tmp_path / "b.png", pnginfo=information)
    with pytest.raises(ImageError):
        read_image(path)


@pytest.mark.parametrize("path", ["../x.jpg", "a/../../x.jpg", "/etc/x.jpg", ".", "", "..", "a\0b", "../images2/x.jpg"])
def test_paths_out_of_the_root_are_refused(tmp_path, path):
    with pytest.raises(UserError, match="is not below the image root|lies elsewhere than the image root|holds a NUL"):
        resolve(tmp_path / "images", path)


def test_paths_inside_the_root_are_joined(tmp_path):
    expected = str(tmp_path / "a" / "x.jpg")
    for path in ("a/x.jpg", "./a/x.jpg", "b/../a/x.jpg", expected):
        assert resolve(tmp_path, path) == expected
    assert resolve("/", "x.jpg") == "/x.jpg"


def test_reader_caches_within_its_budget(tmp_path):
    for name in "abc":
        save(noise(256, 256, seed=ord(name)), tmp_path / f"{name}.png")
    plain, cached = ImageReader(tmp_path), ImageReader(tmp_path, cache_mb=0.5)  # room for two of them
    first = {name: np.array(cached(f"{name}.png")) for name in "abc"}
    for name in "abc":
        (tmp_path / f"{name}.png").unlink()
    assert all(np.array_equal(cached(f"{name}.png"), first[name]) for name in "ab")
    for reader, name in ((cached, "c"), (plain, "a"), (pickle.loads(pickle.dumps(cached)), "a")):
        with pytest.raises(ImageError):
            reader(f"{name}.png")


def test_resize_and_tensor_round_trip():
    assert resize(noise(9, 9), 9).size == (9, 9)
    assert np.array_equal(to_image(to_tensor(noise())), noise())


def test_pixels_normalised_on_the_device_are_bit_equal_to_tensors_made_at_once():
    """ToTensor and Normalize in their order, each operation once: the same for one image and for a batch."""
    images = [noise(seed=seed) for seed in range(3)]
    for normalization in (CLIP, Normalization((0.1, 0.2, 0.3), (0.5, 0.7, 0.9))):
        plain = train_transform(24, normalization=normalization)
        small = train_transform(24, normalization=None)
        expected, pixels = (
            torch.stack([transform(image, np.random.default_rng(7))[0] for image in images])
            for transform in (plain, small)
        )
        assert pixels.dtype == torch.uint8 and expected.dtype == torch.float32
        assert torch.equal(normalize(pixels, normalization), expected)
        literal = transforms.Normalize(normalization.mean, normalization.std)(pixels.float() / 255)
        assert torch.equal(normalize(pixels, normalization), literal)
