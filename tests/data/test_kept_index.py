"""The index of shards that is kept on disk: fresh, damaged, or with no place to be."""

import errno
import os

import numpy as np
import pytest

from imagen_jax.data import index, tar_index
from tests.data.shard_files import write_tar
from tests.data.test_shard_sources import COUNT, greys, read, write_set


def test_the_index_is_kept_and_made_anew_where_a_shard_changed(tmp_path, monkeypatch, caplog):
    pattern = write_set(tmp_path / "set", "tar")
    scanned = []
    scan = tar_index.scan_tar
    monkeypatch.setattr(
        tar_index,
        "scan_tar",
        lambda shard, **more: scanned.append(shard.name) or scan(shard, **more),
    )
    first = greys(read(("tar", pattern)))
    assert sorted(scanned) == ["00000.tar", "00001.tar", "00002.tar"]
    assert greys(read(("tar", pattern))) == first
    assert len(scanned) == 3
    write_tar(tmp_path / "set" / "00001.tar", range(30, 32), "PNG")
    assert greys(read(("tar", pattern)))[9:11] == [30, 31]
    assert scanned[3:] == ["00001.tar"]
    for kept in (tmp_path / "set" / ".imagen_jax_index").iterdir():
        kept.write_bytes(kept.read_bytes()[:100])
    assert greys(read(("tar", pattern)))[9:11] == [30, 31]
    assert caplog.text.count("indexed 3 shards again, whose index is damaged") == 1
    assert read(("tar", str(tmp_path / "set"))).shards == read(("tar", pattern)).shards


def test_shards_of_one_name_size_and_time_have_an_index_each(tmp_path, monkeypatch):
    """As two sets on disks that keep no times, whose indices share a folder."""
    for folder, first in (("a", 10), ("b", 30)):
        (tmp_path / folder).mkdir()
        write_tar(tmp_path / folder / "0.tar", range(first, first + 4))
        os.utime(tmp_path / folder / "0.tar", (1e9, 1e9))
    index = tmp_path / "index"
    both = read(("tar", f"{tmp_path}/{{a,b}}/0.tar"), index_dir=index)
    assert both.index.sizes[:, 0].tolist() == [*range(30, 34), *range(50, 54)]
    for folder, width in (("a", 30), ("b", 50)):
        assert read(("tar", f"{tmp_path}/{folder}"), index_dir=index).sizes[0, 0] == width
    read(("tar", f"{tmp_path}/a"))
    (tmp_path / "a").rename(tmp_path / "moved")  # and the index in it
    monkeypatch.setattr(tar_index, "scan_tar", lambda shard, **more: 1 / 0)
    assert len(read(("tar", f"{tmp_path}/moved"))) == 4


def raiser(error):
    def fail(*args, **kwargs):
        raise error

    return fail


def test_a_folder_that_cannot_be_written_keeps_its_index_elsewhere(tmp_path, monkeypatch, caplog):
    pattern = write_set(tmp_path / "set", "tar")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert len(read(("tar", pattern))) == COUNT
    assert len(list((tmp_path / "cache/imagen_jax/index").iterdir())) == 3
    assert not (tmp_path / "set" / ".imagen_jax_index").exists()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(index, "user_path", raiser(ValueError("no home")))
    assert len(read(("tar", pattern))) == COUNT
    assert "3 shards cannot be kept in the home folder, of which there is none" in caplog.text


@pytest.mark.parametrize("reason", ["Not a directory", "Read-only file system"])
def test_an_index_that_cannot_be_kept_is_told_once(tmp_path, monkeypatch, caplog, reason):
    pattern = write_set(tmp_path / "set", "tar")
    place = tmp_path / "file" / "index"
    (tmp_path / "file").write_text("")
    if reason.startswith("Read"):
        place = tmp_path / "index"
        read(("tar", pattern), index_dir=place)
        os.remove(next(place.iterdir()))
        error = OSError(errno.EROFS, "Read-only file system")
        monkeypatch.setattr(index, "written_whole", raiser(error))
    filters = {"scores": {"rank": [0.2, 2.05]}}
    assert greys(read(("tar", pattern), index_dir=place, filters=filters)) == list(range(2, 21))
    (line,) = caplog.messages
    assert f"cannot be kept in {place} ({reason})" in line


def test_an_index_beside_its_shards_is_read_where_nothing_can_be_written(tmp_path, monkeypatch):
    pattern = write_set(tmp_path / "set", "tar")
    read(("tar", pattern))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(tar_index, "scan_tar", raiser(AssertionError))
    assert len(read(("tar", pattern))) == COUNT


def test_a_damaged_index_is_made_anew(tmp_path, caplog):
    """Whatever byte of it changes."""
    write_tar(tmp_path / "a.tar", range(3))
    filters = {"scores": {"rank": [0.05, 1]}}
    first = read(("tar", str(tmp_path)), filters=filters)
    (kept,) = (tmp_path / ".imagen_jax_index").iterdir()
    whole = kept.read_bytes()
    damaged = [b"", b"PK\x03\x04", whole[: len(whole) // 2], whole + whole[:9]]
    for place in range(0, len(whole), 97):
        damaged.append(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
    for content in damaged:
        kept.write_bytes(content)
        caplog.clear()
        again = read(("tar", str(tmp_path)), filters=filters)
        assert "1 shards again, whose index is damaged" in caplog.text
        for name in (*index.COLUMNS, "rows"):
            arrays = [getattr(s, name, getattr(s.index, name, None)) for s in (first, again)]
            np.testing.assert_array_equal(*arrays)
        assert again.index.fields["rank"].tolist() == first.index.fields["rank"].tolist()
