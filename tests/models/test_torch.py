"""With PyTorch's weights a network gives PyTorch's numbers.

The oracles are the models of Hugging Face's transformers; the tests need what
requirements-peers.txt names.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import synthetic
from dresnet_jax.models import torch_names
from dresnet_jax.training import experiment, leaves, torch_weights, transfer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CLASSES, SIDE, BATCH = 10, 64, 4


def _resnet(blocks, kind):
    expansion = 4 if kind == "bottleneck" else 1
    return transformers.ResNetForImageClassification(
        transformers.ResNetConfig(
            num_channels=3,
            embedding_size=64,
            hidden_sizes=[expansion * 64 * 2**stage for stage in range(4)],
            depths=list(blocks),
            layer_type=kind,
            num_labels=CLASSES,
        )
    )


def _mobilenet():
    return transformers.MobileNetV2ForImageClassification(
        transformers.MobileNetV2Config(
            tf_padding=False,
            layer_norm_eps=1e-5,
            num_labels=CLASSES,
            classifier_dropout_prob=0.0,
            finegrained_output=True,
        )
    )


def _convnext():
    return transformers.ConvNextForImageClassification(
        transformers.ConvNextConfig(num_labels=CLASSES, layer_norm_eps=1e-6)
    )


ORACLES = {
    "resnet18": lambda: _resnet((2, 2, 2, 2), "basic"),
    "resnet50": lambda: _resnet((3, 4, 6, 3), "bottleneck"),
    "mobilenetv2_100": _mobilenet,
    "convnext_tiny": _convnext,
}


def oracle(name):
    """PyTorch's model with random weights and random statistics."""
    torch.manual_seed(0)
    model = ORACLES[name]()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                # So small that the logits of 50 layers are of the order of 1.
                module.weight.uniform_(0.3, 0.7)
                module.bias.normal_(std=0.1)
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
        for key, parameter in model.named_parameters():
            if key.endswith("layer_scale_parameter"):
                parameter.uniform_(0.1, 1.0)
    return model.eval()


def ours(name, weights):
    """The experiment of a run here, and its state with those weights."""
    config = synthetic.get_config().unlock()
    config.model.update(name=name, stem="own")
    config.data.update(image_size=SIDE, num_classes=CLASSES, batch_size=BATCH)
    exp = experiment.build(config)
    state = exp.create_state()
    placed = torch_weights.place(exp.model.spec, state, weights)
    assert placed.unplaced == ()
    assert placed.missing == ()
    return exp, transfer.exchange(state, placed.weights)


def numbers(model):
    return {
        key: value.detach().numpy()
        for key, value in model.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }


def images():
    random = np.random.RandomState(0)
    return random.standard_normal((BATCH, SIDE, SIDE, 3)).astype(np.float32)


@pytest.mark.parametrize("name", ORACLES)
def test_logits_and_input_gradients_are_pytorchs(name):
    theirs = oracle(name)
    exp, state = ours(name, numbers(theirs))
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    pixels = images()
    cotangent = np.random.RandomState(1).standard_normal((BATCH, CLASSES))
    given = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()).requires_grad_()
    expected = theirs(given).logits
    (expected * torch.from_numpy(cotangent.astype(np.float32))).sum().backward()
    result, pull = jax.vjp(
        jax.jit(lambda x: exp.model.apply(variables, x, train=False)), pixels
    )
    (gradient,) = pull(jnp.asarray(cotangent, jnp.float32))
    target = given.grad.numpy().transpose(0, 2, 3, 1)
    difference = np.abs(result - expected.detach().numpy()).max()
    relative = np.abs(gradient - target).max() / np.abs(target).max()
    print(
        f"\n{name}: logits up to {np.abs(result).max():.2f} differ by "
        f"{difference:.1e}, input gradients by {relative:.1e} relative"
    )
    assert difference < 1e-4
    assert relative < 1e-3


def test_a_training_step_is_pytorchs():
    """The loss and the statistics, whose variances PyTorch counts by n - 1."""
    theirs = oracle("resnet18").train()
    exp, state = ours("resnet18", numbers(theirs))
    labels = np.arange(BATCH) % CLASSES
    before = {key: value.copy() for key, value in numbers(theirs).items()}
    pixels = images()
    logits = theirs(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())).logits
    expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels))
    result, updates = jax.jit(
        lambda variables: exp.model.apply(
            variables, pixels, train=True, mutable=["batch_stats"]
        )
    )({"params": state.params, "batch_stats": state.batch_stats})
    loss = optax.softmax_cross_entropy_with_integer_labels(result, labels).mean()
    print(f"\nloss {float(loss):.6f}, PyTorch's {float(expected):.6f}")
    assert float(loss) == pytest.approx(float(expected), abs=1e-4)
    after, worst = numbers(theirs), 0.0
    for path, value in leaves.by_name(updates).items():
        key = torch_names.name("Hugging Face", exp.model.spec, path)
        new = after[key] - 0.9 * before[key]
        if path.endswith("var"):
            # 7x7/2 and a pool in the stem, and a stride of 2 before the later stages.
            stage = re.search(r"stages\.(\d)", key)
            side = SIDE // 4 // 2 ** int(stage[1]) if stage else SIDE // 2
            new *= 1 - 1 / (BATCH * side**2)
        worst = max(worst, np.abs(value - 0.9 * before[key] - new).max())
    print(f"statistics differ by at most {worst:.1e}")
    assert worst < 1e-4


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_connections_that_are_closed_change_no_logit(name):
    theirs = oracle(name)
    exp, state = ours(name, numbers(theirs))
    config = synthetic.get_config().unlock()
    config.model.update(name=f"d{name}", stem="own")
    config.model.connections.initial_gate = 1e-9
    config.data.update(image_size=SIDE, num_classes=CLASSES, batch_size=BATCH)
    dense = experiment.build(config)
    fresh = dense.create_state()
    placed = torch_weights.place(dense.model.spec, fresh, numbers(theirs))
    assert placed.missing
    connected = transfer.exchange(fresh, placed.weights)
    logits = [
        part.model.apply(
            {"params": one.params, "batch_stats": one.batch_stats},
            images(),
            train=False,
        )
        for part, one in ((exp, state), (dense, connected))
    ]
    np.testing.assert_allclose(logits[1], logits[0], rtol=0, atol=1e-5)
    assert np.isfinite(logits[0]).all()
