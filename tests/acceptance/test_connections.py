"""The connection engine: what learned connections cost, and that gates learn."""

import collections
import importlib.util
import itertools
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core as jax_core
from scipy import stats

from dresnet_jax import defaults
from dresnet_jax.connections import gates, topology, weighted_sum
from dresnet_jax.connections.spec import FORMS, PROJECTIONS, ConnectionSpec
from dresnet_jax.costs import connection_costs, tables
from dresnet_jax.errors import UserError
from dresnet_jax.models import zoo
from tests.acceptance.small_run import last_json
from tests.conftest import run_command
from tests.connections import test_weighted_sum
from tests.connections.test_module import NETWORK, PATTERNS


def measured(*arguments):
    """The rows that `benchmark connections` prints, by model, form and depth."""
    code, output, errors = run_command("benchmark", "connections", *arguments, "--json")
    assert code == 0, errors
    print("\n" + "\n".join(output.splitlines()[:-1]))
    rows = last_json(output)["rows"]
    return {(row["model"], row["form"], row["depth"]): row for row in rows}


@pytest.mark.parametrize("name", test_weighted_sum.FAST_FORMS)
def test_forms_agree_with_the_reference(name):
    worst = 0.0
    for seed in range(5):
        inputs = test_weighted_sum.random_inputs(seed, [16, 16, 8, 4], 4, 32)
        result, expected = (
            test_weighted_sum.value_and_gradients(form, inputs)
            for form in (weighted_sum.FORMS[name], weighted_sum.reference)
        )
        worst = max(worst, largest_difference(result, expected))
    print(f"\n{name}: largest relative difference in value and gradients {worst:.2e}")
    assert worst <= 1e-5


def largest_difference(result, expected):
    """Of all arrays, as a part of the largest value in each, but at least of 1."""
    pairs = zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True)
    return max(np.abs(a - b).max() / max(np.abs(b).max(), 1.0) for a, b in pairs)


@pytest.mark.slow
def test_every_cell_equals_the_reference_or_is_refused():
    equal, refused, worst = 0, [], 0.0
    for pattern, gate, projection in itertools.product(
        PATTERNS, gates.GATES, PROJECTIONS
    ):
        edges = topology.build(pattern, NETWORK.stages)
        reference = ConnectionSpec(
            edges, gate=gate, projection=projection, form="reference"
        )
        expected = None
        for form in sorted(set(FORMS) - {"reference"}):
            try:
                spec = ConnectionSpec(
                    edges, gate=gate, projection=projection, form=form
                )
                spec.check(NETWORK.channels)
            except UserError as error:
                refused.append(str(error).split(":")[0])
                continue
            if expected is None:
                expected = NETWORK.value_and_gradients(reference)
            result = NETWORK.value_and_gradients(spec)
            worst = max(worst, largest_difference(result, expected))
            equal += 1
    print(f"\n{equal} cells equal the reference to {worst:.1e}, {len(refused)} refused")
    assert worst <= 1e-5
    # per_edge in `stacked`; and `none` where the patterns connect the two stages.
    assert all("cannot" in message for message in refused)
    assert equal >= len(gates.GATES) * len(PATTERNS) * 3


def test_a_stage_is_measured_and_drawn(tmp_path):
    picture = tmp_path / "costs.png"
    rows = measured(
        "--depths=3,4,5",
        "--forms=folded,stacked",
        "--peers",
        "--runs=2",
        "--image_size=16",
        "--batch_size=4",
        "--config.model.width=4",
        f"--out={picture}",
    )
    assert picture.read_bytes().startswith(b"\x89PNG")
    forms = {form for _, form, _ in rows}
    plain, scanned = connection_costs.PLAIN, connection_costs.PLAIN_SCANNED
    assert forms == {plain, scanned, "folded", "stacked", "denseformer"}
    for depth in (3, 4, 5):
        stacked, of_plain = (rows["stage", f, depth] for f in ("stacked", scanned))
        assert stacked["saved_bytes"] <= of_plain["saved_bytes"]
        assert stacked["flops_ratio"] > 1


@pytest.mark.slow
def test_connections_of_a_model_cost_little_here():
    rows = measured(
        "--model=dresnet18", "--image_size=64", "--forms=folded", "--runs=9"
    )
    folded = rows["dresnet18", "folded", 8]
    assert folded["flops_ratio"] <= 1.01
    assert folded["step_ratio"] <= 1.08
    assert folded["temp_ratio"] <= 1.10


