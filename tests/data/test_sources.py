from __future__ import annotations

import hashlib
import resource
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, Resize

from sj_robust import SJRobustError
from sj_robust.data import ImageDataset, load_dataset
from sj_robust.files import zoo_root

Parquet, Noise, Png = Callable[..., Path], Callable[..., np.ndarray], Callable[..., bytes]


def fails(path: Path, message: str, split: str = "train", **options: int) -> None:
    with pytest.raises(SJRobustError, match=message) as caught:
        load_dataset(path, split, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def by_class(root: Path, images: dict[str, np.ndarray]) -> Path:
    for name, pixels in images.items():
        (root / name).mkdir(parents=True)
        for number, image in enumerate(pixels):
            Image.fromarray(image).save(root / name / f"{number}.png")
    return root


# parquet: what is found


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train.parquet", "test.parquet"),
        ("train_subset.parquet", "valid_subset.parquet"),
        ("train.parquet", "validation.parquet"),
        (
            "data/train-00000-of-00001-1359597a978bc4fa.parquet",
            "data/valid-00000-of-00001-70d52db3c749a935.parquet",
        ),
        ("plain_text/train-00000-of-00001.parquet", "plain_text/test-00000-of-00001.parquet"),
    ],
)
def test_both_splits_are_found_by_name(
    tmp_path: Path, parquet: Parquet, noise: Noise, png: Png, train: str, test: str
) -> None:
    pixels = noise(5)
    parquet(tmp_path / "mine" / train, [png(p) for p in pixels[:3]], [0, 1, 0])
    parquet(tmp_path / "mine" / test, [png(p) for p in pixels[3:]], [1, 0])
    first, second = (
        load_dataset(tmp_path / "mine", "train"),
        load_dataset(str(tmp_path / "mine"), "test"),
    )
    assert (first.name, first.split, second.split) == ("mine", "train", "test")
    assert np.array_equal(first.images.permute(0, 2, 3, 1), pixels[:3])
    assert np.array_equal(second.images.permute(0, 2, 3, 1), pixels[3:])
    assert (first.labels.tolist(), second.labels.tolist()) == ([0, 1, 0], [1, 0])


def test_shards_are_joined_in_order_and_must_be_complete(
    tmp_path: Path, parquet: Parquet, noise: Noise, png: Png
) -> None:
    pixels = noise(6)
    for shard in range(3):
        rows = [2 * shard, 2 * shard + 1]
        parquet(
            tmp_path / f"train-{shard:05}-of-00003.parquet",
            [png(pixels[row]) for row in rows],
            rows,
        )
    joined = load_dataset(tmp_path, "train")
    assert joined.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert np.array_equal(joined.images.permute(0, 2, 3, 1), pixels)
    (tmp_path / "train-00001-of-00003.parquet").unlink()
    fails(
        tmp_path,
        "complete set of shards, found train-00000-of-00003.parquet, train-00002-of-00003.parquet",
    )


def test_a_row_of_a_later_shard_is_named_by_its_file(
    tmp_path: Path, parquet: Parquet, noise: Noise, png: Png
) -> None:
    good = [png(p) for p in noise(2)]
    parquet(tmp_path / "train-00000-of-00002.parquet", good, [0, 1])
    parquet(tmp_path / "train-00001-of-00002.parquet", [good[0], b"no image"], [0, 1])
    fails(tmp_path, "train-00001-of-00002.parquet: row 1 cannot be decoded")


@pytest.mark.parametrize(
    ("file", "split", "name"),
    [
        ("cifar-10/test.parquet", "test", "cifar10"),
        ("x/cifar100.parquet", "all", "cifar100"),
        ("x/mine.parquet", "all", "mine"),
        ("x/valid_a.parquet", "test", "valid_a"),
        ("x/valuable.parquet", "all", "valuable"),
    ],
)
def test_one_file_says_which_split_it_is(
    tmp_path: Path, parquet: Parquet, noise: Noise, png: Png, file: str, split: str, name: str
) -> None:
    loaded = load_dataset(parquet(tmp_path / file, [png(p) for p in noise(2)], [0, 1]), "train")
    assert (loaded.split, loaded.name, len(loaded)) == (split, name, 2)


