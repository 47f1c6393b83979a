"""The kernels of the campaigns that keep a contract, all of them by one name, judged on a case of the suite."""

from collections.abc import Mapping

from lla_spec.evaluating.contracts import contract
from lla_spec.language import registry
from lla_spec.testing.cases import Case
from lla_spec.testing.inputs import build
from lla_spec.testing.judge import Worst, worst_entry
from lla_spec.testing.truth import truth_of
from tests.engine import campaign, kernels, multi_head_kernels, soundness, test_loss_bounds, test_normalization_bounds
from tests.engine.campaign import Kernel
from tests.engine.kernels import CONTRACTS

HEADS = ("grouped_query_attention", "multi_head_attention")
LOGITS = ("softmax", "log_softmax", "logsumexp", "output_softmax", "cross_entropy", "linear_cross_entropy")
NORMS = ("layer_norm", "rms_norm", "residual_layer_norm")

RowName = tuple[str, str, str, str]  # operation, law, dtype, contract


def kernels_of(operation: str, law: str, promise: str) -> Mapping[str, Kernel]:
    if operation in kernels.FORWARD:
        return kernels.kernels_of(operation, law, promise)
    if operation in HEADS:
        return multi_head_kernels.kernels_of(operation, law, promise)
    if promise != "strict":
        return {}
    return (test_normalization_bounds if operation in NORMS else test_loss_bounds).kernels_of(operation, law, promise)


def rows(operations: tuple[str, ...]) -> list[RowName]:
    """Those for which there is a kernel."""
    return [
        (operation, law, dtype, promise)
        for operation in operations
        for law in ("definition", "vjp")
        for dtype in ("fp32", "bf16", "fp16")
        for promise in CONTRACTS
        if (dtype == "fp32") == (promise == "tf32") or promise == "strict"
        if kernels_of(operation, law, promise)
    ]


def worst_of(case: Case, promise: str, kernel: Kernel) -> Worst | None:
    """Where the kernel is furthest off, in terms of its contract's bound; None where nothing is judged."""
    formula, declared, vjp = registry.formulas[case.op], contract(CONTRACTS[promise], case.dtype), case.law == "vjp"
    arguments = {key: value for key, value in build(formula, case).arguments.items() if key != "is_causal"}
    truth = truth_of(formula, arguments, declared, vjp=vjp)
    if case.op in kernels.FORWARD:
        outputs = soundness.outputs_of(kernel, arguments, truth)
    else:
        outputs = campaign.outputs_of(kernel, arguments)
    return worst_entry(outputs, truth, declared)
