"""Distances and alignment of 50,000 samples and 10,000 photos, in a process of their own whose memory is seen at its end."""

import json
import subprocess
import sys

import pytest

PROGRAM = """
import json, resource, sys, time
import numpy as np
from darkroom.evaluation.distribution import distance_metrics
from darkroom.evaluation.features import FeatureSets
from darkroom.evaluation.neighbours import nearest, radius

num_samples, num_photos, dim = map(int, sys.argv[1:])
random = np.random.default_rng(0)
samples, held_out, train = (random.standard_normal((count, dim), np.float32) for count in (num_samples, num_photos, num_photos))
sources = np.arange(num_samples) % num_photos
seconds, peaks = {}, {}

def timed(name, function, *arguments, **options):
    started = time.monotonic()
    function(*arguments, **options)
    seconds[name] = round(time.monotonic() - started, 1)
    peaks[name] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3)  # GiB, of all parts so far

timed("distances", distance_metrics, FeatureSets(samples, held_out, train), held_out[:128], sources=sources, num_neighbours=3)
timed("nearest", nearest, samples, train)
images, texts = (features[:, :128].copy() for features in (samples, held_out))  # the embeddings of a small CLIP
del samples, held_out, train
from darkroom.evaluation.alignment import chance_clip_score, clip_score, retrieval_accuracy  # open_clip alone needs 0.2 GiB

timed("clip_score", clip_score, images, texts, sources)
timed("chance", chance_clip_score, images, texts, sources)
timed("retrieval", retrieval_accuracy, images, texts, sources)
print(json.dumps({"gib": peaks["retrieval"], "peaks": peaks, "seconds": seconds}))
"""


def measure(*sizes: int) -> dict:
    """GiB of memory at the peak, everything that is imported included, and the seconds of each part."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, *map(str, sizes)], capture_output=True, text=True, check=True)
    found: dict = json.loads(done.stdout)
    return found


def test_memory_does_not_grow_with_the_square_of_the_images():
    small, large = measure(1000, 500, 16)["peaks"], measure(20_000, 8000, 16)["peaks"]
    assert large["distances"] - small["distances"] < 0.3  # all pairs of photos have 0.5 GiB, those of samples and photos 1.2 GiB


@pytest.mark.slow
def test_fifty_thousand_samples_and_ten_thousand_photos_need_less_than_a_gibibyte():
    assert measure(50_000, 10_000, 512)["gib"] < 1
