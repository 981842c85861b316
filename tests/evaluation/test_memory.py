"""Distances and alignment of 50,000 samples and 10,000 photos, in a process of their own whose memory is seen at its end."""

import json
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from darkroom.evaluation.distribution import frechet_distance, precision_recall
from darkroom.evaluation.kernel_distance import mean_kernel_distance
from darkroom.evaluation.neighbours import nearest

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
from darkroom.evaluation.alignment import chance_clip_score, clip_score, retrieval_accuracy  # open_clip alone needs 0.2 GiB

embeddings = samples[:, :128].copy(), held_out[:, :128].copy()  # those of a small CLIP; the features stay where they are
timed("clip_score", clip_score, *embeddings, sources)
timed("chance", chance_clip_score, *embeddings, sources)
timed("retrieval", retrieval_accuracy, *embeddings, sources)
print(json.dumps({"gib": peaks["retrieval"], "peaks": peaks, "seconds": seconds}))
"""


def measure(*sizes: int) -> dict:
    """GiB of memory at the peak, everything that is imported included, and the seconds of each part."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, *map(str, sizes)], capture_output=True, text=True, check=True)
    found: dict = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("part", [lambda x, y: precision_recall(y, x, 3), nearest, mean_kernel_distance, frechet_distance])
def test_no_part_holds_all_pairs_of_images(part):
    samples, photos = (np.random.default_rng(seed).standard_normal((3000, 4), np.float32) for seed in (0, 1))
    tracemalloc.start()
    try:
        part(samples, photos)
        peak = tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()
    assert peak < 60  # MiB; all pairs have 69


@pytest.mark.slow
def test_fifty_thousand_samples_and_ten_thousand_photos_need_less_than_a_gibibyte():
    assert measure(50_000, 10_000, 512)["gib"] < 1
