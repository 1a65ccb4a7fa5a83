"""What is read for an evaluation: prompts, images, networks, references and the model under
evaluation.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from imagen_jax.devices.sharding import MeshConfig, make_mesh
from imagen_jax.diffusion.overrides import with_overrides
from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.evaluation import image_folder
from imagen_jax.evaluation.captioned_set import CaptionedSet, read_captioned
from imagen_jax.evaluation.features import FeatureExtractor
from imagen_jax.evaluation.image_quality import QUALITY, WINDOW
from imagen_jax.evaluation.metrics import DISTANCES, METRICS, metrics_of
from imagen_jax.evaluation.networks import check_networks, read_extractors, with_features
from imagen_jax.evaluation.prompts import COCO_SIZE, PromptList, read_prompts
from imagen_jax.evaluation.reference import Reference, read_reference
from imagen_jax.evaluation.reference_images import ReferenceImages, open_reference_images
from imagen_jax.evaluation.request import EvaluationRequest
from imagen_jax.evaluation.shards import WHOLE
from imagen_jax.pipeline.loading import load_guides, load_model
from imagen_jax.pipeline.pipeline import Pipeline
from imagen_jax.pipeline.request import last_stage
from imagen_jax.storage import fingerprints
from imagen_jax.storage.codec import require


@dataclass(frozen=True, eq=False)
class EvaluationRun:
    """A request and what was read for it, the same for every point of a curve.

    prompts: in their order; None for images of unknown captions. true_set: what psnr and ssim of a
    model's super-resolution stages are measured on. files: given images, measured instead of
    generated ones, one a prompt in their order. named_by_ids: whether these are named after the
    prompts' ids; None where there are no prompts or no such images. true_files: what psnr and ssim
    compare them with. true_images: those of a reference that is not made yet.
    """

    request: EvaluationRequest
    prompts: PromptList | None = None
    true_set: CaptionedSet | None = None
    files: tuple[Path, ...] | None = None
    named_by_ids: bool | None = None
    true_files: tuple[Path, ...] | None = None
    true_images: ReferenceImages | None = None
    extractors: tuple[FeatureExtractor, ...] = ()
    reference: Reference | None = None

    @property
    def texts(self) -> list[str] | None:
        """The prompt of every image."""
        if self.prompts is None:
            return None
        return [text for text in self.prompts.texts for _ in range(self.request.num_images)]

    @property
    def count(self) -> int:
        """How many images are measured."""
        return len(self.files or self.texts or self.true_set or ())

    @property
    def generates(self) -> bool:
        """Whether a model makes what is measured, or psnr and ssim are of a model's stage."""
        return self.files is None or self.true_set is not None


def read_run(request: EvaluationRequest) -> EvaluationRun:
    """Lists, folders and the reference; of given images the request gets the size.

    Raises ValueError where a metric lacks something that it needs.
    """
    prompts, true_set = _read_prompts(request), _read_true_set(request)
    true_images = open_reference_images(request)
    files, named_by_ids, true_files = _read_files(request, prompts)
    if files is not None:
        size = request.size or image_folder.common_size([*files, *(true_files or ())])
        request = replace(request, size=size)
    run = EvaluationRun(request, prompts, true_set, files, named_by_ids, true_files, true_images)
    _check_needs(run)
    if request.reference is not None and true_images is None:
        run = replace(run, reference=read_reference(request.reference))
    return replace(run, request=with_features(request))


def with_networks(run: EvaluationRun) -> EvaluationRun:
    """The run with its feature networks, which are slow to read: last, when all else is right.

    Raises ValueError where a network is damaged, or does not fit the metrics or the reference.
    """
    request = run.request
    run = replace(run, extractors=read_extractors(request.features, request.resize))
    check_networks(request.metrics, run.extractors)
    for extractor in run.extractors:
        wanted = metrics_of(request.metrics, extractor)
        if run.reference is not None and set(wanted) & set(DISTANCES):
            run.reference.of(extractor)
        # That it reads text at all is seen here; a reference may take hours.
        if request.shard == WHOLE and any(METRICS[m].target == "captions" for m in wanted):
            extractor.texts(run.texts[:1])
    return run


