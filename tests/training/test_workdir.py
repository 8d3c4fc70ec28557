"""A run directory is claimed by one config and never lost by mistake."""

import copy
import json
from pathlib import Path

import ml_collections
import pytest
from etils import epath

from dresnet_jax import defaults
from dresnet_jax.connections import topology
from dresnet_jax.connections.spec import ConnectionSpec
from dresnet_jax.errors import UserError
from dresnet_jax.training import evaluation, experiment, json_files, run_config, workdir
from tests.conftest import json_lines


def claim(directory, config, *, overwrite):
    """Claims a directory and lets it go again."""
    with workdir.claim(directory, config, overwrite=overwrite):
        pass


@pytest.fixture
def directory(tmp_path):
    return epath.Path(tmp_path / "run")


def test_a_new_directory_holds_the_config(directory, small_config):
    claim(directory, small_config, overwrite=False)
    read = run_config.read_config(directory)
    assert read.model.name == small_config.model.name
    assert read.optimizer.learning_rate == small_config.optimizer.learning_rate


def test_the_same_config_may_resume(directory, small_config):
    claim(directory, small_config, overwrite=False)
    (directory / "kept").write_text("kept")
    claim(directory, small_config, overwrite=False)
    assert (directory / "kept").exists()


def test_another_config_is_refused_and_says_what_differs(directory, small_config):
    claim(directory, small_config, overwrite=False)
    small_config.model.width = 77
    small_config.model.connections.gate = "gauss"
    with pytest.raises(UserError) as error:
        claim(directory, small_config, overwrite=False)
    assert "model.width is 4.0 there and 77.0 here" in str(error.value)
    assert "model.connections.gate is 'sigmoid' there and 'gauss'" in str(error.value)
    assert "--overwrite" in str(error.value)
    assert run_config.read_config(directory).model.width == 4


def test_a_run_resumes_with_other_axes_and_is_read_on_any(directory, small_config):
    small_config.sharding.fsdp = 8
    claim(directory, small_config, overwrite=False)
    assert run_config.read_config(directory).sharding.fsdp == 1
    small_config.sharding.data = 2
    small_config.sharding.fsdp = 4
    claim(directory, small_config, overwrite=False)
    small_config.sharding.batch_norm = "per_shard"
    with pytest.raises(UserError, match=r"sharding\.batch_norm is 'global' there"):
        claim(directory, small_config, overwrite=False)


def test_overwrite_deletes_the_old_run(directory, small_config):
    claim(directory, small_config, overwrite=False)
    old = [
        "metrics.jsonl",
        "checkpoints/12/state/d/1a",
        "tensorboard/events.out.tfevents.1.a",
        "damaged/8/x",
        "runs/resnet_wide/0/report.json",
        "members/3/curves.png",
        "profiles/plugins/profile/1/x",
        "evaluation_test.json",
        "report.json.partial",
    ]
    for name in old:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text("old")
    (directory / ".DS_Store").write_text("x")
    small_config.model.width = 77
    claim(directory, small_config, overwrite=True)
    names = {path.name for path in directory.iterdir()}
    assert names == {"config.json", "dataset.json", ".DS_Store"}
    assert run_config.read_config(directory).model.width == 77


@pytest.mark.parametrize(
    "name",
    [
        *("thesis.tex", "photos/a.png", "checkpoints/notes.txt", "curves.png/a"),
        *("runs/notes.txt", "runs/resnet/notes/a", "runs/resnet/0/thesis.tex"),
        *("tensorboard/plan.txt", "report.json/b", "config.json.old", "tensorboard2/a"),
    ],
)
def test_overwrite_deletes_no_file_of_others(directory, small_config, name):
    claim(directory, small_config, overwrite=False)
    (directory / name).parent.mkdir(parents=True, exist_ok=True)
    (directory / name).write_text("years of work")
    before = sorted(Path(directory).rglob("*"))
    with pytest.raises(UserError, match="does not delete: '") as error:
        claim(directory, small_config, overwrite=True)
    assert name.split("/")[0] in str(error.value)
    assert sorted(Path(directory).rglob("*")) == before
    # It is in nobody's way.
    claim(directory, small_config, overwrite=False)


