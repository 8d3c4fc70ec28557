"""The run directory: whose run it holds, and the records a program can read."""

import json
import tempfile
from typing import Any

import ml_collections
from etils import epath

from dresnet_jax.errors import UserError

_CONFIG = "config.json"


def claim(
    workdir: epath.Path, config: ml_collections.ConfigDict, *, overwrite: bool
) -> None:
    """Makes a directory ready for a run of a config, new or to be continued.

    Args:
      workdir: the directory; made if it does not exist.
      config: of the run.
      overwrite: whether the run that it holds may be deleted.

    Raises:
      UserError: it is no directory or cannot be written, it holds a run of another
        config, or it holds something that is no run. Nothing has changed then.
    """
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"workdir {workdir} is a file, not a directory.")
    holds_run = (workdir / _CONFIG).exists()
    if workdir.exists() and not holds_run and any(workdir.iterdir()):
        raise UserError(
            f"workdir {workdir} is not empty and holds no run: choose another one."
        )
    if holds_run and not overwrite:
        differences = _differences(_read_json(workdir / _CONFIG), _plain(config))
        if differences:
            raise UserError(
                f"workdir {workdir} holds a run of another config: "
                f"{'; '.join(differences)}. Choose another workdir, or start anew with "
                "--overwrite."
            )
    try:
        if holds_run and overwrite:
            workdir.rmtree()
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
        if not (workdir / _CONFIG).exists():
            write_json(workdir / _CONFIG, _plain(config))
    except OSError as error:
        raise UserError(
            f"workdir {workdir} cannot be written: {error.strerror}."
        ) from error


def read_config(workdir: epath.Path) -> ml_collections.ConfigDict:
    """The config of the run in a directory.

    Raises:
      UserError: there is no run.
    """
    if not (workdir / _CONFIG).exists():
        raise UserError(f"{workdir} holds no run: there is no {_CONFIG} in it.")
    return ml_collections.ConfigDict(_read_json(workdir / _CONFIG)).lock()


def write_json(path: epath.Path, value: Any) -> None:
    """Writes a JSON file that is there whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2) + "\n")
    partial.replace(path)


def _read_json(path: epath.Path) -> Any:
    return json.loads(path.read_text())


def _plain(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The config as it reads after a round trip through JSON."""
    return json.loads(json.dumps(config.to_dict()))


def _differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    flat_there, flat_here = _flatten(there), _flatten(here)
    return [
        f"{field} is {flat_there.get(field)!r} there and {flat_here.get(field)!r} here"
        for field in sorted(flat_there.keys() | flat_here.keys())
        if flat_there.get(field) != flat_here.get(field)
    ]


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
