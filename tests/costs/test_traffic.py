"""Bytes are those of the shapes, and each belongs to a part of the network."""

from dresnet_jax.costs import hlo
from dresnet_jax.training import experiment

PROGRAM = """
HloModule jit_step

ENTRY %main (p0: f32[4,2], p1: bf16[2,3]) -> f32[4,3] {
  %p0 = f32[4,2]{1,0} parameter(0)
  %p1 = bf16[2,3]{1,0} parameter(1)
  %ahead = (bf16[2,3]{1,0}, bf16[2,3]{1,0}, u32[]) copy-start(%p1)
  %there = bf16[2,3]{1,0} copy-done(%ahead)
  %f = f32[4,3]{1,0} fusion(%p0, %there), metadata={op_name="s/NET/connections/dot"}
  ROOT %g = pred[4,3]{1,0} negate(%f), metadata={op_name="transpose(jvp(N))/block_1/gt"}
}
"""


def test_bytes_of_each_part_are_those_of_results_and_operands():
    assert hlo.traffic(PROGRAM) == {
        "forward, connections: dot": 4 * 12 + 4 * 8 + 2 * 6,
        "backward, block": 1 * 12 + 4 * 12,
        "loads ahead by the compiler": 2 * 6 + 2 * 6 + 4,
    }


def test_the_parts_of_a_step_add_up_to_what_the_compiler_counts(tiny_images_config):
    part = experiment.build(tiny_images_config)
    compiled = part.compile_train_step()
    parts = hlo.traffic(compiled.as_text())
    counted = compiled.cost_analysis()["bytes accessed"]
    assert 0.5 < sum(parts.values()) / counted < 2
    assert any(name.startswith("backward, connections") for name in parts)
