import dataclasses

from absl.testing import absltest, parameterized

from seekax.configuration import presets
from seekax.planning import hardware, memory, parameters
from seekax.planning import layout as layout_lib
from seekax.planning.layout import Layout


class PublishedTest(parameterized.TestCase):
  """Bytes per token in bfloat16 (arXiv 2505.09343, table 1)."""

  @parameterized.parameters(
    ('v3_671b', 70_272),
    ('llama3_70b', 327_680),  # as Qwen2.5-72B: same layers and groups
    ('llama3_405b', 516_096),
  )
  def test_cache_bytes(self, name, size):
    self.assertEqual(
      memory.cache_bytes_per_token(presets.PRESETS[name]()), size
    )

  @parameterized.parameters(('v2_lite', 15_552), ('v2', 34_560))
  def test_elements_of_the_ablation(self, name, elements):
    self.assertEqual(
      memory.cache_elements_per_token(presets.PRESETS[name]()), elements
    )

  def test_v2_at_six_bits(self):
    self.assertEqual(memory.cache_bytes_per_token(presets.v2(), 0.75), 25_920)

  def test_expanded_heads_of_v3(self):
    v3 = presets.v3_671b()
    expanded = memory.expanded_cache_elements_per_token(v3)
    self.assertEqual(expanded, 61 * 40_960)
    self.assertEqual(2 * expanded, 4_997_120)
    self.assertAlmostEqual(
      expanded / memory.cache_elements_per_token(v3), 71.1, places=1
    )


class LawsTest(parameterized.TestCase):
  def test_latent_does_not_grow_with_heads(self):
    model = presets.tiny()
    more = dataclasses.replace(model, num_heads=2 * model.num_heads)
    self.assertEqual(
      memory.cache_elements_per_token(model),
      memory.cache_elements_per_token(more),
    )

  def test_mqa_to_mha_is_the_number_of_heads(self):
    model = presets.llama3_tiny()
    mqa, mha = (
      memory.cache_elements_per_token(
        dataclasses.replace(model, attention=kind)
      )
      for kind in ('mqa', 'mha')
    )
    self.assertEqual(mha, model.num_heads * mqa)

  def test_cached_heads_are_expanded_already(self):
    model = presets.llama3_8b()
    self.assertEqual(
      memory.expanded_cache_elements_per_token(model),
      memory.cache_elements_per_token(model),
    )


class StageTest(parameterized.TestCase):
  @parameterized.parameters('v3_671b', 'v2', 'llama3_8b', 'tiny')
  def test_one_stage_holds_the_model(self, name):
    model = presets.PRESETS[name]()
    counts = parameters.count_parameters(model)
    for largest in (True, False):
      stage = memory.stage_parameters(model, Layout(), largest)
      self.assertEqual(stage.total, counts.total + counts.mtp)

  def test_mean_stages_add_up(self):
    model = presets.v3_671b()
    counts = parameters.count_parameters(model)
    layout = Layout(pipeline=16, expert_node=8, expert=8)
    stage = memory.stage_parameters(model, layout, largest=False)
    self.assertAlmostEqual(
      (16 * stage.plain + 1024 * stage.experts) / (counts.total + counts.mtp),
      1,
    )
    largest = memory.stage_parameters(model, layout, largest=True)
    self.assertGreater(largest.total, stage.total)

  def test_fullest_stage_of_v3_by_hand(self):
    # 62 layers over 16 stages are 4 at most, of 4 experts per device and layer.
    stage = memory.stage_parameters(
      presets.v3_671b(), layout_lib.paper(2048), largest=True
    )
    self.assertEqual(stage.experts, 4 * 4 * 3 * 7168 * 2048)


class ActivationTest(absltest.TestCase):
  def test_dense_layer_by_hand(self):
    # D = 64, 4 heads of 32 (2 of keys), FFN 128, bfloat16.
    model = dataclasses.replace(
      presets.llama3_tiny(), rope_head_dim=32, value_head_dim=32
    )

    def per_token(remat):
      return memory.activation_bytes_per_token(
        model, remat, fp8=False, routed=False
      )

    queries, keys, values = 4 * 32, 2 * 32, 2 * 32
    kept = 2 * 64 + 4 * 32 + 64 + 2 * 128 + queries + keys + values
    self.assertEqual(per_token('paper'), 2 * kept)
    self.assertEqual(per_token('none'), 2 * (kept + 2 * 64 + 128))
    self.assertEqual(per_token('full'), 2 * 64)

  def test_recomputing_keeps_less(self):
    model = presets.v3_671b()
    kept = [
      memory.activation_bytes_per_token(model, remat, fp8, True)
      for remat, fp8 in (
        ('none', False),
        ('paper', False),
        ('paper', True),
        ('full', True),
      )
    ]
    self.assertEqual(kept, sorted(kept, reverse=True))
    self.assertLen(set(kept), 4)

  def test_mla_up_projections_are_what_the_paper_drops(self):
    v3 = presets.v3_671b()
    without = dataclasses.replace(v3, nope_head_dim=256)
    self.assertEqual(
      memory.activation_bytes_per_token(v3, 'paper', True, True),
      memory.activation_bytes_per_token(without, 'paper', True, True),
    )


