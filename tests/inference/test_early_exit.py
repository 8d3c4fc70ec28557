"""Early exits answer as the parts say, by thresholds that fit the validation split."""

import json

import numpy as np
import pytest
from etils import epath
from PIL import Image

from configs import digits
from dresnet_jax.errors import UserError
from dresnet_jax.inference import early_exit, thresholds
from dresnet_jax.inference.early_exit import EarlyExit, Split
from dresnet_jax.inference.early_exit_report import Goal
from dresnet_jax.training import evaluation, experiment
from tests.acceptance.small_run import last_json
from tests.conftest import run_command

NEVER = thresholds.NEVER


@pytest.fixture(scope="module")
def network():
    """A network that has not learned, with exits after blocks 1 and 2 of 3."""
    config = digits.get_config()
    config.data.batch_size = 16
    config.model.update(width=4, blocks_per_stage=(2, 1))
    config.model.exits.after = (1, 2)
    exp = experiment.build(config)
    return EarlyExit(exp, exp.create_state())


@pytest.fixture(scope="module")
def batches():
    pixels = np.random.default_rng(1).integers(0, 256, (75, 8, 8, 1), np.uint8)
    return [pixels[start : start + 16] for start in range(0, 75, 16)]


@pytest.fixture(scope="module")
def at_all(network, batches):
    return early_exit.at_all_exits(network, batches, np.zeros(75, int))


def test_thresholds_above_1_are_the_whole_network(network, batches):
    result = network(batches, early_exit.by_threshold([NEVER, NEVER]))
    assert set(result.exits) == {2}
    whole = [network.whole(network._variables, batch) for batch in batches[:-1]]
    np.testing.assert_allclose(
        result.logits[:64], np.concatenate(whole), rtol=1e-5, atol=1e-5
    )


def test_thresholds_of_0_run_the_first_part_alone(network, batches):
    result = network(batches, early_exit.by_threshold([0.0, 0.0]))
    assert set(result.exits) == {0}
    assert result.rows.tolist() == [80, 0, 0]


@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.9])
def test_each_image_is_answered_by_the_first_exit_that_is_sure(
    network, batches, at_all, quantile
):
    chosen = np.quantile(at_all.confidences[:, :2], quantile, axis=0)
    result = network(batches, early_exit.by_threshold(chosen))
    expected = thresholds.exits_of(chosen, at_all.confidences)
    assert len(set(expected)) == 3
    np.testing.assert_array_equal(result.exits, expected)
    np.testing.assert_array_equal(
        result.logits.argmax(axis=-1), at_all.predictions[np.arange(75), expected]
    )
    # What is skipped is not run, except for what fills the last batches.
    counts = [75, np.sum(expected > 0), np.sum(expected > 1)]
    assert np.all(result.rows >= counts)
    assert np.all(result.rows < np.asarray(counts) + 16)


def test_a_share_of_each_batch_leaves(network, batches):
    result = network(batches[:1], early_exit.by_share([0.5, 0.25]))
    assert np.bincount(result.exits).tolist() == [8, 2, 6]


def made_up(seed=0, images=1000):
    """Exits that are right where they are sure; deeper ones are right more often."""
    rng = np.random.default_rng(seed)
    sure = np.sort(rng.uniform(size=(images, 3)), axis=1)
    right = rng.uniform(size=(images, 3)) < sure
    return Split(np.zeros(images, int), sure, np.where(right, 0, 1))


COSTS = np.asarray([0.3, 0.6, 1.0])


def test_the_curve_trades_accuracy_for_cost():
    points = thresholds.curve(made_up(), COSTS)
    assert points[0] == thresholds.point([NEVER, NEVER], made_up(), COSTS)
    assert points[0].cost == pytest.approx(1)
    costs = [point.cost for point in points]
    assert costs == sorted(costs, reverse=True)
    agreements = [point.agreement for point in points]
    assert agreements == sorted(agreements, reverse=True)
    assert agreements[0] == 1
    assert len(points) > 10
    assert costs[-1] == pytest.approx(0.3)


def test_one_threshold_is_the_best_there_is():
    split = made_up()
    one = Split(split.labels, split.confidences[:, 1:], split.predictions[:, 1:])
    costs = COSTS[1:]
    tried = [
        thresholds.point([threshold], one, costs)
        for threshold in (*one.confidences[:, 0], NEVER)
    ]
    for point in thresholds.curve(one, costs):
        assert not any(
            t.cost < point.cost and t.agreement > point.agreement for t in tried
        )


def test_a_planted_exit_is_found():
    rng = np.random.default_rng(2)
    sure = rng.uniform(size=(1000, 3))
    right = np.ones((1000, 3), bool)
    right[:, 0] = False
    right[:, 1] = sure[:, 1] > 0.7
    split = Split(np.zeros(1000, int), sure, np.where(right, 0, 1))
    chosen = Goal("probability", 0.005).choose(thresholds.curve(split, COSTS))
    assert chosen.thresholds[0] == NEVER
    assert 0.69 < chosen.thresholds[1] < 0.71
    assert chosen.accuracy >= 0.995


def test_wishes_are_kept():
    points = thresholds.curve(made_up(), COSTS)
    for loss in (0.0, 0.01, 0.1):
        result = Goal("probability", loss).choose(points)
        assert result.loss_bound <= loss
        assert result.accuracy >= points[0].accuracy - loss
    for budget in (0.4, 0.7, 1.0, 2.0):
        assert Goal("probability", budget=budget).choose(points).cost <= budget
    with pytest.raises(UserError, match=r"budget=0\.2 is below"):
        Goal("probability", budget=0.2).choose(points)


