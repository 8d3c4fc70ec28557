"""The run directory: whose run it holds, and the records a program can read."""

import contextlib
import copy
import dataclasses
import fcntl
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from etils import epath

from dresnet_jax import defaults
from dresnet_jax.data import lookup
from dresnet_jax.data.catalog import Dataset
from dresnet_jax.errors import RunFailedError, UserError
from dresnet_jax.training import own_files

_CONFIG = "config.json"
_DATASET = "dataset.json"
_HISTORY = "history.jsonl"
# Axes of the devices, in the place of those that the run had.
_ANY_DEVICES = {"replica": None, "data": None, "fsdp": 1}
# Fields that decide where batches and the state are and how fast, but not what is in
# them: a run may go on with others.
_FREE_OF_A_RUN = {
    *("data.mode", "data.data_dir", "data.num_threads", "data.num_workers"),
    *(f"sharding.{axis}" for axis in _ANY_DEVICES),
}
# A comparison may have more seeds, and more hands.
_FREE = (
    _FREE_OF_A_RUN
    | {f"base.{field}" for field in _FREE_OF_A_RUN}
    | {"seeds", "other_seeds", "at_once"}
)


@contextlib.contextmanager
def claim(
    workdir: epath.Path, config: ml_collections.ConfigDict, *, overwrite: bool
) -> Iterator[None]:
    """Makes a directory ready for a run of a config, and keeps other processes out.

    What no run writes is never deleted.

    Args:
      workdir: the directory; made if it does not exist.
      config: of the run, new or to be continued.
      overwrite: whether the run that it holds may be deleted.

    Raises:
      UserError: it is no directory or cannot be written, another process trains in it,
        it holds a run of another config or on other data, or it holds something that is
        no run. What it holds has not changed then.
    """
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"workdir {workdir} is a file, not a directory.")
    with contextlib.ExitStack() as stack:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_locked(workdir))
            with tempfile.TemporaryFile(dir=workdir):
                pass
            dataset = lookup.from_config(config.data) if "data" in config else None
            _check(workdir, config, overwrite)
            if dataset and not overwrite:
                _require_dataset(workdir, dataset)
            if overwrite:
                own_files.remove(workdir)
            if dataset:
                write_json(workdir / _DATASET, dataclasses.asdict(dataset))
            write_json(workdir / _CONFIG, plain(config))
        except OSError as error:
            raise UserError(
                f"workdir {workdir} cannot be written: {error.strerror or error}."
            ) from error
        yield


def _check(
    workdir: epath.Path, config: ml_collections.ConfigDict, overwrite: bool
) -> None:
    if not (workdir / _CONFIG).exists() or not _is_run(workdir):
        if any(not own_files.is_stray(path) for path in workdir.iterdir()):
            raise UserError(
                f"workdir {workdir} is not empty and holds no run: choose another one."
            )
        return
    if overwrite:
        if strangers := list(own_files.strangers(workdir)):
            names = ", ".join(map(repr, strangers[:5]))
            more = f" and {len(strangers) - 5} more" if len(strangers) > 5 else ""
            raise UserError(
                f"workdir {workdir} holds what no run writes, and --overwrite does not "
                f"delete: {names}{more}. Move it away, or choose another workdir."
            )
        return
    require_config(workdir, config)


def require_config(workdir: epath.Path, config: ml_collections.ConfigDict) -> None:
    """Checks that the run in a directory is that of a config.

    Raises:
      UserError: there is none, its config is damaged, or another one.
    """
    differences = _differences(_read_config(workdir), plain(config))
    if differences:
        raise UserError(
            f"workdir {workdir} holds a run of another config: "
            f"{'; '.join(differences)}. Choose another workdir, or start anew with "
            "--overwrite."
        )


