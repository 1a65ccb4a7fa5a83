"""Checkpoints of a run: written in the background, whole or not at all, readable on any mesh.

Each step's directory holds the items `params`, `ema`, `power_ema` (averages by their width, where
the run keeps them), `optimizer` (step number and optimizer state) and `run` (JSON: the config, the
position in the data, the metrics since the last report, and a digest of every array, so that a byte
that has changed on the disk is noticed). Trees are stored as nested dicts by parameter name, so a
reader needs none of our classes.
"""

import contextlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from imagen_jax.devices.hosts import gather_json
from imagen_jax.devices.memory import size_text
from imagen_jax.storage.digest import Arrays, checked, described, first_fault, signed
from imagen_jax.storage.disk import describe, disk_refusal
from imagen_jax.storage.orbax_noise import silence
from imagen_jax.storage.trees import flatten, num_bytes, shape_differences, unflatten
from imagen_jax.typing import Params

OWN_ITEMS = ("params", "ema", "power_ema")
AVERAGES = ("ema", "power_ema")  # the one that is read comes first
OPTIMIZER = "optimizer"  # the item of all other fields of the state
JSON_ITEM = "run"


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the message says which ones are whole."""


class MismatchError(ValueError):
    """Weights are not of the config's network; the message names the first that differ."""


def _items(state: Any) -> Arrays:
    """A state (a NamedTuple) by item; the paths in those of their own do not repeat that name."""
    fields = state._asdict()
    items = {item: flatten(fields.pop(item, None)) for item in OWN_ITEMS}
    items[OPTIMIZER] = flatten(fields)
    return {item: arrays for item, arrays in items.items() if arrays}


