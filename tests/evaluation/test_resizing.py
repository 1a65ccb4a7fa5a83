"""Images at a network's size, each way against its reference, on photographs of odd sizes."""

import numpy as np
import pytest
from feature_references import photographs, torch_fidelity
from PIL import Image

from imagen_jax.evaluation import resizing
from imagen_jax.models import clip, dinov2

PHOTOGRAPHS = ("chelsea", "china", "coffee")  # wide, larger and smaller than the networks see
SIDE = 299
# Of images in 0...255, or of normalized ones.
CLOSE = 1e-3


@pytest.fixture(scope="module", params=PHOTOGRAPHS)
def image(request) -> np.ndarray:
    return photographs()[request.param]


def as_tensor(image: np.ndarray):
    torch = pytest.importorskip("torch")
    return torch.tensor(image.transpose(2, 0, 1)[None], dtype=torch.float32)


def difference(ours: np.ndarray, theirs) -> float:
    return np.abs(ours - np.asarray(theirs)[0].transpose(1, 2, 0)).max()


def test_legacy_tensorflow_is_torch_fidelitys(image):
    module = torch_fidelity("interpolate_compat_tensorflow")
    theirs = module.interpolate_bilinear_2d_like_tensorflow1x(
        as_tensor(image), size=(SIDE, SIDE), align_corners=False
    )
    assert difference(resizing.legacy_tensorflow(image, SIDE), theirs) < CLOSE


def test_legacy_tensorflow_is_tensorflows(image):
    v1 = pytest.importorskip("tensorflow").compat.v1
    theirs = v1.image.resize_bilinear(image[None].astype(np.float32), (SIDE, SIDE))[0]
    ours = resizing.legacy_tensorflow(image, SIDE)
    assert np.abs(ours - theirs.numpy()).max() < CLOSE


def test_pytorch_fid(image):
    from torch.nn.functional import interpolate

    theirs = 255 * interpolate(
        as_tensor(image) / 255, size=(SIDE, SIDE), mode="bilinear", align_corners=False
    )
    assert difference(resizing.pytorch_fid(image, SIDE), theirs) < CLOSE


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
def test_clean(image):
    resize = pytest.importorskip("cleanfid.resize")
    theirs = resize.make_resizer("PIL", False, "bicubic", (SIDE, SIDE))(image)
    np.testing.assert_array_equal(resizing.clean(image, SIDE), theirs)


def test_edm2(image):
    from torch.nn.functional import interpolate

    image64 = as_tensor(image).double()  # in float32 PyTorch rounds the places to 0.005 of 255
    theirs = interpolate(image64, size=(SIDE, SIDE), mode="bicubic", antialias=True)
    assert difference(resizing.edm2(image, SIDE), theirs) < CLOSE


def test_dgm_eval(image):
    module = pytest.importorskip("transformers.models.vit.image_processing_pil_vit")
    mean, std = list(dinov2.IMAGE_MEAN), list(dinov2.IMAGE_STD)
    processor = module.ViTImageProcessorPil(
        size={"height": 224, "width": 224},
        resample=Image.Resampling.BICUBIC,
        image_mean=mean,
        image_std=std,
    )
    theirs = processor(image, return_tensors="np")["pixel_values"]
    ours = (resizing.dgm_eval(image, 224).astype(np.float32) / 255 - mean) / std
    assert difference(ours, theirs) < CLOSE


@pytest.mark.parametrize("side", [224, 336])
def test_clip(image, side):
    module = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    processor = module.CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    theirs = processor(image, return_tensors="np")["pixel_values"]
    ours = resizing.clip_crop(image, side).astype(np.float32) / 255
    ours = (ours - np.asarray(clip.IMAGE_MEAN)) / np.asarray(clip.IMAGE_STD)
    assert difference(ours, theirs) < CLOSE


@pytest.mark.parametrize("name", resizing.RESIZES)
def test_an_image_of_the_right_size_stays(name, rng):
    image = rng.integers(0, 256, (64, 64, 3), np.uint8)
    np.testing.assert_allclose(resizing.RESIZES[name](image, 64), image, atol=1e-4)


@pytest.mark.parametrize("name", resizing.RESIZES)
def test_one_colour_stays_at_any_size(name):
    for shape in ((1, 1), (1, 40), (33, 7), (64, 200)):
        image = np.full((*shape, 3), (10, 200, 255), np.uint8)
        resized = resizing.RESIZES[name](image, 32)
        assert resized.shape == (32, 32, 3)
        np.testing.assert_allclose(resized, np.broadcast_to(image[0, 0], (32, 32, 3)), atol=1e-3)