def require_own(
    workdir: epath.Path, config: ml_collections.ConfigDict, about: Mapping[str, Any]
) -> None:
    """Checks that a checkpoint in a run directory was written by that run.

    Args:
      workdir: the directory.
      config: of the run.
      about: what is written beside the checkpoint's state.

    Raises:
      UserError: a field of the config there differs.
    """
    if "config" not in about or about.get("history"):
        return  # It was made from elsewhere as step 0, or its network has grown.
    there, here = _flatten(completed(dict(about["config"]))), _flatten(plain(config))
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


def _is_run(workdir: epath.Path) -> bool:
    """Whether a config is one of ours, or was before it was damaged."""
    try:
        config = _read_config(workdir)
    except UserError:
        return True
    of_run = config.get("base", config)
    return isinstance(of_run, dict) and {"data", "model", "train"} <= of_run.keys()


class LostWorkdirError(RunFailedError):
    """The run directory is not the one any more that this process claimed."""


# Device and inode of the local directories that this process has claimed.
_held: dict[str, tuple[int, int]] = {}


def require_held(workdir: epath.Path) -> None:
    """Checks that a directory that this process claimed is still the same one.

    Raises:
      LostWorkdirError: it was removed, renamed or replaced.
    """
    path = os.fspath(workdir)
    if path not in _held:
        return
    try:
        found = Path(path).stat()
    except OSError as error:
        raise LostWorkdirError(
            f"workdir {workdir} is gone: {error.strerror}. This process stops."
        ) from error
    if (found.st_dev, found.st_ino) != _held[path]:
        raise LostWorkdirError(
            f"workdir {workdir} was replaced by another directory while this process "
            "trained in it. This process stops, and writes nothing there."
        )


@contextlib.contextmanager
def _locked(workdir: epath.Path) -> Iterator[None]:
    """Holds a lock on a local directory, which ends with the process at the latest."""
    path = os.fspath(workdir)
    if "://" in path:
        yield
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"workdir {workdir} is in use: another process trains in it."
            ) from None
        own = os.fstat(descriptor)
        _held[path] = own.st_dev, own.st_ino
        yield
    finally:
        _held.pop(path, None)
        os.close(descriptor)


def as_begun(
    workdir: epath.Path, config: ml_collections.ConfigDict
) -> ml_collections.ConfigDict:
    """The config with the rule of pixels of the run there, if that is an earlier one's.

    The same command resumes with a run that an earlier version began.

    Raises:
      UserError: the config there is damaged.
    """
    if not (workdir / _CONFIG).exists():
        return config
    there = _group(_read_config(workdir), "data")
    if there.get("pixel_rule") != 1 or config.data.pixel_rule == 1:
        return config
    config = copy.deepcopy(config)
    config.data.update(pixel_rule=1, background=there.get("background", 255))
    return config


def read_config(workdir: epath.Path) -> ml_collections.ConfigDict:
    """The config of the run in a directory, for whatever devices are here.

    Raises:
      UserError: there is no run, or its config is damaged.
    """
    config = _read_config(workdir)
    if not isinstance(config.get("sharding"), dict):
        raise UserError(f"{workdir / _CONFIG} is damaged: it holds no config.")
    _check_types(workdir / _CONFIG, config, defaults.get_config(), "")
    config["sharding"] |= _ANY_DEVICES
    try:
        return ml_collections.ConfigDict(config).lock()
    except ValueError as error:  # A field's name that none can have.
        raise UserError(f"{workdir / _CONFIG} is damaged: {error}") from error


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
    found: dict[str, Any],
    default: ml_collections.ConfigDict,
    group: str,
) -> None:
    """Checks the fields of a config that a file holds against those of today."""
    for name in sorted(found.keys() & set(default)):
        value, field = found[name], f"{group}{name}"
        if isinstance(default[name], ml_collections.ConfigDict):
            if not isinstance(value, dict):
                raise UserError(
                    f"{path}: {field} = {value!r} must be a group of fields."
                )
            _check_types(path, value, default[name], f"{field}.")
            continue
        kind = default.get_type(name)
        if value is None and default[name] is None:
            continue
        wanted = _JSON_TYPES[kind]
        is_truth = isinstance(value, bool) and kind is not bool
        if is_truth or not isinstance(value, wanted):
            names = " or ".join(one.__name__ for one in wanted)
            raise UserError(f"{path}: {field} = {value!r} must be of type {names}.")


