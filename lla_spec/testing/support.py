"""What a target says that it takes, and cases moved inside it: what it does not claim is not tested."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lla_spec.certified import Certified
from lla_spec.language import registry
from lla_spec.testing.cases import Case
from lla_spec.testing.features import features

REFUSABLE = {"mask": ("mask", "none"), "is_causal": ("causal", False), "scale": ("scale", None)}
"""Arguments that are no tensor to be left out: the field of a case that speaks of them, and its value without them."""


@dataclass(frozen=True)
class Support:
    """Sizes by dimension, arguments that are refused, layouts, equal dimensions; what all rows share (Case.each)."""

    dims: Mapping[str, Callable[[int], bool]] = field(default_factory=dict)
    choices: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    refused: frozenset[str] = frozenset()
    layouts: tuple[str, ...] | None = None
    equal: tuple[tuple[str, str], ...] = ()
    shared: bool = False
    words: str = ""  # all of this, for a person

    def takes(self, case: Case) -> bool:
        sizes = dict(case.sizes)
        return (
            all(name not in sizes or test(sizes[name]) for name, test in self.dims.items())
            and all(name not in sizes or sizes[name] in few for name, few in self.choices.items())
            and all(sizes[a] == sizes[b] for a, b in self.equal if a in sizes and b in sizes)
            and not any(getattr(case, key) != plain for name, (key, plain) in REFUSABLE.items() if name in self.refused)
            and self.offered(case) == case
            and not (self.shared and case.each)
            and (self.layouts is None or set(case.layout.split("+")) <= set(self.layouts))
        )

    def offered(self, case: Case) -> Case:
        """The case without the optional tensors that are refused (a bias, a weight)."""
        formula = registry.formulas.get(case.op)
        if formula is None or isinstance(formula, Certified) or case.law not in ("definition", "vjp"):
            return case
        left_out = {name for name in features(formula).optional if name in self.refused}
        if left_out <= set(case.without.split("+")):
            return case
        left_out |= set(case.without.split("+"))
        return replace(case, without="+".join(name for name in features(formula).optional if name in left_out))

    def nearest(self, case: Case) -> Case:
        """The case moved inside: sizes to the nearest one taken, refused arguments left out."""
        sizes = {name: self._nearest(name, size) for name, size in case.sizes}
        for a, b in self.equal:
            if a in sizes and b in sizes:
                sizes[a] = sizes[b]
        options: dict[str, Any] = {key: plain for name, (key, plain) in REFUSABLE.items() if name in self.refused}
        if self.shared:
            options["each"] = False
        if self.layouts is not None and not set(case.layout.split("+")) <= set(self.layouts):
            options["layout"] = self.layouts[0]
        return self.offered(replace(case, **options, sizes=tuple(sizes.items())))

    def inside(self, listed: Iterable[tuple[str, Case]]) -> Iterator[tuple[str, Case]]:
        """(class, case), sizes moved to those that are taken, each case once; no class of an argument or layout that
        is refused."""
        seen: set[Case] = set()
        for name, case in listed:
            moved = self.nearest(case)
            same = replace(moved, sizes=case.sizes, without=case.without) == case
            if same and self.takes(moved) and replace(moved, seed=0) not in seen:
                seen.add(replace(moved, seed=0))
                yield name if moved.sizes == case.sizes else f"{name}, moved inside", moved

    def _nearest(self, name: str, size: int) -> int:
        if name in self.choices:
            return min(self.choices[name], key=lambda choice: abs(choice - size))
        test = self.dims.get(name)
        if test is None or test(size):
            return size
        return next((s for gap in range(1, 4096) for s in (size + gap, size - gap) if s > 0 and test(s)), size)


ANYTHING = Support()
