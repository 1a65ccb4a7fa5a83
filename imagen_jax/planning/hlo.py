"""A compiled XLA program as text: its instructions, and the FLOPs and bytes of each.

Layouts and memory spaces are those of TPUs: `bf16[8,64]{1,0:T(8,128)(2,1)S(1)}` is tiled, which
pads it, and lies in space 1, the vector memory beside the core; without S(n) it lies in HBM. On
GPUs arrays are not padded, and convolutions and attention are calls of NVIDIA's libraries.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import zip_longest

from imagen_jax.training.flops import overlaps

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# NVIDIA's libraries by a part of the name that is called, and what they run. The last array that a
# call makes is scratch space.
LIBRARIES = {"cudnn$conv": "convolution", "cudnn$fmha": "attention", "cublas": "GEMM"}
# Which arrays of such a convolution, two given and one made, are those of the forward pass.
PASSES = {"BackwardInput": (2, 1, 0), "BackwardFilter": (0, 2, 1)}
SLICES, UPDATE = ("dynamic-slice", "slice"), "dynamic-update-slice"
_INSTRUCTION = re.compile(
    r"^\s+(?P<root>ROOT )?%(?P<name>[\w.\-]+) = (?P<shape>.*?) (?P<operation>[a-z][\w\-]*)"
    r"\((?P<arguments>.*?)\)(?P<attributes>(?:, \w+=.*)?)$"
)
_ARRAY = re.compile(r"\b(?!token)([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_TILE = re.compile(r"(?:T\(([\d,]+)\))?")


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
        sides, (order, _, tiling) = _integers(dimensions), layout.partition(":")
        fastest_first = [sides[axis] for axis in _integers(order) or range(len(sides))[::-1]]
        tile = _integers(_TILE.match(tiling)[1] or "")[::-1][: len(sides)]
        padded = [-(-a // b) * b for a, b in zip_longest(fastest_first, tile, fillvalue=1)]
        bits = 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0])
        size = math.prod(padded) * bits // 8
        arrays.append(Array(sides, size, 0 if re.search(r"S\([1-9]", tiling) else size))
    return arrays


def _integers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)))


@dataclass(frozen=True, eq=False)
class Instruction:
    """One line of a program; shape, arguments and attributes are its text. computations: all of the
    program's, by name.
    """

    name: str
    shape: str
    operation: str
    arguments: str
    attributes: str
    root: bool = False
    operands: list["Instruction"] = field(default_factory=list, repr=False)
    computations: dict[str, "Computation"] = field(default_factory=dict, repr=False)

    @cached_property
    def arrays(self) -> list[Array]:
        """The arrays that it results in."""
        return parse_arrays(self.shape)

    @property
    def given(self) -> list[Array]:
        """The operands' arrays."""
        return [array for operand in self.operands for array in operand.arrays]

    @property
    def bytes(self) -> int:
        """The size of what it results in."""
        return sum(array.bytes for array in self.arrays)

    @property
    def collective(self) -> str | None:
        """The kind of collective that it is, or begins."""
        kind = self.operation.removesuffix("-start")
        return kind if kind in COLLECTIVES else None

    @property
    def library(self) -> str | None:
        """What it lets one of NVIDIA's libraries run."""
        target = self.attribute("custom_call_target")
        return next((kind for part, kind in LIBRARIES.items() if part in target), None)

    def attribute(self, name: str) -> str:
        """The value of `name=...`, without braces or quotes; empty where there is none."""
        found = re.search(rf"\b{name}=(?:\{{([^}}]*)\}}|\"([^\"]*)\"|([^,\s]+))", self.attributes)
        return next(filter(None, found.groups()), "") if found else ""

    def stated(self, name: str) -> int | None:
        """A number that the compiler states in JSON, such as its estimate of the cycles."""
        found = re.search(rf'"{name}":(?:\{{"n":)?"?(\d+)', self.attributes)
        return int(found[1]) if found else None

    def called(self, keys: str = "calls|to_apply") -> list["Computation"]:
        """The computations that these attributes name."""
        found = re.findall(rf"\b(?:{keys})=(\{{[^}}]*\}}|[^,\s]+)", self.attributes)
        return [self.computations[name] for name in re.findall(r"[\w.\-]+", " ".join(found))]


# Instructions by name; where the program is scheduled, in the order of their execution.
Computation = dict[str, Instruction]


def read_program(text: str) -> Computation:
    """The entry of a compiled program's text."""
    computations: dict[str, Computation] = {}
    entry, inside = None, {}
    for line in text.splitlines():
        if match := _INSTRUCTION.match(line):
            names = re.findall(r"%([\w.\-]+)", match["arguments"])
            inside[match["name"]] = Instruction(
                **match.groupdict() | {"root": match["root"] is not None},
                operands=[inside[name] for name in names if name in inside],
                computations=computations,
            )
        elif header := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line):
            inside = computations[header[2]] = {}
            entry = inside if header[1] else entry
    if entry is None:
        raise ValueError("the program's text has no ENTRY computation")
    return entry


