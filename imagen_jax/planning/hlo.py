"""A compiled XLA program as text: its instructions, and the FLOPs and bytes of each.

Layouts and memory spaces are those of TPUs: `bf16[8,64]{1,0:T(8,128)(2,1)S(1)}` is tiled, which
pads it, and lies in space 1, the vector memory beside the core; without S(n) it lies in HBM.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from imagen_jax.training.flops import overlaps

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
SLICES = ("dynamic-slice", "slice")
_INSTRUCTION = re.compile(
    r"^\s+(?P<root>ROOT )?%(?P<name>[\w.\-]+) = (?P<shape>.*?) (?P<operation>[a-z][\w\-]*)"
    r"\((?P<arguments>.*?)\)(?P<attributes>(?:, \w+=.*)?)$"
)
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")


@dataclass(frozen=True)
class Array:
    """One array of a shape. bytes: what its tiles pad included. hbm_bytes: 0 where it lies in
    another memory.
    """

    sides: tuple[int, ...]
    bytes: int
    hbm_bytes: int


def parse_arrays(shape: str) -> list[Array]:
    """The arrays of a shape, those of a tuple in their order."""
    arrays = []
    for dtype, dimensions, layout in _ARRAY.findall(shape):
        if dtype == "token":
            continue
        sides = _integers(dimensions)
        order, _, tiling = layout.partition(":")
        fastest_first = _integers(order) or range(len(sides))[::-1]
        padded = [sides[axis] for axis in fastest_first]
        tile = re.match(r"T\(([\d,]+)\)", tiling)
        sizes = _integers(tile[1])[::-1] if tile else ()
        for i, size in enumerate(sizes[: len(padded)]):
            padded[i] = -(-padded[i] // size) * size
        bits = 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0])
        size = math.prod(padded) * bits // 8
        elsewhere = re.search(r"S\([1-9]", tiling)
        arrays.append(Array(sides, size, 0 if elsewhere else size))
    return arrays


def _integers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)))


@dataclass(frozen=True)
class Instruction:
    """One line of a program; shape, arguments and attributes are its text."""

    name: str
    shape: str
    operation: str
    arguments: str
    attributes: str
    root: bool = False

    @cached_property
    def arrays(self) -> list[Array]:
        return parse_arrays(self.shape)

    @cached_property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.arguments)

    def attribute(self, name: str) -> str:
        """The value of `name=...`, without braces or quotes; empty where there is none."""
        found = re.search(rf"\b{name}=(?:\{{([^}}]*)\}}|\"([^\"]*)\"|([^,\s]+))", self.attributes)
        return next(filter(None, found.groups()), "") if found else ""

    def stated(self, name: str) -> int | None:
        """A number that the compiler states in JSON, such as its estimate of the cycles."""
        found = re.search(rf'"{name}":(?:\{{"n":)?"?(\d+)', self.attributes)
        return int(found[1]) if found else None

    @property
    def collective(self) -> str | None:
        """The kind of collective that it is, or begins."""
        kind = self.operation.removesuffix("-start")
        return kind if kind in COLLECTIVES else None


# Instructions by name; where the program is scheduled, in the order of their execution.
Computation = dict[str, Instruction]


def operands_of(instruction: Instruction, inside: Computation) -> list[Instruction]:
    return [inside[name] for name in instruction.operands if name in inside]


def arrays_of(instructions: list[Instruction]) -> list[Array]:
    return [array for instruction in instructions for array in instruction.arrays]


class Program:
    """The computations of a compiled program's text."""

    def __init__(self, text: str):
        self.computations: dict[str, Computation] = {}
        entry, computation = None, {}
        for line in text.splitlines():
            if match := _INSTRUCTION.match(line):
                fields = match.groupdict() | {"root": match["root"] is not None}
                computation[match["name"]] = Instruction(**fields)
            elif header := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line):
                computation = self.computations[header[2]] = {}
                entry = computation if header[1] else entry
        if entry is None:
            raise ValueError("the program's text has no ENTRY computation")
        self.entry = entry

    def called(self, instruction: Instruction, keys: str = "calls|to_apply") -> list[Computation]:
        """The computations that an instruction names by these attributes."""
        found = re.findall(rf"\b(?:{keys})=(\{{[^}}]*\}}|[^,\s]+)", instruction.attributes)
        return [self.computations[name] for name in re.findall(r"[\w.\-]+", " ".join(found))]

    def trips(self, loop: Instruction) -> int | None:
        """How often a `while` runs: the number that its condition counts up to from 0. None where
        that is decided when it runs.
        """
        if known := loop.stated("known_trip_count"):
            return known
        (condition,) = self.called(loop, "condition")
        limits = [i.arguments for i in condition.values() if i.operation == "constant"]
        return int(limits[0]) if len(limits) == 1 and limits[0].isdigit() else None

    def flops(self, instruction: Instruction, inside: Computation) -> float:
        """FLOPs of an instruction's convolutions and matrix products; of a custom kernel, what it
        states itself.
        """
        if instruction.operation == "convolution":
            return convolution_flops(instruction, *operands_of(instruction, inside))
        if instruction.operation == "dot":
            return dot_flops(instruction, *operands_of(instruction, inside))
        if instruction.operation == "custom-call":
            return float(instruction.stated("flops") or 0)
        inner = self.called(instruction)
        return sum((self.flops(part, parts) for parts in inner for part in parts.values()), 0.0)

    def collectives(
        self, instruction: Instruction, inside: Computation
    ) -> Iterator[tuple[Instruction, list[Array]]]:
        """The collective that an instruction is, and those inside it, with what each is given."""
        if instruction.collective:
            yield instruction, arrays_of(operands_of(instruction, inside))
        for inner in self.called(instruction):
            for part in inner.values():
                yield from self.collectives(part, inner)

    def hbm_bytes(self, instruction: Instruction, inside: Computation) -> int:
        """Bytes that an instruction reads from and writes to HBM. Of what is only sliced, the
        slices count; of what is updated in place, the update.
        """
        operands, parts, results = operands_of(instruction, inside), [instruction], [instruction]
        names = [operand.name for operand in operands]
        if instruction.operation == "fusion":
            (inner,) = self.called(instruction)
            parts = list(inner.values())
            parameters = [part for part in parts if part.operation == "parameter"]
            names = [p.name for p in sorted(parameters, key=lambda p: int(p.arguments))]
            (root,) = [part for part in parts if part.root]
            results = operands_of(root, inner) if root.operation == "tuple" else [root]
            inside = inner
        total = 0
        for name, operand in zip(names, operands, strict=True):
            if any(array.hbm_bytes for array in operand.arrays):
                total += _read(name, operand, parts)
        for result, written in zip(results, instruction.arrays, strict=False):
            updates = result.operation == "dynamic-update-slice" and written.hbm_bytes
            changed = inside[result.operands[1]].arrays if updates else [written]
            total += sum(array.hbm_bytes for array in changed)
        return total


