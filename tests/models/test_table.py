"""A network given as a table is the network that the table describes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from dresnet_jax import defaults
from dresnet_jax.errors import UserError
from dresnet_jax.models import zoo
from tests.conftest import apply, init, products

SHAPE = (32, 32, 3)
WIDTH, CLASSES = 4, 5


def resnet18():
    """ResNet-18, convolution by convolution; settings as in torchvision's."""
    rows = [
        (
            "stem",
            "images",
            "conv",
            {"features": WIDTH, "kernel": 7, "stride": 2, "activate": True},
        ),
        ("pool", "stem", "max_pool"),
    ]
    before, channels = "pool", WIDTH
    for i in range(1, 9):
        stage, first = divmod(i - 1, 2)
        features, stride = WIDTH * 2**stage, 2 if stage and not first else 1
        name = f"block_{i}"
        rows += [
            (
                f"{name}.conv1",
                before,
                "conv",
                {"features": features, "stride": stride, "activate": True},
            ),
            (f"{name}.conv2", f"{name}.conv1", "conv", {"features": features}),
        ]
        shortcut = before
        if (stride, channels) != (1, features):
            shortcut = f"{name}.shortcut"
            settings = {"features": features, "kernel": 1, "stride": stride}
            rows.append((shortcut, before, "conv", settings))
        rows.append((name, [f"{name}.conv2", shortcut], "activate"))
        before, channels = name, features
    return [*rows, ("head", before, "classifier", {"classes": CLASSES})]


@pytest.mark.parametrize(
    ("form", "train"),
    products(["tuples", "yaml", "shuffled"], [True, False], strength=1),
)
def test_resnet18_as_a_table_is_resnet18(tmp_path, form, train):
    rows = resnet18()
    if form == "shuffled":
        np.random.RandomState(0).shuffle(rows)
    if form == "yaml":
        path = tmp_path / "resnet18.yaml"
        path.write_text(yaml.safe_dump([list(row) for row in rows]))
        rows = path
    config = defaults.get_config().unlock().model
    config.update(name="resnet18", stem="own", width=WIDTH)
    named = zoo.build(config, SHAPE[0], CLASSES)
    network = zoo.from_table(rows, SHAPE)
    images = np.random.RandomState(0).standard_normal((2, *SHAPE)).astype(np.float32)
    variables = init(named, jax.random.key(0), images, train=False)

    def of_table(tree):
        flat = {}
        for name, inner in tree.items():
            for part in inner if name.startswith("block") else ():
                flat[f"{name}.{part}"] = inner[part]
            if not name.startswith("block"):
                flat[name] = inner
        return flat

    moved = {kind: of_table(tree) for kind, tree in variables.items()}
    own = init(network, jax.random.key(0), images, train=False)
    assert jax.tree.structure(own) == jax.tree.structure(moved)
    result, expected = (
        apply(model, given, images, train=train, mutable=["batch_stats"])[0]
        for model, given in ((network, moved), (named, variables))
    )
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-6)


def test_blocks_are_operations_too():
    rows = [
        ("stem", "images", "conv", {"features": 8, "activate": True}),
        ("one", "stem", "block", {"features": 8}),
        ("two", ["stem", "one"], "block", {"kind": "convnext", "features": 8}),
        ("head", ["one", "two"], "classifier", {"classes": 3}),
    ]
    network = zoo.from_table(rows, (8, 8, 1))
    logits, _ = network.init_with_output(
        jax.random.key(0), jnp.ones((2, 8, 8, 1)), train=False
    )
    assert logits.shape == (2, 3)


STEM = ("stem", "images", "conv", {"features": 8})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([STEM, ("a", "stm", "activate")], "read by 'a', 'stm'. Did you mean 'stem'"),
        (
            [STEM, ("a", ["stem", "b"], "activate"), ("b", "a", "activate")],
            "The table has a cycle: .*a reads b",
        ),
        ([STEM, STEM], "Layer 'stem' is there twice"),
        ([STEM, ("a", "stem", "activat")], "operation 'activat'. Did you mean 'activ"),
        ([STEM, ("a", "images", "activate")], "read by none, the last: stem, a are"),
        (
            [STEM, ("a", ["stem", "images"], "activate")],
            r"'a' cannot add what it reads: stem is \(8, 8, 8\), images is \(8, 8, 1\)",
        ),
        ([("stem", "images", "conv", {"feature": 8})], "Layer 'stem': settings"),
        (
            [("a", "images", "block", {"features": 8, "shortcut": "convs"})],
            "shortcut 'convs'. Did you mean 'conv'",
        ),
        (
            [("a", "images", "block", {"features": 8, "attention": "sa"})],
            "attention 'sa'. Did you mean 'se'",
        ),
        ([("stem", "images")], "is not .layer, reads, operation, settings"),
        ([("stem", [], "activate")], "is not .layer, reads, operation, settings"),
    ],
)
def test_a_table_that_describes_no_network_is_refused(rows, message):
    with pytest.raises(UserError, match=message):
        zoo.from_table(rows, (8, 8, 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist"),
        ("a: [b", "Table .*: while parsing"),
        ("a: b", "is no list of layers"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path, text, message):
    path = tmp_path / "net.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        zoo.from_table(path, (8, 8, 1))
