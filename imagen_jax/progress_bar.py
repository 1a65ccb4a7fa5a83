"""A bar over all steps of all batches at all stages."""

import warnings
from collections.abc import Sequence

from imagen_jax.cascade import Callback, Cascade, Progress
from imagen_jax.diffusion.editing import Edit
from imagen_jax.sampling_settings import SamplingSettings
from imagen_jax.stage_sampling import plan_steps


class ProgressBar:
    """A bar over all steps of all batches at all stages; passes what it sees on to a callback."""

    def __init__(
        self,
        cascade: Cascade,
        settings: Sequence[SamplingSettings],
        edits: Sequence[Edit | None],
        positions: range,
        batches: int,
        callback: Callback | None,
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a notebook without ipywidgets gets a bar of text
            from tqdm.auto import tqdm

        steps = 0
        for i in positions:
            _, first, last = plan_steps(cascade.stages[i], settings[i], edits[i])
            steps += last - first
        desc = cascade.stages[positions[0]].name
        self.bar = tqdm(total=batches * steps, unit="step", desc=desc)
        self.callback = callback
        self.before: tuple[str, int, int] = ("", 0, 0)

    def __call__(self, progress: Progress) -> None:
        stage, first, step = self.before
        same = (stage, first) == (progress.stage.name, progress.first)
        self.bar.set_description(progress.stage.name, refresh=False)
        self.bar.update(progress.step - (step if same else 0))
        self.before = (progress.stage.name, progress.first, progress.step)
        if self.callback is not None:
            self.callback(progress)

    def close(self) -> None:
        self.bar.close()