def test_few_images_promise_little():
    def bound(images):
        split = made_up(images=images)
        agreeing = Split(split.labels, split.confidences, 0 * split.predictions)
        return thresholds.point([0.5, 0.5], agreeing, COSTS).loss_bound

    # "Rule of three": none of n says at most 3 of n, with 95 % confidence.
    assert bound(100) == pytest.approx(3 / 100, rel=0.15)
    assert bound(10_000) == pytest.approx(3 / 10_000, rel=0.15)


def test_a_bound_holds_on_other_images_as_often_as_it_says():
    kept = []
    for seed in range(20):
        points = thresholds.curve(made_up(seed), COSTS)
        chosen = Goal("probability", 0.02).choose(points)
        images = made_up(1000 + seed, 20_000)
        others = thresholds.point(chosen.thresholds, images, COSTS)
        whole = thresholds.point([NEVER] * 2, images, COSTS)
        kept.append(whole.accuracy - others.accuracy <= 0.02)
    print(f"\nthe bound of 95 % held in {sum(kept)} of 20")
    assert sum(kept) >= 18


def test_no_image_leaves_before_the_first_exit_that_may():
    points = thresholds.curve(made_up(), COSTS, first_exit=1)
    assert {point.thresholds[0] for point in points} == {NEVER}
    assert min(point.cost for point in points) == pytest.approx(0.6)


def test_shares_are_of_those_that_arrive():
    split = made_up()
    chosen = [0.5, 0.7]
    shares = thresholds.shares(chosen, split)
    arrive = split.confidences[:, 0] < 0.5
    assert shares[0] == pytest.approx(1 - arrive.mean())
    assert shares[1] == pytest.approx((split.confidences[arrive, 1] >= 0.7).mean())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 40 steps, with an exit after block 2 of 4."""
    directory = tmp_path_factory.mktemp("exits") / "run"
    code, _, errors = run_command(
        "train",
        "--config=configs/digits.py",
        f"--workdir={directory}",
        "--config.model.width=4",
        "--config.model.blocks_per_stage=(3,1)",
        "--config.model.exits.after=(1,2)",
        "--config.train.num_steps=40",
    )
    assert code == 0, errors
    return directory


def test_what_is_fitted_is_what_predict_answers_by(run, tmp_path):
    image = tmp_path / "image.png"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(image)
    arguments = ("predict", f"--workdir={run}", image, "--json")
    code, _, errors = run_command(*arguments, "--early_exit")
    assert code == 2
    assert "has no thresholds yet: run evaluate" in errors
    code, output, errors = run_command(
        "evaluate", f"--workdir={run}", "--budget=0.8", "--min_depth=2", "--json"
    )
    assert code == 0, errors
    result = last_json(output)
    assert result["thresholds"][0] == NEVER
    assert result["validation"]["cost"] <= 0.8
    assert sum(exit_["share"] for exit_ in result["exits"]) == pytest.approx(1)
    assert json.loads((run / "early_exit.json").read_text()) == result
    assert (run / "early_exit.png").stat().st_size > 10_000
    exp, restored = evaluation.open_run(epath.Path(run))
    images = early_exit.read(exp, exp.open_splits()["test"])
    split = early_exit.at_all_exits(EarlyExit(exp, restored.state), *images)
    last_two = split.correct[:, -2:].tolist()
    needing = [n for n, right in enumerate(last_two) if right == [False, True]]
    assert needing
    need_all = {"images": len(needing), "first": needing[:20]}
    assert result["need_all_blocks"] == need_all
    code, output, errors = run_command(*arguments, "--early_exit")
    assert code == 0, errors
    (prediction,) = last_json(output)["predictions"]
    assert prediction["depth"] in (2, 4)
    code, output, errors = run_command(*arguments, "--within_ms=60000")
    assert code == 0, errors
    result = last_json(output)
    assert result["predictions"][0]["depth"] == 4
    assert list(result["milliseconds"]) == ["1", "2", "4"]


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"budget": 0.01}, "--budget=0.01 is below"),
        ({"budget": -1.0}, "--budget=-1.0 must be a number above 0"),
        ({"max_loss": 1.0}, "--max_loss=1.0 must be in [0, 1)"),
    ],
)
def test_wishes_that_cannot_be_are_named(wish, message):
    with pytest.raises(UserError) as error:
        Goal("probability", **wish).choose(thresholds.curve(made_up(), COSTS))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("evaluate", "--max_loss=0.1", "--min_depth=3"), "after blocks 1, 2"),
        (("evaluate", "--per_batch"), "need --max_loss or --budget"),
        (("predict", "x.png", "--within_ms=0.0001"), "--within_ms=0.0001 is too short"),
    ],
)
def test_wrong_flags_are_one_line(run, command, message):
    code, _, errors = run_command(*command, f"--workdir={run}")
    assert code == 2
    assert message in errors.splitlines()[-1]


def test_a_network_without_what_is_asked_is_named(small_config):
    with pytest.raises(UserError, match="dresnet18 has one exit"):
        EarlyExit(experiment.build(small_config), None)
    small_config.model.exits.after = (2,)
    with pytest.raises(UserError, match="learn_confidence"):
        EarlyExit(experiment.build(small_config), None, "learned")
