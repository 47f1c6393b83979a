"""The pictures of docs/findings.md: `python -m lla_spec.testing.bundled.gallery docs/pictures`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lla_spec.testing.cases import parse
from lla_spec.testing.errors import TargetError
from lla_spec.testing.heat import Heat
from lla_spec.testing.judge import judge
from lla_spec.testing.targets import load, operation_formula

GRAY = "#808080"  # of the words: as readable on white as on black; the ground is transparent
DECADES = 3.0  # of error / bound, on each side of 1


@dataclass(frozen=True)
class Picture:
    """error / bound over the worst matrix of one case."""

    file: str
    title: str
    target: str
    case: str


PICTURES = (
    Picture(
        "log_softmax.png",
        "torch: log_softmax, bf16",
        "torch_native",
        "log_softmax:definition:bf16:cpu:m=24,batch=24,family=spike,exponent=0,layout=dense,grad=dense,mask=none,"
        "index=random,causal=0,scale=default,special=none,without=,seed=1",
    ),
    Picture(
        "embedding_gradient.png",
        "jax: gradient of take (a row a word), bf16",
        "jax",
        "embedding:vjp:bf16:cpu:v=24,d=48,batch=17x33,family=positive,exponent=0,layout=dense,grad=dense,mask=none,"
        "index=random,causal=0,scale=default,special=none,without=,seed=3",
    ),
    Picture(
        "causal_negative_scale.png",
        "torch: attention, causal, scale = -0.25, fp32",
        "torch_native",
        "grouped_query_attention:definition:fp32:cpu:g=1,r=1,n=24,d=48,m=24,e=48,batch=1,family=normal,exponent=0,"
        "layout=dense,grad=dense,mask=none,index=random,causal=1,scale=-0.25,special=none,without=,seed=0",
    ),
)


def heat_of(picture: Picture) -> Heat:
    """What the suite finds today; TargetError where the package is missing or the case passes."""
    case = parse(picture.case)
    target = load(picture.target)
    found = judge(target, operation_formula(case.op), case, target.contract(case.op, case.dtype))
    if found.worst is None or found.worst.heat is None:
        raise TargetError(
            f"{picture.file}: {picture.target} {target.version} passes {picture.case}; there is no picture"
        )
    return found.worst.heat


def draw(picture: Picture, heat: Heat, folder: Path) -> Path:
    """The matrix as a picture: blue within the bound, red beyond it, black where it is no number."""
    import matplotlib
    from matplotlib.figure import Figure

    ratios = np.array(heat.values)
    with np.errstate(divide="ignore"):
        decades = np.clip(np.log10(ratios), -DECADES, DECADES)
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.add_subplot()
    colours = matplotlib.colormaps["RdBu_r"].with_extremes(bad="black")
    image = axes.imshow(np.ma.masked_invalid(np.where(np.isfinite(ratios), decades, np.nan)), cmap=colours,
                        vmin=-DECADES, vmax=DECADES, interpolation="nearest")  # fmt: skip
    bar = figure.colorbar(image, ax=axes, ticks=[-3, -2, -1, 0, 1, 2, 3], fraction=0.035)
    bar.ax.set_yticklabels(["≤ 0.001", "0.01", "0.1", "1 = the bound", "10", "100", "≥ 1000"])
    axes.set_title(f"{picture.title}: error / bound", color=GRAY, fontsize=10)
    for part in (axes, bar.ax):
        part.tick_params(colors=GRAY, labelsize=8)
        for spine in part.spines.values():
            spine.set_edgecolor(GRAY)
    file = folder / picture.file
    figure.savefig(file, dpi=120, transparent=True)
    return file


def main(folder: Path) -> None:
    """Draw what can be drawn here, and say what cannot."""
    folder.mkdir(parents=True, exist_ok=True)
    for picture in PICTURES:
        try:
            print(draw(picture, heat_of(picture), folder))
        except TargetError as error:
            print(error, file=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
