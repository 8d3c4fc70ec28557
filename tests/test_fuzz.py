"""Random input is answered, or refused in one line: no traceback, and never in silence.

`make acceptance` draws 2,000 times and prints what came of it by kind.
"""

import collections
import io
import json
import shutil
import time

import numpy as np
import pytest
import safetensors.numpy
from etils import epath
from PIL import Image

from configs import digits
from dresnet_jax.data import folder_records, image_folder
from dresnet_jax.data.views import View
from dresnet_jax.errors import RunFailedError, UserError
from dresnet_jax.inference import exported
from dresnet_jax.models import table
from dresnet_jax.training import experiment, run_config, torch_weights
from tests.training.test_workdir import fields_of

NUMBERS = (
    *(0, 1, -1, 2, 3, 7, 0.5, -0.5, 1e-30, 1e30, 2**31, 2**63, 10**30),
    *(float("nan"), float("inf"), -float("inf")),
)
WORDS = ("", "none", "dense", "sgd", "\x1b[31m", "../..", "a b", "x" * 300, "é")
LISTS = ((), (0,), (1, 1), (-1,), (2.5,), ("a",), ((1, 2),), (10**20,), (None,))
BY_TYPE = {
    bool: (True, False),
    int: [x for x in NUMBERS if isinstance(x, int)],
    float: NUMBERS,
    str: WORDS,
    tuple: LISTS,
    object: (*NUMBERS, *WORDS, *LISTS),
}
# Values of JSON, of every type.
ANYTHING = (None, True, *NUMBERS[:6], 10**30, "x", "", [], [1], {}, {"a": 1})


def base():
    config = digits.get_config()
    config.model.update(name="dresnet18", width=4)
    config.model.blocks_per_stage = (1, 1, 1)
    config.train.num_steps = 2
    return config


