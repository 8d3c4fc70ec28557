"""Collectives are found in a program's text, each once, with its bytes."""

import pytest

from dresnet_jax.costs import collectives
from dresnet_jax.costs.collectives import Collective, Group

# As the TPU's compiler writes them; a synchronous one, and one in two halves.
PROGRAM = """
HloModule jit_step

%gather (p: bf16[8,4]) -> bf16[32,4] {
  %p = bf16[8,4]{1,0:T(8,128)} parameter(0)
  ROOT %all-gather.1 = bf16[32,4]{1,0} all-gather(%p), replica_groups={{0,1,2,3}}, d={0}
}

ENTRY %main (a: f32[16], b: f32[3,5], c: bf16[8,4]) -> f32[16] {
  %a = f32[16]{0:T(128)S(1)} parameter(0)
  %b = f32[3,5]{1,0:T(8,128)} parameter(1)
  %c = bf16[8,4]{1,0:T(8,128)} parameter(2)
  %s = (f32[16]{0}, f32[3,5]{1,0}) all-reduce(%a, /*i=1*/%b), replica_groups=GROUPS
  %start = f32[16]{0} all-reduce-start(%a), replica_groups={{0,1},{2,3}}, to_apply=%add
  %done = f32[16]{0} all-reduce-done(%start)
  %async = ((bf16[8,4]), bf16[32,4]) async-start(%c), calls=%gather
  %there = bf16[32,4]{1,0} async-done(%async)
  %part = f32[4]{0} reduce-scatter(%a), replica_groups={{0,1,2,3}}, dimensions={0}
  %next = f32[16]{0} collective-permute(%a), source_target_pairs={{0,1},{1,0}}
  %all = f32[16]{0} all-to-all(%a), replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %end = f32[16]{0} copy(%done), metadata={op_name="all-reduce(%a)"}
}
"""


@pytest.mark.parametrize(
    ("groups", "chips"),
    [
        ("{{0,1,2,3,4,5,6,7}}, to_apply=%add", 8),
        ("{{0,1},{2,3},{4,5},{6,7}}, to_apply=%add", 2),
        ("[2,4]<=[8], to_apply=%add", 4),
        ("[4,2]<=[2,4]T(1,0), to_apply=%add", 2),
        ("mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, to_apply=%add", 4),
        ("mesh['axis_0'=4,'axis_1'=2] {'axis_0','axis_1'}, to_apply=%add", 8),
        ("mesh['axis_0'=8] {'axis_0':(2)4}, to_apply=%add", 4),
        ("{}, to_apply=%add", 8),
    ],
)
def test_each_collective_is_found_once_with_its_bytes_and_chips(groups, chips):
    assert collectives.of(PROGRAM.replace("GROUPS", groups), chips=8) == [
        Collective("all-gather", 4 * 8 * 4 * 2, 4),
        Collective("all-reduce", 4 * 16 + 4 * 15, chips),
        Collective("all-reduce", 4 * 16, 2),
        Collective("reduce-scatter", 4 * 16, 4),
        Collective("collective-permute", 4 * 16, 8),
        Collective("all-to-all", 4 * 16, 4),
    ]


# The hosts add up what the chips of two slices send them.
ACROSS = """
ENTRY %main (a: f32[1,1,128]) -> f32[1,1,128] {
  %a = f32[1,1,128]{2,1,0:T(1,128)} parameter(0)
  %token = token[] after-all()
  %here = f32[1,1,128]{2,1,0} all-reduce(%a), replica_groups={{0,1,2,3}}, to_apply=%add
  %send = (f32[1,1,128]{2,1,0}, u32[], token[]) send(%here, %token), channel_id=3, \
is_host_transfer=true, frontend_attributes={\
_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="TYPE"}
  %recv = (f32[1,1,128]{2,1,0}, u32[], token[]) recv(%token), channel_id=2, \
is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="TYPE"}
  %log = (f32[1,1,128]{2,1,0}, u32[], token[]) send(%here, %token), channel_id=4
  ROOT %there = (f32[1,1,128]{2,1,0}, token[]) recv-done(%recv), channel_id=2
}
"""


@pytest.mark.parametrize(
    ("transfer", "kind", "factor"),
    [
        ("ALL_REDUCE", "all-reduce", 1),
        ("ALL_GATHER", "all-gather", 2),
        ("ONE_TO_ONE", "collective-permute", 1),
    ],
)
def test_what_leaves_a_slice_is_what_its_hosts_exchange(transfer, kind, factor):
    program = ACROSS.replace("TYPE", transfer)
    assert collectives.of(program, chips=8, slices=2) == [
        Collective("all-reduce", 512, 4),
        Collective(kind, factor * 512, 2, across_slices=True),
    ]


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        ("all-reduce", 2 * 100 * 3 / 4),
        ("all-gather", 100 * 3 / 4),
        ("reduce-scatter", 100 * 3 / 4),
        ("all-to-all", 100 * 3 / 4),
        ("collective-permute", 100),
    ],
)
def test_a_chip_sends_what_a_ring_needs(kind, sent):
    assert Collective(kind, 100, 4).sent_bytes == sent


def test_one_chip_alone_sends_nothing():
    assert Collective("all-reduce", 100, 1).sent_bytes == 0


def test_groups_add_up():
    result = [
        Collective("all-reduce", 100, 2, across_slices=True),
        Collective("all-reduce", 100, 4),
        Collective("all-gather", 8, 4),
        Collective("all-reduce", 300, 4),
    ]
    assert collectives.grouped(result) == [
        Group("all-gather", False, 1, 8, 8, 6.0),
        Group("all-reduce", False, 2, 400, 300, 600.0),
        Group("all-reduce", True, 1, 100, 100, 100.0),
    ]
