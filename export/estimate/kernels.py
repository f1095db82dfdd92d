"""From the operators of a graph to the kernels that TensorRT makes of them.

What is fused follows the layer reports that builders print. A convolution takes its bias, scales
and its activation along, but an addition after a swish stays a kernel with that swish. Convolutions
of one input and one form are one kernel. They write straight into a concatenation, where slices of
other tensors are copied. Quantizing nodes vanish, chains of element-wise operators are one kernel,
and a transposition before a matrix product is folded into it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod

from export.estimate.graph import Operator, Shape

__all__ = ["KINDS", "Kernel", "fuse"]

KINDS = ("conv", "grouped", "matmul", "pointwise", "pool", "move", "unknown")

_VIEWS = frozenset(
    ["Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Slice", "Split", "Cast"]
)
_QUANTIZING = frozenset(("QuantizeLinear", "DequantizeLinear"))
_ACTIVATIONS = frozenset(
    [
        "Relu",
        "LeakyRelu",
        "Sigmoid",
        "Clip",
        "Tanh",
        "HardSwish",
        "HardSigmoid",
        "Elu",
        "Softplus",
        "PRelu",
        "Mish",
        "Gelu",
        "Swish",
        "Selu",
        "ThresholdedRelu",
        "Softsign",
    ]
)
_POINTWISE = _ACTIVATIONS | frozenset(
    [
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Exp",
        "Sqrt",
        "Pow",
        "Neg",
        "Abs",
        "Log",
        "Floor",
        "Ceil",
        "Round",
        "Reciprocal",
        "Erf",
        "Max",
        "Min",
        "Where",
        "Equal",
        "Greater",
        "Less",
        "GreaterOrEqual",
        "LessOrEqual",
        "Not",
        "And",
        "Or",
        "Mod",
        "Sin",
        "Cos",
        "BatchNormalization",
    ]
)
_POOLS = frozenset(
    [
        "MaxPool",
        "AveragePool",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "Softmax",
        "LogSoftmax",
        "LayerNormalization",
        "InstanceNormalization",
        "GroupNormalization",
        "ReduceMean",
        "ReduceSum",
        "ReduceMax",
        "ReduceMin",
        "ReduceL2",
        "ArgMax",
        "ArgMin",
        "LRN",
    ]
)
_MOVES = frozenset(
    [
        "Transpose",
        "Resize",
        "Upsample",
        "Pad",
        "DepthToSpace",
        "SpaceToDepth",
        "Gather",
        "GatherElements",
        "GatherND",
        "Tile",
        "Expand",
        "TopK",
        "Concat",
    ]
)


@dataclass(frozen=True)
class Kernel:
    """One launch on the GPU.

    Attributes:
        kind: one of `KINDS`.
        name: of the node that gave it its name.
        m: rows of the product: pixels of the output; for kinds without a product its elements.
        n: columns: channels of the output, of one group.
        k: length of the sum: channels times kernel, of one group.
        groups: products of that size.
        channels: of the input, over all groups.
        read: elements of activations it reads.
        written: elements it writes.
        weights: elements of its weights.
        swish: whether a sigmoid and a product follow it.
        quantizable: whether an INT8 build runs it in INT8.
        boundary: whether the kernel before it differs in that, so that a layout changes.
    """

    kind: str
    name: str
    m: int
    n: int = 1
    k: int = 0
    groups: int = 1
    channels: int = 1
    read: int = 0
    written: int = 0
    weights: int = 0
    swish: bool = False
    quantizable: bool = True
    boundary: bool = False

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        return 2 * self.m * self.n * self.k * self.groups

    def scaled(self, pixels: float) -> Kernel:
        """The same kernel where the network's input has `pixels` times as many pixels."""
        return replace(
            self,
            m=max(1, round(self.m * pixels)),
            read=max(1, round(self.read * pixels)),
            written=max(1, round(self.written * pixels)),
        )


def fuse(operators: Sequence[Operator]) -> list[Kernel]:
    """Return the kernels of a graph, in its order.

    A graph with Q/DQ keeps its own choice: its convolutions without them are not quantizable.
    """
    return _Fusion(operators).kernels()


