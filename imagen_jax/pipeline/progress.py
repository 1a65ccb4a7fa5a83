"""A bar over all steps of all batches at all stages."""

import warnings

from imagen_jax.cascade.cascade import Callback, Progress


class ProgressBar:
    """A bar over all steps of all batches at all stages; passes what it sees on to a callback."""

    def __init__(self, first_stage: str, total: int, callback: Callback | None):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a notebook without ipywidgets gets a bar of text
            from tqdm.auto import tqdm

        self.bar = tqdm(total=total, unit="step", desc=first_stage)
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
