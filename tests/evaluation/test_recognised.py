"""The subject is found on training photos, counted on the way from photo to sample, and the step that loses it is named."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from scipy.stats import beta

from darkroom.data.picture import encode, read_upright
from darkroom.data.shards import ImageShards, write_shards
from darkroom.evaluation.canaries import mean_colour
from darkroom.evaluation.features import ArrayImages, MappedImages
from darkroom.evaluation.glossary import GLOSSARY, explain
from darkroom.evaluation.recognised import (
    Pictures,
    Recognised,
    SeenClasses,
    blotches,
    classes_of,
    count,
    find_subject,
    measure_recognised,
    noise,
    summarise,
)
from darkroom.evaluation.story import FunnelStep
from darkroom.models.classifier import Classifier, class_names
from darkroom.provenance import canonical_json, write_index

CAT, OTHER_CAT, DOG, SPOILT = 7, 8, 150, 200
CATS = [CAT] * 40 + [OTHER_CAT] * 30 + [DOG] * 2


def pictures(classes: Sequence[int], side: int = 8) -> np.ndarray:
    """Stripes that grow lighter to the right; their lowest value is the class. Shuffled tiles no longer do."""
    stripes = (np.arange(side) // 2 * 2 + np.tile(np.array([0, 40]), side // 2)).astype(np.uint8)[None, :, None]
    return np.stack([np.broadcast_to(np.uint8(number) + stripes, (side, side, 3)) for number in classes])


def classify(images: np.ndarray) -> np.ndarray:
    """Scores that name the class of such stripes, and `SPOILT` for everything else."""
    row = images[:, 0, :, 0].astype(int)
    is_whole = (row == row[:, :1] + pictures([0], side=row.shape[1])[0, 0, :, 0]).all(axis=1)
    return np.eye(1000, dtype=np.float32)[np.where(is_whole, row[:, 0], SPOILT)]


@dataclass
class Photos:
    """A split in memory; the photos at full size are those of `full`, in its order."""

    at_side: np.ndarray
    full: np.ndarray = field(default_factory=lambda: pictures([CAT])[:0])

    def __len__(self) -> int:
        return len(self.at_side)

    @property
    def size(self) -> int:
        return int(self.at_side.shape[1])

    @property
    def with_full_size(self) -> list[int]:
        return list(range(len(self.full)))

    def images(self, indices: Sequence[int]) -> np.ndarray:
        return self.at_side[list(indices)]

    def full_images(self, indices: Sequence[int]) -> np.ndarray:
        return self.full[list(indices)]


def funnel(*, train: Photos, held_out: Photos, decoded: list[int], samples: list[int], **options) -> Recognised:
    given = Pictures(train, held_out, ArrayImages(pictures(decoded)), ArrayImages(pictures(samples)))
    return measure_recognised(classify, given, batch_size=options.pop("batch_size", 16), **options)


def step(name: str, share: float, num: int = 100) -> FunnelStep:
    return count(name, np.array([CAT] * round(share * num) + [DOG] * (num - round(share * num))), [CAT])


def sentence_of(*shares: float, num: int = 100) -> str:
    names = ("photos at full size", "photos at 64 px", "reconstructions", "samples")[-len(shares) :]
    steps = [step(name, share, num) for name, share in zip(names, shares, strict=True)]
    return summarise(steps, step("photos of shuffled tiles", 0.0), "It calls the subject cat.").funnel.sentence


# ---- the funnel


def test_shares_are_counted_from_the_photo_to_the_sample():
    held_out = Photos(pictures(CATS[::-1]), full=pictures([CAT] * 18 + [DOG] * 2))
    found = funnel(train=Photos(pictures(CATS)), held_out=held_out, decoded=[CAT, DOG] * 15, samples=[CAT] * 3 + [DOG] * 57)
    assert [(s.name, round(s.share, 3), s.num_pictures) for s in found.funnel.steps] == [
        ("photos at full size", 0.9, 20), ("photos at 8 px", 0.972, 72), ("reconstructions", 0.5, 30), ("samples", 0.05, 60)]  # fmt: skip
    values = found.metrics
    assert values["recognised"] == 0.05
    assert values["recognised_full"] == 0.9
    assert values["recognised_reconstructions"] == 0.5
    assert values["recognised_photos"] == values["recognised_reconstructions_photos"] == 70 / 72
    assert values["recognised_chance"] == values["recognised_full_chance"] == values["recognised_reconstructions_chance"] == 0
    assert found.funnel.sentence == (
        "The U-Net loses the subject most: the classifier recognises 50% of 30 reconstructions, and 5% of 60 samples. "
        f"It calls the subject {class_names()[CAT]}, {class_names()[OTHER_CAT]}."
    )


def test_the_interval_is_that_of_clopper_and_pearson():
    found = count("samples", np.array([CAT] * 6 + [DOG] * 14), [CAT])
    assert found.share == 0.3
    np.testing.assert_allclose([found.low, found.high], [beta.ppf(0.025, 6, 15), beta.ppf(0.975, 7, 14)])


def test_the_stage_that_loses_the_largest_part_of_what_it_gets_is_named():
    assert sentence_of(0.9, 0.3, 0.28, 0.2).startswith(
        "The side of 64 px loses the subject most: the classifier recognises 90% of 100 photos at full size, and 30% of 100 photos at 64"
    )
    assert sentence_of(0.9, 0.8, 0.1, 0.1).startswith(
        "The VAE loses the subject most: the classifier recognises 80% of 100 photos at 64 px,"
    )
    assert sentence_of(0.9, 0.8, 0.4, 0.1).startswith("The U-Net loses the subject most: the classifier recognises 40% of 100 recon")
    assert sentence_of(0.8, 0.2, 0.2).startswith("The VAE loses the subject most")  # without photos at full size


def test_a_loss_that_may_be_chance_is_not_called_one():
    assert sentence_of(0.9, 0.85, 0.8, 0.75) == (
        "No stage loses the subject: the classifier recognises 90% of 100 photos at full size and 75% of 100 samples. "
        "It calls the subject cat."
    )
    assert sentence_of(0.9, 0.85, 0.8, 0.75, num=1000).startswith("The U-Net loses")
    assert sentence_of(0.5, 0.6, 0.9, 0.95, num=1000).startswith("No stage loses the subject")


def test_shards_without_photos_at_full_size_begin_at_the_working_side():
    found = funnel(train=Photos(pictures(CATS)), held_out=Photos(pictures(CATS)), decoded=CATS, samples=CATS)
    assert [s.name for s in found.funnel.steps] == ["photos at 8 px", "reconstructions", "samples"]
    assert not any(key.startswith("recognised_full") for key in found.metrics)


def test_every_number_has_its_floor_its_chance_and_a_sentence():
    held_out = Photos(pictures(CATS), full=pictures(CATS))
    found = funnel(train=Photos(pictures(CATS)), held_out=held_out, decoded=CATS, samples=CATS)
    metrics = {metric.key: metric for metric in explain(found.metrics)}
    assert set(metrics) == {"recognised", "recognised_full", "recognised_reconstructions"}
    for metric in metrics.values():
        assert metric.chance == 0.0
        assert metric.low is not None
        assert metric.high is not None
        assert (metric.photos is None) == (metric.key == "recognised_full")
    assert isinstance(GLOSSARY["recognised_full"].photos, str)


def test_no_number_depends_on_the_batch_size():
    results = [
        funnel(train=Photos(pictures(CATS)), held_out=Photos(pictures(CATS)), decoded=CATS, samples=[CAT, DOG] * 20, batch_size=size)
        for size in (1, 7, 64)
    ]
    assert results[0] == results[1] == results[2]


# ---- the classes of the subject


def test_training_photos_at_full_size_decide_and_held_out_photos_do_not():
    blurred = Photos(pictures([DOG] * 72), full=pictures(CATS))
    found = funnel(train=blurred, held_out=Photos(pictures([DOG] * 40), full=pictures(CATS)), decoded=[DOG] * 40, samples=[CAT] * 40)
    assert [round(s.share, 2) for s in found.funnel.steps] == [0.97, 0, 0, 1]
    assert found.funnel.sentence.startswith("The side of 8 px loses the subject most")


def test_classes_that_are_rare_or_that_spoilt_pictures_get_are_not_the_subject():
    photos = np.array([1] * 60 + [2] * 30 + [3] * 8 + [4] * 2)
    nothing = [np.array([9] * 50), np.array([8] * 50)]
    assert find_subject(photos, nothing) == (1, 2, 3)
    assert find_subject(photos, [*nothing, np.array([2] * 10 + [9] * 40)]) == (1, 3)
    assert find_subject(photos, [*nothing, np.array([2] * 7 + [9] * 43)]) == (1, 2, 3)
    assert find_subject(np.array([1, 1, 2]), nothing) == ()
    assert find_subject(np.array([1] * 3 + [5] * 197), nothing) == (5,)  # 1.5 %


def test_photos_without_classes_in_common_are_not_counted():
    found = funnel(train=Photos(pictures(range(100, 150))), held_out=Photos(pictures(CATS)), decoded=CATS, samples=CATS)
    assert found.metrics == {}
    assert found.funnel.steps == []
    assert found.funnel.sentence == (
        "Nothing is counted, because the classifier has no words for the photos: 0% of the training photos are in classes that many of "
        "them share; required: 50%. If ImageNet has classes of your subject, name them in evaluate.recognised.classes."
    )


def test_photos_in_which_the_classifier_sees_no_more_than_in_their_shuffled_tiles_are_not_counted():
    plain = np.full((30, 8, 8, 3), 90, np.uint8)
    found = funnel(train=Photos(plain), held_out=Photos(plain), decoded=CATS, samples=CATS, classes=[SPOILT])
    assert found.metrics == {}
    assert found.funnel.sentence.startswith(
        "Nothing is counted, because the classifier recognises 100% of 30 photos at 8 px, and 100% of 30 photos of shuffled tiles."
    )
    few = funnel(train=Photos(pictures(CATS)), held_out=Photos(pictures([CAT] * 3 + [DOG])), decoded=CATS, samples=CATS, classes=[CAT])
    assert few.metrics["recognised_photos"] == 0.75  # a handful of held-out photos is enough, because there is more to tell them from


def test_a_classifier_that_sees_only_fur_is_not_counted_because_shuffled_photos_have_fur_too():
    def sees_fur(images: np.ndarray) -> np.ndarray:
        has_stripes = images[:, 0, 1, 0] > images[:, 0, 0, 0]
        return np.eye(1000, dtype=np.float32)[np.where(has_stripes, CAT, SPOILT)]

    photos = Photos(pictures(CATS))
    given = Pictures(photos, photos, ArrayImages(pictures(CATS)), ArrayImages(pictures(CATS)))
    found = measure_recognised(sees_fur, given, [CAT], batch_size=16)
    assert found.metrics == {}
    assert "100% of 72 photos at 8 px, and 100% of 72 photos of shuffled tiles" in found.funnel.sentence


def test_a_subject_without_a_class_of_its_own_is_named_with_a_remark():
    spread = [number for number in range(20, 30) for _ in range(10)]
    found = funnel(train=Photos(pictures(spread)), held_out=Photos(pictures(spread)), decoded=spread, samples=spread)
    assert "and 6 more. No single class stands for it, so read the shares only beside those of the photos." in found.funnel.sentence
    assert found.metrics["recognised"] == 1.0


def test_classes_of_the_parameters_are_counted_and_nothing_is_looked_for():
    found = funnel(train=Photos(pictures([DOG])), held_out=Photos(pictures(CATS)), decoded=CATS, samples=[CAT, DOG] * 20, classes=[CAT])
    assert found.metrics["recognised"] == 0.5
    assert found.metrics["recognised_photos"] == 40 / 72


# ---- classes and pictures


def test_only_the_first_images_are_counted():
    source = ArrayImages(pictures([CAT, DOG, CAT, CAT]))
    assert classes_of(classify, source, limit=3, batch_size=2, desc="x").tolist() == [CAT, DOG, CAT]


def test_classes_that_a_pass_for_features_has_seen_are_not_looked_for_again():
    watch = SeenClasses(lambda images: (images[:, 0, 0].astype(np.float32), classify(images)))
    np.testing.assert_array_equal(watch(pictures([CAT, DOG])), pictures([CAT, DOG])[:, 0, 0])
    watch(pictures([DOG]))
    assert watch.take().tolist() == [CAT, DOG, DOG]
    watch(pictures([CAT]))
    assert watch.take().tolist() == [CAT]
    seen = {"seen_held_out": np.array([CAT] * 30), "seen_samples": np.array([CAT] * 10 + [DOG] * 30)}
    found = funnel(train=Photos(pictures(CATS)), held_out=Photos(pictures(CATS)), decoded=CATS, samples=[DOG], **seen)
    assert found.metrics["recognised_photos"] == 1.0
    assert found.metrics["recognised"] == 0.25


def test_spoilt_pictures_show_nothing_and_are_the_same_each_time():
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    assert (mean_colour(images) == images.mean(axis=(1, 2), keepdims=True).round()).all()
    blocks = images.reshape(3, 4, 4, 4, 4, 3).mean(axis=(2, 4))
    assert np.abs(blotches(images)[:, 1::4, 1::4].astype(float) - blocks).mean() < 12
    assert np.abs(np.diff(blotches(images).astype(int), axis=1)).mean() < np.abs(np.diff(images.astype(int), axis=1)).mean() / 4
    np.testing.assert_array_equal(noise(images)[1:], noise(images[1:]))
    assert len({picture.tobytes() for picture in noise(images)}) == 3
    assert abs(noise(images).mean() - 127.5) < 5


# ---- with the real classifier


def shards_of_cats(folder: Path, shared: Path) -> tuple[ImageShards, ImageShards]:
    """Shards of 64 px: 40 photos of cats to train on, 32 held out; with their pictures at full size."""
    files = sorted((shared / "data/cats").glob("*.jpg"))[::6][:72]
    tables = {}
    for split, part in {"train": files[:40], "val": files[40:]}.items():
        made: list[dict[str, str | bytes]] = []
        for number, path in enumerate(part):
            (small, _), (full, whole) = (read_upright(path, (side, side)) for side in (64, 256))
            fields = {"caption": "a cat", "width": whole[1], "height": whole[0]}
            made.append({"__key__": f"{number:03d}", "png": encode(small, "png", 0), "json": canonical_json(fields).encode(),
                         "full.jpg": encode(full, "jpeg", 95)})  # fmt: skip
        tables[split] = write_shards(folder, split, made, samples_per_shard=100)
    write_index(folder, stage="ingest", params={}, inputs={}, content={"splits": tables, "size": 64, "format": "png"})
    return ImageShards(folder, "train"), ImageShards(folder, "val")


def blurred(sigma: float):
    def blur(images: np.ndarray) -> np.ndarray:
        return np.stack([np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma))) for image in images])

    return blur


@pytest.mark.slow
def test_cats_are_found_to_be_cats_and_blur_and_noise_lose_them(tmp_path, shared):
    train, held_out = shards_of_cats(tmp_path, shared)
    classifier = Classifier.shipped()
    given = Pictures(train, held_out, MappedImages(held_out, blurred(1.0)), MappedImages(held_out, noise))
    found = measure_recognised(lambda images: classifier.features_and_scores(images)[1], given, batch_size=16)
    full, photos, decoded, samples = (s.share for s in found.funnel.steps)
    assert full > 0.45
    assert full > photos + 0.1
    assert photos > decoded + 0.05
    assert samples == 0
    assert found.metrics["recognised_chance"] < decoded
    assert "It calls the subject Egyptian cat" in found.funnel.sentence
