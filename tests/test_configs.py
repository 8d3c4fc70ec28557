"""Every config of the repository builds, and says what it is for."""

import importlib
import tomllib
from pathlib import Path

import pytest

from dresnet_jax.data import catalog
from dresnet_jax.training import experiment
from tests.conftest import ROOT

NAMES = sorted(
    path.stem
    for path in Path(ROOT, "configs").glob("*.py")
    if path.stem not in ("__init__", "common")
)
SHIPPED = ("dresnet_jax", "shipped")


# That of `folder` builds where a folder is prepared: tests/data/test_folder.py.
@pytest.mark.parametrize("name", [name for name in NAMES if name != "folder"])
def test_a_config_builds_the_run_of_its_dataset(name):
    module = importlib.import_module(f"configs.{name}")
    config = module.get_config()
    exp = experiment.build(config)
    assert exp.dataset.name == config.data.dataset == name
    assert exp.num_steps > 0
    command = f"python -m dresnet_jax.train --config=configs/{name}.py"
    assert command in module.__doc__ or "dresnet_jax.plan" in module.__doc__
    assert config.is_locked


def test_every_dataset_has_a_config():
    assert {*catalog.DATASETS, "folder", "synthetic"} == set(NAMES)


@pytest.mark.parametrize("dataset", catalog.DATASETS.values(), ids=catalog.DATASETS)
def test_the_catalogue_is_complete(dataset):
    assert set(dataset.splits) == set(catalog.SPLITS)
    assert len(dataset.mean) == len(dataset.std) == dataset.channels
    assert len(set(dataset.class_names)) == dataset.num_classes
    assert all((dataset.citation, dataset.licence, dataset.source))


def test_a_wheel_holds_the_package_and_its_configs():
    settings = tomllib.loads(Path(ROOT, "pyproject.toml").read_text())
    directories = [
        init.parent.relative_to(ROOT)
        for name in ("dresnet_jax", "configs")
        for init in Path(ROOT, name).rglob("__init__.py")
    ]
    packages = {
        ".".join(
            path.parts if path.parts[0] == "dresnet_jax" else (*SHIPPED, *path.parts)
        )
        for path in directories
    }
    assert packages == set(settings["tool"]["setuptools"]["packages"])
