"""What an evaluation is asked for, and what is read for it: prompts, images, networks, references
and the model under evaluation.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from imagen_jax.data.tfds_source import read_tfds
from imagen_jax.devices.sharding import MeshConfig, make_mesh
from imagen_jax.diffusion.overrides import with_overrides
from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.evaluation import image_folder, image_set, shards
from imagen_jax.evaluation.feature_files import load_extractor
from imagen_jax.evaluation.features import (
    INCEPTION_RESIZES,
    FeatureExtractor,
    FeatureNetwork,
    make_extractor,
)
from imagen_jax.evaluation.image_quality import QUALITY
from imagen_jax.evaluation.metrics import DISTANCES, METRICS, metrics_of
from imagen_jax.evaluation.prompts import COCO_SIZE, PromptList, plain_list, read_prompts
from imagen_jax.evaluation.reference import (
    Reference,
    is_val2014,
    make_reference,
    read_reference,
    write_reference,
)
from imagen_jax.models import inception
from imagen_jax.pipeline.loading import load_model
from imagen_jax.pipeline.pipeline import Pipeline
from imagen_jax.pipeline.request import check_count, check_seed, last_stage
from imagen_jax.storage import fingerprints
from imagen_jax.storage.codec import require
from imagen_jax.storage.folders import user_path

# "images" gives no figure, only the images.
KNOWN_METRICS = (*METRICS, "retrieval", *QUALITY, "images")
RANDOM = "random_inception"
StageValues = float | tuple[float, ...]  # one for all stages, or one each


@dataclass(frozen=True)
class EvaluationRequest:
    """What is to be measured; the options of scripts/evaluate.py explain each field.

    Raises ValueError for a field that cannot be, by itself or with the others.
    """

    model: str | list[str] = "emoji"
    dtype: str = "float32"
    variant: str | None = None
    images: Path | None = None
    truth: Path | None = None
    prompts: str | None = None
    data: Path | None = None
    metrics: tuple[str, ...] = ("retrieval",)
    features: tuple[str, ...] = ()
    resize: tuple[str, ...] = INCEPTION_RESIZES[:1]
    reference: Path | None = None
    make_reference: str | None = None
    split: str = "heldout"
    language: str | None = None
    num: int | None = None
    num_images: int = 1
    guidance: Sequence[StageValues] = ()
    aug_level: Sequence[StageValues] = ()
    steps: int | list[int] | None = None
    sampler: str | list[str] | None = None
    size: int | None = None
    seed: int = 0
    batch_size: int = 16
    share: str | None = None
    skip_broken: bool = False
    out: Path | None = None

    def __post_init__(self):
        for name in ("images", "truth", "data", "reference", "out"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, user_path(getattr(self, name)))
        metrics, resizes, reference = set(self.metrics), set(self.resize), self.reference
        require(
            (
                metrics and metrics <= set(KNOWN_METRICS),
                f"--metrics are {', '.join(metrics)}; known are {', '.join(KNOWN_METRICS)}.",
            ),
            (
                resizes and resizes <= set(INCEPTION_RESIZES),
                f"--resize is {', '.join(resizes)}; known are {', '.join(INCEPTION_RESIZES)}.",
            ),
            (
                self.make_reference is None or (reference is not None and self.features),
                "--make_reference needs --features DIR and --reference FILE to write.",
            ),
            (
                reference is None or not reference.is_dir(),
                f"--reference {reference} is a folder; give a file.",
            ),
        )
        check_count("batch_size", self.batch_size)
        check_count("num_images", self.num_images)
        check_seed(self.seed)
        shards.read_shard(self.share)

    @property
    def shard(self) -> shards.Shard:
        return shards.read_shard(self.share)


@dataclass(frozen=True, eq=False)
class EvaluationRun:
    """A request and what was read for it, the same for every point of a sweep.

    prompts: in their order; None for images of unknown captions. emoji: the images that retrieval,
    psnr and ssim look at. files: given images, measured instead
    of generated ones, one a prompt in their order. named_by_ids: whether these are named after the
    prompts' ids; None where there are no prompts or no such images. true_files: what psnr and ssim
    compare them with.
    """

    request: EvaluationRequest
    prompts: PromptList | None = None
    emoji: image_set.ImageSet | None = None
    files: tuple[Path, ...] | None = None
    named_by_ids: bool | None = None
    true_files: tuple[Path, ...] | None = None
    extractors: tuple[FeatureExtractor, ...] = ()
    reference: Reference | None = None

    @property
    def texts(self) -> list[str] | None:
        """The prompt of every image."""
        if self.prompts is None:
            return None
        return [text for text in self.prompts.texts for _ in range(self.request.num_images)]


def read_run(request: EvaluationRequest) -> EvaluationRun:
    """Everything but the model and what takes long.

    Raises ValueError where a metric lacks something that it needs.
    """
    prompts, emoji = _read_prompts(request)
    files, named_by_ids, true_files = _read_files(request, prompts)
    made = None
    if request.reference is not None and request.make_reference is None:
        made = read_reference(request.reference)
    extractors = read_extractors(request)
    run = EvaluationRun(request, prompts, emoji, files, named_by_ids, true_files, extractors, made)
    _check_needs(run)
    return run


def _check_needs(run: EvaluationRun) -> None:
    """ValueError where a metric lacks something, a network has no metric, or images no prompt."""
    request, metrics, reference = run.request, run.request.metrics, run.reference
    of_emoji = {"retrieval", *(QUALITY if run.true_files is None else ())} & set(metrics)
    counted = None not in (run.files, run.prompts) and not set(metrics) <= set(QUALITY)
    files, texts = len(run.files or ()), len(run.texts or ())
    require(
        (
            run.emoji is not None or not of_emoji,
            f"{', '.join(sorted(of_emoji))} look at emoji: give --prompts emoji; psnr and ssim "
            "also compare --images with --truth.",
        ),
        (
            not counted or files == texts,
            f"There are {files} images for {texts} prompts: give one each, named after the "
            "prompts' ids, or in the order of the sorted names.",
        ),
    )
    kinds = {extractor.kind for extractor in run.extractors}
    for name in [name for name in metrics if name in METRICS]:
        metric = METRICS[name]
        made = reference is not None or request.make_reference is not None
        require(
            (
                metric.network in kinds,
                f"{name} needs a network of kind {metric.network}: give its converted weights "
                "with --features DIR (scripts/convert.py makes them of the public files).",
            ),
            (
                metric.target != "reference" or made,
                f"{name} needs --reference FILE, which --make_reference makes.",
            ),
            (
                metric.target != "captions" or run.prompts is not None,
                f"{name} needs the captions of the images: give --prompts.",
            ),
        )
    for extractor in run.extractors:
        wanted = metrics_of(metrics, extractor)
        require(
            (wanted, f"No metric of {', '.join(metrics)} reads the features of {extractor.name}.")
        )
        if reference is not None and set(wanted) & set(DISTANCES):
            reference.of(extractor)


def _read_prompts(
    request: EvaluationRequest,
) -> tuple[PromptList | None, image_set.ImageSet | None]:
    """(prompts, the emoji if they are the prompts)."""
    source = request.prompts or (None if request.images else "emoji")
    if source is None:
        return None, None
    if source != "emoji":
        return read_prompts(source, request.data).first(request.num), None
    emoji = read_emoji(request, request.split)
    names = image_set.make_prompts(emoji, request.language)
    return plain_list("emoji", [prompt.text for prompt in names]), emoji


def read_emoji(request: EvaluationRequest, split: str) -> image_set.ImageSet:
    return image_set.read_image_set(request.data or image_set.EMOJI, split, request.num)


def _read_files(
    request: EvaluationRequest, prompts: PromptList | None
) -> tuple[tuple[Path, ...] | None, bool | None, tuple[Path, ...] | None]:
    """(--images in the order of the prompts, whether they are named after the prompts' ids,
    --truth in the same order), None where not given.
    """
    if request.images is None:
        if request.truth is not None:
            raise ValueError("--truth is for --images, which are not given.")
        return None, None, None
    files, by_ids, true_files = image_folder.list_images(request.images), None, None
    if prompts is not None:
        files, by_ids = image_folder.order_by_ids(files, prompts.ids)
    if request.truth is not None:
        true_files = tuple(image_folder.matching_images(request.truth, files, request.images))
    return tuple(files), by_ids, true_files


# ------------------------------------------------------------------------------- the networks


def read_extractors(request: EvaluationRequest) -> tuple[FeatureExtractor, ...]:
    """The feature networks, spread over all devices; Inception once for each way to resize."""
    found = []
    for name in request.features:
        extractor = random_inception() if name == RANDOM else load_extractor(name)
        if extractor.kind == "inception":
            found += [
                replace(extractor, name=f"{extractor.name}, {resize}", resize=resize)
                for resize in request.resize
            ]
        else:
            found.append(extractor)
    if len({extractor.name for extractor in found}) < len(found):
        raise ValueError(f"--features names a network twice: {[e.name for e in found]}.")
    return tuple(found)


def random_inception() -> FeatureExtractor:
    """Inception with random weights: for trying things out where the true ones are not at hand."""
    network = FeatureNetwork("random Inception", None, inception.init(jax.random.key(0)))
    return make_extractor(network)


# ------------------------------------------------------------------------------- the reference


def save_reference(request: EvaluationRequest, extractors: Sequence[FeatureExtractor]) -> None:
    """Writes --reference of the images of --make_reference: of a folder, of emoji:SPLIT, chosen as
    the prompts are, or of tfds:NAME:SPLIT. Of a shard, its chunks' features beside it.
    """
    kind, _, rest = request.make_reference.partition(":")
    if kind == "emoji":
        emoji = read_emoji(request, rest or request.split)
        items, source = image_folder.SourceImages(emoji.source), emoji.describe()
    elif kind == "tfds":
        name, _, split = rest.rpartition(":")
        if not name:
            raise ValueError(f"--make_reference {request.make_reference} must be tfds:NAME:SPLIT.")
        items = image_folder.SourceImages(read_tfds(name, split, None))
        source = {"name": name, "split": split}
    else:
        kind, items = "folder", image_folder.list_images(request.make_reference)
        source = {"path": request.make_reference}
    source = {"kind": kind, **source}
    source["val2014"] = is_val2014(source, items if kind == "folder" else ())
    path = request.reference
    made = make_reference(
        extractors,
        items,
        request.size or image_folder.common_size(items),
        source,
        path.with_name(f"{path.name}.parts"),
        shard=request.shard,
        skip_broken=request.skip_broken,
    )
    if made is None:
        print(f"Share {request.share} of the reference is done; run without --share to write it.")
        return
    write_reference(path, made)
    print(f"{path}: {made.count} images, fingerprint {made.fingerprint}")


# ------------------------------------------------------------------------------- the model


@dataclass(frozen=True, eq=False)
class EvaluatedModel:
    """The model under evaluation as one point of a sweep samples it; `about` is for the report."""

    pipeline: Pipeline
    sampling: tuple[Sampling, ...]
    about: dict[str, Any]


def all_devices() -> Mesh | None:
    """A mesh over all devices, which share each batch; None where there is one."""
    return make_mesh(MeshConfig()) if jax.device_count() > 1 else None


def read_model(request: EvaluationRequest) -> EvaluatedModel:
    """The model with the request's own sampling. ValueError where no stage makes its size."""
    pipeline = load_model(
        request.model, mesh=all_devices(), dtype=request.dtype, variant=request.variant
    )
    last_stage(pipeline.cascade, pipeline.name, request.size)
    sampling = with_overrides(
        pipeline.cascade.sampling, steps=request.steps, sampler=request.sampler
    )
    about = {
        "name": pipeline.name,
        "source": request.model,
        "dtype": request.dtype,
        "fingerprint": pipeline.fingerprint or fingerprints.of_parameters(pipeline.params),
        "notes": pipeline.notes,
    }
    return EvaluatedModel(pipeline, sampling, about)


def choose_size(request: EvaluationRequest, sizes: Sequence[int]) -> int:
    """The size to generate at: for emoji the smallest that retrieval need not upsample."""
    if request.size is not None:
        return request.size
    if request.prompts in (None, "emoji"):
        return min((size for size in sizes if size >= image_set.SIZE), default=sizes[-1])
    return COCO_SIZE if request.prompts == "coco30k" and COCO_SIZE in sizes else sizes[-1]