def test_class_names_come_from_metadata_then_classes_txt_then_numbers(
    tmp_path: Path, parquet: Parquet, noise: Noise, png: Png
) -> None:
    blobs = [png(p) for p in noise(2)]
    file = tmp_path / "train.parquet"
    parquet(file, blobs, [0, 2], label="fine_label", image="image")
    assert load_dataset(file).classes == ("0", "1", "2")
    (tmp_path / "classes.txt").write_text("cat\npickup truck\ndog\n")
    assert load_dataset(file).classes == ("cat", "pickup truck", "dog")
    parquet(file, blobs, [0, 2], names=["a", "b", "c", "d"])
    assert load_dataset(file).classes == ("a", "b", "c", "d")


def test_a_label_that_no_network_has_is_refused(
    tmp_path: Path, parquet: Parquet, noise: Noise, png: Png
) -> None:
    parquet(tmp_path / "train.parquet", [png(p) for p in noise(2)], [0, 10**12])
    fails(tmp_path, "there is a label 1000000000000: expected class numbers from 0, below 100000")


# folders by class


def test_a_folder_of_images_by_class(tmp_path: Path, noise: Noise) -> None:
    pixels = noise(6)
    root = by_class(tmp_path / "pets", {"dog": pixels[:2], "cat": pixels[2:5]})
    (root / "cat" / "notes.txt").write_text("not an image")
    (root / "cat" / "._0.png").write_text("a file manager's litter")
    loaded = load_dataset(root, "test")
    assert (loaded.classes, loaded.name, loaded.split) == (("cat", "dog"), "pets", "all")
    assert loaded.labels.tolist() == [0, 0, 0, 1, 1]
    assert np.array_equal(loaded.images.permute(0, 2, 3, 1), pixels[[2, 3, 4, 0, 1]])


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_train_and_test_folders_share_the_training_classes(
    tmp_path: Path, noise: Noise, held_out: str
) -> None:
    by_class(tmp_path / "train", {"a": noise(1), "b": noise(1), "c": noise(1)})
    by_class(tmp_path / held_out, {"a": noise(1), "c": noise(2)})
    test = load_dataset(tmp_path, "test")
    assert (test.classes, test.labels.tolist(), test.split) == (("a", "b", "c"), [0, 2, 2], "test")
    assert load_dataset(tmp_path, "train").labels.tolist() == [0, 1, 2]
    by_class(tmp_path / held_out, {"d": noise(1)})
    fails(tmp_path, "has a class 'd' that .*train lacks", "test")


def test_a_class_may_be_called_train(tmp_path: Path, noise: Noise) -> None:
    loaded = load_dataset(by_class(tmp_path, {"tractor": noise(1), "train": noise(2)}))
    assert (loaded.classes, loaded.labels.tolist()) == (("tractor", "train"), [0, 1, 1])


def test_folders_without_images_are_named(tmp_path: Path, noise: Noise) -> None:
    fails(tmp_path, "holds no images: expected parquet files or one folder of images per class")
    by_class(tmp_path / "train", {"a": noise(1)})
    fails(tmp_path, "has no test split: expected a folder test or ", "test")
    (tmp_path / "train" / "empty").mkdir()
    fails(tmp_path, "empty holds no images .* remove the folder if it is not a class")


# pixels


