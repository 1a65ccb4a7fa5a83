"""A compiled XLA program as text, read for its costs: FLOPs, bytes and collectives of each step.

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
# What moves no bytes of its own: names, and the bodies that are counted by themselves.
FREE = (
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("while", "conditional", "call", "partition-id", "replica-id", "async-update"),
)
SLICES = ("dynamic-slice", "slice")
_SIZES = {"pred": 8, "bf16": 16}
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = ")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")


@dataclass(frozen=True)
class Array:
    """One array of a shape: dimensions, their order in memory (fastest first), tile, space."""

    dtype: str
    sides: tuple[int, ...]
    order: tuple[int, ...]
    tile: tuple[int, ...]
    space: int

    @property
    def bytes(self) -> int:
        """Bytes in memory, what tiles pad included."""
        padded = [self.sides[axis] for axis in self.order]
        for i, size in enumerate(reversed(self.tile)):
            if i < len(padded):
                padded[i] = -(-padded[i] // size) * size
        bits = _SIZES.get(self.dtype) or int(re.search(r"\d+", self.dtype)[0])
        return math.prod(padded) * bits // 8

    @property
    def hbm_bytes(self) -> int:
        return self.bytes if self.space == 0 else 0


def parse_arrays(shape: str) -> list[Array]:
    """The arrays of a shape, those of a tuple in their order."""
    arrays = []
    for dtype, sides, layout in _ARRAY.findall(shape):
        if dtype == "token":
            continue
        numbers = tuple(int(side) for side in sides.split(",") if side)
        order, _, tiling = layout.partition(":")
        tile = re.match(r"T\(([\d,]+)\)", tiling)
        space = re.search(r"S\((\d+)\)", tiling)
        arrays.append(
            Array(
                dtype,
                numbers,
                tuple(int(axis) for axis in order.split(",") if axis)
                or tuple(reversed(range(len(numbers)))),
                tuple(int(size) for size in tile[1].split(",")) if tile else (),
                int(space[1]) if space else 0,
            )
        )
    return arrays


@dataclass(frozen=True)
class Instruction:
    """One line: its name, the text of its shape, operation, operands and the attributes' text."""

    name: str
    shape: str
    operation: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    @cached_property
    def arrays(self) -> list[Array]:
        return parse_arrays(self.shape)

    def attribute(self, name: str) -> str | None:
        """The value of `name=...`, without braces or quotes."""
        found = re.search(rf"\b{name}=(?:\{{([^}}]*)\}}|\"([^\"]*)\"|([^,\s]+))", self.attributes)
        return next((group for group in found.groups() if group is not None), "") if found else None

    @property
    def called(self) -> list[str]:
        """The computations that a fusion, call or loop runs."""
        names = []
        for key in ("calls", "body", "to_apply"):
            if key != "to_apply" or self.operation == "call":
                names += re.findall(rf"\b{key}=%?([\w.\-]+)", self.attributes)
        return names

    @property
    def branches(self) -> list[str]:
        """The computations that a conditional chooses from."""
        named = self.attribute("branch_computations") or ""
        named += "".join(re.findall(r"(?:true|false)_computation=(%[\w.\-]+)", self.attributes))
        return re.findall(r"%([\w.\-]+)", named)

    @property
    def cycles(self) -> int:
        """The compiler's own estimate of the time, in cycles of the core; 0 where it gives none."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.attributes)
        return int(found[1]) if found else 0

    @property
    def source(self) -> str:
        """The model's layer and operation that it was made from."""
        return self.attribute("op_name") or self.name


def _closing(text: str, start: int) -> int:
    """Where the bracket that opens at `start` closes."""
    depth = 0
    for match in re.finditer(r"[()]", text[start:]):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return start + match.start()
    raise ValueError(f"a bracket does not close: {text[start : start + 80]!r}")


