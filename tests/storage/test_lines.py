"""Files that grow by lines: each is in there whole or not at all, whatever the disk does."""

import contextlib
import errno
import os
import resource
import signal
from collections.abc import Iterator

import pytest

from imagen_jax.storage import disk
from imagen_jax.storage.lines import BLOCK, LineFile, read_lines


def test_lines_come_back(tmp_path):
    path = tmp_path / "new" / "lines.jsonl"
    for line in ("one", "", "zwei – 三\u2028\x85\r"):
        file = LineFile(path, synced=line == "")
        file.append(line)
        file.close()
    # U+2028 and U+0085 end no line.
    assert read_lines(path) == ["one", "", "zwei – 三\u2028\x85"]


@pytest.mark.parametrize("torn", ['{"step": 2, "lo', "x" * 3 * BLOCK, "\0" * 10, "三"[:1]])
@pytest.mark.parametrize("whole", [[], ["first"], ["first", "y" * BLOCK]])
def test_half_a_line_is_never_glued_to_the_next(tmp_path, whole, torn):
    path = tmp_path / "lines"
    path.write_bytes("".join(f"{line}\n" for line in whole).encode() + torn.encode()[:-1])
    assert read_lines(path) == whole
    with pytest.warns(UserWarning, match="half a line"):
        file = LineFile(path)
    file.append("next")
    file.close()
    assert read_lines(path) == [*whole, "next"]
    assert path.read_bytes().endswith(b"next\n")


def test_what_is_no_line_is_refused(tmp_path):
    file = LineFile(tmp_path / "lines")
    file.append("one")
    for bad, named in (("a\nb", "an end of a line"), ("\ud800", "surrogates")):
        with pytest.raises(ValueError, match=named):
            file.append(bad)
    file.close()
    assert read_lines(tmp_path / "lines") == ["one"]


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Inside, a write beyond this size fails, as on a full disk; also to the tests' own output."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "lines"
    file = LineFile(path)
    file.append("a" * 90)
    # Ten bytes of the next line could be written.
    with (
        files_of_at_most(100),
        pytest.raises(OSError, match="File too large") as caught,
    ):
        file.append("b" * 90)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"a" * 90 + b"\n"
    file.append("c")
    file.close()
    assert read_lines(path) == ["a" * 90, "c"]


def test_what_could_not_be_cut_at_once_is_cut_later(tmp_path):
    class Failing:
        """A file that writes half a line, fails, and cannot be cut."""

        def __init__(self, file):
            self.file, self.fileno = file, file.fileno

        def write(self, content):
            self.file.write(content[:5])
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        def truncate(self, size):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    path = tmp_path / "lines"
    file = LineFile(path)
    file.append("whole")
    sound, file.file = file.file, Failing(file.file)
    with pytest.raises(OSError, match="Input/output error"):
        file.append("never there")
    assert read_lines(path) == ["whole"]
    file.file = sound
    file.append("next")
    file.close()
    assert read_lines(path) == ["whole", "next"]


def test_a_line_that_is_not_text_is_named(tmp_path):
    path = tmp_path / "lines"
    path.write_bytes(b"one\n\xff\nthree\n")
    with pytest.raises(ValueError, match="line 2 is not UTF-8"):
        read_lines(path)


def test_what_a_disk_refuses_is_found_whoever_says_it(tmp_path):
    path = tmp_path / "weights"
    for number in disk.REFUSED:
        raised = OSError(number, os.strerror(number))
        told = RuntimeError(f"IoError: {os.strerror(number)} (os error {number})")
        outer = ValueError("a library's own words")
        outer.__cause__ = raised
        for error in (raised, told, outer):
            told_as = pytest.raises(OSError, match=os.strerror(number))
            with told_as as caught, disk.disk_errors(path):
                raise error
            assert caught.value.errno == number
            assert disk.describe(caught.value).startswith(f"{path}: {os.strerror(number)}")
    assert "MB free" in disk.describe(OSError(errno.ENOSPC, "", str(path)))
    with pytest.raises(OSError, match="elsewhere"), disk.disk_errors(path):
        raise OSError(errno.ENOSPC, "No space left on device", "elsewhere")
    with pytest.raises(KeyError), disk.disk_errors(path):
        raise KeyError("a bug")
    missing = FileNotFoundError(errno.ENOENT, "No such file", "there")
    assert disk.describe(missing) == str(missing)
