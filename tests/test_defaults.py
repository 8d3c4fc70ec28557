"""A config is changed by one function, which leaves the old one as it was."""

import pytest

from dresnet_jax import defaults


def test_fields_are_replaced_in_a_locked_copy():
    config = defaults.get_config()
    changed = defaults.replace(
        config, {"seed": 1, "model.width": 8, "model.connections.topology": ((3, 1),)}
    )
    assert (changed.seed, changed.model.width) == (1, 8.0)
    assert isinstance(changed.model.width, float)
    assert changed.model.connections.topology == ((3, 1),)
    assert changed.is_locked
    assert config == defaults.get_config()
    assert defaults.replace(changed, {"model.connections.topology": "none"})


@pytest.mark.parametrize("path", ["sead", "model.widht", "modle.width"])
def test_a_field_that_does_not_exist_is_an_error(path):
    with pytest.raises((KeyError, AttributeError)):
        defaults.replace(defaults.get_config(), {path: 1})
