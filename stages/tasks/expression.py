"""Arithmetic expressions over + - *: a parser that never evaluates code, a printer, and a canonical form.

Grammar: sum = product (("+" | "-") product)* ; product = atom ("*" atom)* ; atom = NUMBER | "(" sum ")". No unary signs.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from operator import add, mul, sub

OPERATIONS: dict[str, Callable[[int, int], int]] = {"+": add, "-": sub, "*": mul}
# No answer with six numbers needs more than this; the bound also limits recursion (3 frames per bracket).
MAX_CHARACTERS = 256
_TOKEN = re.compile(r"[0-9]{1,6}|[-+*()]")


class NotAnExpressionError(ValueError):
    """The text is outside the grammar."""


@dataclass(frozen=True)
class Node:
    """A number (operator "") or an operation on two nodes."""

    value: int
    operator: str = ""
    left: Node | None = None
    right: Node | None = None

    def numbers(self) -> list[int]:
        """The leaves, left to right."""
        if self.left is None or self.right is None:
            return [self.value]
        return self.left.numbers() + self.right.numbers()


def combine(operator: str, left: Node, right: Node) -> Node:
    return Node(OPERATIONS[operator](left.value, right.value), operator, left, right)


def parse(text: str) -> Node:
    """Raises `NotAnExpressionError` for anything outside the grammar or longer than MAX_CHARACTERS.

    Values stay small: at most 64 numbers of six digits fit into the length.
    """
    if len(text) > MAX_CHARACTERS:
        raise NotAnExpressionError(f"{len(text)} characters")
    tokens = _TOKEN.findall(text)
    if "".join(tokens) != text:
        raise NotAnExpressionError("characters outside the grammar")
    node, rest = _sum(tokens, 0)
    if rest != len(tokens):
        raise NotAnExpressionError(f"unexpected {tokens[rest]!r}")
    return node


def _sum(tokens: list[str], at: int) -> tuple[Node, int]:
    node, at = _product(tokens, at)
    while at < len(tokens) and tokens[at] in "+-":
        right, after = _product(tokens, at + 1)
        node, at = combine(tokens[at], node, right), after
    return node, at


def _product(tokens: list[str], at: int) -> tuple[Node, int]:
    node, at = _atom(tokens, at)
    while at < len(tokens) and tokens[at] == "*":
        right, after = _atom(tokens, at + 1)
        node, at = combine("*", node, right), after
    return node, at


def _atom(tokens: list[str], at: int) -> tuple[Node, int]:
    if at >= len(tokens):
        raise NotAnExpressionError("ends too early")
    token = tokens[at]
    if token == "(":
        node, at = _sum(tokens, at + 1)
        if at >= len(tokens) or tokens[at] != ")":
            raise NotAnExpressionError("bracket not closed")
        return node, at + 1
    if not token.isdigit():
        raise NotAnExpressionError(f"unexpected {token!r}")
    if len(token) > 1 and token[0] == "0":
        raise NotAnExpressionError(f"leading zero in {token!r}")
    return Node(int(token)), at + 1


def render(node: Node) -> str:
    """Shortest text with the same value: brackets only where precedence needs them (`a+(b-c)` is `a+b-c`)."""
    if node.left is None or node.right is None:
        return str(node.value)
    left, right = render(node.left), render(node.right)
    if node.operator == "*":
        left = f"({left})" if node.left.operator in ("+", "-") else left
        right = f"({right})" if node.right.operator in ("+", "-") else right
    elif node.operator == "-" and node.right.operator in ("+", "-"):
        right = f"({right})"
    return f"{left}{node.operator}{right}"


def canonical(node: Node) -> str:
    """One text for expressions equal up to order and grouping of sums and products, so that equal answers vote together."""
    if not node.operator:
        return str(node.value)
    if node.operator == "*":
        return "*".join(sorted(_factors(node)))
    plus, minus = _terms(node)
    return "+".join(sorted(plus)) + "".join(f"-{term}" for term in sorted(minus))


def _factors(node: Node) -> list[str]:
    if node.operator == "*" and node.left and node.right:
        return _factors(node.left) + _factors(node.right)
    text = canonical(node)
    return [f"({text})" if node.operator else text]


def _terms(node: Node) -> tuple[list[str], list[str]]:
    if node.operator in ("+", "-") and node.left and node.right:
        plus, minus = _terms(node.left)
        right_plus, right_minus = _terms(node.right)
        if node.operator == "+":
            return plus + right_plus, minus + right_minus
        return plus + right_minus, minus + right_plus
    return [canonical(node)], []