def test_greyscale_palette_and_jpeg_become_rgb(tmp_path: Path, parquet: Parquet, png: Png) -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    palette = Image.fromarray(np.stack([grey, grey, grey], -1)).convert("P")
    palette.save(tmp_path / "palette.png")
    colour = np.full((8, 8, 3), (200, 40, 90), np.uint8)
    blobs = [png(grey), (tmp_path / "palette.png").read_bytes(), png(colour, "JPEG")]
    loaded = load_dataset(parquet(tmp_path / "train.parquet", blobs, [0, 0, 0]))
    assert loaded.images.shape == (3, 3, 8, 8)
    assert all(np.array_equal(channel, grey) for channel in loaded.images[0])
    assert np.array_equal(loaded.images[1].permute(1, 2, 0), np.asarray(palette.convert("RGB")))
    # JPEG is lossy
    assert (
        loaded.images[2].permute(1, 2, 0).int() - torch.from_numpy(colour).int()
    ).abs().max() <= 3


def test_image_size_resizes_the_short_side_and_cuts_the_centre(
    tmp_path: Path, noise: Noise
) -> None:
    wide = np.zeros((16, 48, 3), np.uint8)
    wide[:, 16:32] = 255  # the centre square is white
    by_class(tmp_path, {"a": wide[None], "b": noise(1, 40, 8), "c": noise(1, 8, 8)})
    fails(tmp_path, "b/0.png is 8x40 pixels but the first image is 48x16: pass image_size")
    loaded = load_dataset(tmp_path, image_size=8)
    assert loaded.images.shape == (3, 3, 8, 8)
    assert loaded.images[0, :, :, 1:7].min() == 255
    assert np.array_equal(loaded.images[1].permute(1, 2, 0), noise(1, 40, 8)[0, 16:24])
    assert np.array_equal(loaded.images[2].permute(1, 2, 0), noise(1, 8, 8)[0])


@pytest.mark.parametrize(("image_size", "resize"), [(20, 23), (20, 20), (31, 40), (7, 9)])
@pytest.mark.parametrize("stream", [False, True])
def test_resize_and_crop_are_those_of_torchvision(
    tmp_path: Path, noise: Noise, image_size: int, resize: int, stream: bool
) -> None:
    sizes = [(31, 50), (50, 31), (40, 40), (23, 37), (64, 25)]
    originals = [noise(1, *size)[0] for size in sizes]
    by_class(tmp_path, {f"class{i}": pixels[None] for i, pixels in enumerate(originals)})
    loaded = load_dataset(tmp_path, image_size=image_size, resize=resize, stream=stream)
    transform = Compose([Resize(resize), CenterCrop(image_size)])
    for found, pixels in zip(loaded.floats().mul(255).round(), originals, strict=True):
        assert np.array_equal(
            found.permute(1, 2, 0), np.asarray(transform(Image.fromarray(pixels)))
        )


def test_resize_wants_an_image_size_that_fits_into_it(tmp_path: Path, noise: Noise) -> None:
    by_class(tmp_path, {"a": noise(1, 8, 8)})
    for wrong in ({"resize": 8}, {"resize": 7, "image_size": 8}):
        with pytest.raises(
            SJRobustError, match=f"resize={wrong['resize']}: expected image_size beside it"
        ):
            load_dataset(tmp_path, **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda blob: blob[:60], "row 1 cannot be decoded"),
        (lambda blob: b"<html>", "row 1 cannot be decoded \\(UnidentifiedImageError"),
        (lambda blob: None, "row 1 holds no image bytes"),
        (lambda blob: b"", "row 1 cannot be decoded"),
    ],
)
def test_a_damaged_image_is_named_by_its_row(
    tmp_path: Path,
    parquet: Parquet,
    noise: Noise,
    png: Png,
    damage: Callable[[bytes], bytes | None],
    message: str,
) -> None:
    blobs = [png(p) for p in noise(3)]
    fails(
        parquet(tmp_path / "train.parquet", [blobs[0], damage(blobs[1]), blobs[2]], [0, 1, 2]),
        message,
    )


def test_pixels_beyond_eight_bits_are_refused(tmp_path: Path, parquet: Parquet, png: Png) -> None:
    deep = png(np.full((8, 8), 40_000, np.uint16))
    fails(
        parquet(tmp_path / "train.parquet", [deep], [0]),
        "row 0 cannot be decoded .*do not fit 8 bits",
    )


