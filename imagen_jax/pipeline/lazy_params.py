"""Parameters that are read when they are first asked for, and can be freed again."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from threading import RLock

import numpy as np

from imagen_jax.cascade.cascade import TEXT_ENCODER
from imagen_jax.cascade.stage import GuidedParams
from imagen_jax.storage.trees import flatten
from imagen_jax.typing import Params

# A few small tensors by their paths, by which two trained text encoders are told apart.
Probe = Mapping[str, np.ndarray]
PROBED = ("final_norm/scale", "relative_bias/embedding")


class LazyParams(Mapping):
    """The parameters of each stage by its name, and of "text_encoder".

    readers: each reads one of them, whatever is in memory. probe: reads the probe of the text
    encoder alone; without it, all of the encoder is read for that. on_free: called with the name of
    what `free` lets go. shapes: gives one of them as `jax.ShapeDtypeStruct`.
    """

    def __init__(
        self,
        readers: Mapping[str, Callable[[], Params | GuidedParams]],
        probe: Callable[[], Probe | None] | None = None,
        on_free: Callable[[str], None] | None = None,
        shapes: Callable[[str], Params] | None = None,
    ):
        self.readers = dict(readers)
        self._probe, self._on_free, self._shapes = probe, on_free, shapes
        self._read: dict[str, Params | GuidedParams] = {}
        self._lock = RLock()  # each is read once, whichever thread asks first

    def __getitem__(self, name: str) -> Params | GuidedParams:
        with self._lock:
            if name not in self._read:
                self._read[name] = self.readers[name]()
            return self._read[name]

    @property
    def knows_shapes(self) -> bool:
        """Whether `shapes` saves reading the parameters."""
        return self._shapes is not None

    def shapes(self, name: str) -> Params | GuidedParams:
        """One of them, or only its shapes where that saves reading it."""
        if name in self._read or self._shapes is None:
            return self[name]
        return self._shapes(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.readers)

    def __len__(self) -> int:
        return len(self.readers)

    def free(self, name: str) -> None:
        """Lets go of the parameters in memory; the next access reads them again."""
        self._read.pop(name, None)
        if self._on_free is not None:
            self._on_free(name)

    def probe(self) -> Probe | None:
        """A few tensors of the text encoder; None where its weights are not there."""
        if self._probe is not None:
            return self._probe()
        if TEXT_ENCODER not in self.readers:
            return None
        flat = flatten(self.readers[TEXT_ENCODER]())
        return {path: np.asarray(flat[path]) for path in PROBED if path in flat}


def as_lazy(params: Mapping[str, Params]) -> LazyParams:
    """Parameters that are in memory in the same form."""
    if isinstance(params, LazyParams):
        return params
    return LazyParams({name: partial(params.__getitem__, name) for name in params})