@pytest.mark.slow
def test_the_published_connections_cost_little_here():
    rows = measured(
        "--model=dresnet18",
        "--image_size=64",
        "--forms=folded,reference",
        "--runs=15",
        "--config.model.connections.topology=dense",
        "--config.model.connections.projection=per_edge",
    )
    folded = rows["dresnet18", "folded", 8]
    assert folded["flops_ratio"] <= 1.09
    assert folded["step_ratio"] <= 1.08
    assert folded["temp_ratio"] <= 1.10
    assert rows["dresnet18", "reference", 8]["flops_ratio"] > 1.3


# Others start as open as these: tests/connections/test_spec.py.
@pytest.mark.slow
@pytest.mark.parametrize("gate", ["sigmoid", "softmax"])
@pytest.mark.parametrize("name", ["dresnet50", "dresnet101", "dresnet152"])
def test_images_grow_little_at_the_start(name, gate):
    config = defaults.get_config().model
    config.width, config.connections.gate = 8, gate
    images = np.random.RandomState(0).standard_normal((4, 64, 64, 3))
    largest = {}
    for connected in (name, name.removeprefix("d")):
        config.name = connected
        model = zoo.build(config, 64, 10)
        _, made = jax.jit(
            lambda key, model=model: model.init_with_output(
                key,
                jnp.float32(images),
                train=True,
                mutable=True,
                capture_intermediates=lambda module, _: str(module.name).startswith(
                    "block_"
                ),
            )
        )(jax.random.key(0))
        outputs = [
            made["intermediates"][f"block_{i}"]["__call__"][0]
            for i in range(1, len(model.spec.stages) + 1)
        ]
        largest[connected] = np.asarray([jnp.sqrt(jnp.mean(y**2)) for y in outputs])
    ratios = largest[name] / largest[name.removeprefix("d")]
    print(f"\n{name}, {gate}: outputs up to {ratios.max():.2f} times the plain ones")
    assert ratios.max() < 4


DEFAULT = [
    name
    for name, model in zoo.MODELS.items()
    if model.connected and model.topology == "stage_ends"
]


@pytest.mark.slow
@pytest.mark.parametrize("name", DEFAULT)
def test_one_product_of_a_buffer_sums_what_earlier_stages_carry(name):
    """In the program of every network, for every reader."""
    config = defaults.get_config().model
    config.name = name
    model = zoo.build(config, 64, 10)
    spec = model.spec.connections
    assert {zoo.chosen_form(model.spec, on)[0] for on in ("gpu", "tpu")} == {"folded"}
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    variables = jax.eval_shape(
        lambda key, x: model.init(key, x, train=False), key, images
    )
    program = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False))
    result = collections.Counter(summed_by(program(variables, images).jaxpr))
    kernels = variables["params"]["connections"]
    ends = {
        i: sum(spec.topology.crosses_stages(i, k) for k in spec.topology.sources(i))
        for i in spec.topology.readers
    }
    expected = collections.Counter(8 * of_one for of_one in ends.values() if of_one)
    expected.update(
        kernels[name]["kernel"].shape[0] for name in kernels if "narrowed" in name
    )
    assert result == expected


def summed_by(jaxpr):
    """Over how many channels each matrix product of the connections sums."""
    for equation in jaxpr.eqns:
        for inner in jax_core.jaxprs_in_params(equation.params):
            yield from summed_by(inner)
        in_scope = "connections" in str(equation.source_info.name_stack).split("/")
        if equation.primitive.name == "dot_general" and in_scope:
            ((axes, _), _) = equation.params["dimension_numbers"]
            yield equation.invars[0].aval.shape[axes[0]]


needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="requirements-tpu-plan.txt is not installed",
)


@pytest.fixture(scope="module")
def on_v5e():
    rows = measured(
        "--model=dresnet18",
        "--target=v5e:2x2",
        "--image_size=64",
        "--batch_size=128",
        "--config.model.dtype=bfloat16",
        "--traffic",
    )
    return rows["dresnet18", "folded", 8]


@needs_compiler
@pytest.mark.slow
def test_connections_of_a_model_cost_little_on_a_tpu(on_v5e):
    assert on_v5e["flops_ratio"] <= 1.01
    assert on_v5e["temp_ratio"] <= 1.10
    assert on_v5e["bytes_ratio"] <= 1.15


