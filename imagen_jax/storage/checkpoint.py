"""Checkpoints of a run: written in the background, whole or not at all, readable on any mesh.

Each step's directory holds the items `params`, `ema`, `optimizer` (step number and optimizer state)
and `run` (JSON: the configuration, where the data and the metrics were, and a digest of every
array, so that a byte that has changed on the disk is seen). Trees are stored as nested dicts by
parameter name, so a reader needs none of our classes.
"""

import contextlib
import json
import logging
import math
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
from imagen_jax.devices.sharding import path_of
from imagen_jax.storage.digest import checked, described, first_fault, signed
from imagen_jax.typing import Params

OWN_ITEMS = ("params", "ema")  # every other field of the state goes into the item "optimizer"
JSON_ITEM = "run"
SHOWN_DIFFERENCES = 5


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the message says which ones are whole."""


class MismatchError(ValueError):
    """Weights are not of the config's network; the message names the first that differ."""


def _flatten(tree: Any) -> dict[str, Any]:
    return {path_of(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return nested


def _items(flat: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The flat state by item; paths in `params` and `ema` lose that prefix."""
    items: dict[str, dict[str, Any]] = {}
    for path, leaf in flat.items():
        first, _, rest = path.partition("/")
        item, name = (first, rest) if first in OWN_ITEMS else ("optimizer", path)
        items.setdefault(item, {})[name] = leaf
    return items


def differences(stored: Mapping[str, tuple], wanted: Mapping[str, tuple]) -> list[str]:
    """What a checkpoint's {path: shape} and the config's have different, one line each, in the
    config's order.
    """
    lines = []
    for path, shape in wanted.items():
        if path not in stored:
            lines.append(f"{path} {shape}: in the config, not in the checkpoint")
        elif stored[path] != shape:
            lines.append(f"{path}: {shape} in the config, {stored[path]} in the checkpoint")
    for path, shape in stored.items():
        if path not in wanted:
            lines.append(f"{path} {shape}: in the checkpoint, not in the config")
    return lines


def check_weights(wanted: Any, given: Any, source: str = "the given weights") -> None:
    """MismatchError names the first parameters by which two trees of arrays differ."""
    shapes = [
        {path: tuple(leaf.shape) for path, leaf in _flatten(tree).items()}
        for tree in (given, wanted)
    ]
    lines = differences(*shapes)
    if lines:
        raise MismatchError(f"{source} do not fit the config:\n  {_shown(lines)}")


def _shown(lines: list[str]) -> str:
    more = len(lines) - SHOWN_DIFFERENCES
    return "\n  ".join(lines[:SHOWN_DIFFERENCES] + ([f"and {more} more"] if more > 0 else []))


def _state_bytes(flat: Mapping[str, Any]) -> int:
    return sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in flat.values())


class Checkpoints:
    """The checkpoints of one run in `directory`: the last `keep` and the `keep_best` of lowest
    loss.
    """

    def __init__(
        self, directory: str | Path, *, keep: int = 3, keep_best: int = 1, read_only: bool = False
    ):
        if keep < 1:
            raise ValueError(f"checkpoint.keep must be 1 or more, not {keep}")
        if keep_best < 0:
            raise ValueError(f"checkpoint.keep_best must be 0 or more, not {keep_best}")
        self.local = "://" not in str(directory)
        self.directory = str(Path(directory).absolute()) if self.local else str(directory)
        kept: list[Any] = [policies.LatestN(keep)]
        if keep_best:
            best = policies.BestN(
                get_metric_fn=_loss,
                reverse=True,
                n=keep_best,
                keep_checkpoints_without_metrics=False,
            )
            kept.append(best)
        if not read_only:
            self._drop_unreadable_losses()
        with _errors_alone():  # Orbax warns of reading only what is to be read only
            self.manager = ocp.CheckpointManager(
                self.directory,
                options=ocp.CheckpointManagerOptions(
                    create=not read_only,
                    read_only=read_only,
                    cleanup_tmp_directories=not read_only,
                    best_fn=None if read_only else _loss,
                    best_mode="min",
                    preservation_policy=policies.AnyPreservationPolicy(kept),
                ),
                item_handlers={
                    "params": ocp.StandardCheckpointHandler(),
                    "ema": ocp.StandardCheckpointHandler(),
                    "optimizer": ocp.StandardCheckpointHandler(),
                    JSON_ITEM: ocp.JsonCheckpointHandler(),
                },
            )

    def _drop_unreadable_losses(self) -> None:
        """Removes the losses that rank the checkpoints where Orbax would stumble over them."""
        if self.local and jax.process_index() == 0:
            for path in Path(self.directory).glob("*/metrics/metrics"):
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
        if not self.local:
            return
        needed = _state_bytes(_flatten(state))
        free = shutil.disk_usage(self.directory).free
        if free < needed:
            raise CheckpointError(
                f"a checkpoint needs {needed / 1e6:,.0f} MB and {self.directory} has "
                f"{free / 1e6:,.0f} MB free; "
                f"{self._whole()}"
            )

    def save(self, step: int, state: Any, *, run: Mapping[str, Any], loss: float) -> None:
        """Starts writing and returns; the state may be donated at once. `run` is JSON-able. `loss`
        ranks the best.
        """
        self.wait()
        self.check_space(state)
        items = _items(_flatten(state))
        if jax.default_backend() == "cpu":
            # A CPU array and its host copy share memory, which the next (donating) step would
            # overwrite.
            items = jax.tree.map(_detached, items)
        args = {name: ocp.args.StandardSave(_nest(flat)) for name, flat in items.items()}
        args[JSON_ITEM] = ocp.args.JsonSave(signed({**run, "arrays": described(items)}))
        try:
            self.manager.save(
                step, args=ocp.args.Composite(**args), metrics={"loss": loss}, force=True
            )
        except ocp.checkpoint_manager.StepAlreadyExistsError:
            return
        except (OSError, ValueError, RuntimeError) as error:
            raise self._failed(step, error) from error

    def wait(self) -> None:
        """Blocks until the checkpoint being written is whole; CheckpointError if it could not be
        written.
        """
        try:
            self.manager.wait_until_finished()
            self.manager.check_for_errors()
        except (OSError, ValueError, RuntimeError) as error:
            raise self._failed(None, error) from error

    def check(self) -> None:
        """Raises the background writer's error, if it has met one, without waiting."""
        try:
            self.manager.check_for_errors()
        except (OSError, ValueError, RuntimeError) as error:
            raise self._failed(None, error) from error

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
        wanted = _items(_flatten(state))
        damaged: dict[int, str] = {}
        for step in sorted(self.steps(), reverse=True):
            restored, run, fault = self._restore_step(step, wanted)
            if fault is not None:
                damaged[step] = fault
                continue
            for number, reason in damaged.items():
                self._set_aside(number, reason)
            flat = {
                (path if item == "optimizer" else f"{item}/{path}"): leaf
                for item, tree in restored.items()
                for path, leaf in _flatten(tree).items()
            }
            leaves = [flat[path] for path in _flatten(state)]
            return jax.tree.unflatten(jax.tree.structure(state), leaves), run
        if damaged:
            reasons = "; ".join(f"{step}: {reason}" for step, reason in damaged.items())
            raise CheckpointError(f"no checkpoint in {self.directory} can be read ({reasons})")
        return None

    def read_parameters(
        self, item: str | None = None, step: int | None = None
    ) -> tuple[int, Params, dict[str, Any]]:
        """(step, parameters as numpy arrays, run) of one checkpoint, the newest unless told.

        item: "ema" or "params"; None for the average where the run kept one, else the parameters.

        Raises:
            ValueError: there is no such checkpoint or item.
            CheckpointError: it is damaged.
        """
        steps = self.steps()
        if not steps:
            raise ValueError(f"{self.directory} holds no checkpoint")
        if step is not None and step not in steps:
            raise ValueError(f"{self.directory} has no checkpoint of step {step}, only of {steps}")
        step = steps[-1] if step is None else step
        stored = self._metadata(step)
        if item is None:
            item = "ema" if "ema" in stored else "params"
        if item not in stored:
            raise ValueError(
                f"checkpoint {step} in {self.directory} has no {item!r}, only {sorted(stored)}"
            )
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        wanted = {
            path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)
            for path, leaf in _flatten(stored[item]).items()
        }
        restored, run = self._read(step, {item: wanted})
        try:
            fault = _fault({item: _flatten(restored[item])}, checked(run))
        except ValueError as error:
            fault = str(error)
        if fault is not None:
            raise CheckpointError(f"checkpoint {step} in {self.directory} is damaged ({fault})")
        return step, jax.tree.map(np.asarray, restored[item]), run

    def close(self) -> None:
        """Finishes writing and lets go of the directory."""
        self.wait()
        self.manager.close()

    def _metadata(self, step: int) -> dict[str, Any]:
        metadata = self.manager.item_metadata(step)
        trees = {}
        for name in (*OWN_ITEMS, "optimizer"):
            if metadata is not None and metadata.get(name) is not None:
                trees[name] = (
                    metadata[name].tree if hasattr(metadata[name], "tree") else metadata[name]
                )
        if not trees:
            raise ValueError("no readable metadata")
        return trees

    def _restore_step(
        self, step: int, wanted: Mapping
    ) -> tuple[dict[str, Any], dict[str, Any], str | None]:
        """(items, run, None), or what is wrong with the checkpoint; the same on all hosts."""
        restored, run, fault = {}, {}, None
        try:
            run = checked(self._read(step, {})[1])
            found = {
                item: {path: tuple(leaf.shape) for path, leaf in _flatten(tree).items()}
                for item, tree in self._metadata(step).items()
            }
            stored = found
            if "arrays" in run:
                stored = {
                    item: {path: tuple(shape) for path, (shape, _) in arrays.items()}
                    for item, arrays in run["arrays"].items()
                }
            self._compare(step, stored, wanted)
            if found != stored:
                raise ValueError("its metadata is not what was written")
            restored = self._read(step, wanted)[0]
        except (MismatchError, MemoryError, jax.errors.JaxRuntimeError):
            raise  # nothing is wrong with the files
        except Exception as error:  # damage shows as many types
            fault = _reason(error)
        # Damage may be in the share of one host alone.
        fault = next((found for found in gather_json(fault) if found is not None), None)
        if fault is None:
            fault = _fault({item: _flatten(tree) for item, tree in restored.items()}, run)
        return restored, run, fault

    def _compare(self, step: int, stored: Mapping, wanted: Mapping) -> None:
        lines = []
        for item in sorted(wanted, key=("params", "ema", "optimizer").index):
            shapes = {path: tuple(leaf.shape) for path, leaf in wanted[item].items()}
            found = differences(stored.get(item, {}), shapes)
            lines += [line if item == "optimizer" else f"{item}/{line}" for line in found]
            if lines:  # the moments of parameters that differ would only repeat them
                break
        if lines:
            raise MismatchError(
                f"checkpoint {step} in {self.directory} does not fit the config:\n"
                f"  {_shown(lines)}\n"
                "Give the config it was trained with, or another --workdir."
            )

    def _read(self, step: int, wanted: Mapping) -> tuple[dict[str, Any], dict[str, Any]]:
        args = {name: ocp.args.StandardRestore(_nest(flat)) for name, flat in wanted.items()}
        args[JSON_ITEM] = ocp.args.JsonRestore()
        restored = self.manager.restore(step, args=ocp.args.Composite(**args))
        return {name: restored[name] for name in wanted}, restored[JSON_ITEM]

    def _set_aside(self, step: int, reason: str) -> None:
        """A damaged checkpoint is renamed, not deleted, and its step may be written again."""
        warnings.warn(
            f"checkpoint {step} in {self.directory} is damaged ({reason}); it is renamed "
            "and the one before is taken",
            stacklevel=3,
        )
        if self.local and jax.process_index() == 0:
            place = Path(self.directory)
            target = place / f"damaged-{step}"
            shutil.rmtree(target, ignore_errors=True)
            (place / str(step)).rename(target)
        gather_json(None)  # the others look when it is renamed
        self.manager.reload()

    def _failed(self, step: int | None, error: Exception) -> CheckpointError:
        if self.local:
            # A half-written checkpoint only fills the disk further. What a thread that is still
            # writing leaves behind goes when the directory is opened next.
            for half in Path(self.directory).glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(half, ignore_errors=True)
        which = "the last checkpoint" if step is None else f"the checkpoint of step {step}"
        reason = str(error).strip()[-300:]
        return CheckpointError(
            f"{which} could not be written to {self.directory}: {reason}\n"
            f"{self._whole()} Free some space and start the same command again."
        )

    def _whole(self) -> str:
        """What is safely on disk, for error messages; looks at the directory itself."""
        if not self.local:
            return "Earlier checkpoints are untouched."
        steps = sorted(int(p.name) for p in Path(self.directory).glob("[0-9]*") if p.name.isdigit())
        return (
            f"The checkpoints of steps {steps} are whole."
            if steps
            else "There is no earlier checkpoint."
        )


@contextlib.contextmanager
def _errors_alone() -> Iterator[None]:
    """Keeps absl's logger, which is Orbax's, from saying less than errors."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _fault(items: Mapping[str, Mapping[str, Any]], run: Mapping[str, Any]) -> str | None:
    """`first_fault`; None for a checkpoint of a version before the digests."""
    return first_fault(items, run["arrays"]) if "arrays" in run else None


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()[:200]}".replace("\n", " ")


def _loss(metrics: Mapping[str, float]) -> float:
    return float(metrics["loss"])


def _detached(array: jax.Array) -> jax.Array:
    copies = [jax.device_put(np.array(s.data), s.device) for s in array.addressable_shards]
    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, copies)
