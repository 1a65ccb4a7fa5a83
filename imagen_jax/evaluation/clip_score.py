"""How well pictures fit their captions, by CLIP's embeddings of both."""

import numpy as np

from imagen_jax.evaluation.kernel_distance import normalize


def clip_score(image_features: np.ndarray, text_features: np.ndarray) -> float:
    """The mean cosine of each picture and its own caption, in [-1, 1]; no scale, no clipping.

    Figures of different CLIP models do not compare: report the model's name with it.

    Args:
        image_features, text_features: [pairs, dim], normalized or not.
    """
    return float(cosines(image_features, text_features).mean())


def cosines(image_features: np.ndarray, text_features: np.ndarray) -> np.ndarray:
    """float64 [pairs]: the cosine of each picture and its own caption."""
    _check_pairs(image_features, text_features)
    return (normalize(image_features) * normalize(text_features)).sum(axis=1)


def caption_ranks(
    image_features: np.ndarray, text_features: np.ndarray, *, negatives: int = 99, seed: int = 0
) -> np.ndarray:
    """int [pairs]: the place of each picture's own caption among `negatives` others, 1 the nearest.

    R-precision with shuffled captions (arXiv 1711.10485, section 4.1, by CLIP): the share of ranks
    1 (`retrieval.scores`). The others are drawn for each picture without replacement; a caption
    that is exactly as near does not count against the picture's own.
    """
    _check_pairs(image_features, text_features)
    pairs = len(image_features)
    if not 1 <= negatives < pairs:
        raise ValueError(f"{pairs} captions have from 1 to {pairs - 1} others, not {negatives}.")
    images, texts = normalize(image_features), normalize(text_features)
    generator = np.random.default_rng(seed)
    ranks = np.empty(pairs, np.int64)
    for row, image in enumerate(images):
        others = generator.choice(pairs - 1, negatives, replace=False)
        others += others >= row
        # Not a matrix product, whose rounding depends on the row: equal captions stay equal.
        near = (texts[[row, *others]] * image).sum(axis=1)
        ranks[row] = 1 + (near[1:] > near[0]).sum()
    return ranks


def _check_pairs(image_features: np.ndarray, text_features: np.ndarray) -> None:
    if image_features.ndim != 2 or image_features.shape != text_features.shape:
        raise ValueError(
            f"image features {list(image_features.shape)} and text features "
            f"{list(text_features.shape)} must both be [pairs, dim]."
        )
    if not len(image_features):
        raise ValueError("There are no pairs of picture and caption.")
