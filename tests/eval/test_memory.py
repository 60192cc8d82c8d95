"""Peak memory of evaluators besides the features, measured in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

MEASURE = """
import json, sys
import torch
from ssl_zoo.eval import logistic, nearest
from ssl_zoo.eval.features import Features
from ssl_zoo.eval.knn import KNNConfig, knn_predictions

torch.set_num_threads(1)
DIM, CLASSES, QUERIES = 256, 20, 500

def status(key):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

def features(num_images):
    generator = torch.Generator().manual_seed(num_images)
    values = torch.randn(num_images, DIM, generator=generator)
    return Features(values, torch.arange(num_images) % CLASSES, torch.arange(num_images))

def growth(function, *arguments):
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak so far is forgotten
    before = status("VmRSS")
    function(*arguments)
    return status("VmHWM") - before

knn, test = KNNConfig(k=[50]), features(QUERIES)
fit = logistic.LogisticConfig(max_iterations=3)
searched = lambda train: knn_predictions(train, test, knn)
fitted = lambda train: logistic.logistic_predictions(train, test, fit)
for function in (searched, fitted):
    function(features(1000))  # libraries load parts of themselves on first use
stated = {"knn": nearest.working_bytes(QUERIES, DIM, 50), "logistic": logistic.working_bytes(1024, DIM, CLASSES)}
measured = {}
for count in (20000, 80000):
    train = features(count)
    measured[count] = {"knn": growth(searched, train), "logistic": growth(fitted, train)}
print(json.dumps({"stated": stated, "measured": measured}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux reports and resets the peak")
def test_memory_besides_the_features_stays_within_what_is_stated_for_any_number_of_images():
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    for count, of_evaluator in found["measured"].items():
        per_image = 40 * int(count)  # row numbers, owners, labels
        for name, growth in of_evaluator.items():
            assert growth < found["stated"][name] + per_image + (4 << 20), (count, found)
    features = 4 * 256 * 80_000
    assert found["measured"]["80000"]["logistic"] < features / 2  # a float64 copy would take twice the features