class _Fusion:
    """The walk over one graph."""

    def __init__(self, operators: Sequence[Operator]) -> None:
        self.operators = _without_quantizing(operators)
        self.quantized = any(one.kind in _QUANTIZING for one in operators)
        self.made = {name: one for one in self.operators for name in one.outputs}
        self.users: dict[str, list[Operator]] = defaultdict(list)
        for one in self.operators:
            for name in dict.fromkeys(one.inputs):
                self.users[name].append(one)
        self.done: set[str] = set()
        self.placed: set[str] = set()

    def kernels(self) -> list[Kernel]:
        found: list[Kernel] = []
        for one in self.operators:
            if one.name not in self.done:
                self.done.add(one.name)
                found.extend(self._kernels(one))
        found = _merged(found, self.operators)
        before = [False, *(one.quantizable for one in found)]
        return [
            replace(one, boundary=one.quantizable != was)
            for one, was in zip(found, before, strict=False)
        ]

    def _kernels(self, one: Operator) -> Iterable[Kernel]:
        if one.kind in ("Conv", "ConvTranspose"):
            return self._convolution(one)
        if one.kind in ("MatMul", "Gemm"):
            return [_product(one)]
        if one.kind in _POINTWISE:
            return [self._pointwise(one)]
        if one.kind in _POOLS:
            return [_moving(one, "pool", quantizable=one.kind == "MaxPool")]
        if one.kind == "Concat":
            return self._concatenation(one)
        if one.kind == "Transpose" and self._beside_product(one):
            return []
        if one.kind in _MOVES:
            return [_moving(one, "move", quantizable=one.kind in ("Resize", "Concat"))]
        if one.kind in _VIEWS:
            return []
        return [_moving(one, "unknown", quantizable=False)]

    def _only(self, name: str) -> Operator | None:
        users = self.users[name]
        return users[0] if len(users) == 1 else None

    def _after(self, one: Operator) -> tuple[list[Operator], bool]:
        """The scales and the activation that a convolution takes along; whether it is a swish."""
        found: list[Operator] = []
        while (only := self._only((found or [one])[-1].outputs[0])) is not None and (
            only.kind == "BatchNormalization"
            or (only.kind in ("Mul", "Add", "Sub", "Div") and len(only.inputs) == 1)
        ):
            found.append(only)
        name = (found or [one])[-1].outputs[0]
        users = self.users[name]
        if len(users) == 2:
            gate = next((u for u in users if u.kind in ("Sigmoid", "HardSigmoid")), None)
            times = next((u for u in users if u.kind == "Mul"), None)
            if gate and times and gate.outputs[0] in times.inputs:
                return [*found, gate, times], True
        if only is not None and only.kind in _ACTIVATIONS:
            return [*found, only], only.kind in ("Sigmoid", "HardSwish", "Mish", "Gelu", "Swish")
        return found, False

    def _convolution(self, one: Operator) -> list[Kernel]:
        after, swish = self._after(one)
        last = (after or [one])[-1]
        addition = self._only(last.outputs[0])
        adds = (
            addition is not None
            and addition.kind == "Add"
            and len(addition.inputs) == 2
            and set(addition.entering) == set(addition.shapes)
            # The other term must be there when this convolution runs.
            and all(
                name in last.outputs or name not in self.made or self._is_done(name)
                for name in addition.inputs
            )
        )
        extra = 0
        kernels: list[Kernel] = []
        if addition is not None and adds and swish:
            kernels = [_moving(addition, "pointwise")]
            after, swish = [*after, addition], False
        elif addition is not None and adds:
            after, extra = [*after, addition], addition.elements
        self.done.update(u.name for u in after)
        return [_convolution(one, extra, swish, self.quantized), *kernels]

    def _is_done(self, name: str) -> bool:
        return self.made[name].name in self.done

    def _pointwise(self, one: Operator) -> Kernel:
        """The chain of element-wise operators from `one` on, as one kernel."""
        inside = {one.name: one}
        grew = True
        while grew:
            grew = False
            for member in list(inside.values()):
                for name in member.outputs:
                    users = self.users[name]
                    if users and all(
                        u.name in inside or (u.kind in _POINTWISE and u.name not in self.done)
                        for u in users
                    ):
                        new = [u for u in users if u.name not in inside]
                        inside.update((u.name, u) for u in new)
                        grew = grew or bool(new)
        self.done.update(inside)
        read = {
            name: prod(shape)
            for member in inside.values()
            for name, shape in zip(member.inputs, member.entering, strict=True)
            if name not in self.made or self.made[name].name not in inside
        }
        written = sum(
            prod(shape)
            for member in inside.values()
            for name, shape in zip(member.outputs, member.shapes, strict=True)
            if not self.users[name] or any(u.name not in inside for u in self.users[name])
        )
        weights = sum(prod(s) for member in inside.values() for s in member.weights if s)
        four = len(one.shapes[0]) == 4
        return Kernel(
            "pointwise",
            one.name,
            m=max(written, 1),
            channels=one.shapes[0][1] if four else 1,
            read=sum(read.values()),
            written=written,
            weights=weights,
            quantizable=four,
        )

    def _source(self, name: str) -> tuple[str, bool]:
        """The tensor of which `name` is a view, and whether it is only a part of it."""
        part = False
        while name in self.made and self.made[name].kind in _VIEWS:
            part = part or self.made[name].kind in ("Slice", "Split")
            name = self.made[name].inputs[0]
        return name, part

    def _concatenation(self, one: Operator) -> list[Kernel]:
        copied = 0
        # Convolutions write channels side by side; any other axis needs another layout.
        channels = len(one.shapes[0]) == 4 and one.attributes.get("axis", 1) in (1, -3)
        for name, shape in zip(one.inputs, one.entering, strict=True):
            source, part = self._source(name)
            free = channels and source in self.made and not part and source not in self.placed
            self.placed.add(source)
            copied += 0 if free else prod(shape)
        if not copied:
            return []
        return [
            Kernel(
                "move",
                one.name,
                m=copied,
                channels=one.shapes[0][1] if len(one.shapes[0]) > 1 else 1,
                read=copied,
                written=copied,
                quantizable=len(one.shapes[0]) == 4,
            )
        ]

    def _beside_product(self, one: Operator) -> bool:
        users = self.users[one.outputs[0]]
        source, _ = self._source(one.inputs[0])
        before = self.made[source].kind if source in self.made else ""
        return before == "MatMul" or (bool(users) and all(u.kind == "MatMul" for u in users))