# parquet: what is wrong


def test_wrong_columns_are_named(tmp_path: Path, parquet: Parquet, noise: Noise, png: Png) -> None:
    blobs, file = [png(p) for p in noise(2)], tmp_path / "train.parquet"
    fails(
        parquet(file, blobs, [0, 1], image="picture"),
        r"expected an image column img or image = struct\{bytes, path\}, found picture",
    )
    fails(
        parquet(file, blobs, [0, 1], label="target"),
        "expected an integer label column label or fine_label, found .*target",
    )
    fails(
        parquet(file, blobs, pa.array(["cat", "dog"])),
        "expected an integer label column .*label \\(string\\)",
    )
    pq.write_table(pa.table({"img": [[0, 1]], "label": [0]}), file)
    fails(file, "expected an image column")


def test_labels_out_of_range_missing_or_absent_are_named(
    tmp_path: Path, parquet: Parquet, noise: Noise, png: Png
) -> None:
    blobs, file = [png(p) for p in noise(2)], tmp_path / "train.parquet"
    fails(
        parquet(file, blobs, [0, 2], names=["a", "b"]),
        "row 1 has label 2, expected 0 to 1 \\(2 classes\\)",
    )
    fails(parquet(file, blobs, [-1, 0]), "row 0 has label -1, expected 0 to 0")
    fails(parquet(file, blobs, [0, None]), "1 rows have no label")
    fails(parquet(file, [], []), "the train split is empty")


def test_files_that_are_no_parquet_or_another_split_are_named(
    tmp_path: Path, parquet: Parquet, noise: Noise, png: Png
) -> None:
    (tmp_path / "train.parquet").write_text("<html>not found</html>")
    fails(tmp_path, "train.parquet is not a readable parquet file")
    fails(
        tmp_path,
        "has no test split: expected test or validation or valid or val\\*.parquet, found"
        " train.parquet",
        "test",
    )
    fails(tmp_path / "nowhere", "no dataset '.*nowhere': expected one of")
    blobs = [png(p) for p in noise(1)]
    parquet(tmp_path / "test.parquet", blobs, [0])
    parquet(tmp_path / "test_more.parquet", blobs, [0])
    fails(tmp_path, "cannot tell which files make up the split", "test")


@pytest.mark.parametrize("share", [0.01, 0.3, 0.8])
def test_a_flipped_byte_in_the_sample_does_not_pass(tmp_path: Path, share: float) -> None:
    content = bytearray((zoo_root() / "sample" / "test.parquet").read_bytes())
    content[int(len(content) * share)] ^= 1
    (tmp_path / "test.parquet").write_bytes(content)
    fails(
        tmp_path,
        "test.parquet: column img cannot be read: the file is damaged, fetch it again",
        "test",
    )


# cache


def many(path: Path, parquet: Parquet, first: int) -> Path:
    """5,000 real images of 2x2 pixels: enough to be cached."""
    pixels = np.zeros((5000, 2, 2, 3), np.uint8)
    pixels[:, 0, 0, 0], pixels[:, 0, 1, 0], pixels[0, 1, 1] = (
        np.arange(5000) % 256,
        np.arange(5000) // 256,
        first,
    )
    blobs = []
    for image in pixels:
        Image.fromarray(image).save(buffer := BytesIO(), "BMP")
        blobs.append(buffer.getvalue())
    return parquet(path, blobs, [0] * 5000)