@pytest.mark.slow
def test_a_deep_stage_costs_memory_and_compile_time_as_a_plain_one():
    rows = measured(
        "--depths=8,16,32,64",
        "--forms=folded,stacked",
        "--runs=5",
        "--batch_size=16",
        "--config.model.width=16",
    )
    plain, scanned = connection_costs.PLAIN, connection_costs.PLAIN_SCANNED

    def of(form, field):
        return [rows["stage", form, depth][field] for depth in (8, 16, 32, 64)]

    line = tables.saved_memory_line(
        [connection_costs.Row(**rows["stage", "stacked", d]) for d in (8, 16, 32, 64)]
    )
    assert line.residual < 0.001
    saved = np.asarray(of("stacked", "saved_bytes"))
    assert (saved <= of(scanned, "saved_bytes")).all()
    assert (np.asarray(of("stacked", "temp_bytes")) <= of(scanned, "temp_bytes")).all()

    compile_seconds = of("stacked", "compile_seconds")
    growth = compile_seconds[-1] / compile_seconds[0]
    overhead = of("stacked", "step_seconds")[2] / of(scanned, "step_seconds")[2] - 1
    unrolled = of("folded", "step_seconds")[2] / of(plain, "step_seconds")[2] - 1
    print(
        f"stacked: 64 blocks compile in {growth:.2f} times the time of 8; step of 32 "
        f"blocks {overhead:+.1%} against the plain scan, folded {unrolled:+.1%} "
        "against the plain network"
    )
    assert growth <= 2
    assert overhead <= 0.15
    assert unrolled <= 0.15


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None,
    reason="requirements-peers.txt is not installed",
)
def test_the_step_is_4_times_faster_than_the_originals():
    rows = measured(
        "--model=dresnet18_seed",
        "--forms=folded",
        "--peers",
        "--runs=5",
        "--image_size=64",
        "--batch_size=32",
    )
    ours = rows["dresnet18_seed", "folded", 8]
    original = rows["PyTorch", "per edge", 8]
    times = original["step_seconds"] / ours["step_seconds"]
    print(
        f"DResNet / ResNet: ours {ours['step_ratio']:.2f}, the original's "
        f"{original['step_ratio']:.2f}; our DResNet is {times:.2f} times faster"
    )
    assert ours["step_ratio"] < original["step_ratio"]
    if times < 4:
        pytest.xfail(
            f"{times:.2f} times, not 4: where PyTorch's convolutions use AVX-512 they "
            "are twice as fast as XLA's (docs/connections.md)"
        )


@pytest.mark.slow
def test_gates_learn_and_accuracy_is_no_worse_than_at_the_common_rate(
    fashion_mnist, tmp_path
):
    result = {"default": [], "1": []}
    for seed, multiplier in itertools.product(range(5), result):
        chosen = (
            []
            if multiplier == "default"
            else [f"--config.optimizer.gate_multiplier={multiplier}"]
        )
        code, output, errors = run_command(
            "train",
            "--config=configs/fashion_mnist.py",
            f"--config.data.data_dir={fashion_mnist}",
            "--config.model.width=8",
            "--config.train.num_epochs=3",
            f"--config.seed={seed}",
            *chosen,
            f"--workdir={tmp_path / f'{multiplier}_{seed}'}",
            "--json",
        )
        assert code == 0, errors
        report = last_json(output)
        result[multiplier].append((report["test_accuracy"], report["gate_drift"]))
        print(f"\nseed {seed}, multiplier {multiplier}: {result[multiplier][-1]}")
    accuracies, drifts = (
        {name: [run[n] for run in runs] for name, runs in result.items()}
        for n in (0, 1)
    )
    for name in result:
        accuracy, drift = accuracies[name], drifts[name]
        print(
            f"gate multiplier {name}: test accuracy {statistics.mean(accuracy):.4f} "
            f"({min(accuracy):.4f} to {max(accuracy):.4f}), gate drift "
            f"{statistics.mean(drift):.3f} (least {min(drift):.3f})"
        )
    assert min(drifts["default"]) >= 0.05
    pairs = zip(accuracies["default"], accuracies["1"], strict=True)
    differences = [default - common for default, common in pairs]
    mean, error = statistics.mean(differences), stats.sem(differences)
    worse = stats.ttest_1samp(differences, 0.0, alternative="less").pvalue
    found_out = f"{mean:+.4f} with a standard error of {error:.4f}, p = {worse:.2f}"
    print(f"default less common rate, by seed: {found_out} that it is worse")
    assert worse > 0.05
    if mean < 0:
        pytest.xfail(
            f"the mean over seeds is below that at the common rate: {found_out}"
        )
