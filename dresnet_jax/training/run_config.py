"""The config that a run directory keeps: read, completed and compared."""

import functools
import json
from collections.abc import Mapping
from typing import Any

import ml_collections
from etils import epath

from dresnet_jax import defaults
from dresnet_jax.errors import UserError
from dresnet_jax.training import json_files

CONFIG = "config.json"
# Axes of the devices, instead of those that the run had.
_ANY_DEVICES = {"replica": None, "data": None, "fsdp": 1}
# Fields that had another name, by that: in runs, and on the command line.
RENAMED = {"model.connections.opening": "model.connections.initial_gate"}
# Fields that decide where batches and the state are and how fast, but not what is in
# them: a run may continue with others.
_FREE_OF_A_RUN = {
    *("data.mode", "data.data_dir", "data.num_threads", "data.num_workers"),
    *(f"sharding.{axis}" for axis in _ANY_DEVICES),
}
# Fields of `train` that only the host reads, besides the length of the run.
_HOST_FIELDS = (
    *("num_steps", "num_epochs", "steps_per_call", "eval_every_epochs", "report_on"),
    *("checkpoint_every_steps", "keep_checkpoints", "keep_every_steps", "keep_best"),
)
# A comparison may have more seeds, and more hands.
_FREE = (
    _FREE_OF_A_RUN
    | {f"base.{field}" for field in _FREE_OF_A_RUN}
    | {"seeds", "other_seeds", "at_once"}
)


def new_name(path: str) -> str:
    """Returns the path that a field has today, in whatever group it stands."""
    for old, new in RENAMED.items():
        if f".{path}".endswith(f".{old}"):
            return path.removesuffix(old) + new
    return path


def require_config(workdir: epath.Path, config: ml_collections.ConfigDict) -> None:
    """Checks that the run in a directory is that of a config.

    Raises:
      UserError: there is none, its config is damaged, or another one.
    """
    there, here = (dict(defaults.fields(x)) for x in (raw(workdir), plain(config)))
    differences = [
        f"{field} is {there.get(field)!r} there and {here.get(field)!r} here"
        for field in sorted((there.keys() | here.keys()) - _FREE)
        if there.get(field) != here.get(field)
    ]
    if differences:
        raise UserError(
            f"workdir {workdir} holds a run of another config: "
            f"{'; '.join(differences)}. Choose another workdir, or start from scratch "
            "with --overwrite."
        )


def require_own(
    workdir: epath.Path, config: ml_collections.ConfigDict, about: Mapping[str, Any]
) -> None:
    """Checks, by what is written with it, that a checkpoint is of the run it lies in.

    Raises:
      UserError: a field of the config there differs.
    """
    if "config" not in about or about.get("history"):
        return  # It was made from elsewhere as step 0, or its network has grown.
    own = completed(dict(about["config"]))
    there, here = (dict(defaults.fields(x)) for x in (own, plain(config)))
    # Versions may differ in what fields there are.
    shared = sorted((there.keys() & here.keys()) - _FREE_OF_A_RUN)
    if different := [field for field in shared if there[field] != here[field]]:
        field = different[0]
        raise UserError(
            f"workdir {workdir} holds a checkpoint of another run: {field} is "
            f"{there[field]!r} there and {here[field]!r} in config.json"
            + (f", and {len(different) - 1} more" if len(different) > 1 else "")
            + ". Put back the checkpoints of this run, or choose another workdir."
        )


def as_begun(
    workdir: epath.Path, config: ml_collections.ConfigDict
) -> ml_collections.ConfigDict:
    """Returns the config with the pixel rule of an earlier version's run there.

    The same command resumes a run that an earlier version began.

    Raises:
      UserError: the config there is damaged.
    """
    if not (workdir / CONFIG).exists():
        return config
    there = _group(raw(workdir), "data")
    if there.get("pixel_rule") != 1 or config.data.pixel_rule == 1:
        return config
    fields = {"data.pixel_rule": 1, "data.background": there["background"]}
    return defaults.replace(config, fields)