def read_dataset(workdir: epath.Path) -> Dataset | None:
    """What the run in a directory was trained on; None for one of earlier versions.

    Raises:
      UserError: the file is damaged.
    """
    path = workdir / _DATASET
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
        for name in ("class_names", "mean", "std"):
            found[name] = tuple(found[name])
        return Dataset(**found)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is damaged: {error}.") from error


def _require_dataset(workdir: epath.Path, dataset: Dataset) -> None:
    """Checks that the run in a directory was trained on a dataset."""
    there = read_dataset(workdir)
    if there is None or there == dataset:
        return
    names = [field.name for field in dataclasses.fields(Dataset)]
    different = [x for x in names if getattr(there, x) != getattr(dataset, x)]
    raise UserError(
        f"workdir {workdir} holds a run on another {there.name}: "
        f"{', '.join(different)} differ. Choose another workdir, or say by "
        "--config.data.data_dir where the data of that run is."
    )


def read_history(workdir: epath.Path) -> list[dict[str, Any]]:
    """The events by which a run's network grew; none where it did not.

    Raises:
      UserError: the file is damaged.
    """
    return read_lines(workdir / _HISTORY)


def write_history(workdir: epath.Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Writes `history.jsonl`, which is there whole or not at all."""
    write_lines(workdir / _HISTORY, history)


def read_lines(path: epath.Path) -> list[dict[str, Any]]:
    """The JSON objects of a file, one a line; none where there is no file.

    Raises:
      UserError: the file is damaged.
    """
    if not path.exists():
        return []
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}.") from error


def write_lines(path: epath.Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """Writes a file of one JSON object a line, there whole or not at all."""
    _write_whole(path, "".join(json.dumps(entry) + "\n" for entry in entries))


def write_json(path: epath.Path, value: Any) -> None:
    """Writes a JSON file that is there whole or not at all."""
    _write_whole(path, json.dumps(value, indent=2) + "\n")


def _write_whole(path: epath.Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def completed(config: dict[str, Any]) -> dict[str, Any]:
    """The config of an earlier version with the fields that it did not have yet.

    Each has the value that changes nothing. What is no group of fields stays.
    """
    data = _group(config, "data")
    if data:
        data.setdefault("pixel_rule", 1)
        data.setdefault("background", 255)
        data.setdefault("mean", None)
        data.setdefault("std", None)
    connections = _group(_group(config, "model"), "connections")
    if connections:
        connections.setdefault("projection_rank", 8)
    optimizer = _group(config, "optimizer")
    if optimizer:
        optimizer.setdefault("freeze_statistics", not optimizer.get("freeze"))
    return config


def _group(config: dict[str, Any], name: str) -> dict[str, Any]:
    found = config.get(name)
    return found if isinstance(found, dict) else {}


def _read_config(workdir: epath.Path) -> dict[str, Any]:
    path = workdir / _CONFIG
    if not path.exists():
        raise UserError(f"{workdir} holds no run: there is no {_CONFIG} in it.")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}.") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} is damaged: it holds no config.")
    return completed(config)


def plain(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The config as it reads after a round trip through JSON."""
    return json.loads(json.dumps(config.to_dict()))


def _differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    flat_there, flat_here = _flatten(there), _flatten(here)
    return [
        f"{field} is {flat_there.get(field)!r} there and {flat_here.get(field)!r} here"
        for field in sorted((flat_there.keys() | flat_here.keys()) - _FREE)
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


def finite(value: Any) -> Any:
    """The same with None for what is no finite number, which JSON has not."""
    if isinstance(value, dict):
        return {str(name): finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