def _merged(kernels: Sequence[Kernel], operators: Sequence[Operator]) -> list[Kernel]:
    """The kernels with convolutions of one input and one form merged into the first of them."""
    forms: dict[tuple[object, ...], Kernel] = {}
    by_name = {one.name: one for one in operators}
    found: list[Kernel] = []
    for kernel in kernels:
        one = by_name[kernel.name]
        if kernel.kind != "conv" or one.kind != "Conv":
            found.append(kernel)
            continue
        keys = ("kernel_shape", "strides", "pads", "dilations")
        form = (
            one.inputs[0],
            kernel.quantizable,
            *(str(one.attributes.get(key)) for key in keys),
        )
        first = forms.get(form)
        if first is None:
            forms[form] = kernel
            found.append(kernel)
            continue
        both = replace(
            first,
            n=first.n + kernel.n,
            written=first.written + kernel.written,
            weights=first.weights + kernel.weights,
            swish=first.swish or kernel.swish,
        )
        found[found.index(first)] = both
        forms[form] = both
    return found


def _without_quantizing(operators: Sequence[Operator]) -> list[Operator]:
    """The operators with Q/DQ folded away: each input is the tensor before them."""
    before: dict[str, str] = {}
    found = []
    for one in operators:
        if one.kind in _QUANTIZING:
            before[one.outputs[0]] = before.get(one.inputs[0], one.inputs[0])
            continue
        found.append(replace(one, inputs=tuple(before.get(name, name) for name in one.inputs)))
    return found


def _convolution(one: Operator, extra: int, swish: bool, quantized: bool) -> Kernel:
    shape, entering = one.shapes[0], one.entering[0]
    groups = int(one.attributes.get("group", 1))
    weights: Shape = one.weights[0] if one.weights else (shape[1], entering[1] // groups, 1, 1)
    filters, channels = shape[1] // groups, entering[1] // groups
    window = prod(weights[2:])
    m, n, k = prod(shape[2:]), filters, channels * window
    if one.kind == "ConvTranspose":
        m, n, k = prod(entering[2:]), filters * window, channels
    return Kernel(
        "conv" if groups == 1 else "grouped",
        one.name,
        m=m * shape[0],
        n=n,
        k=k,
        groups=groups,
        channels=entering[1],
        read=prod(entering) + extra,
        written=prod(shape),
        weights=prod(weights),
        swish=swish,
        # One filter, such as an expectation over bins, stays in float.
        quantizable=one.integer if quantized else shape[1] > 1,
    )


def _product(one: Operator) -> Kernel:
    left = one.entering[0] if one.entering else ()
    shape = one.shapes[0]
    turned = one.kind == "Gemm" and one.attributes.get("transA")
    k = left[-2] if turned else left[-1]
    weights = sum(prod(s) for s in one.weights)
    batch = prod(shape[:-2]) if not one.weights else 1
    rows = shape[-2] if len(shape) > 1 else 1
    return Kernel(
        "matmul",
        one.name,
        m=rows if batch > 1 or not one.weights else prod(shape[:-1]),
        n=shape[-1],
        k=k,
        groups=batch,
        channels=k,
        read=sum(prod(s) for s in one.entering),
        written=prod(shape),
        weights=weights,
        quantizable=bool(one.weights),
    )


def _moving(one: Operator, kind: str, quantizable: bool = True) -> Kernel:
    """A kernel whose time is that of the bytes that it moves."""
    read = sum(prod(shape) for shape in one.entering)
    if one.kind in ("Gather", "GatherElements", "GatherND", "Slice"):
        read = min(read, one.elements)
    first = one.shapes[0]
    return Kernel(
        kind,
        one.name,
        m=max(one.elements, 1),
        channels=first[1] if len(first) > 1 else 1,
        read=read,
        written=one.elements,
        weights=sum(prod(s) for s in one.weights if s and one.kind not in ("Resize", "Upsample")),
        quantizable=quantizable and len(first) == 4,
    )
