"""The memory of distances, nearest neighbours and alignment: of each part, and of 50,000 samples in a process of their own."""

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
import json, resource, sys
import numpy as np
from darkroom.evaluation.alignment import chance_clip_score, clip_score, retrieval_accuracy
from darkroom.evaluation.distribution import distance_metrics
from darkroom.evaluation.features import FeatureSets
from darkroom.evaluation.neighbours import nearest

peaks = {}

def peak(name):
    peaks[name] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3)  # GiB, so far

peak("imports")
num_samples, num_photos, dim = 50_000, 10_000, 512
random = np.random.default_rng(0)
samples, held_out, train = (random.standard_normal((count, dim), np.float32) for count in (num_samples, num_photos, num_photos))
peak("features")
sources = np.arange(num_samples) % num_photos
distance_metrics(FeatureSets(samples, held_out, train), held_out[:128], sources=sources, num_neighbours=3)
peak("distances")
nearest(samples[::5], train)  # it takes the samples one after the other, a minute for all
peak("nearest")
embeddings = samples[:, :128].copy(), held_out[:, :128].copy()  # those of a small CLIP
for part in (clip_score, chance_clip_score, retrieval_accuracy):
    part(*embeddings, sources)
peak("alignment")
print(json.dumps(peaks))
"""


@pytest.mark.parametrize("part", [lambda x, y: precision_recall(y, x, 3), nearest, mean_kernel_distance, frechet_distance])
def test_no_part_holds_all_pairs_of_images(part):
    samples, photos = (np.random.default_rng(seed).standard_normal((4000, 4), np.float32) for seed in (0, 1))
    tracemalloc.start()
    try:
        part(samples, photos)
        peak = tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()
    assert peak < 60  # MiB; all pairs have 122


@pytest.mark.huge
def test_fifty_thousand_samples_and_ten_thousand_photos_need_a_quarter_of_a_gibibyte_and_the_imports():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    peaks = json.loads(done.stdout)
    assert peaks["alignment"] - peaks["imports"] < 0.25, peaks