def test_decoded_pixels_are_cached_and_a_damaged_cache_is_made_again(
    tmp_path: Path, parquet: Parquet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SJ_ROBUST_CACHE", str(tmp_path / "cache"))
    file = many(tmp_path / "train.parquet", parquet, first=7)
    decoded = load_dataset(file)
    (cache,) = (tmp_path / "cache").rglob("*.npy")
    content = cache.read_bytes()

    def spoiled_then_loaded(spoiled: bytes) -> ImageDataset:
        cache.write_bytes(spoiled)
        return load_dataset(file)

    assert np.load(cache, allow_pickle=False).shape == (5000, 3, 2, 2)
    for spoiled in (
        content[:1000],
        content[:-40] + b"\x55" + content[-39:],
        b"PK\x03\x04 an archive",
    ):
        assert spoiled != content
        assert spoiled_then_loaded(spoiled).fingerprint == decoded.fingerprint
        assert cache.read_bytes() == content
    # the cache is used, not just written: pixels put there with a right checksum come back
    pixels = np.load(cache, allow_pickle=False) ^ 1
    with open(cache, "wb") as handle:
        np.save(handle, pixels)
        handle.write(hashlib.sha256(pixels.data).digest())
    assert np.array_equal(load_dataset(file).images, pixels)


def test_another_file_at_the_same_path_is_not_answered_from_the_cache(
    tmp_path: Path, parquet: Parquet
) -> None:
    one = load_dataset(many(tmp_path / "train.parquet", parquet, first=7))
    two = load_dataset(many(tmp_path / "train.parquet", parquet, first=9))
    assert (one.images[0, 0, 1, 1], two.images[0, 0, 1, 1]) == (7, 9)


def test_a_cache_that_cannot_be_written_is_no_failure(
    tmp_path: Path, parquet: Parquet, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "occupied").write_text("a file where the folder should be")
    monkeypatch.setenv("SJ_ROBUST_CACHE", str(tmp_path / "occupied"))
    assert len(load_dataset(many(tmp_path / "train.parquet", parquet, first=7))) == 5000


def flat_png(width: int, height: int, colour: int = 0) -> bytes:
    """A PNG of one colour, without its pixels ever being in memory: 13000x13000 of them are some 20
    kB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    packer, row = zlib.compressobj(9), b"\x00" + bytes([colour]) * width
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("sizes", "image_size", "fragment"),
    [
        ([(13000, 13000)], None, "pixels"),
        ([(13000, 13000)], 32, "169000000|169,000,000|more than"),
        ([(10000, 9000)], 224, "more than"),
        ([(5000, 10)], None, "more than 4096 a side"),
        ([(60000, 1)], 224, "too narrow"),
        ([(1, 60000)], 64, "too narrow"),
        (
            [(8, 8), (4000, 4000), (4000, 4000)],
            None,
            "is 4000x4000 pixels but the first image is 8x8",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_image_that_would_fill_the_memory_is_refused_before_it_is_decoded(
    tmp_path: Path, sizes: list[tuple[int, int]], image_size: int | None, fragment: str
) -> None:
    blobs = [{"bytes": flat_png(*size), "path": None} for size in sizes] * 20
    table = pa.table({"image": blobs, "label": [0] * len(blobs)})
    pq.write_table(table, tmp_path / "test.parquet")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SJRobustError, match=fragment):
        load_dataset(tmp_path, "test", image_size=image_size)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


def test_more_images_than_the_machine_has_room_for_are_refused(tmp_path: Path) -> None:
    blob = {"bytes": flat_png(4096, 4096), "path": None}
    # 375 GiB, told before the second is decoded
    table = pa.table({"image": pa.array([blob] * 8000), "label": [0] * 8000})
    pq.write_table(table, tmp_path / "test.parquet")
    with pytest.raises(SJRobustError, match=r"such images take 375\.0 GiB, this machine has"):
        load_dataset(tmp_path, "test")


def test_a_large_photograph_is_still_brought_to_size(tmp_path: Path) -> None:
    blob = {"bytes": flat_png(6000, 4500, 200), "path": None}
    pq.write_table(pa.table({"image": [blob] * 3, "label": [0, 1, 0]}), tmp_path / "test.parquet")
    images = load_dataset(tmp_path, "test", image_size=16).images
    assert images.shape == (3, 3, 16, 16)
    assert images.unique().tolist() == [200]
