"""What a step costs one chip: the kernels, copies and collectives of its compiled program.

The compiler states how many cycles it expects of a kernel. A kernel of which it says nothing (a
GPU's, a custom one) is taken for the longer of its FLOPs at the chip's peak and its bytes at the
bandwidth of HBM.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from imagen_jax.devices.chips import Chip
from imagen_jax.planning import hlo
from imagen_jax.planning.hlo import Array, Computation, Instruction

# What runs other computations, whose kernels are counted one by one, and where these are named.
NESTED = ("while", "conditional", "call")
NESTED_IN = "body|to_apply|calls|branch_computations|true_computation|false_computation"
# What takes no time: other names for arrays, and the custom calls that only give them.
FREE = (
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("partition-id", "replica-id", "async-update", "opt-barrier"),
)
FREE_CALLS = ("ConcatBitcast", "AssumeGatherIndicesInBound")


@dataclass(frozen=True)
class Cost:
    """What one instruction costs, each time that it runs.

    queue: what it occupies, the "core", "copies" or "links"; costs of one queue wait for each
    other. operation: XLA's, or what a library or a fused product runs, "convolution", "attention"
    or "GEMM". bytes: of HBM; of a collective, those that the chip receives. cycles: as the compiler
    expects; None where it does not say.
    """

    queue: str
    operation: str
    source: str
    seconds: float
    bytes: float
    flops: float = 0.0
    cycles: int | None = None
    times: int = 1

    @property
    def layer(self) -> str:
        """The layer it belongs to, the same for all blocks of a kind, and the pass it is in."""
        name = re.sub(r"\d+", "#", self.source)
        backward, again = "transpose(" in name, "rematted" in name
        name = re.sub(r"^.*?(jvp\((UNet|EfficientUNet|Transformer)\)+|(?=jit\(encode))/?", "", name)
        name = re.sub(r"(checkpoint|rematted_computation|jvp\(\w+\))/", "", name)
        return f"{name} ({'again' if again else 'backward' if backward else 'forward'})"


@dataclass
class Costs:
    """A program's costs on one chip. seconds: of the whole. waits: how long of it the core waits,
    by the queue that it waits for.
    """

    parts: list[Cost] = field(default_factory=list)
    seconds: float = 0.0
    waits: Counter[str] = field(default_factory=Counter)

    @property
    def kernels(self) -> list[Cost]:
        """What runs on the cores."""
        return [part for part in self.parts if part.queue == "core"]

    @property
    def without_cycles(self) -> list[Cost]:
        """The kernels that are counted by their FLOPs and bytes."""
        return [kernel for kernel in self.kernels if kernel.cycles is None]

    @property
    def flops(self) -> float:
        """Of all parts."""
        return sum(part.flops * part.times for part in self.parts)

    @property
    def hbm_bytes(self) -> float:
        """Bytes to and from the chip's memory, of all parts."""
        return sum(part.bytes * part.times for part in self.parts if part.queue != "links")

    @property
    def by_kind(self) -> dict[str, dict[str, int | float]]:
        """The kernels' and copies' count, FLOPs and bytes by what they run, the most bytes
        first.
        """
        sums: dict[str, Counter[str]] = defaultdict(Counter)
        for part in self.parts:
            if part.queue != "links":
                each = {"count": 1, "flops": part.flops, "bytes": part.bytes}
                sums[part.operation].update({name: x * part.times for name, x in each.items()})
        return {
            kind: dict(sums[kind]) for kind in sorted(sums, key=lambda kind: -sums[kind]["bytes"])
        }

    @property
    def collectives(self) -> dict[str, dict[str, int | float]]:
        """By kind: their count, the bytes that a chip receives, and the seconds its links take."""
        sums: dict[str, Counter[str]] = defaultdict(Counter)
        for part in self.parts:
            if part.queue == "links":
                each = {"count": 1, "bytes": part.bytes, "seconds": part.seconds}
                sums[part.operation].update({name: x * part.times for name, x in each.items()})
        return {kind: dict(values) for kind, values in sums.items()}

    def add(self, inner: "Costs", times: int) -> None:
        """Adds what runs `times` times after the rest."""
        self.parts += [replace(part, times=times * part.times) for part in inner.parts]
        self.seconds += times * inner.seconds
        self.waits.update({queue: times * seconds for queue, seconds in inner.waits.items()})


