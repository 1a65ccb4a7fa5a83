"""How well images fit their captions, by CLIP's embeddings of both."""

import numpy as np

from imagen_jax.evaluation.kernel_distance import normalize


def clip_score(image_features: np.ndarray, text_features: np.ndarray) -> float:
    """The mean cosine of each image and its own caption, in [-1, 1]; no scale, no clipping.

    Figures of different CLIP models do not compare: report the model's name with it.

    Args:
        image_features, text_features: [pairs, dim], normalized or not.
    """
    return float(cosines(image_features, text_features).mean())


def cosines(image_features: np.ndarray, text_features: np.ndarray) -> np.ndarray:
    """float64 [pairs]: the cosine of each image and its own caption."""
    _check_pairs(image_features, text_features)
    return (normalize(image_features) * normalize(text_features)).sum(axis=1)


def caption_ranks(
    image_features: np.ndarray, text_features: np.ndarray, *, negatives: int = 99, seed: int = 0
) -> np.ndarray:
    """int [pairs]: the place of each image's own caption among `negatives` others, 1 the nearest.

    R-precision with shuffled captions (arXiv 1711.10485, section 4.1, by CLIP): the share of ranks
    1 (`retrieval.scores`). The others are drawn for each image without replacement from the
    distinct captions that are not its own; one that is exactly as near does not count against it.
    """
    _check_pairs(image_features, text_features)
    distinct, own = distinct_captions(text_features)
    count = len(distinct)
    if not 1 <= negatives < count:
        raise ValueError(
            f"{count} distinct captions have from 1 to {count - 1} others, not {negatives}."
        )
    images, texts = normalize(image_features), normalize(distinct)
    generator = np.random.default_rng(seed)
    ranks = np.empty(len(images), np.int64)
    for row, (image, caption) in enumerate(zip(images, own, strict=True)):
        others = generator.choice(count - 1, negatives, replace=False)
        others += others >= caption
        # Not a matrix product, whose rounding depends on the row: as near stays as near.
        near = (texts[[caption, *others]] * image).sum(axis=1)
        ranks[row] = 1 + (near[1:] > near[0]).sum()
    return ranks


def distinct_captions(text_features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the features [captions, dim] without repeats, in order; of each row, its place in them).

    Captions are the same where their features are, to the bit.
    """
    _, first, inverse = np.unique(text_features, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return text_features[first[order]], np.argsort(order)[inverse.reshape(-1)]


def _check_pairs(image_features: np.ndarray, text_features: np.ndarray) -> None:
    if image_features.ndim != 2 or image_features.shape != text_features.shape:
        raise ValueError(
            f"image features {list(image_features.shape)} and text features "
            f"{list(text_features.shape)} must both be [pairs, dim]."
        )
    if not len(image_features):
        raise ValueError("There are no pairs of image and caption.")
