"""Every network of the family learns, plain and connected, and wastes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import synthetic
from dresnet_jax import defaults
from dresnet_jax.models import counting, zoo
from dresnet_jax.training import experiment

PLAIN = [name for name in zoo.MODELS if f"d{name}" in zoo.MODELS]
# The others are slow only because they are many.
FAST = ("convnext_tiny", "dssresnet18")


def _twin(name):
    """The same blocks, in a network that is narrow, shallow and for small images."""
    stages = len(zoo.MODELS[name].blocks_per_stage)
    config = synthetic.get_config().unlock()
    config.model.update(
        name=name,
        stem="cifar",
        width=8,
        blocks_per_stage=(2, 2) if stages < 5 else (1, 2, 1),
        dtype="bfloat16",
    )
    config.data.update(image_size=16, num_classes=4, batch_size=32, num_examples=128)
    config.optimizer.update(name="adamw", learning_rate=3e-3)
    config.train.num_steps = 20
    return experiment.build(config)


@pytest.mark.parametrize("connected", ["", "d"])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in FAST else pytest.mark.slow)
        for name in PLAIN
    ],
)
def test_every_network_learns(name, connected):
    exp = _twin(connected + name)
    state, losses = exp.create_state(), []
    step = exp.compile_train_step()
    for inputs, _ in exp.inputs.data(exp.open_data(), 0, exp.calls(0)):
        state, result = step(state, inputs)
        losses.append(float(result.loss[0]))
    first, last = np.mean(losses[:4]), np.mean(losses[-4:])
    edges = len(exp.model.spec.connections.topology.edges)
    print(f"\n{connected}{name}, {edges} connections: loss {first:.3f} to {last:.3f}")
    assert bool(edges) == bool(connected)
    assert last < 0.9 * first


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("dresnet18", marks=pytest.mark.slow),
        pytest.param("resnet50", marks=pytest.mark.slow),
    ],
)
def test_a_step_has_no_hidden_work(name):
    """As many FLOPs as its convolutions and products forward, and twice backward."""
    config = defaults.get_config().unlock().model
    config.update(name=name, stem=zoo.OWN)
    model = zoo.build(config, 224, 1000)
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(
        lambda key, x: model.init(key, x, train=False), jax.random.key(0), images
    )

    def forward(variables, images):
        return model.apply(variables, images, train=True, mutable=["batch_stats"])

    def loss(params, variables, images):
        logits, updates = forward(variables | {"params": params}, images)
        return jax.nn.logsumexp(logits, axis=-1).sum(), updates

    gradient = jax.jit(jax.grad(loss, has_aux=True))
    compiled = gradient.lower(variables["params"], variables, images).compile()
    counted = compiled.cost_analysis()["flops"]
    products = counting.multiply_adds(forward, variables, images)
    # The images need no gradient: the first convolution goes backward once.
    stem = 2 * 112 * 112 * 64 * 7 * 7 * 3
    written = 2 * (3 * products - stem)
    print(
        f"\n{name} at 224x224: {counted / 2e9:.3f} GFLOP an image, "
        f"{counted / written:.4f} of 2 x (3 x multiply-adds)"
    )
    assert counted <= 1.02 * written