@dataclass(frozen=True)
class Estimate:
    """How the costs of a program's text are found.

    devices: how many take part in a collective that does not say. loops: how often a loop runs
    whose length is decided when it runs. kernels: FLOPs of a custom kernel that states none, by its
    name.
    """

    chip: Chip
    devices: int
    loops: int
    kernels: Mapping[str, float]

    def run(self, inside: Computation) -> Costs:
        """The costs of a schedule. Kernels run one after the other; copies and collectives that are
        started ahead run beside them, and what is not done when it is needed is waited for.
        """
        costs, free, ends = Costs(), Counter(), {}
        beside = {name: self.beside(found) for name, found in inside.items()}
        last = {channel: name for name, channels in beside.items() for channel in channels}
        for name, instruction in inside.items():
            for channel, part in beside[name].items():
                if channel not in ends:
                    free[part.queue] = max(costs.seconds, free[part.queue]) + part.seconds
                    ends[channel] = free[part.queue]
                    costs.parts.append(part)
            if instruction.operation in NESTED:
                costs.add(*self.nested(instruction))
            elif kernel := self.kernel(instruction, alone=not beside[name]):
                costs.parts.append(kernel)
                costs.seconds += kernel.seconds
            for channel, part in beside[name].items():
                if last[channel] == name and ends[channel] > costs.seconds:
                    costs.waits[part.queue] += ends[channel] - costs.seconds
                    costs.seconds = ends[channel]
        return costs

    def nested(self, instruction: Instruction) -> tuple[Costs, int]:
        """What an instruction runs, and how often; of several branches, the longest."""
        runs = [self.run(inner) for inner in instruction.called(NESTED_IN)]
        trips = hlo.trips(instruction) if instruction.operation == "while" else 1
        return max(runs, key=lambda run: run.seconds), self.loops if trips is None else trips

    def kernel(self, instruction: Instruction, alone: bool) -> Cost | None:
        """What the core runs for an instruction, which is `alone` if nothing runs beside it."""
        operation = instruction.operation
        fused = "calls=%async_collective_fusion" in instruction.attributes
        free = operation in FREE or operation.endswith("-done") or not (alone or fused)
        if free or instruction.attribute("custom_call_target") in FREE_CALLS:
            return None
        flops, size = hlo.flops(instruction), hlo.hbm_bytes(instruction)
        if operation == "custom-call":
            flops = flops or self.kernels.get(re.sub(r"(\.\w+)*$", "", instruction.name), 0.0)
        cycles = instruction.stated("estimated_cycles") if self.chip.clock else None
        if cycles:
            seconds = cycles / self.chip.clock
        else:  # what lies in the memory beside the core is counted as if it had to come from HBM
            moving = (size or instruction.bytes) / self.chip.bandwidth
            seconds = max(flops / self.chip.flops, moving)
        source = instruction.attribute("op_name") or instruction.name
        kind = operation.removesuffix("-start")
        kind = instruction.library or ("GEMM" if flops and kind == "fusion" else kind)
        return Cost("core", kind, source, seconds, float(size), flops, cycles or None)

    def beside(self, instruction: Instruction) -> dict[str, Cost]:
        """The copy or the collectives that an instruction begins, carries on or waits for."""
        if instruction.operation.endswith("-done"):
            instruction = instruction.operands[0]
        found, name = {}, instruction.name
        if instruction.operation not in NESTED:
            for inner in hlo.collectives(instruction):
                kind, given, made = inner.collective, inner.given, inner.arrays
                if kind == "all-reduce" and instruction.operation == "fusion":
                    kind, made = "reduce-scatter", []  # of which each device keeps its part
                elif inner.operation.endswith("-start"):  # what it is given stands before the rest
                    made = made[len(given) :]
                size = received(kind, given, made, hlo.group_size(inner, self.devices))
                channel = inner.attribute("channel_id") or inner.name
                found[f"channel {channel}"] = Cost("links", kind, name, size / self.chip.link, size)
        ahead = instruction.operation.endswith("-start") and instruction.operation != "fusion-start"
        if ahead and not found:
            ends = instruction.arrays[:2]
            moved = min(end.bytes for end in ends) * sum(end.hbm_bytes > 0 for end in ends)
            seconds = moved / self.chip.bandwidth
            found[name] = Cost("copies", "copy", name, seconds, float(moved))
        return found


def estimate(
    text: str,
    chip: Chip,
    devices: int,
    loops: int = 1,
    kernels: Mapping[str, float] = MappingProxyType({}),
) -> Costs:
    """The costs of a compiled program's text; the rest as of `Estimate`."""
    return Estimate(chip, devices, loops, kernels).run(hlo.read_program(text))


def received(kind: str, given: list[Array], made: list[Array], devices: int) -> float:
    """Bytes that each of the devices of a collective receives, by a ring's count."""
    share = (devices - 1) / devices
    before, after = (sum(array.bytes for array in arrays) for arrays in (given, made))
    if kind == "all-reduce":
        return 2 * share * before
    if kind == "collective-permute":
        return float(before)
    return share * max(before, after)  # the gathered, or the one to be scattered
