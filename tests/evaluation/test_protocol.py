"""Every departure from the COCO protocol is told, and a figure without any has none."""

from dataclasses import replace

import numpy as np
import pytest
import stand_in

from imagen_jax.evaluation.prompts import PromptList
from imagen_jax.evaluation.protocol import Circumstances, departures, is_val2014
from imagen_jax.evaluation.reference import Reference

NETWORK = stand_in.StandIn("inception", "inception-v3")


def reference(count=40_504, size=256, val2014=True, broken=()):
    about = {
        "source": {"kind": "folder", "val2014": val2014},
        "pictures": count,
        "treatment": {"size": size, "broken": list(broken)},
    }
    return Reference({"inception-v3": np.zeros((1, 1))}, about, "f")


def prompts(count=30_000, name="coco30k", **origin):
    texts = tuple(map(str, range(count)))
    return PromptList(name, texts, texts, origin={"pictures": 40_504, "seed": 0} | origin)


ON = Circumstances(30_000, 256, prompts(), reference(), {"broken": []}, True)
KID = {"subset_size": 1000}


def test_the_protocol_has_no_departure():
    assert departures("fid", NETWORK, {}, ON) == []
    assert departures("kid", NETWORK, KID, ON) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pictures": 29_999}, "29999 images, not 30000"),
        ({"size": 64}, "images of 64 pixels, not 256"),
        ({"copies": 2}, "2 images a caption"),
        ({"made_here": False}, "not known to this report"),
        ({"treatment": {"broken": ["x"]}}, "1 images could not be read"),
        ({"treatment": {"enlarged": 3}}, "3 images were smaller"),
        ({"prompts": None}, "prompts of the images are not known"),
        ({"prompts": prompts(name="mine")}, "the prompts are 'mine'"),
        ({"prompts": prompts(100)}, "100 prompts, not 30000"),
        ({"prompts": prompts(images=5000)}, "does not say that they were drawn"),
        ({"reference": reference(5000)}, "5000 references, not 40504"),
        ({"reference": reference(size=128)}, "references of 128 pixels"),
        ({"reference": reference(val2014=False)}, "not known to be COCO's val2014"),
        ({"reference": reference(broken=["x"])}, "1 references could not be read"),
    ],
)
def test_each_departure_is_told(change, said):
    (reason,) = departures("fid", NETWORK, {}, replace(ON, **change))
    assert said in reason


def test_departures_of_a_metric():
    assert "subsets of 10" in departures("kid", NETWORK, {"subset_size": 10}, ON)[0]
    clip = stand_in.StandIn("clip", "some CLIP")
    assert "9 other captions" in departures("r_precision", clip, {"negatives": 9}, ON)[0]
    assert departures("clip", clip, {}, ON) == []
    assert departures("cmmd", replace(clip, dim=768, side=336), {}, ON) == []
    assert "is not CLIP ViT-L/14" in departures("cmmd", replace(clip, side=224), {}, ON)[0]
    other = departures("clip", clip, {}, replace(ON, prompts=prompts(name="drawbench")))
    assert "same list" in other[0]
    assert "random weights, so this is no FID" in departures("fid", stand_in.inception(), {}, ON)[0]


def test_val2014_is_known_by_its_names():
    folder = {"kind": "folder", "path": "x"}
    assert is_val2014(folder, ["COCO_val2014_000000000042.jpg"])
    assert not is_val2014(folder, ["COCO_val2014_000000000042.jpg", "cat.jpg"])
    assert not is_val2014(folder, [])
    tfds = {"kind": "tfds", "name": "coco_captions"}
    assert is_val2014({**tfds, "split": "restval+val+test"}, [])
    assert not is_val2014({**tfds, "split": "val"}, [])
