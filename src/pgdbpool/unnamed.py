"""Blocks that hold a connection without a name for it: ``with pool.connection():``, and no ``as``.

Nobody can look at the value stack of a function, which is where the lease of such a block is. But the source says where
such blocks are, and each running function which instruction it is at.
"""

from __future__ import annotations

import ast
import linecache
from functools import lru_cache
from types import FrameType
from typing import NamedTuple

CHECKOUTS = frozenset({"connection", "Handler"})  # what is called to begin a block

Position = tuple[int, int]


class Block(NamedTuple):
    """One such block: in which function, and from the end of its head to its own end."""

    function: tuple[str, int]
    begin: Position
    end: Position
    head: Position | None
    """Its function may be here as well: entering another block of the same head has no position of its own."""


def holds_unnamed(frame: FrameType) -> bool:
    """Whether a function is inside such a block at this moment, as far as its source can be had."""
    code = frame.f_code
    source = "".join(linecache.getlines(code.co_filename, frame.f_globals))
    try:
        blocks = _blocks(source)
    except Exception:  # CPython 3.11 fails now and then when two threads parse at once; next time, then
        return False
    if not blocks:
        return False
    line, _, column, _ = list(code.co_positions())[frame.f_lasti // 2]
    function = code.co_name, 0 if code.co_name == "<module>" else code.co_firstlineno
    here = line or 0, column or 0
    return any(
        block.function == function and (block.begin <= here < block.end or here == block.head) for block in blocks
    )


@lru_cache(maxsize=64)
def _blocks(source: str) -> tuple[Block, ...]:
    if not any(f"{name}(" in source for name in CHECKOUTS):
        return ()
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # not what is running, then
        return ()
    found = []
    nodes: list[tuple[ast.AST, tuple[str, int]]] = [(tree, ("<module>", 0))]
    while nodes:
        node, function = nodes.pop()
        if isinstance(node, ast.With | ast.AsyncWith):
            found += [
                Block(function, _end(item.context_expr), _end(node), None if item is node.items[-1] else _begin(node))
                for item in node.items
                if item.optional_vars is None and _is_checkout(item.context_expr)
            ]
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            function = node.name, min([node.lineno, *(each.lineno for each in node.decorator_list)])
        nodes += [(child, function) for child in ast.iter_child_nodes(node)]
    return tuple(found)


def _is_checkout(expression: ast.expr) -> bool:
    if not isinstance(expression, ast.Call):
        return False
    called = expression.func
    return (called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", None)) in CHECKOUTS


def _begin(node: ast.stmt) -> Position:
    return node.lineno, node.col_offset


def _end(node: ast.expr | ast.stmt) -> Position:
    return node.end_lineno or 0, node.end_col_offset or 0
