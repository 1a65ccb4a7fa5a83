"""NVIDIA GPUs as XLA's compiler wants them described, to compile for one that is not here.

Where the numbers come from: multiprocessors, float32 lanes, L2 cache and clock are NVIDIA's, from
the architectures' white papers and the data sheets of the SXM modules; shared memory and the limits
that all share, from the CUDA programming guide's table of technical specifications by compute
capability; name and memory are what the driver reports, as in XLA's own descriptions of these
GPUs (openxla/xla, xla/backends/gpu/target_config/specs). Bandwidths are those of `chips`.
"""

from dataclasses import dataclass

from imagen_jax.devices.chips import Chip, find_chip


@dataclass(frozen=True)
class Gpu:
    """One GPU. capability: of CUDA, 9.0 is sm_90. lanes: for float32, in a multiprocessor. shared:
    KiB of shared memory in a multiprocessor. cache: bytes of L2. clock: GHz. memory: bytes, as the
    driver reports it.
    """

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    lanes: int
    shared: int
    cache: int
    clock: float
    memory: int

    @property
    def chip(self) -> Chip:
        """Its speeds and memory."""
        return find_chip(self.name)


GPUS = {
    "a100": Gpu("NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 164, 40 << 20, 1.41, 85100068864),
    "h100": Gpu("NVIDIA H100 80GB HBM3", (9, 0), 132, 128, 228, 50 << 20, 1.98, 84942979072),
    "h200": Gpu("NVIDIA H200", (9, 0), 132, 128, 228, 50 << 20, 1.98, 151397597184),
    "b200": Gpu("NVIDIA B200", (10, 0), 148, 128, 228, 132644864, 1.965, 191514411008),
}
# The versions of the libraries that the extra `cuda-plan` installs.
CUDA, CUDNN = "13.0.0", "9.10.0"


def description(gpu: Gpu) -> str:
    """XLA's `GpuTargetConfigProto` as text, the `target_config` of a topology of this GPU."""
    (major, minor), (cudnn_major, cudnn_minor, cudnn_patch) = gpu.capability, CUDNN.split(".")
    # From 9.0 on, NVIDIA's compiler knows instructions of one capability alone: sm_90a, sm_100a.
    feature = "ACCELERATED_FEATURES" if major >= 9 else "NONE"
    return f"""
gpu_device_info {{
  name: "{gpu.name}"
  device_vendor: "NVIDIA Corporation"
  cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {feature} }}
  core_count: {gpu.multiprocessors}
  fpus_per_core: {gpu.lanes}
  clock_rate_ghz: {gpu.clock}
  device_memory_size: {gpu.memory}
  memory_bandwidth: {gpu.chip.bandwidth:.0f}
  l2_cache_size: {gpu.cache}
  shared_memory_per_core: {gpu.shared << 10}
  shared_memory_per_block: {48 << 10}
  shared_memory_per_block_optin: {gpu.shared - 1 << 10}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_core_limit: 2048
  threads_per_block_limit: 1024
  threads_per_warp: 32
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  device_address_bits: 64
  driver_version: "{CUDA}"
  runtime_version: "{CUDA}"
  compile_time_toolkit_version: "{CUDA}"
  dnn_version: "{CUDNN}"
}}
platform_name: "CUDA"
dnn_version_info {{ major: {cudnn_major} minor: {cudnn_minor} patch: {cudnn_patch} }}
device_description_str: "{gpu.name}"
"""
