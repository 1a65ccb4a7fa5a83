"""The feature networks of an evaluation: where they are, and what to do where they are not."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax

from imagen_jax.evaluation.feature_files import find_network, load_extractor
from imagen_jax.evaluation.features import (
    CONFIGS,
    RESIZES_OF,
    FeatureExtractor,
    FeatureNetwork,
    make_extractor,
)
from imagen_jax.evaluation.metrics import METRICS, metrics_of
from imagen_jax.evaluation.request import EvaluationRequest
from imagen_jax.models import inception

RANDOM = "random_inception"
# Where networks are looked for without --features, by kind.
PLACES = {kind: Path("models") / kind for kind in CONFIGS}
TITLES = {"inception": "Inception", "clip": "CLIP", "dinov2": "DINOv2"}
HOW_TO_GET = {
    "inception": "Get pytorch-fid's pt_inception-2015-12-05-6726825d.pth, or TensorFlow's "
    "classify_image_graph_def.pb, and convert it once:\n\n"
    "  imagen-jax convert --model pt_inception-2015-12-05-6726825d.pth --to imagen_jax "
    "--out models/inception\n\n"
    "It is then found there; --features DIR names another place. To try things out without it: "
    f"--features {RANDOM}, whose figures are not FID.",
    "clip": "Get a CLIP model from Hugging Face (CMMD's is clip-vit-large-patch14-336) and convert "
    "it once:\n\n"
    "  imagen-jax convert --model clip-vit-large-patch14-336 --to imagen_jax "
    "--out models/clip\n\n"
    "It is then found there; --features DIR names another place.",
    "dinov2": "Get a DINOv2 model from Hugging Face (FD-DINOv2's is facebook/dinov2-large) and "
    "convert it once:\n\n"
    "  imagen-jax convert --model dinov2-large --to imagen_jax --out models/dinov2\n\n"
    "It is then found there; --features DIR names another place.",
}


def with_features(request: EvaluationRequest) -> EvaluationRequest:
    """The request with the networks that its metrics need, from their usual places, where it names
    none; for a reference alone, all that are there.

    Raises ValueError that says which file to get where one is missing; also what `find_network`
    raises.
    """
    for name in request.features:
        if name != RANDOM:
            find_network(name)
    if request.features:
        return request
    needed = needed_kinds(request.metrics) if request.metrics else list(PLACES)
    found = [kind for kind in needed if PLACES[kind].is_dir()]
    for kind in needed:
        if kind not in found and (request.metrics or not found):
            raise ValueError(missing_network(request.metrics, kind))
    return replace(request, features=tuple(str(PLACES[kind]) for kind in found))


def needed_kinds(metrics: Sequence[str]) -> list[str]:
    """The kinds of networks whose features these metrics read."""
    kinds = {METRICS[metric].network for metric in metrics if metric in METRICS}
    return [kind for kind in PLACES if kind in kinds]


def missing_network(metrics: Sequence[str], kind: str) -> str:
    """What to do where a network of this kind is not there."""
    readers = [m for m in metrics if m in METRICS and METRICS[m].network == kind]
    what = f"{' and '.join(readers) or 'A reference'} need{'' if len(readers) > 1 else 's'}"
    return f"{what} the network {TITLES[kind]}, and --features names none. {HOW_TO_GET[kind]}"


def check_networks(metrics: Sequence[str], extractors: Sequence[FeatureExtractor]) -> None:
    """ValueError where a metric has no network, or a network no metric."""
    kinds = {extractor.kind for extractor in extractors}
    for kind in needed_kinds(metrics):
        if kind not in kinds:
            raise ValueError(missing_network(metrics, kind))
    for extractor in extractors:
        if not metrics_of(metrics, extractor):
            raise ValueError(
                f"--features names {extractor.name}, whose features none of the metrics "
                f"{', '.join(metrics)} reads."
            )


def read_extractors(
    features: Sequence[str], resizes: Sequence[str] = ()
) -> tuple[FeatureExtractor, ...]:
    """The networks of these names, spread over all devices, once for each of the resizes that a
    network has (for none: by its usual one). One with several to choose from has it in its name.
    """
    found = []
    for name in features:
        extractor = random_inception() if name == RANDOM else load_extractor(name)
        known = RESIZES_OF[extractor.kind]
        wanted = [resize for resize in resizes if resize in known] or known[:1]
        for resize in wanted:
            own = f"{extractor.name}, {resize}" if len(known) > 1 else extractor.name
            found.append(replace(extractor, name=own, resize=resize))
    if len({extractor.name for extractor in found}) < len(found):
        raise ValueError(f"--features names a network twice: {[e.name for e in found]}.")
    return tuple(found)


def random_inception() -> FeatureExtractor:
    """Inception with random weights: for trying things out where the true ones are not at hand."""
    network = FeatureNetwork("random Inception", None, jax.jit(inception.init)(jax.random.key(0)))
    return make_extractor(network)