class Draws:
    """Draws one input after another, and what becomes of each."""

    def __init__(self, place, seed, *, thorough):
        self.random = np.random.RandomState(seed)
        self.place, self.thorough = place, thorough

    def pick(self, values):
        return values[self.random.randint(len(values))]

    def damaged(self, data):
        """Bytes of which some are changed, cut off or put in."""
        data = bytearray(data)
        for _ in range(self.random.randint(1, 4)):
            at = self.random.randint(len(data) + 1)
            what = self.random.randint(4)
            if what == 0 and data:
                data[at % len(data)] = self.random.randint(256)
            elif what == 1:
                del data[at:]
            elif what == 2:
                data[at:at] = self.random.bytes(self.random.randint(1, 9))
            else:
                del data[at : at + self.random.randint(1, 20)]
        return bytes(data)

    def config_values(self):
        config = base()
        fields = [x for x in fields_of(config) if not x[0].startswith("data.data")]
        for _ in range(self.random.randint(1, 3)):
            field, kind, _ = self.pick(fields)
            value = self.pick(BY_TYPE[kind])
            with config.ignore_type():
                try:
                    config.update_from_flattened_dict({field: value})
                except TypeError:  # As the command line refuses it.
                    return "of another type"
        exp = experiment.build(config)
        exp.create_state(abstract=True)
        if self.thorough:
            assert exp.step_flops > 0  # A training step can be traced.
        return "accepted"

    def config_files(self):
        directory = epath.Path(self.place / "run")
        directory.mkdir(exist_ok=True)
        whole = json.loads(json.dumps(base().to_dict()))
        if self.random.randint(2):
            node = whole
            while True:
                name = self.pick(sorted(node))
                if not isinstance(node[name], dict) or not self.random.randint(4):
                    break
                node = node[name]
            if self.random.randint(4):
                node[name] = self.pick(ANYTHING)
            else:
                del node[name]
            text = json.dumps(whole).encode()
        else:
            text = self.damaged(json.dumps(whole).encode())
        (directory / "config.json").write_bytes(text)
        config = run_config.read_config(directory)
        try:
            experiment.build(config)
        except (KeyError, AttributeError) as error:
            # As `evaluation.open_run` says it.
            raise UserError(f"its config lacks {error}".splitlines()[0]) from error
        return "accepted"

    def exports(self, source):
        directory = self.place / "export"
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(source, directory)
        file = directory / self.pick(sorted(x.name for x in source.iterdir()))
        whole = file.read_bytes()
        if file.suffix == ".json" and self.random.randint(2):
            result = json.loads(whole)
            result[self.pick(sorted(result))] = self.pick(ANYTHING)
            file.write_text(json.dumps(result))
            is_same = result == json.loads(whole)
        else:
            file.write_bytes(self.damaged(whole))
            is_same = file.read_bytes() == whole
        exported.read(epath.Path(directory))
        assert is_same or file.suffix == ".json"
        return "accepted"

    def weights(self):
        arrays = {"a": np.ones(3, np.float32), "b.c": np.zeros((2, 2), np.float16)}
        file = self.place / "w.safetensors"
        file.write_bytes(self.damaged(safetensors.numpy.save(arrays)))
        result = torch_weights.read(file)
        assert all(np.isfinite(x).all() for x in result.values())
        return "accepted"

    def tables(self):
        rows = [
            ["a", ["images"], "conv", {"features": 8}],
            ["b", ["a"], "block", {"features": 8}],
            ["c", ["a", "b"], "classifier", {"classes": 3}],
        ]
        row = self.pick(rows)
        values = [*ANYTHING, "a", "c", ["b", "b"], "images", {"kernel": -1}]
        if self.random.randint(2):
            row[self.random.randint(4)] = self.pick(values)
        else:
            settings = [*row[3], "kernel", "stride", "groups", "kind", "use_bias"]
            row[3][self.pick(settings)] = self.pick(values)
        file = self.place / "table.yaml"
        text = json.dumps(rows).encode()
        file.write_bytes(text if self.random.randint(4) else self.damaged(text))
        table.from_table(file, (8, 8, 3))
        return "accepted"

    def pictures(self):
        side = self.random.randint(1, 9, 2)
        mode = self.pick(["L", "RGB", "RGBA", "P", "LA", "1", "I;16", "CMYK"])
        pixels = self.random.randint(0, 256, (*side, 3)).astype(np.uint8)
        out = io.BytesIO()
        try:
            Image.fromarray(pixels).convert(mode).save(
                out, self.pick(["PNG", "JPEG", "TIFF", "WEBP", "BMP", "PPM"])
            )
        except (OSError, ValueError):
            return "no such format"
        channels = self.pick([1, 3])
        view = View(int(self.pick([1, 5, 16])), channels, self.pick([True, False]))
        data = out.getvalue()
        try:
            result = view.fit(self.damaged(data) if self.random.randint(3) else data)
        except OSError as error:
            raise UserError(str(error)) from error
        assert result.shape == (view.size, view.size, channels)
        assert result.dtype == np.uint8
        return "accepted"

    def folders(self):
        root = self.place / "root"
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        out = io.BytesIO()
        Image.new("RGB", (2, 2)).save(out, "PNG")
        if self.random.randint(3):
            for path in ("a/0.png", "b/0.png", "b/2.png"):
                file = root / ("train" if self.random.randint(2) else "") / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(out.getvalue())
        names = ["a", "b", "train", "Val", "test", ".x", "__MACOSX", "a\x07", "1.png"]
        for _ in range(self.random.randint(1, 4)):
            depth = self.random.randint(1, 4)
            path = root.joinpath(*(self.pick(names) for _ in range(depth)))
            file = path / self.pick(["0.png", "1.JPG", "x.txt", ".y.png", "z.png"])
            try:
                path.mkdir(parents=True, exist_ok=True)
                if self.random.randint(6):
                    file.write_bytes(self.pick([*[out.getvalue()] * 4, b""]))
                else:
                    file.symlink_to(self.pick([root, path, "nowhere", "/tmp", "0.png"]))
            except OSError:  # A file is there already.
                continue
        result = image_folder.find(root)
        target = epath.Path(self.place / "data")
        shutil.rmtree(target, ignore_errors=True)
        skip = bool(self.random.randint(2))
        folder_records.write(root, result, target, skip_corrupt=skip)
        about = folder_records.about(target)
        of_class = collections.Counter(label for _, label in result.files["train"])
        assert len(about["class_names"]) >= 2
        assert of_class.keys() <= set(range(len(about["class_names"])))
        return "accepted"


KINDS = (
    *("config_values", "config_files", "exports", "weights"),
    *("tables", "pictures", "folders"),
)


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    directory = tmp_path_factory.mktemp("fuzz") / "to"
    exp = experiment.build(base())
    exported.write(exp, exp.create_state(), epath.Path(directory), {})
    return directory


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [20, pytest.param(300, marks=pytest.mark.slow)])
def test_random_input_is_answered_or_refused_in_one_line(tmp_path, export, kind, count):
    outcomes, longest = collections.Counter(), 0.0
    for seed in range(count):
        draws = Draws(tmp_path, seed, thorough=count > 100)
        source = (export,) if kind == "exports" else ()
        start = time.monotonic()
        message = ""
        try:
            outcome = getattr(draws, kind)(*source)
        except (UserError, RunFailedError) as error:
            outcome, message = "refused", str(error)
        except Exception as error:
            error.add_note(f"{kind}, seed {seed}")
            raise
        assert message.isprintable(), (seed, message)
        outcomes[outcome] += 1
        longest = max(longest, time.monotonic() - start)
    print(f"\n{kind}: {dict(outcomes)}, the longest {longest:.2f} s")
    assert outcomes["refused"]
    assert outcomes["accepted"] or count < 100
