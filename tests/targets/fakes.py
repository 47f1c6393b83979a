"""Targets that cheat or misbehave. None of them may pass."""

from types import SimpleNamespace

import torch

import tests.targets.right as right

_correct = right.plain.attention


def zeros(q, k, v, mask=None, *, is_causal=False, scale=None):
    return torch.zeros(*q.shape[:-1], v.shape[-1], dtype=q.dtype)


def copy_of_an_input(q, k, v, mask=None, *, is_causal=False, scale=None):
    return q.clone() if q.shape[-1] == v.shape[-1] else torch.zeros(*q.shape[:-1], v.shape[-1], dtype=q.dtype)


def constant(q, k, v, mask=None, *, is_causal=False, scale=None):
    return v.float().mean().to(q.dtype).expand(*q.shape[:-1], v.shape[-1]).clone()


def in_place_writer(q, k, v, mask=None, *, is_causal=False, scale=None):
    out = _correct(q, k, v, mask, is_causal=is_causal, scale=scale)
    q.data.mul_(2)
    return out


class CachedByPointer:
    """Answers from a cache whose key is the inputs' storage."""

    def __init__(self):
        self.known = {}

    def __call__(self, q, k, v, mask=None, *, is_causal=False, scale=None):
        key = (
            q.data_ptr(),
            k.data_ptr(),
            v.data_ptr(),
            q.shape,
            k.shape,
            v.shape,
            q.dtype,
            mask is None,
            is_causal,
            scale,
        )
        if key not in self.known:
            self.known[key] = _correct(q, k, v, mask, is_causal=is_causal, scale=scale)
        return self.known[key]


class RightForTwentyCalls:
    def __init__(self):
        self.calls = 0

    def __call__(self, q, k, v, mask=None, *, is_causal=False, scale=None):
        self.calls += 1
        out = _correct(q, k, v, mask, is_causal=is_causal, scale=scale)
        return out if self.calls <= 20 else out * 1.5


def fresh(name):
    """The fake of this name with a state of its own, as a target."""
    found = globals()[name]
    return SimpleNamespace(attention=found() if isinstance(found, type) else found, LLA_TARGET={"name": name})


NAMES = ("zeros", "copy_of_an_input", "constant", "in_place_writer", "CachedByPointer", "RightForTwentyCalls")


def _raises(q, k, v, mask=None, *, is_causal=False, scale=None):
    raise RuntimeError("no kernel image is available")


def _hangs(q, k, v, mask=None, *, is_causal=False, scale=None):
    while True:
        pass


MISBEHAVING = {
    "raises": _raises,
    "exits": lambda *a, **k: exit(3),
    "returns None": lambda *a, **k: None,
    "returns a tuple": lambda q, k, v, *a, **kw: (_correct(q, k, v, *a, **kw), None),
    "wrong shape": lambda q, k, v, *a, **kw: _correct(q, k, v, *a, **kw)[..., :1, :],
    "wrong dtype": lambda q, k, v, *a, **kw: _correct(q, k, v, *a, **kw).double(),
    "wrong device": lambda q, k, v, *a, **kw: _correct(q, k, v, *a, **kw).to("meta"),
}
