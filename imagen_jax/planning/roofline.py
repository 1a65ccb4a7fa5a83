"""How long a compiled program takes at best, from its text and the chip's peaks."""

import math
import re
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from typing import Any

from imagen_jax.devices.chips import Chip
from imagen_jax.planning.hlo import Array, Computation, Instruction, Program, group_size, kind_of


@dataclass(frozen=True)
class Cost:
    """What one instruction takes on one chip, each time that it runs. bytes: of HBM. cycles: the
    compiler's estimate.
    """

    source: str
    operation: str
    flops: float
    bytes: int
    seconds: float
    cycles: int
    times: int = 1

    @property
    def layer(self) -> str:
        """What it is part of, the same for all blocks of a kind, with the pass that it is in."""
        name = re.sub(r"\d+", "#", self.source)
        backward, again = "transpose(" in name, "rematted" in name
        name = re.sub(r"^.*?(jvp\((UNet|EfficientUNet)\)+|(?=jit\(encode))/?", "", name)
        name = re.sub(r"(checkpoint|rematted_computation|jvp\(\w+\))/", "", name)
        part = "again" if again else "backward" if backward else "forward"
        return f"{name} ({part})"


@dataclass
class Traffic:
    """Collectives of one kind on one chip. bytes: what it receives; seconds: of the links."""

    count: int = 0
    bytes: float = 0.0
    seconds: float = 0.0


@dataclass
class Roofline:
    """A program's costs on one chip.

    seconds: of the whole. exposed_collectives, exposed_copies: parts of it in which the core waits.
    collectives: by kind. compiler_seconds: by the compiler's own estimate of its instructions, with
    `exposed_collectives`; None where it gives none.
    """

    costs: list[Cost] = field(default_factory=list)
    collectives: dict[str, Traffic] = field(default_factory=dict)
    seconds: float = 0.0
    exposed_collectives: float = 0.0
    exposed_copies: float = 0.0
    compiler_seconds: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON values; the instructions as sums by their intensity, FLOPs a byte."""
        sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for cost in self.costs:
            key = "none" if not cost.bytes else "0"
            if cost.bytes and cost.flops:
                key = str(2 ** (round(4 * math.log2(cost.flops / cost.bytes)) / 4))
            sums[key][0] += cost.flops * cost.times
            sums[key][1] += cost.bytes * cost.times
        return {
            "seconds": self.seconds,
            "exposed_collectives": self.exposed_collectives,
            "exposed_copies": self.exposed_copies,
            "compiler_seconds": self.compiler_seconds,
            "flops": self.flops,
            "bytes": self.bytes,
            "collectives": {kind: asdict(traffic) for kind, traffic in self.collectives.items()},
            "by_intensity": dict(sums),
        }

    @property
    def flops(self) -> float:
        return float(sum(cost.flops * cost.times for cost in self.costs))

    @property
    def bytes(self) -> float:
        return float(sum(cost.bytes * cost.times for cost in self.costs))


def estimate(text: str, chip: Chip, devices: int, loops: int = 1) -> Roofline:
    """The roofline of a compiled program: each instruction takes the longer of its FLOPs at the
    peak and its bytes at the bandwidth of HBM, one after the other; copies and collectives that are
    started ahead run beside them, each kind in a queue of its own.

    `devices`: how many take part in a collective that does not say. `loops`: how often a loop
    runs whose length is decided when it runs.
    """
    program = Program(text, loops)
    result = Roofline()
    walk = _Walk(program, chip, devices, result)
    result.seconds = walk.run(program.computations[program.entry], program.entry, 1)
    cycles = sum(cost.cycles * cost.times for cost in result.costs)
    if cycles and chip.clock:
        result.compiler_seconds = cycles / chip.clock + result.exposed_collectives
    return result


def received(kind: str, given: list[Array], made: list[Array], devices: int) -> float:
    """Bytes that each of the devices of a collective receives, by a ring's count."""
    share = (devices - 1) / devices
    before, after = (sum(array.bytes for array in arrays) for arrays in (given, made))
    if kind == "all-reduce":
        return 2 * share * before
    if kind == "collective-permute":
        return float(before)
    return share * max(before, after)  # the gathered, or the one to be scattered


