"""FLOPs are those that a person counts, whatever the program looks like."""

import jax
import jax.numpy as jnp
import pytest

from configs import synthetic
from dresnet_jax.models import counting
from dresnet_jax.training import experiment
from tests.conftest import run_python

CLASSES = 10


def forward(blocks, side, *, bottleneck=False, connected=""):
    """Multiply-adds of one image of a ResNet, layer by layer, and of its stem."""
    side //= 2
    stem = side**2 * 64 * 7 * 7 * 3
    side, channels, total, outputs = side // 2, 64, stem, [(side // 2, 64)]
    narrowed = set()
    for stage, count in enumerate(blocks):
        width = 64 * 2**stage
        out = 4 * width if bottleneck else width
        for block in range(count):
            sources = outputs[1:-1]
            if connected == "per_edge":
                # Each source but the base, pooled, through a 1x1 convolution.
                total += side**2 * sum(own for _, own in sources) * channels
            ends = {own: of_side for of_side, own in sources if own != channels}
            # Of the stage of y_{i-1} about 4 blocks read others.
            place, own_count = (block, count) if block else (blocks[stage - 1],) * 2
            reads = place % -(-own_count // 4) == 0
            if connected == "between_stages" and reads:
                # The last of each earlier stage: its 8 channels to all of the base's.
                total += side**2 * 8 * len(ends) * channels
                for own, of_side in ends.items():
                    # Made narrow once, at the next resolution.
                    if own not in narrowed and side < of_side:
                        narrowed.add(own)
                        total += side**2 * own * 8
            before, side = side, side // (2 if stage and not block else 1)
            if bottleneck:
                total += before**2 * channels * width
                total += side**2 * (9 * width * width + width * out)
            else:
                total += side**2 * 9 * (channels * width + width * width)
            if channels != out:
                total += side**2 * channels * out
            channels = out
            outputs.append((side, out))
    return total + channels * CLASSES, stem


def by_hand(images, *network, **options):
    """FLOPs of a training step: forward, and two gradients of all but the images."""
    total, stem = forward(*network, **options)
    return 2 * images * (3 * total - stem)


def config(name, side=64):
    result = synthetic.get_config()
    result.data.image_size, result.data.num_classes = side, CLASSES
    result.data.num_examples = result.data.batch_size = 8
    result.model.name, result.model.stem = name, "imagenet"
    return result


FIFTY = (3, 4, 6, 3)


@pytest.mark.parametrize("connected", ["", "per_edge", "between_stages"])
@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("resnet18", (2, 2, 2, 2)),
        pytest.param("resnet50", FIFTY, marks=pytest.mark.slow),
    ],
)
def test_a_training_step_has_the_flops_of_its_layers(name, blocks, connected):
    asked = config(f"d{name}" if connected else name)
    if connected == "per_edge":
        asked.model.connections.update(topology="dense", projection=connected)
    result = experiment.build(asked).step_flops
    options = {"bottleneck": name.endswith("50"), "connected": connected}
    expected = by_hand(8, blocks, 64, **options)
    print(f"\n{name}: {result / expected:.5f} of what is counted by hand")
    assert result == pytest.approx(expected, rel=0.01)


def test_published_multiply_adds_are_those_by_hand():
    """4.089 G at 224x224 and 1,000 classes, as torchvision says."""
    result, _ = forward(FIFTY, 224, bottleneck=True)
    assert result + 2048 * (1000 - CLASSES) == pytest.approx(4.089e9, rel=1e-3)


@pytest.mark.parametrize(
    "fields",
    [
        {"steps_per_call": 4},
        {"accumulate_steps": 4},
        {"steps_per_call": 2, "accumulate_steps": 2},
    ],
    ids=str,
)
def test_loops_count_as_often_as_they_run(tiny_images_config, fields):
    plain = experiment.build(tiny_images_config).step_flops
    tiny_images_config.train.update(fields)
    looped = experiment.build(tiny_images_config)
    looped.compile_train_step(looped.config.train.steps_per_call)
    assert looped.step_flops == plain


def test_a_loop_over_blocks_counts_each_and_what_it_computes_twice(tiny_images_config):
    tiny_images_config.model.update(name="dresnet18", blocks_per_stage=(4,))
    tiny_images_config.model.connections.update(topology="none", projection="none")
    flops = {}
    for form in ("folded", "stacked"):
        tiny_images_config.model.connections.form = form
        flops[form] = experiment.build(tiny_images_config).step_flops
    # The scan keeps the blocks' inputs alone, and runs each once more to go back.
    again = 2 * 16 * 4 * (2 * 16**2 * 9 * 4**2)
    assert flops["stacked"] - flops["folded"] == again


EIGHT = """
from configs import digits
from dresnet_jax.training import experiment
config = digits.get_config()
config.model.width = 4
config.model.blocks_per_stage = (1, 1, 1, 1)
print(experiment.build(config).step_flops)
"""


def test_each_of_8_devices_has_its_share(small_config):
    code, output, errors = run_python("-c", EIGHT, devices=8)
    assert code == 0, errors
    assert 8 * float(output) == experiment.build(small_config).step_flops


def test_gradients_of_strided_and_grouped_convolutions_count_like_them():
    def convolution(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(2, 2),
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=4,
        )

    x, kernel = jnp.ones((2, 16, 16, 8)), jnp.ones((3, 3, 2, 12))
    once = 2 * 8 * 8 * 12 * 9 * 2
    assert counting.multiply_adds(convolution, x, kernel) == once
    for argument in (0, 1):
        gradient = jax.grad(lambda *given: convolution(*given).sum(), argument)
        # One goes forward, the other back.
        assert counting.multiply_adds(gradient, x, kernel) == 2 * once


def test_the_branch_with_most_counts():
    def branches(x):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ x @ x, lambda: x @ x)

    assert counting.multiply_adds(branches, jnp.ones((4, 4))) == 2 * 4**3


def test_a_loop_of_unknown_turns_is_refused():
    def loop(x):
        return jax.lax.while_loop(lambda y: y.sum() < 100, lambda y: y @ y, x)

    with pytest.raises(ValueError, match="turns of a while loop"):
        counting.flops(loop, jnp.ones((4, 4)))
