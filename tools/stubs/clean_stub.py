"""Turn what pybind11-stubgen prints for TensorRT's bindings into a stub that mypy reads.

pybind11 leaves three kinds of things that are not Python: C++ names, reprs as default values, and
parameters named after keywords. And it does not say what TensorRT documents: which calls return
None, what converts to Dims, that host memory is a buffer. Doc strings are dropped.
"""

from __future__ import annotations

import ast
import keyword
import re

__all__ = ["clean_stub"]

_HEAD = """\
# Made by tools/stubs/make_stubs.py from {source}; do not edit.
# mypy: ignore-errors
import builtins
import collections.abc
import typing
import numpy.typing
import typing_extensions
capsule = typing.Any
"""
_TAIL = """
__version__: str
def volume(iterable: collections.abc.Iterable[int]) -> int: ...
def nptype(trt_type: DataType) -> typing.Any: ...
"""
_ITERABLE = "def __iter__(self) -> collections.abc.Iterator[int]: ..."
# Protocols that these classes have at run time but pybind11 does not declare.
_EXTRA_MEMBERS = {
    "Dims": _ITERABLE,
    "Permutation": _ITERABLE,
    "IHostMemory": "def __buffer__(self, flags: int, /) -> memoryview: ...",
}
# pybind11 writes `-> X` for these, but they return None when they fail (seen at run time) ...
_NONE_ON_FAILURE = {
    "Builder.build_serialized_network",
    "Builder.build_engine_with_config",
    "Runtime.deserialize_cuda_engine",
    "ICudaEngine.create_execution_context",
}
# ... and passes None here: the outermost phase has no parent.
_NONE_ALLOWED = {"IProgressMonitor.phase_start.parent_phase"}
# What pybind11 converts to a class where that class is a parameter.
_ACCEPTED = {
    "Weights": "numpy.typing.NDArray[typing.Any]",
    "FallbackString": "str",
    **dict.fromkeys(
        ("Dims", "Dims2", "Dims3", "Dims4", "DimsHW", "Permutation"),
        "collections.abc.Sequence[int]",
    ),
}
_PROTECTED = {"__buffer__", "__release_buffer__"}  # shown from Python 3.12 on, untyped


def clean_stub(text: str, prefix: str, source: str) -> str:
    """A stub's text.

    Args:
        text: what pybind11-stubgen wrote.
        prefix: the extension module's dotted name and a dot, removed everywhere.
        source: package and version, for the head line.
    """
    tree = ast.parse(_as_python(text.replace(prefix, "")))
    tree = _Cleaner().visit(tree)
    tree = ast.fix_missing_locations(_Builtins(_shadowed(tree)).visit(tree))
    body = ast.unparse(tree).replace("from __future__ import annotations\n", "")
    return _HEAD.format(source=source) + body + _TAIL


def _as_python(text: str) -> str:
    text = text.replace("collections.abc.Buffer", "typing_extensions.Buffer")
    text = re.sub(r"^import typing_extensions\n", "", text, flags=re.M)
    known = set(re.findall(r"^class (\w+)", text, re.M))
    text = re.sub(
        r"\b(?:nvinfer1|nvonnxparser)::(?:\w+::)*(\w+)",
        lambda match: match[1] if match[1] in known else "typing.Any",
        text,
    )
    anonymous = r"(?:pybind11::)?detail::[\w:]+(?:<[^\n]*?>)?(?=[,\])\s:])"
    text = re.sub(anonymous, "typing.Any", text)
    text = re.sub(r"= <[^<>\n]*>", "= ...", text)
    named = rf"(?<=[(\s])({'|'.join(keyword.kwlist)})(?=: )"
    text = re.sub(r"^\s*def .*$", lambda m: re.sub(named, r"\1_", m[0]), text, flags=re.M)
    head = re.compile(r"^(\s*def \w+\()(.*)(\) -> .*)$", re.M)
    return head.sub(lambda m: m[1] + _default_the_rest(m[2]) + m[3], text)


def _default_the_rest(parameters: str) -> str:
    """Give every positional parameter behind the first default a default too."""
    parts, seen = _split(parameters), False
    for index, part in enumerate(parts):
        if part.strip().startswith(("*", "/")):
            break
        seen = seen or "=" in part
        if seen and "=" not in part:
            parts[index] = part + " = ..."
    return ",".join(parts)