class TrainingTest(parameterized.TestCase):
  def memory_of(self, layout, moments='float32', precision='bfloat16'):
    return memory.training_memory(
      presets.tiny(), layout, 16, 32, precision, moments
    )

  def test_one_device_by_hand(self):
    counts = parameters.count_parameters(presets.tiny())
    held = counts.total + counts.mtp
    found = self.memory_of(Layout())
    self.assertEqual(found.parameters, 2 * held)
    self.assertEqual(found.gradients, 4 * held)
    self.assertEqual(found.optimizer, 12 * held)
    self.assertEqual(
      found.total,
      18 * held + found.activations + found.temporaries,
    )
    self.assertEqual(self.memory_of(Layout(), 'bfloat16').optimizer, 8 * held)
    self.assertEqual(
      self.memory_of(Layout(), precision='float32').parameters, 4 * held
    )

  def test_zero_cuts_the_optimizer_and_fsdp_the_rest(self):
    one, data, fsdp = (
      self.memory_of(layout)
      for layout in (Layout(), Layout(data=8), Layout(fsdp=8))
    )
    self.assertEqual(data.optimizer, one.optimizer / 8)
    self.assertEqual(data.parameters, one.parameters)
    self.assertEqual(fsdp.optimizer, one.optimizer / 8)
    self.assertEqual(fsdp.parameters, one.parameters / 8)
    self.assertEqual(fsdp.gradients, one.gradients / 8)

  def test_dualpipe_holds_two_stages_and_one_more_activation(self):
    single, dual = (
      self.memory_of(Layout(pipeline=2, schedule=schedule))
      for schedule in ('1f1b', 'dualpipe')
    )
    self.assertEqual(dual.parameters, 2 * single.parameters)
    self.assertEqual(dual.activations / single.activations, 3 / 2)

  def test_micro_batches_alive(self):
    for layout, alive in (
      (Layout(), 1),
      (Layout(pipeline=4), 4),
      (Layout(pipeline=4, schedule='dualpipe'), 5),
      # Interleaved: (1 + (4 - 1) / (4 * 2)) times as many (arXiv 2104.04473).
      (Layout(pipeline=4, virtual_stages=2), 5.5),
      (Layout(pipeline=4, data=16), 2),  # No more than there are.
    ):
      self.assertEqual(memory.live_micro_batches(layout, 32), alive)

  def test_a_shared_sequence_holds_the_others_keys_and_values(self):
    v3 = presets.v3_671b()
    short, long = (
      memory.training_memory(v3, layout, 15360 // parts, 4096 * parts, *how)
      for layout, parts, how in (
        (Layout(), 1, ('fp8', 'bfloat16')),
        (Layout(), 8, ('fp8', 'bfloat16', 8)),
      )
    )
    # Latents of 576 and 128 heads of 320, and as much of their gradients.
    others = 2 * 7 * 4096 * (576 + 128 * 320) * 2
    self.assertEqual(long.temporaries - short.temporaries, others)
    self.assertEqual(long.activations, short.activations)

  def test_whole_experts_are_cut_over_tensor_ranks_once(self):
    v3 = presets.v3_671b()
    cut, whole = (
      memory.stage_parameters(v3, layout, largest=False).experts
      for layout in (
        Layout(tensor=2, expert=4),
        Layout(tensor=2, expert=4, whole_experts=True),
      )
    )
    self.assertEqual(cut, whole)

  def test_the_papers_layout_fits_its_devices(self):
    found = memory.training_memory(
      presets.v3_671b(),
      layout_lib.paper(2048),
      15360,
      4096,
      'fp8',
      'bfloat16',
    )
    self.assertBetween(found.total, 60e9, 80e9)
    # What is kept for CUDA and NCCL leaves it room.
    device = hardware.DEVICES['h800']
    self.assertEqual(memory.room(device), 78e9)
    self.assertLess(found.total, memory.room(device))


if __name__ == '__main__':
  absltest.main()
