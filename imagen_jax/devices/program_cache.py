"""What a process has traced, kept for the next one, which then neither traces nor lowers it again.

A file holds a line of JSON, what it was made from, and the bytes: of a program the StableHLO that
`jax.export` writes. Nothing is pickled. The files lie in JAX's compilation cache, where it is on,
and are trusted as its are; one that is damaged or was made from something else is made anew.
"""

import contextlib
import functools
import hashlib
import importlib
import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export

from imagen_jax.devices.compile_options import Program, compiler_options

FOLDER = "traced"  # in the folder of compiled programs
LARGEST = 2**28  # bytes of all files together; the one that was read longest ago goes first
SUFFIX = ".program"
# Operations that jax does not promise to read in another version. Ours are read by the same one.
UNPROMISED = [export.DisabledSafetyCheck.custom_call("__cudnn$fmhaSoftmax")]
STARTED = time.time()


def cache_folder() -> Path | None:
    """Where the files lie; None where JAX's compilation cache is off, or not a local folder."""
    folder = jax.config.jax_compilation_cache_dir
    if not folder or not jax.config.jax_enable_compilation_cache or "://" in str(folder):
        return None
    return Path(folder) / FOLDER


@functools.cache
def _versions() -> dict[str, str]:
    """The libraries that traces depend on, and the digest of this package's own source."""
    root, source = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        source.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
        if path.stat().st_mtime > STARTED:  # edited since: not what this process runs
            source.update(uuid.uuid4().bytes)
    libraries = ("jax", "jaxlib", "flax", "numpy")
    versions = {name: importlib.import_module(name).__version__ for name in libraries}
    return {**versions, "source": source.hexdigest()}


def _file(name: str, made_from: dict[str, str]) -> tuple[Path, bytes]:
    """Where a file lies, and its first line but for the digest of what follows."""
    header = json.dumps({**made_from, **_versions()}, sort_keys=True).encode()
    digest = hashlib.sha256(header).hexdigest()
    return cache_folder() / f"{name}-{digest[:32]}{SUFFIX}", header


def read(name: str, made_from: dict[str, str]) -> bytes | None:
    """What `write` wrote of the same name and origin; None where there is no such file, whole."""
    path, header = _file(name, made_from)
    try:
        found, digest, content = path.read_bytes().split(b"\n", 2)
    except (OSError, ValueError):
        return None
    with contextlib.suppress(OSError):  # another user's folder, to be read alone
        os.utime(path)
    whole = hashlib.sha256(content).hexdigest().encode() == digest
    return content if whole and found == header else None


def write(name: str, made_from: dict[str, str], content: bytes) -> None:
    """Keeps bytes for the next process; what the disk refuses is not kept."""
    path, header = _file(name, made_from)
    digest = hashlib.sha256(content).hexdigest().encode()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{uuid.uuid4().hex}.tmp")
        temporary.write_bytes(b"\n".join((header, digest, content)))
        os.replace(temporary, path)
        _forget_old(path.parent)


def _forget_old(folder: Path) -> None:
    """Deletes files until the others are small enough together."""
    limit = jax.config.jax_compilation_cache_max_size
    room = LARGEST if limit < 0 else min(limit, LARGEST)
    stats = [(path.stat(), path) for path in folder.iterdir()]
    for stat, path in sorted(stats, key=lambda entry: entry[0].st_mtime, reverse=True):
        room -= stat.st_size
        if room < 0:
            path.unlink(missing_ok=True)


def remembered(name: str, of: Any, make: Callable[[], Any]) -> Any:
    """`make()`, JSON values that follow from `of` (by its repr) and from this package's source."""
    if cache_folder() is None:
        return make()
    content = read(name, {"of": repr(of)})
    if content is None:
        content = json.dumps(make()).encode()
        write(name, {"of": repr(of)}, content)
    return json.loads(content)


