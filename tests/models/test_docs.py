"""What docs/models.md shows works as it stands there."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dresnet_jax import defaults
from dresnet_jax.models import blocks, zoo
from tests.conftest import ROOT, apply, init


def _codes(language, word):
    """The page's code in a language that has a word in it."""
    page = Path(ROOT, "docs/models.md").read_text()
    result = re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)
    return [code for code in result if word in code]


@pytest.fixture
def example():
    """The page's block, registered for the time of a test."""
    (code,) = _codes("python", "Block")
    before = dict(blocks.BLOCKS)
    exec(code, {"__name__": "example"})
    yield
    blocks.BLOCKS.clear()
    blocks.BLOCKS.update(before)


@pytest.mark.usefixtures("example")
@pytest.mark.parametrize("name", ["resnet18", "dresnet18"])
def test_a_block_of_ones_own_goes_into_any_model(name):
    config = defaults.get_config().unlock().model
    config.update(name=name, block="large", width=4, blocks_per_stage=(3, 1))
    model = zoo.build(config, 16, 3)
    images = jnp.ones((2, 16, 16, 3))
    variables = init(model, jax.random.key(0), images, train=False)
    assert variables["params"]["block_4"]["conv1"]["conv"]["kernel"].shape[:2] == (5, 5)
    options = {"train": True, "mutable": ["batch_stats"]}
    logits, _ = apply(model, variables, images, **options)
    assert logits.shape == (2, 3)
    assert np.isfinite(logits).all()


def test_the_table_of_the_page_is_a_network(tmp_path):
    (text,) = _codes("yaml", "stem")
    path = tmp_path / "network.yaml"
    path.write_text(text)
    network = zoo.from_table(path, (32, 32, 3))
    assert [row.layer for row in network.rows] == ["stem", "one", "two", "head"]