def test_overwrite_removes_links_and_not_where_they_lead(
    directory, small_config, tmp_path
):
    claim(directory, small_config, overwrite=False)
    (tmp_path / "bulk").mkdir()
    (tmp_path / "bulk" / "12").write_text("a checkpoint")
    for name in ("checkpoints", "metrics.jsonl"):
        (Path(directory) / name).symlink_to(tmp_path / "bulk")
    (Path(directory) / "runs").symlink_to(tmp_path / "nowhere")
    claim(directory, small_config, overwrite=True)
    names = {path.name for path in directory.iterdir()}
    assert names == {"config.json", "dataset.json"}
    assert (tmp_path / "bulk" / "12").read_text() == "a checkpoint"


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("text", ["{}", '{"architectures": ["ResNet"]}', '{"base": 3}'])
def test_a_config_of_others_is_left_alone(directory, small_config, overwrite, text):
    directory.mkdir()
    (directory / "config.json").write_text(text)
    with pytest.raises(UserError, match="is not empty and holds no run"):
        claim(directory, small_config, overwrite=overwrite)
    assert (directory / "config.json").read_text() == text


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_directory_of_something_else_is_left_alone(
    directory, small_config, overwrite
):
    directory.mkdir()
    (directory / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="holds no run"):
        claim(directory, small_config, overwrite=overwrite)
    assert [path.name for path in directory.iterdir()] == ["thesis.tex"]


def test_a_file_is_no_directory(directory, small_config):
    directory.write_text("")
    with pytest.raises(UserError, match="is a file"):
        claim(directory, small_config, overwrite=False)


def test_a_directory_that_cannot_be_made_is_refused(directory, small_config):
    directory.write_text("")
    with pytest.raises(UserError, match="cannot be written: Not a directory"):
        claim(directory / "below" / "it", small_config, overwrite=False)


def test_a_directory_without_a_run_has_no_config(directory):
    with pytest.raises(UserError, match="holds no run"):
        run_config.read_config(directory)


def test_a_directory_in_use_is_refused_and_left_alone(directory, small_config):
    with workdir.claim(directory, small_config, overwrite=False):
        (directory / "kept").write_text("kept")
        for overwrite in (True, False):
            with pytest.raises(UserError, match="another process trains in it"):
                claim(directory, small_config, overwrite=overwrite)
    assert (directory / "kept").exists()
    claim(directory, small_config, overwrite=False)


def test_overwrite_keeps_the_directory_itself(directory, small_config, monkeypatch):
    claim(directory, small_config, overwrite=False)
    monkeypatch.chdir(directory)
    claim(epath.Path("."), small_config, overwrite=True)
    assert (directory / "config.json").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_a_damaged_config_is_named(directory, small_config, text):
    claim(directory, small_config, overwrite=False)
    (directory / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config.json is damaged"):
        claim(directory, small_config, overwrite=False)
    with pytest.raises(UserError, match=r"config.json is damaged"):
        run_config.read_config(directory)
    claim(directory, small_config, overwrite=True)


def test_a_run_of_another_version_is_named(directory, small_config):
    del small_config.unlock().model["drop_path"]
    with (
        workdir.claim(directory, small_config, overwrite=False),
        pytest.raises(
            UserError, match="of another version: its config lacks drop_path"
        ),
    ):
        evaluation.open_run(directory)


def test_a_run_from_before_a_field_is_what_it_was(directory, small_config):
    """Its connections had no rank, an old name, and what is now the model's own."""
    published = {"topology": "dense", "projection": "per_edge", "opening": 0.5}
    small_config.unlock().model.connections.update(published)
    for later in ("projection_rank", "initial_gate"):
        del small_config.model.connections[later]
    with workdir.claim(directory, small_config, overwrite=False):
        spec = experiment.build(run_config.read_config(directory)).model.spec
    assert spec.connections == ConnectionSpec(
        topology.dense((0, 1, 2, 3)), initial_gate=0.5, projection_bias=False
    )


def test_a_file_that_cannot_be_written_leaves_no_part_of_it(directory, monkeypatch):
    directory.mkdir()

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(directory), "replace", full_disk)
    with pytest.raises(OSError, match="No space left"):
        json_files.write_json(directory / "report.json", {})
    assert not list(directory.iterdir())


