"""Collectives are read from HLO text, each as often as it runs."""

from absl.testing import absltest, parameterized

from seekax.dryrun import collectives

_SIZES = {'data': 4, 'tensor': 2}
_TEXT = """HloModule jit_f, num_partitions=8

%body (p: (s32[], bf16[16,64])) -> (s32[], bf16[16,64]) {
  %all-gather.1 = bf16[16,64]{1,0} all-gather(%x), channel_id=1, replica_groups=mesh['a'=4,'b'=2] {'b'}, dimensions={1}
  %while.2 = (s32[], f32[8]) while(%t), condition=%until_done, body=%round
}

%condition (p: (s32[], bf16[16,64])) -> pred[] {
  %constant.1 = s32[] constant(6)
  %get-tuple-element.1 = s32[] get-tuple-element(%p), index=0
  %copy.1 = s32[] copy(%get-tuple-element.1)
  %copy.2 = s32[] copy(%constant.1)
  ROOT %lt = pred[] compare(%copy.1, %copy.2), direction=LT
}

%round (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %all-to-all.3 = f32[8]{0} all-to-all(%y), channel_id=2, replica_groups={{0,1},{2,3},{4,5},{6,7}}, dimensions={0}
}

%until_done (p: (s32[], f32[8])) -> pred[] {
  %get-tuple-element.2 = s32[] get-tuple-element(%p), index=0
  %get-tuple-element.3 = s32[] get-tuple-element(%p), index=1
  ROOT %lt.2 = pred[] compare(%get-tuple-element.2, %get-tuple-element.3), direction=LT
}

ENTRY %main (w: f32[8]) -> f32[] {
  %while.1 = (s32[], bf16[16,64]) while(%t), condition=%condition, body=%body
  %all-reduce.1 = f32[10]{0} all-reduce(%z), channel_id=3, replica_groups=[2,4]<=[4,2]T(1,0), to_apply=%add
  %collective-permute.1 = f32[3]{0} collective-permute(%z), channel_id=4, source_target_pairs={{0,2},{2,4}}
  %all-reduce.2 = f32[5]{0} all-reduce(%z), channel_id=5, replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%add
}
"""


_BRANCHES = """HloModule jit_g, num_partitions=8

%idle (p: f32[8]) -> f32[8] {
  ROOT %p = f32[8]{0} parameter(0)
}

%few (p: f32[8]) -> f32[8] {
  ROOT %all-to-all.1 = f32[8]{0} all-to-all(%p), channel_id=1, replica_groups={{0,1},{2,3},{4,5},{6,7}}, dimensions={0}
}

%many (p: f32[8]) -> f32[8] {
  %all-to-all.2 = f32[8]{0} all-to-all(%p), channel_id=2, replica_groups={{0,1},{2,3},{4,5},{6,7}}, dimensions={0}
  ROOT %call.1 = f32[8]{0} call(%all-to-all.2), to_apply=%few
}

%tick (p: f32[8]) -> f32[8] {
  %conditional.1 = f32[8]{0} conditional(%i, %p, %p, %p), branch_computations={%few, %many, %idle}
  %conditional.2 = f32[8]{0} conditional(%b, %p, %p), true_computation=%few, false_computation=%idle
}

%condition (p: (s32[], f32[8])) -> pred[] {
  %constant.1 = s32[] constant(10)
  %get-tuple-element.1 = s32[] get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare(%get-tuple-element.1, %constant.1), direction=LT
}

ENTRY %main (w: f32[8]) -> f32[8] {
  %while.1 = f32[8] while(%t), condition=%condition, body=%tick
}
"""


class ReadTest(parameterized.TestCase):
  def test_kinds_axes_counts_and_bytes(self):
    found = {
      (row.kind, row.axis): (row.count, row.bytes)
      for row in collectives.read(_TEXT, _SIZES)
    }
    expected = {
      # 6 layers; half of 16 * 64 * 2 bytes comes from the other device.
      ('all-gather', 'tensor'): (6, 6 * 1024),
      ('all-reduce', 'data'): (1, 2 * 3 / 4 * 40),
      ('collective-permute', 'data'): (1, 12),
    }
    # A loop that stops by its data isn't counted, nor what stays on a device.
    self.assertEqual(found, expected)

  def test_of_branches_the_one_that_sends_most_as_often_as_one_is_taken(self):
    (row,) = collectives.read(_BRANCHES, _SIZES, share_taken=0.5)
    # Two of the first conditional and one of the second, 5 times of 10.
    self.assertEqual((row.count, row.bytes), (15, 15 * 16))

  @parameterized.parameters(
    ("replica_groups=mesh['a'=4,'b'=2] {'a'}", [0, 2, 4, 6]),
    (
      "replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}",
      [0, 1],
    ),
    ('replica_groups=[4,2]<=[8]', [0, 1]),
    ('replica_groups=[2,4]<=[4,2]T(1,0)', [0, 2, 4, 6]),
    ('replica_groups={{0,4},{1,5}}', [0, 4]),
    ('source_target_pairs={{1,3},{3,1}}', [1, 3]),
    ('source_target_pairs={{0,0},{1,2}}', [1, 2]),
    ('source_target_pairs={{0,0}}', [0]),
  )
  def test_devices(self, text, expected):
    self.assertEqual(collectives._group(text), expected)

  def test_what_cannot_be_read_is_an_error(self):
    text = _TEXT.replace('[2,4]<=[4,2]T(1,0)', 'news{1}')
    with self.assertRaisesRegex(ValueError, 'not readable'):
      collectives.read(text, _SIZES)


if __name__ == '__main__':
  absltest.main()
