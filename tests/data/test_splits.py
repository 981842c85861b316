import hashlib

import pytest

from darkroom.data.shards import split_by_hash


def hashes(number: int) -> list[str]:
    return [hashlib.sha256(str(i).encode()).hexdigest() for i in range(number)]


def test_a_photo_keeps_its_side_when_others_come_or_go():
    many, few = split_by_hash(hashes(2000), 0.1), split_by_hash(hashes(1000), 0.1)
    assert set(few["val"]) == set(many["val"]) & set(hashes(1000))
    assert sorted(many["train"] + many["val"]) == sorted(hashes(2000))


def test_about_the_asked_fraction_is_held_out():
    assert len(split_by_hash(hashes(4000), 0.25)["val"]) == pytest.approx(1000, abs=100)


def test_with_few_photos_each_side_has_one():
    digests = ["8" * 64, "4" * 64, "c" * 64]
    assert split_by_hash(digests, 0.01) == {"train": ["8" * 64, "c" * 64], "val": ["4" * 64]}
    assert split_by_hash(digests, 0.99) == {"train": ["c" * 64], "val": ["4" * 64, "8" * 64]}


@pytest.mark.parametrize(("number", "least"), [(2, 1), (7, 1), (8, 2), (16, 4), (50, 4)])
def test_of_few_photos_a_quarter_is_held_out_and_no_more_than_evaluation_needs(number, least):
    assert split_by_hash(hashes(number), 1e-9) == {"train": sorted(hashes(number))[least:], "val": sorted(hashes(number))[:least]}


@pytest.mark.parametrize("number", [0, 1])
def test_fewer_than_two_photos_are_refused(number):
    with pytest.raises(ValueError, match=rf"{number} usable photo.*one to train on and one to hold out"):
        split_by_hash(hashes(number), 0.1)
