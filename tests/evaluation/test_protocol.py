"""Every departure from the COCO protocol is told, and a figure without any has none."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import stand_in

from imagen_jax.evaluation.image_folder import Preprocessing
from imagen_jax.evaluation.inputs import EvaluationRequest, EvaluationRun
from imagen_jax.evaluation.prompts import PromptList
from imagen_jax.evaluation.protocol import departures
from imagen_jax.evaluation.reference import Reference, is_val2014
from imagen_jax.models.dinov2 import Dinov2Config

NETWORK = stand_in.StandIn("inception", "inception-v3")


def reference(count=40_504, size=256, val2014=True, broken=()):
    about = {
        "source": {"kind": "folder", "val2014": val2014},
        "pictures": count,
        "treatment": {"size": size, "broken": list(broken)},
    }
    return Reference({"inception-v3": np.zeros((1, 1))}, about)


def prompts(count=30_000, name="coco30k", **origin):
    texts = tuple(map(str, range(count)))
    return PromptList(name, texts, texts, origin={"pictures": 40_504, "seed": 0} | origin)


RUN = EvaluationRun(EvaluationRequest(), prompts(), reference=reference())
FOUND = {"pictures": 30_000, "subset_size": 1000}


def of_run(metric, network=NETWORK, found=FOUND, preprocessing=None, **change):
    preprocessing = Preprocessing(256) if preprocessing is None else preprocessing
    return departures(metric, network, found, replace(RUN, **change), preprocessing)


def test_the_protocol_has_no_departure():
    assert of_run("fid") == []
    assert of_run("kid") == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"found": {"pictures": 29_999}}, "29999 images, not 30000"),
        ({"preprocessing": Preprocessing(64)}, "images of 64 pixels, not 256"),
        ({"request": EvaluationRequest(num_images=2)}, "2 images a caption"),
        ({"files": ()}, "not known to this report"),
        ({"preprocessing": Preprocessing(256, broken=["x"])}, "1 images could not be read"),
        ({"preprocessing": Preprocessing(256, Counter(enlarged=3))}, "3 images were smaller"),
        ({"prompts": None}, "prompts of the images are not known"),
        ({"prompts": prompts(name="mine")}, "the prompts are 'mine'"),
        ({"prompts": prompts(100)}, "100 prompts, not 30000"),
        ({"prompts": prompts(pictures=5000)}, "does not say that they were drawn"),
        ({"reference": reference(5000)}, "5000 references, not 40504"),
        ({"reference": reference(size=128)}, "references of 128 pixels"),
        ({"reference": reference(val2014=False)}, "not known to be COCO's val2014"),
        ({"reference": reference(broken=["x"])}, "1 references could not be read"),
    ],
)
def test_each_departure_is_told(change, said):
    (reason,) = of_run("fid", **change)
    assert said in reason


def test_departures_of_a_metric():
    assert "subsets of 10" in of_run("kid", found={"pictures": 30_000, "subset_size": 10})[0]
    clip = stand_in.StandIn("clip", "some CLIP")
    found = {"pictures": 30_000, "negatives": 9}
    assert "9 other captions" in of_run("r_precision", clip, found)[0]
    assert of_run("clip", clip) == []
    assert "not named after" in of_run("clip", clip, named_by_ids=False)[0]
    large, small = (stand_in.StandIn("clip", "CLIP", dim=768, side=side) for side in (336, 224))
    assert of_run("cmmd", large) == []
    assert "is not CLIP ViT-L/14" in of_run("cmmd", small)[0]
    large, registers = stand_in.dinov2(), stand_in.dinov2()
    vars(registers)["config"] = Dinov2Config(registers=4, position_offset=0.0)
    assert of_run("fd_dinov2", large) == of_run("kd_dinov2", large) == []
    assert "is not DINOv2 ViT-L/14 without registers" in of_run("fd_dinov2", registers)[0]
    other = of_run("clip", clip, prompts=prompts(name="drawbench"))
    assert "same list" in other[0]
    assert "random weights, so this is not FID" in of_run("fid", stand_in.inception())[0]


def test_val2014_is_known_by_its_names():
    folder = {"kind": "folder", "path": "x"}
    val2014 = Path("some/COCO_val2014_000000000042.jpg")
    assert is_val2014(folder, [val2014])
    assert not is_val2014(folder, [val2014, Path("cat.jpg")])
    assert not is_val2014(folder, [])
    tfds = {"kind": "tfds", "name": "coco_captions"}
    assert is_val2014({**tfds, "split": "restval+val+test"}, [])
    assert not is_val2014({**tfds, "split": "val"}, [])