def fields_of(config, group=""):
    """The path of every field of a config, its type, and whether it may be None."""
    for name in config:
        value = config[name]
        if isinstance(value, ml_collections.ConfigDict):
            yield from fields_of(value, f"{group}{name}.")
        else:
            yield f"{group}{name}", config.get_type(name), value is None


def test_a_value_of_another_type_in_a_file_is_one_clear_line(directory, small_config):
    claim(directory, small_config, overwrite=False)
    whole = json.loads((directory / "config.json").read_text())
    wrong = {bool: "yes", int: 1.5, float: "1", str: [], tuple: 5, object: {}}
    fields = list(fields_of(defaults.get_config()))
    assert len(fields) > 100
    for field, kind, may_be_none in fields:
        for value in [wrong[kind], {"a": 1}] + [None] * (not may_be_none):
            config = json.loads(json.dumps(whole))
            *groups, name = field.split(".")
            node = config
            for group in groups:
                node = node[group]
            node[name] = value
            (directory / "config.json").write_text(json.dumps(config))
            with pytest.raises(UserError, match=f": {field} = .* must be") as error:
                run_config.read_config(directory)
            assert "\n" not in str(error.value)


@pytest.mark.parametrize("group", ["model", "train", "model.connections"])
def test_a_group_in_a_file_that_is_none_is_one_clear_line(
    directory, small_config, group
):
    claim(directory, small_config, overwrite=False)
    config = json.loads((directory / "config.json").read_text())
    *outer, name = group.split(".")
    (config[outer[0]] if outer else config)[name] = 3
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"{group} = 3 must be a group of fields"):
        run_config.read_config(directory)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_no_number_of_a_config_is_none(small_config, value):
    floats = [f for f, kind, _ in fields_of(small_config) if kind is float]
    assert len(floats) > 20
    for field in floats:
        config = copy.deepcopy(small_config)
        config.update_from_flattened_dict({field: value})
        with pytest.raises(UserError, match=rf"^{field} = -?(nan|inf) must be finite"):
            experiment.build(config)


def test_no_whole_number_of_a_config_is_more_than_arrays_count(small_config):
    fields = [f for f, kind, _ in fields_of(small_config) if kind is int]
    for field in fields:
        config = copy.deepcopy(small_config)
        config.update_from_flattened_dict({field: 2**70})
        with pytest.raises(UserError, match=rf"{field} = {2**70} must be"):
            experiment.build(config)


def test_a_directory_that_is_gone_or_another_one_is_reported(directory, small_config):
    other = directory.with_name("other")
    workdir.require_held(directory)
    with workdir.claim(directory, small_config, overwrite=False):
        workdir.require_held(directory)
        directory.rename(other)
        with pytest.raises(workdir.LostWorkdirError, match="is gone: No such file"):
            workdir.require_held(directory)
        directory.mkdir()
        with pytest.raises(workdir.LostWorkdirError, match="was replaced by another"):
            workdir.require_held(directory)
        directory.rmdir()
        other.rename(directory)
        workdir.require_held(directory)
    workdir.require_held(directory)


def test_a_run_of_an_earlier_version_keeps_its_rule_of_pixels(directory, small_config):
    assert run_config.as_begun(directory, small_config) is small_config
    claim(directory, small_config, overwrite=False)
    assert run_config.as_begun(directory, small_config) is small_config
    earlier = json.loads((directory / "config.json").read_text())
    del earlier["data"]["pixel_rule"], earlier["data"]["background"]
    (directory / "config.json").write_text(json.dumps(earlier))
    (directory / "dataset.json").unlink()
    with pytest.raises(UserError, match="pixel_rule is 1 there and 2 here"):
        claim(directory, small_config, overwrite=False)
    for _ in range(2):  # It is then one of this version.
        config = run_config.as_begun(directory, small_config)
        assert (config.data.pixel_rule, config.data.background) == (1, 255)
        claim(directory, config, overwrite=False)
    assert small_config.data.pixel_rule == 2


def test_the_history_of_an_earlier_version_has_todays_words(tmp_path):
    results = ["accepted", "taken back", "refused", "reverted"]
    entries = [{"event": n, "result": result} for n, result in enumerate(results)]
    (tmp_path / "history.jsonl").write_text(json_lines(entries))
    value = workdir.read_history(epath.Path(tmp_path))
    expected = ["accepted", "reverted", "rejected", "reverted"]
    assert [entry["result"] for entry in value] == expected