class KeptProgram(Program):
    """A `Program` whose traces are kept, where tracing takes as long as what JAX's compilation
    cache keeps, for arguments of which some were put onto one device. What it gives may be moved to
    others, as of `jax.jit`, if all that it takes may.

    results: named tuples that it returns.
    """

    def __init__(self, function: Callable, results: Sequence[type] = (), **options: Any):
        super().__init__(function, **options)
        static = options.get("static_argnums", ())
        self._static = (static,) if isinstance(static, int) else static
        self._programs: dict[tuple, Future] = {}  # of jax.stages.Compiled
        self._lock = threading.Lock()
        for kind in results:
            with contextlib.suppress(ValueError):  # known already: a module that is read again
                export.register_namedtuple_serialization(
                    kind, serialized_name=f"{kind.__module__}.{kind.__qualname__}"
                )

    def __call__(self, *arguments: Any) -> Any:
        compiled, leaves = self._compiled_for(arguments)
        return super().__call__(*arguments) if compiled is None else compiled(*leaves)

    def prepare(self, *arguments: Any) -> Any:
        """Compiles, or reads, the program of such arguments, of which some may be
        `jax.ShapeDtypeStruct`, without running it. What it returns, as those; None where no
        programs are kept.
        """
        compiled, _ = self._compiled_for(arguments)
        return None if compiled is None else jax.tree.map(_shape, compiled.out_info)

    def _compiled_for(self, arguments: Sequence[Any]) -> tuple[jax.stages.Compiled | None, list]:
        """The program of these arguments, None where none is kept, and what it takes of them. Of
        several threads that want it one compiles it.
        """
        static = tuple(arguments[i] for i in self._static if i < len(arguments))
        leaves, tree = jax.tree.flatten(
            [argument for i, argument in enumerate(arguments) if i not in self._static]
        )
        device = None if cache_folder() is None else _only_device(leaves)
        if device is None:
            return None, leaves
        avals, moved = tuple(map(jax.typeof, leaves)), not any(map(_stays, leaves))
        key = (static, tree, avals, device, moved, settings())
        with self._lock:
            made_here = key not in self._programs
            program = self._programs.setdefault(key, Future())
        if made_here:
            # All or none may be moved: jax compiles another program for a mixture.
            sharding = None if moved else jax.sharding.SingleDeviceSharding(device)
            shapes = [_shape(aval, sharding) for aval in avals]
            try:
                run = self._run(static, tree, shapes, device)
                program.set_result(run.lower(*shapes).compile())
            except BaseException as error:
                del self._programs[key]
                program.set_exception(error)
        return program.result(), leaves

    def _run(self, static: tuple, tree: Any, leaves: list, device: jax.Device) -> Callable:
        """`jax.jit` of the flat arguments' function: read, or else traced."""

        def flat(*leaves: Any) -> Any:
            arguments = list(jax.tree.unflatten(tree, leaves))
            for position, value in zip(self._static, static, strict=False):
                arguments.insert(position, value)
            return self.__wrapped__(*arguments)

        def compiled(function: Callable) -> Callable:
            def program(*leaves: Any) -> Any:
                return function(*leaves)

            program.__name__ = flat.__name__
            return jax.jit(program, compiler_options=compiler_options(device.platform))

        flat.__name__ = name = self.__name__  # by which logs and profiles call the program
        kinds = list(map(str, map(jax.typeof, leaves)))
        made_from = {
            "of": f"{self.__module__}.{name} {static} {tree} {kinds}",
            "settings": repr(settings()),
            "device": f"{device.platform} {device.device_kind} {jax.default_backend()}",
        }
        moved = all(leaf.sharding is None for leaf in leaves)
        # What an exported program gives is not to be moved; and a function has no description.
        if moved or " at 0x" in made_from["of"]:
            return compiled(flat)
        content = read(name, made_from)
        if content is not None:
            with contextlib.suppress(Exception):  # without flatbuffers it cannot be read
                return compiled(_without_lapack(export.deserialize(content)).call)
        began, whole = time.monotonic(), jax.jit(flat)
        whole.trace(*leaves)
        if time.monotonic() - began < jax.config.jax_persistent_cache_min_compile_time_secs:
            return compiled(flat)
        try:
            exported = export.export(whole, disabled_checks=UNPROMISED)(*leaves)
            content = bytes(exported.serialize())
        except Exception:  # not every operation can be exported; flatbuffers may be missing
            return compiled(flat)
        write(name, made_from, content)
        return compiled(exported.call)

    def _cache_size(self) -> int:
        """How many programs there are, as of what `jax.jit` returns."""
        return super()._cache_size() + len(self._programs)


def _without_lapack(exported: export.Exported) -> export.Exported:
    """The same, called without an import of scipy.linalg: jax begins it for each program of a CPU.
    It takes 0.2 s, and only a program that calls LAPACK needs it.
    """
    if b"lapack" in exported.mlir_module_serialized:
        return exported
    checks = (*exported.disabled_safety_checks, export.DisabledSafetyCheck.platform())
    return replace(exported, platforms=("any",), disabled_safety_checks=checks)


def kept_program(**options: Any) -> Callable[[Callable], KeptProgram]:
    """Decorates a function to be a `KeptProgram`, with its and `jax.jit`'s options."""
    return functools.partial(KeptProgram, **options)


def _stays(leaf: Any) -> bool:
    """Whether an array, or one of this shape, is not to be moved to other devices."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf.sharding is not None
    return isinstance(leaf, jax.Array) and leaf.committed


def _shape(leaf: Any, sharding: jax.sharding.Sharding | None = None) -> jax.ShapeDtypeStruct:
    given = {"weak_type": leaf.weak_type, "sharding": sharding}
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, **given)


def _only_device(leaves: Sequence[Any]) -> jax.Device | None:
    """The device of a program of these arguments; None for several, and within another program."""
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves) or jax.config.jax_disable_jit:
        return None
    shardings = {leaf.sharding for leaf in leaves if _stays(leaf)}
    devices = set().union(*(sharding.device_set for sharding in shardings))
    if not devices:
        return jax.device_put(np.zeros(())).device
    return devices.pop() if len(devices) == 1 else None


def settings() -> tuple:
    """JAX's settings, as they are for this thread; not where its cache is and what it logs."""
    values = jax.config.values  # of the process; a `with` of this thread shows in the attributes
    names = (name for name in values if "cache" not in name and "log" not in name)
    return tuple((name, getattr(jax.config, name, values[name])) for name in names)
