"""docs/findings.md, line by line: each defect that it tells of is there, in each package that is installed."""

import importlib.util
import os
import re
from pathlib import Path

import pytest
import torch

from lla_spec.testing import bundled
from lla_spec.testing.cases import parse
from lla_spec.testing.runner import Options, Session
from lla_spec.testing.targets import load
from lla_spec.testing.verdicts import Row
from tests.engine.in_process import commands

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
SECTIONS = re.findall(r"^## (\d+)\. (.*?)\n(.*?)(?=^## )", DOCUMENT, re.MULTILINE | re.DOTALL)
REPLAY = re.compile(r"lla-spec replay '([^']+)' --target (\S+)")
REPLAYS = [(int(number), *found) for number, _, text in SECTIONS for found in REPLAY.findall(text)]
HERE = [found for found in REPLAYS if found[2] != "liger"]  # which decides for a process how Triton runs
TEXTS = {int(number): text for number, _, text in SECTIONS}
VERSIONS = dict(re.findall(r"^\| `(\w+)` \| ([\w.-]+) ", DOCUMENT, re.MULTILINE))


def package(name):
    """transformers of transformers:sdpa."""
    return name.partition(":")[0]


def needs(name):
    """Skip, and say so, where the package of a bundled target is not installed."""
    for module in bundled.PACKAGES[package(name)]:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"docs/findings.md is not checked against {name}: no {module}")


def needs_hardware(number):
    """Skip, and say so, where the processor is not one that the defect was found on."""
    if "*Needs*: a CPU with AMX" in TEXTS[number] and not torch.cpu._is_amx_tile_supported():
        pytest.skip(f"finding {number} of docs/findings.md is not checked: no AMX")
    if "*Needs*: a CPU with AVX-512" in TEXTS[number] and torch.backends.cpu.get_cpu_capability() != "AVX512":
        pytest.skip(f"finding {number} of docs/findings.md is not checked: no AVX-512")


@pytest.mark.parametrize(("number", "case", "name"), HERE, ids=[f"{n}-{name}" for n, _, name in HERE])
def test_the_defect_is_still_there(number, case, name):
    needs(name)
    needs_hardware(number)
    target, case = load(name), parse(case)
    session = Session(target, Options(ops=(case.op,)))
    row = Row(case.op, case.law, case.dtype, case.device)
    found = session.judging(row, session.contract(row))(case)
    assert found.failed, (
        f"{target.name} {target.version} has mended finding {number} of {name} {VERSIONS[package(name)]}: say so"
    )
    assert (found.kind == "raises") == ("Error:" in TEXTS[number]), found.message


def test_the_defects_of_liger_are_still_there():
    needs("liger")
    found = [(number, case) for number, case, name in REPLAYS if name == "liger"]
    path = [ROOT, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    lines = [f"replay {case} --target liger" for _, case in found]
    for (number, _), (status, text) in zip(found, commands(*lines, cwd=ROOT, path=path), strict=True):
        assert status == 1, f"liger has mended finding {number} of {VERSIONS['liger']}, or does not run: say so\n{text}"
        assert "raises" not in text.splitlines()[0]


def test_the_key_of_compiled_code_is_still_blind_to_the_width_of_vectors(monkeypatch):
    needs("torch_compile")
    needs_hardware(26)
    from torch._inductor.codecache import compiled_fx_graph_hash
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    double, found = torch.fx.symbolic_trace(lambda x: x * 2), {}
    for capability in ("avx512", "avx2"):
        monkeypatch.setenv("ATEN_CPU_CAPABILITY", capability)
        found[pick_vec_isa().bit_width()], _ = compiled_fx_graph_hash(double, [torch.ones(40)], {}, [])
    assert set(found) == {512, 256}
    assert len(set(found.values())) == 1, "torch has mended finding 26: run its four lines, and say so"


def test_there_are_at_least_five_defects_in_at_least_three_packages():
    assert len({number for number, _, _ in REPLAYS}) >= 5
    assert len({package(name) for _, _, name in REPLAYS}) >= 3


def test_every_bundled_target_is_in_the_table_of_what_was_run():
    assert set(VERSIONS) == set(bundled.PACKAGES)


def test_the_pictures_that_are_embedded_are_there():
    pictures = re.findall(r"\]\((pictures/[^)]+)\)", DOCUMENT)
    assert len(pictures) >= 3
    for picture in pictures:
        assert (ROOT / "docs" / picture).is_file(), picture
