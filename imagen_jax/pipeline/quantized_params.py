"""A model's parameters, quantized part by part when they are first asked for."""

from collections.abc import Mapping
from functools import partial

from imagen_jax.cascade.cascade import TEXT_ENCODER
from imagen_jax.compress.quantization import (
    check_scheme,
    import_qwix,
    quantize,
    quantized_shapes,
)
from imagen_jax.pipeline.lazy_params import LazyParams, as_lazy
from imagen_jax.storage.layout_files import ShardingOf
from imagen_jax.typing import Params

# What a network is quantized to where the text encoder is in int4, which costs a network too much.
OF_NETWORKS = {"int4": "int8"}


def check_quantize(scheme: str | None) -> None:
    """ValueError for a scheme that there is none of; ImportError where qwix is missing."""
    if scheme is not None:
        check_scheme(scheme)
        import_qwix()


def scheme_of_part(part: str, scheme: str) -> str:
    """What a stage's network, or the text encoder, is quantized to."""
    return scheme if part == TEXT_ENCODER else OF_NETWORKS.get(scheme, scheme)


def quantized_params(params: Mapping, scheme: str, place: ShardingOf | None = None) -> LazyParams:
    """The same parts, quantized.

    Args:
        place: where a parameter is to lie; None gives numpy arrays for what is quantized.
    """
    lazy = as_lazy(params)

    def read(part: str) -> Params:
        # Not lazy[part], which would keep the floats.
        return quantize(lazy.readers[part](), scheme_of_part(part, scheme), place)

    def shapes(part: str) -> Params:
        return quantized_shapes(lazy.shapes(part), scheme_of_part(part, scheme), place)

    readers = {part: partial(read, part) for part in lazy}
    return LazyParams(readers, lazy.probe, lazy.free, shapes if lazy.knows_shapes else None)