def _split(parameters: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for position, char in enumerate(parameters + ","):
        depth += (char in "[(") - (char in "])")
        if char == "," and depth == 0:
            parts.append(parameters[start:position])
            start = position + 1
    return parts


def _or_none(value: ast.expr) -> ast.expr:
    return ast.BinOp(value, ast.BitOr(), ast.Constant(None))


def _is_text(item: ast.stmt) -> bool:
    if not isinstance(item, ast.Expr) or not isinstance(item.value, ast.Constant):
        return False
    return isinstance(item.value.value, str)


class _AnyForEllipsis(ast.NodeTransformer):
    """`x: ...` becomes `x: typing.Any`; `Callable[..., X]` and `tuple[X, ...]` stay."""

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        if node.value is ...:
            return ast.Attribute(ast.Name("typing", ast.Load()), "Any", ast.Load())
        return node

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        if not isinstance(node.slice, ast.Tuple):
            node.slice = self.visit(node.slice)
            return node
        items = node.slice.elts
        node.slice.elts = [
            item if isinstance(item, ast.Constant) and item.value is ... else self.visit(item)
            for item in items
        ]
        return node


class _Parameter(ast.NodeTransformer):
    """A parameter takes what pybind11 converts to its class."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        other = _ACCEPTED.get(node.id)
        return ast.parse(f"{node.id} | {other}", mode="eval").body if other else node

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        # Newer pybind11 says SupportsInt where older says int; with it, every override of
        # IProfiler or IProgressMonitor that says int would be an error.
        plain = {"SupportsInt": "int", "SupportsFloat": "float"}.get(node.attr)
        return ast.Name(plain, ast.Load()) if plain else node


class _Cleaner(ast.NodeTransformer):
    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        self.generic_visit(node)
        node.body = [item for item in node.body if not _is_text(item)]
        for item in node.body:
            if isinstance(item, ast.FunctionDef):
                _optional(f"{node.name}.{item.name}", item)
        node.body += ast.parse(_EXTRA_MEMBERS.get(node.name, "")).body
        node.body = node.body or [ast.Expr(ast.Constant(...))]
        return node

    def visit_Module(self, node: ast.Module) -> ast.AST:
        self.generic_visit(node)
        node.body = [item for item in node.body if not _is_text(item)]
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST | None:
        if node.name in _PROTECTED:
            return None
        node.body = [ast.Expr(ast.Constant(...))]
        node.returns = _annotation(node.returns)
        arguments = node.args
        for arg in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
            arg.annotation = _annotation(arg.annotation)
            if arg.annotation is not None and arg.arg != "self":
                arg.annotation = _Parameter().visit(arg.annotation)
        arguments.defaults = [ast.Constant(...) for _ in arguments.defaults]
        arguments.kw_defaults = [d and ast.Constant(...) for d in arguments.kw_defaults]
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        if isinstance(node.target, ast.Name) and node.target.id == "__all__":
            return None
        node.annotation = _AnyForEllipsis().visit(node.annotation)
        node.value, node.simple = None, 1
        return node


def _annotation(node: ast.expr | None) -> ast.expr | None:
    return None if node is None else _AnyForEllipsis().visit(node)


def _optional(name: str, node: ast.FunctionDef) -> None:
    if name in _NONE_ON_FAILURE and node.returns is not None:
        node.returns = _or_none(node.returns)
    for arg in node.args.args:
        if f"{name}.{arg.arg}" in _NONE_ALLOWED and arg.annotation is not None:
            arg.annotation = _or_none(arg.annotation)


def _shadowed(tree: ast.Module) -> set[str]:
    """Builtins that the module hides: its `bool` is a DataType."""
    targets = [item.target for item in tree.body if isinstance(item, ast.AnnAssign)]
    names = {target.id for target in targets if isinstance(target, ast.Name)}
    return names & {"bool", "int", "float", "str", "bytes"}


class _Builtins(ast.NodeTransformer):
    def __init__(self, shadowed: set[str]) -> None:
        self._shadowed = shadowed

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id in self._shadowed and isinstance(node.ctx, ast.Load):
            return ast.Attribute(ast.Name("builtins", ast.Load()), node.id, ast.Load())
        return node