def read_config(workdir: epath.Path) -> ml_collections.ConfigDict:
    """Returns the config of the run in a directory, for whatever devices are here.

    Raises:
      UserError: there is no run, or its config is damaged.
    """
    config = raw(workdir)
    if not isinstance(config.get("sharding"), dict):
        raise UserError(f"{workdir / CONFIG} is damaged: it holds no config.")
    _check_types(workdir / CONFIG, config, defaults.get_config(), "")
    config["sharding"] |= _ANY_DEVICES
    try:
        return ml_collections.ConfigDict(config).lock()
    except ValueError as error:  # A field's name that none can have.
        raise UserError(f"{workdir / CONFIG} is damaged: {error}") from error


# By the type of a field's default: what JSON may have for it.
_JSON_TYPES: dict[type, tuple[type, ...]] = {
    bool: (bool,),
    int: (int,),
    float: (int, float),
    str: (str,),
    tuple: (list,),
    # Of fields that take a word, a number or a list.
    object: (str, int, float, list),
}


def _check_types(
    path: epath.Path,
    result: dict[str, Any],
    default: ml_collections.ConfigDict,
    group: str,
) -> None:
    """Checks the fields of a config that a file holds against those of today."""
    for name in sorted(result.keys() & set(default)):
        value, field = result[name], f"{group}{name}"
        if isinstance(default[name], ml_collections.ConfigDict):
            if not isinstance(value, dict):
                raise UserError(
                    f"{path}: {field} = {value!r} must be a group of fields."
                )
            _check_types(path, value, default[name], f"{field}.")
            continue
        if value is None and default[name] is None:
            continue
        types = _JSON_TYPES[default.get_type(name)]
        if type(value) not in types:
            names = " or ".join(one.__name__ for one in types)
            raise UserError(f"{path}: {field} = {value!r} must be of type {names}.")


def completed(config: dict[str, Any]) -> dict[str, Any]:
    """Gives an earlier version's config the names and the fields of today.

    A new field has the value that changes nothing. What is no group of fields stays.
    """
    _rename(config)
    data, optimizer = _group(config, "data"), _group(config, "optimizer")
    connections = _group(_group(config, "model"), "connections")
    for group, fields in (
        (data, {"pixel_rule": 1, "background": 255, "mean": None, "std": None}),
        (connections, {"projection_rank": 8}),
        (optimizer, {"freeze_statistics": not optimizer.get("freeze")}),
    ):
        if group:
            group.update(fields | group)
    return config


def _rename(config: dict[str, Any]) -> None:
    """Renames the fields of a config, and of those inside it, as a comparison's."""
    for value in config.values():
        if isinstance(value, dict):
            _rename(value)
    for old, new in RENAMED.items():
        path, _, name = old.rpartition(".")
        group = functools.reduce(_group, path.split("."), config)
        if name in group:
            group[new.rpartition(".")[2]] = group.pop(name)


def _group(config: dict[str, Any], name: str) -> dict[str, Any]:
    result = config.get(name)
    return result if isinstance(result, dict) else {}


def raw(workdir: epath.Path) -> dict[str, Any]:
    """Reads the config of a run directory, completed but not checked.

    Raises:
      UserError: there is none, or it is damaged.
    """
    path = workdir / CONFIG
    if not path.exists():
        raise UserError(f"{workdir} holds no run: there is no {CONFIG} in it.")
    with json_files.reading(path):
        config = json.loads(path.read_text())
        if not isinstance(config, dict):
            raise ValueError("it holds no config")
    return completed(config)


def plain(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns the config as it reads after a round trip through JSON."""
    return json.loads(json.dumps(config.to_dict()))


def compiled_fields(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns what programs may depend on, besides the run's length."""
    # As JSON has it: a config that was read from a checkpoint has lists for tuples.
    result = plain(config)
    for name in ("seed", "init", "evolution"):
        del result[name]
    if not config.growth.warmup_steps:
        del result["growth"]
    for name in _HOST_FIELDS:
        del result["train"][name]
    return result