def _read(name: str, array: Instruction, parts: list[Instruction]) -> int:
    """Bytes that these instructions read of an array, which some of them have by this name."""
    slices = []
    for user in parts:
        in_place = user.operation == "dynamic-update-slice" and user.operands[0] == name
        if name in user.operands and not in_place:
            slices.append(user if user.operation in SLICES else array)
    return min(sum(a.bytes for a in arrays_of(part)) for part in ([array], slices))


def moved_bytes(ends: list[Array]) -> int:
    """Bytes of HBM that a copy or slice from one of two arrays to the other reads and writes."""
    return min(end.bytes for end in ends) * sum(end.hbm_bytes > 0 for end in ends)


def group_size(collective: Instruction, devices: int) -> int:
    """How many devices a collective joins at a time; all of `devices` where it does not say.

    Groups are written out, {{0,1},{2,3}}; as an array, [2,4]<=[8]; or as axes of a mesh, of which
    'a':(2)4 is a part of 4 that follows one of 2: mesh['a'=8,'b'=2] {'b'}.
    """
    groups = collective.attributes.partition("replica_groups=")[2]
    if listed := re.match(r"\{\{([\d,]+)\}", groups):
        return len(listed[1].split(","))
    if array := re.match(r"\[\d+,(\d+)\]<=", groups):
        return int(array[1])
    if mesh := re.match(r"mesh\[([^\]]*)\] ?\{([^}]*)\}", groups):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part or sizes[name]) for name, part in axes)
    return devices


def dot_flops(dot: Instruction, left: Instruction, right: Instruction) -> float:
    """2 x results x length of what is summed over."""
    summed = _integers(dot.attribute("lhs_contracting_dims"))
    length = math.prod(left.arrays[0].sides[axis] for axis in summed)
    return 2.0 * math.prod(dot.arrays[0].sides) * length


def convolution_flops(conv: Instruction, left: Instruction, right: Instruction) -> float:
    """2 x products that do not fall on padding or between dilated pixels, as XLA counts them.

    TPUs run every matrix product as a convolution; that of a batch has one pixel a member.
    """
    labels = re.split("_|->", conv.attribute("dim_labels"))
    image, window, output = (
        dict(zip(names, side.arrays[0].sides, strict=True))
        for names, side in zip(labels, (left, right, conv), strict=True)
    )
    fields = dict(field.split("=") for field in conv.attribute("window").split())
    axes = [label for label in output if label.isdigit()]

    def window_of(name: str, default: int) -> list[int]:
        values = fields[name].split("x") if name in fields else [str(default)] * len(axes)
        return [int(values[int(axis)].split("_")[0]) for axis in axes]

    sides = ([operand[axis] for axis in axes] for operand in (image, window, output))
    steps = (window_of("stride", 1), window_of("pad", 0))
    dilations = (window_of("lhs_dilate", 1), window_of("rhs_dilate", 1))
    pairs = math.prod(map(overlaps, *sides, *steps, *dilations))
    return 2.0 * pairs * output["b"] * output["f"] * window["i"]