def trips(loop: Instruction) -> int | None:
    """How often a `while` runs: the number that its condition counts up to from 0. None where that
    is decided when it runs.
    """
    if known := loop.stated("known_trip_count"):
        return known
    (condition,) = loop.called("condition")
    limits = [i.arguments for i in condition.values() if i.operation == "constant"]
    return int(limits[0]) if len(limits) == 1 and limits[0].isdigit() else None


def flops(instruction: Instruction) -> float:
    """FLOPs of an instruction's convolutions and matrix products, or a custom kernel's own."""
    if instruction.operation == "convolution":
        return convolution_flops(instruction)
    if instruction.operation == "dot":
        summed = _integers(instruction.attribute("lhs_contracting_dims"))
        length = math.prod(instruction.given[0].sides[axis] for axis in summed)
        return 2.0 * math.prod(instruction.arrays[0].sides) * length
    if instruction.operation == "custom-call":
        return float(instruction.stated("flops") or library_flops(instruction))
    return sum((flops(part) for inner in instruction.called() for part in inner.values()), 0.0)


def library_flops(call: Instruction) -> float:
    """FLOPs of a call of NVIDIA's libraries; of attention, two products forward and five backward,
    since the weights are made again.
    """
    if call.library == "convolution":
        return convolution_flops(call)
    name = {"attention": "dimensions", "GEMM": "lhs_contracting_dimensions"}.get(call.library)
    found = name and re.search(rf'"{name}": ?\[([^\]]*)\]', call.attributes)
    if not found:
        return 0.0
    sides, first = _integers(found[1]), call.given[0].sides
    if call.library == "attention":  # weights [batch heads queries keys], queries [.. head]
        backward = "Backward" in call.attribute("custom_call_target")
        return (5 if backward else 2) * 2.0 * math.prod(sides) * first[-1]
    return 2.0 * math.prod(call.arrays[0].sides) * math.prod(first[axis] for axis in sides)


def collectives(instruction: Instruction) -> Iterator[Instruction]:
    """The collective that an instruction is, and those inside it."""
    if instruction.collective:
        yield instruction
    for inner in instruction.called():
        for part in inner.values():
            yield from collectives(part)


def hbm_bytes(instruction: Instruction) -> int:
    """Bytes that an instruction reads from and writes to HBM. Of what is only sliced, the slices
    count; of what is updated in place, the update.
    """
    parts, inputs, results = [instruction], instruction.operands, [instruction]
    made, operation = instruction.arrays, instruction.operation
    if instruction.library:
        results *= max(len(made) - 1, 1)
    if operation == "fusion-start":  # what it is given stands before what it makes
        made = made[len(instruction.given) :]
    if operation.removesuffix("-start") == "fusion":
        (inner,) = instruction.called()
        parts = list(inner.values())
        inputs = [part for part in parts if part.operation == "parameter"]
        inputs.sort(key=lambda parameter: int(parameter.arguments))
        (root,) = [part for part in parts if part.root]
        results = root.operands if root.operation == "tuple" else [root]
    total = sum(
        _read(known, parts)
        for operand, known in zip(instruction.operands, inputs, strict=True)
        if any(array.hbm_bytes for array in operand.arrays)
    )
    for result, written in zip(results, made, strict=False):
        if result.operation == UPDATE and written.hbm_bytes:
            (written,) = result.operands[1].arrays
        total += written.hbm_bytes
    return total


def _read(array: Instruction, parts: list[Instruction]) -> int:
    """Bytes of an array that these instructions read."""
    users = [part for part in parts if array in part.operands]
    reads = [
        user.bytes if user.operation in SLICES else array.bytes
        for user in users
        if user.operation != UPDATE or user.operands[0] is not array
    ]
    return min(array.bytes, sum(reads))


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


def convolution_flops(conv: Instruction) -> float:
    """2 x products that do not fall on padding or between dilated pixels, as XLA counts them.

    TPUs run every matrix product as a convolution; that of a batch has one pixel a member.
    """
    labels = re.split("_|->", conv.attribute("dim_labels"))
    target, arrays = conv.attribute("custom_call_target"), (*conv.given[:2], conv.arrays[0])
    order = next((PASSES[name] for name in PASSES if name in target), (0, 1, 2))
    image, window, output = (
        dict(zip(names, arrays[place].sides, strict=True))
        for names, place in zip(labels, order, strict=True)
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
