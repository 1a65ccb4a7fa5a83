"""What is asked of an evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from imagen_jax.evaluation import shards
from imagen_jax.evaluation.features import RESIZES_OF
from imagen_jax.evaluation.image_quality import QUALITY
from imagen_jax.evaluation.metrics import METRICS
from imagen_jax.pipeline.request import check_batch, check_count, check_seed
from imagen_jax.storage.codec import require
from imagen_jax.storage.folders import user_path

# "images" gives no figure, only the images.
KNOWN_METRICS = (*METRICS, *QUALITY, "images")
# Those that there is a choice of.
KNOWN_RESIZES = tuple(name for names in RESIZES_OF.values() if len(names) > 1 for name in names)
StageValues = float | tuple[float, ...]  # one for all stages, or one each


@dataclass(frozen=True)
class EvaluationRequest:
    """What is to be measured; the options of imagen-jax evaluate explain each field.

    Raises ValueError for a field that cannot be, by itself or with the others.
    """

    model: str | list[str] = "icons"
    dtype: str = "float32"
    variant: str | None = None
    ema: bool | float = True
    guide: str | list[str] | None = None
    guide_step: int | None = None
    images: Path | None = None
    truth: Path | None = None
    prompts: str | None = None
    data: Path | None = None
    metrics: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    resize: tuple[str, ...] = ()
    reference: Path | None = None
    make_reference: str | None = None
    split: str = "heldout"
    text: str = "txt"
    num: int | None = None
    num_images: int = 1
    guidance: Sequence[StageValues] = ()
    aug_level: Sequence[StageValues] = ()
    steps: int | list[int] | None = None
    sampler: str | list[str] | None = None
    guidance_kind: str | list[str] | None = None
    guidance_eta: float | list[float] | None = None
    guidance_norm: float | list[float] | None = None
    guidance_momentum: float | list[float] | None = None
    zero_init_steps: float | list[float] | None = None
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
        for option, words, known in (
            ("--metrics", self.metrics, KNOWN_METRICS),
            ("--resize", self.resize, KNOWN_RESIZES),
        ):
            unknown = [word for word in words if word not in known]
            require(
                (not unknown, f"{option} has {unknown[:1]}; known are {', '.join(known)}."),
                (len(set(words)) == len(words), f"{option} names one twice: {', '.join(words)}."),
            )
        reference, making = self.reference, self.make_reference is not None
        require(
            (
                not making or reference is not None,
                "--make_reference needs --reference FILE, the file to write.",
            ),
            (
                not making or not reference.is_dir(),
                f"--reference {reference} is a folder; with --make_reference give the file to "
                "write.",
            ),
            (
                self.images is None or max(len(self.guidance), len(self.aug_level)) < 2,
                "--images are what they are: several --guidance or --aug_level need a model that "
                "generates them.",
            ),
            (
                self.guide_step is None or self.guide is not None,
                "--guide_step is for --guide, which is not given.",
            ),
            (
                self.truth is None or self.images is not None,
                "--truth is for --images, which are not given.",
            ),
        )
        check_batch(self.batch_size)
        check_count("num_images", self.num_images)
        for name in ("num", "size"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        check_seed(self.seed)
        shards.read_shard(self.share)

    @property
    def of_stages(self) -> bool:
        """Whether psnr or ssim is asked of a model's super-resolution stages."""
        return self.truth is None and bool(set(self.metrics) & set(QUALITY))

    @property
    def shard(self) -> shards.Shard:
        """Which share of the images this process has."""
        return shards.read_shard(self.share)


def with_metrics(request: EvaluationRequest) -> EvaluationRequest:
    """The request with metrics where it has none: those that fit what is given.

    Raises ValueError where nothing that is given says what to measure.
    """
    if request.metrics:
        return request
    if request.truth is not None:
        metrics = tuple(QUALITY)
    elif request.reference is not None:
        metrics = ("fid",)
    else:
        raise ValueError(
            "Say what to measure: --reference FOLDER is for fid, --truth FOLDER for psnr and ssim "
            "(a model also needs --prompts FILE to generate images of); --metrics names others: "
            f"{', '.join(KNOWN_METRICS)}."
        )
    return replace(request, metrics=metrics)
