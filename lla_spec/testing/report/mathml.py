r"""The LaTeX that lla_spec.printing writes, as MathML, which a browser shows without a library.

Fractions, roots, sums, scripts, brackets, names and := are all that it writes. What is none of these stands as its own
text, so a formula of the future is at worst plain. Text is escaped: names come from people's own pages too.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable

SYMBOLS = {r"\cdot": "·", r"\infty": "∞", r"\{": "{", r"\}": "}", "-": "−", ":=": "≔"}
LARGE = {r"\sum": "∑", r"\prod": "∏", r"\max": "max", r"\min": "min"}
FUNCTIONS = (r"\log", r"\exp", r"\sin", r"\cos", r"\tanh")
COMMA = '<mo separator="true">,</mo>'
TOKEN = re.compile(
    r"\\[A-Za-z]+|\\.|:=|\d+(?:\.\d+)?|[^\W\d_][^\W\d_\u0300-\u036f]*[\u0300-\u036f]*\d*'*|\s+|.", re.DOTALL
)


def mathml(latex: str) -> str:
    r"""A `<math>` element in display style; `\\` begins a new line.

    >>> mathml(r"\frac{a}{2}")
    '<math display="block"><mfrac><mrow><mi>a</mi></mrow><mrow><mn>2</mn></mrow></mfrac></math>'
    """
    lines = [_Reader(line).row() for line in re.split(r"\\\\\s*", latex)]
    if len(lines) == 1:
        return f'<math display="block">{lines[0]}</math>'
    rows = "".join(f'<mtr><mtd style="text-align:left">{line}</mtd></mtr>' for line in lines)
    return f'<math display="block"><mtable displaystyle="true" rowspacing="0.6em">{rows}</mtable></math>'


class _Reader:
    def __init__(self, text: str) -> None:
        self.tokens = [token for token in TOKEN.findall(text) if not token.isspace()]
        self.at = 0

    def row(self, end: str = "") -> str:
        """Everything up to `end`, or to the end of the text."""
        made = []
        while self.at < len(self.tokens) and self.tokens[self.at] != end:
            made.append(self._scripted())
        self.at += 1
        return "".join(made)

    def _next(self) -> str:
        token = self.tokens[self.at] if self.at < len(self.tokens) else ""
        self.at += 1
        return token

    def _peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def _scripted(self) -> str:
        """An atom with its scripts; primes are one above. Subscripts in a row (W_{q}_{i j}) become one."""
        token = self._peek()
        name, primes = token.rstrip("'"), "′" * token.count("'")
        base = self._atom() if not primes else _identifier(name)
        self.at += bool(primes)
        below, above = [], f"<mo>{primes}</mo>" if primes else ""
        while self._peek() in ("_", "^"):
            if self._next() == "_":
                below.append(self._atom())
            else:
                above = f"<mrow>{above}{self._atom()}</mrow>"
        under = f"<mrow>{COMMA.join(below)}</mrow>"
        kind = ("munder", "mover", "munderover") if token in LARGE else ("msub", "msup", "msubsup")
        if below and above:
            return f"<{kind[2]}>{base}{under}{above}</{kind[2]}>"
        if below:
            return f"<{kind[0]}>{base}{under}</{kind[0]}>"
        return f"<{kind[1]}>{base}{above}</{kind[1]}>" if above else base

    def _atom(self) -> str:
        token = self._next()
        structures: dict[str, Callable[[], str]] = {
            "{": lambda: f"<mrow>{self.row('}')}</mrow>",
            r"\frac": lambda: f"<mfrac>{self._atom()}{self._atom()}</mfrac>",
            r"\sqrt": lambda: f"<msqrt>{self._atom()}</msqrt>",
            r"\left": self._bracketed,
            r"\operatorname": lambda: f'<mi mathvariant="normal">{self._name()}</mi>',
        }
        if token in structures:
            return structures[token]()
        if token in LARGE:
            return f'<mo largeop="true" movablelimits="false">{LARGE[token]}</mo>'
        if token in FUNCTIONS:
            return f"<mi>{token[1:]}</mi>"
        if re.fullmatch(r"[\d.]+", token):
            return f"<mn>{token}</mn>"
        if token[:1].isalpha():
            return _identifier(token)
        name = token.removeprefix("\\")
        found = SYMBOLS.get(token) or html.unescape(f"&{name};").removeprefix(f"&{name};") or name  # \delta is &delta;
        return f"<mi>{html.escape(found)}</mi>" if found.isalpha() else f"<mo>{html.escape(found)}</mo>"

    def _bracketed(self) -> str:
        opening, content = self._next(), self.row(r"\right")
        return f"<mrow><mo>{html.escape(opening)}</mo>{content}<mo>{html.escape(self._next())}</mo></mrow>"

    def _name(self) -> str:
        """The letters in braces that follow."""
        self._next()
        start = self.at
        self.row("}")
        return html.escape("".join(self.tokens[start : self.at - 1]))


def _identifier(name: str) -> str:
    """A name in italics, its digits below it."""
    letters = name.rstrip("0123456789")
    base, digits = f"<mi>{html.escape(letters)}</mi>", name[len(letters) :]
    return f"<msub>{base}<mn>{digits}</mn></msub>" if digits else base
