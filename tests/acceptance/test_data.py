"""Data: no restart and no number of devices changes a single batch."""

from tests.conftest import run_python


def digests(start, devices):
    code, output, errors = run_python(
        "-m", "tests.acceptance.batch_digests", str(start), devices=devices
    )
    assert code == 0, errors
    return dict(line.split() for line in output.splitlines())


def test_batches_are_the_same_bits_on_any_devices_and_after_a_restart():
    unbroken = digests(0, devices=1)
    assert len(set(unbroken.values())) == 200
    assert digests(0, devices=8) == unbroken
    restarted = digests(37, devices=8)
    assert restarted == {s: d for s, d in unbroken.items() if int(s) >= 37}
    print("\n200 batches are equal bit for bit on 1 and 8 devices, and from step 37 on")


def test_training_loads_no_tensorflow():
    code, output, errors = run_python(
        "-c",
        "import sys; import dresnet_jax.train, dresnet_jax.evaluate; "
        "from configs import digits; from dresnet_jax.data import catalog, sources; "
        "sources.load(catalog.DATASETS['digits'], ''); "
        "sources.tfds_builder(catalog.DATASETS['fashion_mnist'], '/nowhere'); "
        "print([name for name in sys.modules if name.split('.')[0] == 'tensorflow'])",
    )
    assert code == 0, errors
    assert output.strip() == "[]"
    print("\nTensorFlow modules loaded: none")
