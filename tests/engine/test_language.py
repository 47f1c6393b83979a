"""Declarations are real sympy, and are refused when they are made if they contradict themselves."""

import sys
import types

import pytest
import sympy as sp

import lla_spec.language as language
from lla_spec.calculus import vjp, vjp_formula
from lla_spec.formulas.attention import K, Q, V, attention, c, i, j, k
from lla_spec.formulas.linear import linear
from lla_spec.formulas.softmax import softmax, x
from lla_spec.language import Eq, Registry, assume
from lla_spec.substituting import expand
from lla_spec.symbols import Max, Sum, concat, define, dims, index, permutation, split, tensor
from lla_spec.tensors import DeclarationError, Index, definitions

n, m, d, e = dims("n m d e")


@pytest.fixture
def page(monkeypatch):
    """A page of its own: declarations made with it do not stay in the registry."""
    made = types.ModuleType("lla_spec.formulas.scratch")
    monkeypatch.setattr(language, "registry", Registry())
    monkeypatch.setitem(sys.modules, made.__name__, made)
    return made


def declare(page, source):
    exec(
        compile("from lla_spec.language import *\nfrom lla_spec.symbols import *\n" + source, "scratch.py", "exec"),
        page.__dict__,
    )


# ---- open sympy


def test_an_entry_is_a_sympy_expression_that_can_be_differentiated():
    dP = sp.diff(softmax(x).call.formula.entry, x[i, j])
    assert dP.has(sp.KroneckerDelta) and isinstance(attention.entry, sp.Expr)


def test_the_matrix_form_is_a_matrix_expression():
    assert isinstance(attention.matrix, sp.MatrixExpr)
    assert attention.matrix.shape == (n, e)
    assert "softmax" in sp.latex(attention.matrix)


def test_at_gives_an_explicit_matrix_in_the_entries():
    explicit = attention.at(n=2, m=3, d=2, e=1)
    assert isinstance(explicit, sp.MatrixBase) and explicit.shape == (2, 1)
    zero = {entry: 0 for entry in explicit.atoms(sp.Indexed) if entry.base == Q.base}
    mean = sum(V[row, 0] for row in range(3)) / 3
    assert sp.simplify(explicit[0, 0].subs(zero) - mean) == 0


def test_at_names_the_size_that_is_missing():
    with pytest.raises(DeclarationError, match="the size of e is missing"):
        attention.at(n=2, m=3, d=2)


def test_the_matrix_form_agrees_with_sympys_own_matrix_algebra():
    sizes = {n: 2, m: 3, d: 2, e: 1}
    law = language.registry.laws["attention.matrix_form"]
    explicit = attention.at(n=2, m=3, d=2, e=1)
    own = law.matrix.subs(sizes).as_explicit().doit()
    values = {}
    for tensor_, shape in ((Q, (2, 2)), (K, (3, 2)), (V, (3, 1))):
        symbol = sp.MatrixSymbol(tensor_.label, *shape)
        for row in range(shape[0]):
            for column in range(shape[1]):
                number = sp.Rational(row * 3 + column * 5 - 4, 7)
                values[tensor_[row, column]] = values[symbol[row, column]] = number
    difference = explicit.xreplace(values) - own.xreplace(values)
    assert max(abs(sp.N(entry, 40)) for entry in difference) < sp.Rational(1, 10**35)


@pytest.mark.parametrize("own", [i, j, k, c, sp.Symbol("j", integer=True), sp.Symbol("l"), 0])
def test_subs_never_captures_a_bound_index(own):
    """Substituting for a free index leaves what is summed alone, whatever names the caller's symbols have."""
    entry = expand(attention(Q, K, V).entry)
    changed = entry.subs(i, own)
    numbers = {"n": 2, "m": 3, "d": 2, "e": 2}
    for symbol in [
        s
        for s in changed.free_symbols
        if isinstance(s, sp.Symbol) and not s.name.isupper() and s.name in ("i", "j", "k", "l", "c")
    ]:
        changed = changed.subs(symbol, 1)
    expected = entry.subs(i, own if isinstance(own, int) else 1).subs(c, 1)
    sizes = {dim: numbers[dim.name] for dim in (n, m, d, e)}
    assert sp.simplify(changed.subs(sizes).doit() - expected.subs(sizes).doit()) == 0


def test_latex_tells_bound_from_free():
    text = attention.latex()
    assert r"S_{i j} := scale \sum_{k} K_{j k} Q_{i k}" in text


# ---- calls


def test_a_further_leading_axis_is_a_batch_axis():
    h = index("h", Index("h", n).dim)
    Qh, Kh, Vh = tensor("Qh", h, i, k), tensor("Kh", h, j, k), tensor("Vh", h, j, c)
    assert attention(Qh, Kh, Vh).axes == (h, i, c)


def test_one_tensor_may_stand_for_two_arguments():
    X = tensor("X", i, k)
    result = attention(X, X, X)
    assert result.shape == (n, d) and len(set(result.axes)) == 2


def test_a_gradient_of_a_shared_tensor_is_summed_over_the_batch():
    r, f = dims("r f")
    h, a = index("h", r), index("a", f)
    W, b = linear.parameters["W"], linear.parameters["b"]
    X3 = tensor("X3", h, i, W.axes[1])
    dY = tensor("dY", h, i, W.axes[0])
    assert vjp(linear(X3, W, b), b, dY).shape == b.shape
    assert a.dim == f


def test_the_vjp_keeps_the_layers_of_the_formula():
    gradient = vjp(attention(Q, K, V), Q, tensor("dO", i, c))
    assert gradient.call.formula.gradient_of == (attention, "Q")
    inner = [t.call.formula.name for t in definitions(vjp_formula(attention, "Q").result) if t.call is not None]
    assert inner == ["softmax_vjp"]


