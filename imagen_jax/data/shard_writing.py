"""Shards that are written: whole or not at all, the same examples in the same bytes."""

import contextlib
import fcntl
import io
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO

from imagen_jax.data.records import EXAMPLE_PROTO
from imagen_jax.storage.disk import disk_errors
from imagen_jax.storage.protobuf import message_class

# One record a group: each is read by itself. Images and embeddings hardly compress.
WRITER_OPTIONS = "group_size:1,uncompressed"


@contextlib.contextmanager
def half_written(path: Path) -> Iterator[Path]:
    """A file to write to, which takes `path`'s place when the block ends without error. Not
    `written_whole`: it has one name, which is locked, so that a killed process leaves one at most,
    and two that write the same shard find out.

    Raises:
        ValueError: another process is writing it.
        OSError: the disk refuses it. Whatever is raised, the half-written file is gone.
    """
    half = path.with_name(f".{path.name}.half")
    names = {os.fspath(half): os.fspath(path)}
    with disk_errors(path, names=names), open(half, "ab") as file:
        if not _locked(file, half):
            raise ValueError(
                f"another process is writing {path}: several share the work only when they are "
                "started as the hosts of one run, as for training"
            )
        try:
            yield half
            os.fsync(file.fileno())
            half.rename(path)
        except BaseException:
            half.unlink(missing_ok=True)
            raise


def _locked(file: IO[bytes], path: Path) -> bool:
    """Locks an open file until it is closed, or its process killed; whether that was possible."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except (BlockingIOError, FileNotFoundError):  # held, or renamed by who held it
        return False
    except OSError:  # a file system without locks
        return True


def write_records(path: Path, records: Iterable[bytes]) -> None:
    """An ArrayRecord file; it raises as `half_written`."""
    from array_record.python.array_record_module import ArrayRecordWriter

    with half_written(path) as half:
        writer = ArrayRecordWriter(str(half), WRITER_OPTIONS)  # empties the file that is locked
        try:
            for record in records:
                writer.write(record)
        finally:
            writer.close()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """A tar of (name, content), without times or owners; it raises as `half_written`."""
    with half_written(path) as half, tarfile.open(half, "w") as tar:
        for name, content in members:
            add_member(tar, name, content)


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Adds a file that anybody may read."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), 0o644
    tar.addfile(member, io.BytesIO(content))


def to_example(features: Mapping[str, bytes | str | int]) -> bytes:
    """A serialized tf.train.Example of one value a feature; equal features give equal bytes."""
    example = message_class(EXAMPLE_PROTO, "Example")()
    for name, value in features.items():
        feature = example.features.feature[name]
        if isinstance(value, int):
            feature.int64_list.value.append(value)
        else:
            content = value if isinstance(value, bytes) else value.encode("utf-8")
            feature.bytes_list.value.append(content)
    return example.SerializeToString(deterministic=True)