def _check_needs(run: EvaluationRun) -> None:
    """ValueError where a metric lacks images, prompts or a reference."""
    request, metrics = run.request, run.request.metrics
    counted = None not in (run.files, run.prompts) and not set(metrics) <= set(QUALITY)
    texts, distances = len(run.texts or ()), [m for m in metrics if m in DISTANCES]
    require(
        (
            run.files or run.prompts or set(metrics) <= set(QUALITY),
            f"Say with --prompts FILE what to generate for {', '.join(metrics)}, or give --images.",
        ),
        (
            not counted or run.count == texts,
            f"There are {run.count} images for {texts} prompts: give one each, named after the "
            "prompts' ids, or in the order of the sorted names.",
        ),
        (
            run.true_files is None or "ssim" not in metrics or request.size >= WINDOW,
            f"ssim needs images of at least {WINDOW}x{WINDOW} pixels, not of {request.size}.",
        ),
        (
            not distances or request.reference is not None,
            f"{_need(distances)} true images to compare with: give --reference FOLDER, or "
            "--reference FILE, which --make_reference makes.",
        ),
        (
            not distances or run.count >= 2,
            f"{_need(distances)} 2 images or more, not {run.count}.",
        ),
    )
    for name in metrics:
        captions = name in METRICS and METRICS[name].target == "captions"
        require(
            (
                not captions or run.prompts is not None,
                f"{name} needs the captions of the images: give --prompts.",
            ),
            (
                name != "r_precision" or len(set(run.prompts.texts)) > 1,
                "r_precision needs 2 captions or more: others to compare with.",
            ),
        )


def _need(metrics: Sequence[str]) -> str:
    return f"{', '.join(metrics)} need{'s' * (len(metrics) == 1)}"


def _read_prompts(request: EvaluationRequest) -> PromptList | None:
    if request.prompts is None:
        return None
    data = None if request.of_stages else request.data
    return read_prompts(request.prompts, data).first(request.num)


def _read_true_set(request: EvaluationRequest) -> CaptionedSet | None:
    """What psnr and ssim of a model's stages are measured on; None where they are not asked for."""
    if not request.of_stages:
        return None
    if request.data is None:
        raise ValueError(
            "psnr and ssim of a model's super-resolution stages need true images with captions: "
            "give --data FILE (npz or tar). Those of images compare --images with --truth."
        )
    return read_captioned(request.data, request.split, request.num, request.text)


def _read_files(
    request: EvaluationRequest, prompts: PromptList | None
) -> tuple[tuple[Path, ...] | None, bool | None, tuple[Path, ...] | None]:
    """(--images in the order of the prompts, whether they are named after the prompts' ids,
    --truth in the same order), None where not given.
    """
    if request.images is None:
        return None, None, None
    files, by_ids, true_files = image_folder.list_images(request.images), None, None
    if prompts is not None:
        files, by_ids = image_folder.order_by_ids(files, prompts.ids)
    if request.truth is not None:
        true_files = tuple(image_folder.matching_images(request.truth, files, request.images))
    return tuple(files), by_ids, true_files


# ------------------------------------------------------------------------------- the model


@dataclass(frozen=True, eq=False)
class EvaluatedModel:
    """The model under evaluation as one point of a curve samples it; `about` is for the report."""

    pipeline: Pipeline
    sampling: tuple[Sampling, ...]
    about: dict[str, Any]


# Fields of Sampling that a request may have, beside those of a curve.
OVERRIDES = (
    *("steps", "sampler", "guidance_kind", "guidance_eta", "guidance_norm", "guidance_momentum"),
    "zero_init_steps",
)


def all_devices() -> Mesh | None:
    """A mesh over this process's devices, which share each batch; None where there is one."""
    devices = jax.local_devices()
    return make_mesh(MeshConfig(), devices) if len(devices) > 1 else None


def read_model(request: EvaluationRequest) -> EvaluatedModel:
    """The model with the request's own sampling. ValueError where no stage makes its size."""
    given = {"mesh": all_devices(), "dtype": request.dtype}
    guide = request.guide
    if guide is not None:
        guide = load_guides(guide, step=request.guide_step, **given)
    given |= {"variant": request.variant, "ema": request.ema}
    pipeline = load_model(request.model, guide=guide, **given)
    last_stage(pipeline.cascade, pipeline.name, request.size)
    overrides = {name: getattr(request, name) for name in OVERRIDES}
    sampling = with_overrides(pipeline.cascade.sampling, **overrides)
    about = {
        "name": pipeline.name,
        "source": request.model,
        "dtype": request.dtype,
        "fingerprint": pipeline.fingerprint or fingerprints.of_parameters(pipeline.params),
        "notes": pipeline.notes,
        **({"guide": {k: dict(v.about) for k, v in pipeline.guides.items()}} if guide else {}),
    }
    return EvaluatedModel(pipeline, sampling, about)


def choose_size(request: EvaluationRequest, sizes: Sequence[int]) -> int:
    """The size to generate at: that of COCO's protocol for its prompts, else the largest."""
    if request.size is not None:
        return request.size
    return COCO_SIZE if request.prompts == "coco30k" and COCO_SIZE in sizes else sizes[-1]