def test_no_derivative_is_taken_through_a_maximum():
    peak = define("peak", (i,), Max(x[i, j], j))
    with pytest.raises(DeclarationError, match="takes a maximum over x, which has no derivative at ties"):
        vjp(peak, x, tensor("g", i))


# ---- what is refused


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: K[i, k], "K: axis 0 ranges over m, but index i ranges over n"),
        (lambda: K[permutation("π", i)[i], k], "K: axis 0 ranges over m, but index π.i. ranges over n"),
        (lambda: Q[i], r"Q: 1 indices \[i\] but it has 2 axes \(i over n, k over d\)"),
        (lambda: define("S", (i,), Q[i, k]), r"S: index k is unbound; sum over it or make it an axis \(axes \(i,\)\)"),
        (lambda: define("S", (i, i), Q[i, k]), "S: one index stands on two axes"),
        (lambda: index("i", 3), r"index i: ranges over 3; it must range over a dimension made by dims\(\)"),
        (lambda: tensor("n", i), "n: a tensor and its dimension share the name n; rename one"),
        (lambda: Sum(Q[i, k], "k"), "Sum: cannot run over 'k'"),
        (lambda: attention(Q, K), "attention: V is missing and has no default"),
        (
            lambda: attention(Q, K, V, mask=1, nonsense=2),
            "attention: has no parameter nonsense; it has Q, K, V, M, scale",
        ),
        (lambda: attention(Q, V, V), "attention: V has e on axis -1, but d is already d"),
        (lambda: attention(tensor("q", k), K, V), r"attention: q has 1 axes, but Q needs 2 \(Q\[i, k\]\)"),
        (lambda: softmax(Q, over=i), r"softmax: runs over the last axis, but i is not the last axis of Q\[i, k\]"),
        (lambda: concat("K", (i, k), 1, 0), "K: concat needs exactly one split axis"),
        (lambda: split(j), "split j: needs two parts or more, got 0"),
        (lambda: attention(Q, K, V).part("T"), "O: nothing inside is called T; there are"),
        (lambda: vjp(attention(Q, K, V), x, tensor("dO", i, c)), "vjp: O does not depend on x"),
        (lambda: vjp(attention(Q, K, V), Q, tensor("dO", i, k)), "vjp: dO"),
    ],
)  # fmt: skip
def test_a_contradiction_is_named_with_its_axis(make, message):
    with pytest.raises(DeclarationError, match=message):
        make()


def test_a_concatenation_has_a_block_for_each_part():
    m1, m2 = dims("m1 m2")
    jj = split(j, index("j1", m1), index("j2", m2))
    with pytest.raises(DeclarationError, match="K: 1 blocks for the 2 parts of j"):
        concat("K", (jj, k), 1)
    assert jj.dim.size({"m1": 2, "m2": 3}) == 5


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("@formula\ndef f(Z):\n    return Z", "scratch.f: no tensor called Z stands on its page"),
        (
            "n = dims('n'); i = index('i', n); a = tensor('a', i)\n@formula\ndef f(a):\n    return a[i]",
            "scratch.f: must return define",
        ),
        (
            "n = dims('n'); i = index('i', n); a, b = tensor('a', i), tensor('b', i)\n"
            "@formula\ndef f(a):\n    return define('y', (i,), a[i] + b[i])",
            r"scratch.f: uses b\[i\], which is not one of its parameters \(a\)",
        ),
        (
            "n = dims('n'); i = index('i', n); a = tensor('a', i)\n"
            "@formula\ndef f(a):\n    return define('a', (i,), 2 * a[i])",
            "scratch.f: two tensors are called a; rename one",
        ),
        (
            "n = dims('n'); i = index('i', n); a = tensor('a', i)\n"
            "@formula\ndef f(a):\n    return define('y', (i,), 2 * a[i])\n"
            "@formula\ndef f(a):\n    return define('y', (i,), 2 * a[i])",
            "scratch.f: a formula called f is already declared at",
        ),
        (
            "@identity\ndef law():\n    return 1",
            r"scratch.law: must return Eq\(left, right\) or Le\(left, right\), got int",
        ),
        (
            "n = dims('n'); i = index('i', n); a = tensor('a', i)\n@identity\ndef law():\n    return Eq(a, a)",
            "scratch.law: calls no operation",
        ),
        (
            "n = dims('n'); i = index('i', n); a = tensor('a', i)\n"
            "@formula\ndef f(a):\n    return define('y', (i,), 2 * a[i])\n"
            "@theorem\ndef law():\n    return Le(f(a), f(a))",
            "scratch.law: a theorem needs its certificate",
        ),
    ],
)
def test_a_declaration_is_validated_when_it_is_made(page, source, message):
    with pytest.raises(DeclarationError, match=message):
        declare(page, source)


def test_a_construction_may_not_rest_on_what_it_constructs():
    with pytest.raises(DeclarationError, match="assume: K is constructed from itself"):
        assume(Eq(Sum(K[j, k], k), 0), by={K: define("K", (j, k), 2 * K[j, k])})


def test_a_law_is_declared_with_one_function(page):
    declare(
        page,
        "n = dims('n'); i = index('i', n); a = tensor('a', i)\n"
        "@formula\ndef double(a):\n    return define('y', (i,), 2 * a[i])\n"
        "@identity\ndef halves():\n    'Half of it is the input.'\n"
        "    return Eq(define('h', (i,), double(a)[i] / 2), a)",
    )
    law = language.registry.laws["scratch.halves"]
    assert law.operation == "double" and law.doc == "Half of it is the input." and law.source.endswith("scratch.py:7")


def test_permutations_index_other_tensors():
    π = permutation("π", j)
    assert K[π[j], k].indices[0].base == π.base