class _Walk:
    """Runs through a schedule with a clock for the core, and one each for copies and for links."""

    def __init__(self, program: Program, chip: Chip, devices: int, result: Roofline):
        self.program, self.chip, self.devices, self.result = program, chip, devices, result

    def run(self, computation: Computation, name: str, times: int) -> float:
        """Seconds of one run of a computation that runs `times` times in all."""
        clock = link_free = copy_free = 0.0
        ends: dict[str, float] = {}  # of what runs beside the core
        parts = [self._channels(i, computation) for i in computation.instructions]
        left = Counter(channel for part in parts for channel, _ in part)
        for instruction, channels in zip(computation.instructions, parts, strict=True):
            if instruction.operation == "while":
                trips = self.program.trips(instruction)
                body = instruction.attribute("body").lstrip("%")
                clock += trips * self.run(self.program.computations[body], body, times * trips)
                continue
            if instruction.operation == "conditional":
                branch = self.program.chosen(instruction)
                clock += self.run(self.program.computations[branch], branch, times)
                continue
            waits = []
            beside = instruction.operation.endswith("-start")
            for channel, (kind, size) in channels:
                if channel not in ends:
                    seconds = size / self.chip.link
                    link_free = max(clock, link_free) + seconds
                    ends[channel] = link_free
                    self._count(kind, size, seconds, times)
                left[channel] -= 1
                if left[channel] == 0 and not beside:
                    waits.append(channel)
            alone = bool(channels) and self._is_alone(instruction)
            if not alone:
                cost = self._cost(computation, name, instruction, times)
                if instruction.operation in ("copy-start", "slice-start", "dynamic-slice-start"):
                    copy_free = max(clock, copy_free) + cost.seconds
                    ends[instruction.name] = copy_free
                else:
                    clock += cost.seconds
            if instruction.operation.endswith("-done"):
                waits += [name for name in self._started(instruction, computation) if name in ends]
            for waited in waits:
                if ends[waited] > clock:
                    self._expose(ends[waited] - clock, waited, times)
                    clock = ends[waited]
        return clock

    def _started(self, done: Instruction, computation: Computation) -> list[str]:
        """What a `-done` waits for: a copy's name, or a collective's channel."""
        start = computation.operands(done)[0]
        return [start.name] + [channel for channel, _ in self._channels(start, computation)]

    def _channels(
        self, instruction: Instruction, computation: Computation
    ) -> list[tuple[str, tuple[str, float]]]:
        """Collectives that an instruction is part of: the channel, its kind and bytes."""
        found = list(self.program.collectives(instruction))
        if kind_of(instruction.operation):
            given = [a for i in computation.operands(instruction) for a in i.arrays]
            found.append((instruction, given))
        channels = []
        for inner, given in found:
            kind = kind_of(inner.operation)
            scatters = kind == "all-reduce" and instruction.operation == "fusion"
            if scatters:  # a reduction of which each device keeps its part
                kind = "reduce-scatter"
            made = [] if scatters else inner.arrays
            if inner.operation.endswith("-start"):  # what it is given stands before what it makes
                made = made[len(given) :]
            size = received(kind, given, made, group_size(inner, self.devices))
            channels.append(
                (f"channel {inner.attribute('channel_id') or inner.name}", (kind, size))
            )
        return channels

    def _is_alone(self, instruction: Instruction) -> bool:
        """Whether an instruction is nothing but its collective."""
        if instruction.operation != "fusion":
            return True
        called = instruction.called[0]
        return not called.startswith("async_collective_fusion")

    def _cost(
        self, computation: Computation, name: str, instruction: Instruction, times: int
    ) -> Cost:
        flops = self.program.flops(name, instruction)
        size = self.program.hbm_bytes(computation, instruction)
        seconds = max(flops / self.chip.flops, size / self.chip.bandwidth)
        cost = Cost(
            instruction.source,
            instruction.operation,
            flops,
            size,
            seconds,
            instruction.cycles,
            times,
        )
        if flops or size or cost.cycles:
            self.result.costs.append(cost)
        return cost

    def _count(self, kind: str, size: float, seconds: float, times: int) -> None:
        traffic = self.result.collectives.setdefault(kind, Traffic())
        traffic.count += times
        traffic.bytes += size * times
        traffic.seconds += seconds * times

    def _expose(self, seconds: float, waited: str, times: int) -> None:
        if waited.startswith("channel "):
            self.result.exposed_collectives += seconds * times
        else:
            self.result.exposed_copies += seconds * times
