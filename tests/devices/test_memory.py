"""Too little memory is one line with what to change, whoever ran out of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_cascade import CASCADE, random_params

from imagen_jax.commands.command_line import one_line_errors
from imagen_jax.devices.memory import OutOfMemory, explained, shortage
from imagen_jax.pipeline.pipeline import Pipeline

PETABYTE = 2**50


def on_the_device():
    jax.block_until_ready(jax.jit(lambda: jnp.zeros(PETABYTE, jnp.uint8) + 1)())


def on_the_host():
    np.zeros(PETABYTE, np.uint8)


@pytest.mark.parametrize(
    ("allocate", "told"),
    [
        (on_the_device, "out of memory on the device: Out of memory allocating 1.1 PB"),
        (on_the_host, "out of memory on the host: Unable to allocate 1.00 PiB for an array"),
    ],
)
def test_what_did_not_fit_is_told_with_what_to_change(allocate, told):
    with pytest.raises(OutOfMemory) as caught, explained("outer"), explained("batch_size is 8."):
        allocate()
    message = str(caught.value)
    assert message.startswith(told)
    assert message.endswith(". batch_size is 8.")  # what is nearest to it
    assert caught.value.__suppress_context__  # no traceback of XLA's buffers
    with pytest.raises(SystemExit, match=r"^error: out of memory"), one_line_errors():
        allocate()


# As XLA reports it for GPUs and TPUs, which are not here.
DUMP = "\nBufferAssignment OOM Debugging.\n" + "  parameter allocation: 6.00MiB\n" * 200
LINES = {
    f"RESOURCE_EXHAUSTED: Out of memory while trying to allocate 7406166528 bytes.{DUMP}": (
        "Out of memory while trying to allocate 7.4 GB"
    ),
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
    f"Used 20.12G of 15.48G hbm. Exceeded hbm capacity by 4.64G.{DUMP}": (
        "XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 20.12G of "
        "15.48G hbm. Exceeded hbm capacity by 4.64G"
    ),
    "RESOURCE_EXHAUSTED: Failed to allocate request for 3.00GiB (3221225472B) on device 0": (
        "Failed to allocate request for 3.00GiB (3.2 GB) on device 0"
    ),
    "INTERNAL: Failed to load in-memory CUBIN: CUDA_ERROR_OUT_OF_MEMORY: out of memory": (
        "Failed to load in-memory CUBIN: CUDA_ERROR_OUT_OF_MEMORY: out of memory"
    ),
}


@pytest.mark.parametrize(("says", "told"), LINES.items())
def test_of_a_dump_the_line_that_counts_is_kept(says, told):
    assert shortage(RuntimeError(says)) == f"out of memory on the device: {told}"


def test_other_errors_stay_what_they_are():
    for error in (
        RuntimeError("RESOURCE_EXHAUSTED: Received message larger than max (5 vs. 4)"),
        RuntimeError("INVALID_ARGUMENT: shapes differ"),
        ValueError("out of memory"),
    ):
        assert shortage(error) is None
        with pytest.raises(type(error)) as caught, explained("advice"):
            raise error
        assert caught.value is error


def test_generating_too_much_at_once_names_the_batch_size(monkeypatch):
    pipeline = Pipeline(CASCADE, random_params(CASCADE), name="tiny")
    monkeypatch.setattr("imagen_jax.pipeline.pipeline.encode_request", lambda *given: on_the_host())
    with pytest.raises(OutOfMemory) as caught:
        pipeline.generate_images("a", num_images=1, batch_size=2**20, progress=False, seed=0)
    message = str(caught.value)
    assert "Now: batch_size 1048576, low_memory False, dtype float32, size " in message
    assert "batch_size 524288, low_memory, " in message