def _instruction(line: str, match: re.Match) -> Instruction:
    rest = line[match.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    start = rest.index("(")
    stop = _closing(rest, start)
    operands = tuple(re.findall(r"%([\w.\-]+)", rest[start:stop]))
    if rest[:start] in ("parameter", "constant"):
        operands = (rest[start + 1 : stop],)
    is_root = line.lstrip().startswith("ROOT")
    return Instruction(match[1], shape, rest[:start], operands, rest[stop + 1 :], is_root)


class Computation:
    """Instructions in their order; where the program is scheduled, in that of their execution."""

    def __init__(self, instructions: list[Instruction]):
        self.instructions = instructions
        self.by_name = {instruction.name: instruction for instruction in instructions}

    @cached_property
    def users(self) -> dict[str, list[Instruction]]:
        users: dict[str, list[Instruction]] = {name: [] for name in self.by_name}
        for instruction in self.instructions:
            for name in set(instruction.operands) & set(users):
                users[name].append(instruction)
        return users

    @cached_property
    def parameters(self) -> list[Instruction]:
        found = [i for i in self.instructions if i.operation == "parameter"]
        return sorted(found, key=lambda i: int(i.operands[0]))

    @property
    def root(self) -> Instruction:
        return next(i for i in self.instructions if i.is_root)

    def operands(self, instruction: Instruction) -> list[Instruction]:
        return [self.by_name[name] for name in instruction.operands if name in self.by_name]


class Program:
    """The computations of `compiled.as_text()`. `loops`: how often a loop runs whose length is
    decided when it runs.
    """

    def __init__(self, text: str, loops: int = 1):
        self.loops = loops
        self.computations: dict[str, Computation] = {}
        self.entry = ""
        name, lines = None, []
        for line in text.splitlines():
            match = _INSTRUCTION.match(line)
            if match and name is not None:
                lines.append(_instruction(line, match))
            elif line.startswith("}") and name is not None:
                self.computations[name] = Computation(lines)
                name = None
            elif line.endswith("{") and (header := re.match(r"(ENTRY )?%?([\w.\-]+) ", line)):
                name, lines = header[2], []
                self.entry = header[2] if header[1] else self.entry
        if not self.entry:
            raise ValueError("the program's text has no ENTRY computation")
        self._flops: dict[str, float] = {}

    def called(self, instruction: Instruction) -> list[Computation]:
        return [self.computations[name] for name in instruction.called]

    def trips(self, loop: Instruction) -> int:
        """How often a `while` runs: the number that its condition counts up to from 0."""
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if known:
            return int(known[1])
        condition = self.computations[loop.attribute("condition").lstrip("%")]
        limits = [i for i in condition.instructions if i.operation == "constant"]
        if len(limits) != 1 or not limits[0].operands[0].isdigit():
            return self.loops
        return int(limits[0].operands[0])

    def chosen(self, conditional: Instruction) -> str:
        """The branch of most FLOPs, which is taken for the one that runs."""
        return max(conditional.branches, key=self.total_flops)

    def flops(self, name: str, instruction: Instruction) -> float:
        """FLOPs of an instruction's convolutions and matrix products, in its computation `name`."""
        computation = self.computations[name]
        if instruction.operation == "convolution":
            return convolution_flops(instruction, *computation.operands(instruction))
        if instruction.operation == "dot":
            return dot_flops(instruction, *computation.operands(instruction))
        if instruction.operation == "conditional":
            return self.total_flops(self.chosen(instruction))
        times = self.trips(instruction) if instruction.operation == "while" else 1
        return float(times * sum(self.total_flops(called) for called in instruction.called))

    def total_flops(self, name: str | None = None) -> float:
        """Of a whole computation, of the entry by default; a loop counts each time it runs."""
        name = name or self.entry
        if name not in self._flops:
            instructions = self.computations[name].instructions
            self._flops[name] = float(sum(self.flops(name, i) for i in instructions))
        return self._flops[name]

    def collectives(self, instruction: Instruction) -> Iterator[tuple[Instruction, list[Array]]]:
        """Collectives of an instruction or inside it, each with the arrays that it is given."""
        for computation in self.called(instruction) if instruction.operation != "while" else ():
            for inner in computation.instructions:
                if kind_of(inner.operation):
                    given = [a for i in computation.operands(inner) for a in i.arrays]
                    yield inner, given
                else:
                    yield from self.collectives(inner)

    def hbm_bytes(self, computation: Computation, instruction: Instruction) -> int:
        """Bytes that an instruction reads from and writes to HBM."""
        operation = instruction.operation
        if operation in FREE or operation.endswith("-done"):
            return 0
        operands = computation.operands(instruction)
        if operation == "dynamic-update-slice":  # in place
            return 2 * _hbm(operands[1:2])
        if operation in (*SLICES, "slice-start", "dynamic-slice-start"):
            return _moved(instruction, instruction.arrays)
        if operation == "copy-start":
            return _moved(instruction, instruction.arrays[:2], both=True)
        inner = self.called(instruction)
        if operation != "fusion" or not inner:
            return _hbm(operands) + _hbm([instruction])
        return self._fusion_bytes(instruction, inner[0], operands)

    def _fusion_bytes(
        self, fusion: Instruction, inner: Computation, operands: list[Instruction]
    ) -> int:
        total = 0
        for parameter, operand in zip(inner.parameters, operands, strict=True):
            spaces = [array.space for array in operand.arrays] or [0]
            if spaces[0] == 0:
                total += self._read(inner, parameter)
        root = inner.root
        results = inner.operands(root) if root.operation == "tuple" else [root]
        for result, written in zip(results, fusion.arrays, strict=False):
            source = result
            while source.operation in ("bitcast", "copy") and inner.operands(source):
                source = inner.operands(source)[0]
            if source.operation == "parameter" or kind_of(source.operation):
                continue  # handed on
            if source.operation == "dynamic-update-slice":
                update = inner.operands(source)[1]
                total += sum(array.bytes for array in update.arrays) if written.space == 0 else 0
            else:
                total += written.hbm_bytes
        return total

    def _read(self, inner: Computation, parameter: Instruction) -> int:
        """Bytes of a fusion's parameter that are read: the slices, where only slices are used."""
        total = 0
        for user in inner.users[parameter.name]:
            if user.operation in SLICES:
                total += sum(array.bytes for array in user.arrays)
            elif user.operation == "bitcast":
                total += self._read(inner, user)
            elif user.operation == "fusion":
                position = user.operands.index(parameter.name)
                nested = self.called(user)[0]
                total += self._read(nested, nested.parameters[position])
            elif user.operation == "dynamic-update-slice" and user.operands[0] == parameter.name:
                continue  # written in place
            elif user.operation in ("tuple", "custom-call") or kind_of(user.operation):
                continue  # handed on to a collective that runs beside the fusion
            else:
                return sum(array.bytes for array in parameter.arrays)
        return min(total, sum(array.bytes for array in parameter.arrays))


def kind_of(operation: str) -> str | None:
    """The collective that an operation is, or begins."""
    kind = operation.removesuffix("-start")
    return kind if kind in COLLECTIVES else None


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


def _hbm(instructions: list[Instruction]) -> int:
    return sum(array.hbm_bytes for i in instructions for array in i.arrays)


def _moved(instruction: Instruction, arrays: list[Array], both: bool = False) -> int:
    """Bytes of HBM that a copy or slice reads and writes; of a copy both ends are arrays of its
    own.
    """
    if both:
        return sum(array.hbm_bytes for array in arrays)
    smallest = min(array.bytes for array in arrays if array.sides)
    return smallest + sum(array.hbm_bytes for array in arrays if array.bytes == smallest)


def dot_flops(dot: Instruction, left: Instruction, right: Instruction) -> float:
    """2 x results x length of what is summed over."""
    summed = [
        int(axis) for axis in (dot.attribute("lhs_contracting_dims") or "").split(",") if axis
    ]
    length = math.prod(left.arrays[0].sides[axis] for axis in summed)
    return 2.0 * math.prod(dot.arrays[0].sides) * length


def convolution_flops(conv: Instruction, left: Instruction, right: Instruction) -> float:
    """2 x products that do not fall on padding or between dilated pixels, as XLA counts them.

    TPUs run every matrix product as a convolution; that of a batch has one pixel a member.
    """
    inputs, rest = (conv.attribute("dim_labels") or "").split("_")
    kernel, outputs = rest.split("->")
    sizes = [
        dict(zip(labels, side.arrays[0].sides, strict=True))
        for labels, side in ((inputs, left), (kernel, right), (outputs, conv))
    ]
    image, window, output = sizes
    pairs = 1
    for axis in filter(str.isdigit, outputs):
        pairs *= overlaps(image[axis], window[axis], output[axis], **_window(conv, int(axis)))
    return 2.0 * pairs * output["b"] * output["f"] * window["i"]


def _window(conv: Instruction, axis: int) -> dict[str, int]:
    """One axis of a convolution's window, as `overlaps` takes it."""
    fields = dict(field.split("=") for field in (conv.attribute("window") or "").split() if field)

    def value(name: str, default: str) -> str:
        return fields[name].split("x")[axis] if name in fields else default

    return {
        "stride": int(value("stride", "1")),
        "before": int(value("pad", "0_0").split("_")[0]),
        "image_dilation": int(value("lhs_dilate", "1")),
        "kernel_dilation": int(value("rhs_dilate", "1")),
    }