def _shapes(arrays: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {path: tuple(leaf.shape) for path, leaf in arrays.items()}


def check_weights(wanted: Any, given: Any, source: str = "the given weights") -> None:
    """MismatchError names the first parameters by which two trees of arrays differ."""
    if problems := shape_differences(_shapes(flatten(wanted)), _shapes(flatten(given))):
        raise MismatchError(f"{source} do not fit the config: {problems}")


class Checkpoints:
    """The checkpoints of one run in `directory`: the last `keep` and the `keep_best` of lowest
    loss.
    """

    def __init__(
        self, directory: str | Path, *, keep: int = 3, keep_best: int = 1, read_only: bool = False
    ):
        self.directory = Path(directory).absolute()
        self.saving = "the last checkpoint", 0  # and its bytes
        best = policies.BestN(
            get_metric_fn=_loss, reverse=True, n=keep_best, keep_checkpoints_without_metrics=False
        )
        kept = [policies.LatestN(keep), *([best] if keep_best else [])]
        if not read_only:
            self._drop_unreadable_losses()
        silence()
        written = self._writing("the folder of checkpoints")
        with contextlib.nullcontext() if read_only else written:
            self.manager = ocp.CheckpointManager(
                self.directory,
                options=ocp.CheckpointManagerOptions(
                    create=not read_only,
                    read_only=read_only,
                    lightweight_initialize=read_only,  # the losses may be damaged, and rank nothing
                    cleanup_tmp_directories=not read_only,
                    best_fn=None if read_only else _loss,
                    best_mode="min",
                    preservation_policy=policies.AnyPreservationPolicy(kept),
                ),
                item_handlers={
                    **{item: ocp.StandardCheckpointHandler() for item in (*OWN_ITEMS, OPTIMIZER)},
                    JSON_ITEM: ocp.JsonCheckpointHandler(),
                },
            )

    def _drop_unreadable_losses(self) -> None:
        """Removes those of the losses that rank the checkpoints which Orbax could not read."""
        if jax.process_index() == 0:
            for path in self.directory.glob("*/metrics/metrics"):
                try:
                    _loss(json.loads(path.read_text()))
                except (ValueError, TypeError, KeyError):
                    path.unlink()
        gather_json(None)

    def steps(self) -> list[int]:
        """The steps of the finished checkpoints, oldest first."""
        return sorted(ocp.utils.checkpoint_steps(self.directory))

    def check_space(self, state: Any) -> None:
        """CheckpointError where the disk has no room for one more checkpoint of this state."""
        needed, free = num_bytes(state), shutil.disk_usage(self.directory).free
        if free < needed:
            raise CheckpointError(
                f"{self.directory} has {size_text(free)} free, and a checkpoint needs "
                f"{size_text(needed)}. {self._whole()}"
            )

    def save(self, step: int, state: Any, *, run: Mapping[str, Any], loss: float) -> None:
        """Starts writing and returns; the state may be donated at once. `run` is JSON-able. `loss`
        ranks the best.
        """
        self.wait()
        self.check_space(state)
        self.saving = f"the checkpoint of step {step}", num_bytes(state)
        items = _items(state)
        if jax.default_backend() == "cpu":
            # A CPU array and its host copy share memory, which the next (donating) step would
            # overwrite.
            items = jax.tree.map(_detached, items)
        args = {name: ocp.args.StandardSave(unflatten(arrays)) for name, arrays in items.items()}
        args[JSON_ITEM] = ocp.args.JsonSave(signed({**run, "arrays": described(items)}))
        known = contextlib.suppress(ocp.checkpoint_manager.StepAlreadyExistsError)
        with self._writing(), known:
            self.manager.save(
                step, args=ocp.args.Composite(**args), metrics={"loss": loss}, force=True
            )

    def wait(self) -> None:
        """Blocks until the checkpoint being written is whole; CheckpointError if it could not be
        written.
        """
        with self._writing():
            self.manager.wait_until_finished()
            self.manager.check_for_errors()

    def check(self) -> None:
        """Raises the background writer's error, if there was one, without waiting."""
        with self._writing():
            self.manager.check_for_errors()

    def restore(self, state: Any) -> tuple[Any, dict[str, Any]] | None:
        """The newest whole checkpoint in the structure, dtypes and shardings of `state` (arrays or
        ShapeDtypeStructs).

        Returns (state, run), or None where there is no checkpoint. A damaged newest checkpoint is
        set aside with a warning and the one before is taken.

        Raises:
            MismatchError: the checkpoint's parameters are not the config's; names the first that
                differ.
            CheckpointError: there are checkpoints and none is readable.
        """
        steps, wanted = self.steps(), _items(state)
        if not steps:
            return None
        step, restored, run, damaged = self._newest_whole(steps, wanted)
        for number, reason in damaged.items():
            self._warn(number, reason, f"it is renamed to damaged-{number}, and {step} is taken")
            self._set_aside(number)
        flat = {
            f"{item}/{path}".removeprefix(f"{OPTIMIZER}/"): leaf
            for item, arrays in restored.items()
            for path, leaf in arrays.items()
        }
        leaves = [flat[path] for path in flatten(state)]
        return jax.tree.unflatten(jax.tree.structure(state), leaves), run

    def read_parameters(
        self, item: str | None = None, step: int | np.integer | None = None
    ) -> tuple[int, Params, dict[str, Any]]:
        """(step, parameters as numpy arrays, run) of the newest whole checkpoint. A damaged newer
        one is left as it is, with a warning.

        Args:
            item: "ema" or "params"; None for the average where the run kept one (of power-law
                averages alone the narrowest), else the parameters.
            step: of the checkpoint to read, and of no other.

        Raises:
            ValueError: there is no (such) checkpoint, or it has no such item.
            CheckpointError: it is damaged.
        """
        steps = self.steps()
        if not steps:
            raise ValueError(f"{self.directory} holds no checkpoint")
        if step is not None and step not in steps:
            there = ", ".join(map(str, steps))
            raise ValueError(f"{self.directory} has no checkpoint of step {step}; it has {there}.")
        steps = steps if step is None else [int(step)]
        step, restored, run, damaged = self._newest_whole(steps, item)
        for number, reason in damaged.items():
            self._warn(number, reason, f"{step} is read instead")
        ((item, arrays),) = restored.items()
        params = jax.tree.map(np.asarray, unflatten(arrays))
        return step, params[min(params, key=float)] if item == "power_ema" else params, run

    def read_description(self) -> dict[str, Any]:
        """What the newest readable checkpoint holds beside the arrays.

        Raises:
            CheckpointError: there is none.
        """
        for step in reversed(self.steps()):
            with contextlib.suppress(Exception):  # damage shows as many types
                return checked(self._read(step, {})[1])
        raise CheckpointError(f"no checkpoint in {self.directory} can be read")

    def close(self) -> None:
        """Finishes writing and lets go of the directory."""
        self.wait()
        self.manager.close()

    def _metadata(self, step: int) -> Arrays:
        metadata = self.manager.item_metadata(step) or {}
        found = {  # some versions of Orbax wrap the tree
            item: flatten(getattr(metadata[item], "tree", metadata[item]))
            for item in (*OWN_ITEMS, OPTIMIZER)
            if metadata.get(item) is not None
        }
        if not found:
            raise ValueError("no readable metadata")
        return found

    def _newest_whole(
        self, steps: list[int], wanted: Arrays | str | None
    ) -> tuple[int, Arrays, dict[str, Any], dict[int, str]]:
        """(step, items, run) of the last of `steps` that is whole, and what is wrong with those
        after it. `wanted`: as of `_read_whole`.
        """
        damaged: dict[int, str] = {}
        for step in reversed(steps):
            restored, run, fault = self._read_whole(step, wanted)
            if fault is None:
                return step, restored, run, damaged
            damaged[step] = fault
        if len(damaged) == 1:
            raise CheckpointError(f"checkpoint {step} in {self.directory} is damaged ({fault})")
        reasons = "; ".join(f"{step}: {reason}" for step, reason in damaged.items())
        raise CheckpointError(f"all checkpoints in {self.directory} are damaged ({reasons})")

    def _read_whole(
        self, step: int, wanted: Arrays | str | None
    ) -> tuple[Arrays, dict[str, Any], str | None]:
        """(items, run, None), or what is wrong with the checkpoint; the same on all hosts.

        wanted: the arrays by item, or an item's name, or None for the average or else the
            parameters.
        """
        restored, run, fault = {}, {}, None
        try:
            run = checked(self._read(step, {})[1])
            found = self._metadata(step)
            shapes = {item: _shapes(arrays) for item, arrays in found.items()}
            stored = {
                item: {path: tuple(shape) for path, (shape, _) in arrays.items()}
                for item, arrays in run.get("arrays", {}).items()
            }
            if isinstance(wanted, Mapping):
                self._compare(step, stored or shapes, wanted)
            else:
                kept = [name for name in AVERAGES if name in (stored or shapes)]
                item = wanted or next(iter(kept), "params")
                self._check_item(step, stored or shapes, item)
            if stored and shapes != stored:
                raise ValueError("its metadata is not what was written")
            if not isinstance(wanted, Mapping):
                wanted = {item: _on_one_device(found[item])}
            restored = self._read(step, wanted)[0]
        except (MismatchError, MemoryError, jax.errors.JaxRuntimeError):
            raise  # nothing is wrong with the files
        except Exception as error:  # damage shows as many types
            fault = _reason(error)
        # Damage may be in the share of one host alone.
        fault = next((found for found in gather_json(fault) if found is not None), None)
        return restored, run, fault or first_fault(restored, run.get("arrays"))

    def _check_item(self, step: int, stored: Arrays, item: str) -> None:
        if item not in stored:
            kept = ", ".join(name for name in OWN_ITEMS if name in stored)
            raise MismatchError(f"checkpoint {step} in {self.directory} has no {item}, only {kept}")

    def _compare(self, step: int, stored: Arrays, wanted: Arrays) -> None:
        for item, arrays in wanted.items():
            if problems := shape_differences(_shapes(arrays), stored.get(item, {})):
                # The items that follow would only repeat it.
                raise MismatchError(
                    f"checkpoint {step} in {self.directory} does not fit the config. Of its "
                    f"{item}, {problems}.\n"
                    "Give the config it was trained with, or another --workdir."
                )

    def _read(self, step: int, wanted: Arrays) -> tuple[Arrays, dict[str, Any]]:
        args = {
            item: ocp.args.StandardRestore(unflatten(arrays)) for item, arrays in wanted.items()
        }
        args[JSON_ITEM] = ocp.args.JsonRestore()
        restored = self.manager.restore(step, args=ocp.args.Composite(**args))
        return {item: flatten(restored[item]) for item in wanted}, restored[JSON_ITEM]

    def _warn(self, step: int, reason: str, what_follows: str) -> None:
        if jax.process_index() == 0:
            where = f"checkpoint {step} in {self.directory}"
            warnings.warn(f"{where} is damaged ({reason}): {what_follows}", stacklevel=3)

    def _set_aside(self, step: int) -> None:
        """A damaged checkpoint is renamed, not deleted, and its step may be written again."""
        if jax.process_index() == 0:
            target = self.directory / f"damaged-{step}"
            shutil.rmtree(target, ignore_errors=True)
            (self.directory / str(step)).rename(target)
        gather_json(None)  # the other hosts read on once it is renamed
        self.manager.reload()

    @contextlib.contextmanager
    def _writing(self, what: str | None = None) -> Iterator[None]:
        """Turns the writer's errors into a CheckpointError of one line, which says which
        checkpoints are whole. `what` is written; None: the last checkpoint.
        """
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            name, needed = self.saving if what is None else (what, 0)
            found = disk_refusal(error, self.directory, needed)
            reason = " ".join(str(error).split())[-300:]
            if found is not None:
                found.filename = os.fspath(self.directory)  # not a part of what is written
                reason = describe(found)
            # A half-written checkpoint only fills the disk further. What a thread that is still
            # writing leaves behind goes when the directory is opened next.
            for half in self.directory.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(half, ignore_errors=True)
            free = "Free some space and start" if found is not None else "Start"
            raise CheckpointError(
                f"{name} could not be written: {reason}. {self._whole()} {free} the same command "
                "again"
            ) from error

    def _whole(self) -> str:
        """What is safely on disk, for error messages."""
        if steps := self.steps():
            return f"The checkpoints of steps {steps} are whole."
        return "There is no earlier checkpoint."


def _loss(metrics: Mapping[str, float]) -> float:
    return float(metrics["loss"])


def _reason(error: BaseException) -> str:
    """What an error was raised from, in a part of a line."""
    while error.__cause__ is not None:
        error = error.__cause__
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    return kind + " ".join(str(error).split())[:200]


def _on_one_device(arrays: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)
        for path, leaf in arrays.items()
    }


def _detached(array: jax.Array) -> jax.Array:
    copies = [jax.device_put(np.array(s.data), s.device) for s in array.addressable_shards]
    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, copies)
