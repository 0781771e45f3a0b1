"""Laws of a folder of safetensors: no index that lies, no tensor too few."""

import dataclasses
import json
import os
import pathlib
import time
import tracemalloc

from absl.testing import absltest, parameterized
import ml_dtypes
import numpy as np

import published
from seekax.storage import names, weights
from seekax.storage import open as open_lib
from seekax.storage.manifest import StorageError
from seekax.storage.safetensors_file import Files

E4M3 = ml_dtypes.float8_e4m3fn
SHARDS = tuple(f'model-{n:05d}-of-00003.safetensors' for n in (1, 2, 3))


class FolderCase(parameterized.TestCase):
  """A good folder of three files, which the tests then spoil."""

  model, stored = published.SMALL, 'BF16'

  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path)
    self.folder = self.root / 'folder'
    self.made = published.tensors(self.model, self.stored)
    published.write_folder(
      self.folder, published.fields(self.model, self.made), self.made, 3
    )

  def listed(self) -> dict[str, str]:
    content = json.loads((self.folder / published.INDEX).read_text())
    return content['weight_map']

  def rewrite(self, made=None, **config):
    """Writes the folder anew, as one file, with other tensors or fields."""
    made = self.made if made is None else made
    for path in self.folder.iterdir():
      path.unlink()
    fields = published.fields(self.model, made, **config)
    published.write_folder(self.folder, fields, made)

  def refused(self, *words: str) -> str:
    start = time.process_time()
    with self.assertRaises(StorageError) as caught:
      open_lib.find(self.folder).check()
    self.assertLess(time.process_time() - start, 5)
    message = str(caught.exception)
    self.assertLen(message.splitlines(), 1)
    self.assertLess(len(message), 1000)
    for word in words:
      self.assertIn(word, message)
    return message


class IndexTest(FolderCase):
  def test_a_good_folder_is_found(self):
    found = open_lib.find(self.folder)
    found.check()
    self.assertEqual(found.model, self.model)
    self.assertEqual(found.tensors.keys(), self.made.keys())
    for name, tensor in found.tensors.items():
      self.assertEqual(tensor.file.name, self.listed()[name])
      self.assertEqual(tensor.shape, self.made[name].shape)

  def test_a_single_file_needs_no_index(self):
    self.rewrite()
    open_lib.find(self.folder).check()

  @parameterized.parameters(
    '../outside.safetensors',
    '../folder/model-00001-of-00003.safetensors',
    './model-00001-of-00003.safetensors',
    'sub/model.safetensors',
    '/abs/model.safetensors',
    'model-00001-of-00003.safetensors/',
    '..',
    '.',
    '',
    'a\0b.safetensors',
    'a\nb.safetensors',
    '\ud800.safetensors',
    '~.safetensors',
    'x' * 300 + '.safetensors',
  )
  def test_a_file_that_is_not_beside_the_index_is_refused(self, name):
    (self.root / 'outside.safetensors').write_bytes(
      (self.folder / SHARDS[0]).read_bytes()
    )
    listed = self.listed()
    first = next(iter(listed))
    published.write_index(self.folder, listed | {first: name})
    self.refused(str(self.folder / published.INDEX), 'names')

  def test_an_absolute_path_to_the_right_file_is_refused(self):
    listed = {k: str(self.folder / v) for k, v in self.listed().items()}
    published.write_index(self.folder, listed)
    self.refused('which is not a file beside it')

  @parameterized.parameters('.bin', '.pt', '.npz', '.txt', '')
  def test_another_kind_of_file_is_refused(self, suffix):
    listed = dict.fromkeys(self.listed(), f'model{suffix}')
    published.write_index(self.folder, listed)
    self.refused(f'model{suffix}')

  def test_a_link_out_of_the_folder_is_refused(self):
    path = self.folder / SHARDS[1]
    path.rename(self.root / 'elsewhere.safetensors')
    path.symlink_to(self.root / 'elsewhere.safetensors')
    self.refused(str(path), 'a link that leaves the folder')

  def test_a_single_file_that_is_a_link_out_of_the_folder_is_refused(self):
    self.rewrite()
    path = self.folder / 'model.safetensors'
    path.rename(self.root / 'elsewhere.safetensors')
    path.symlink_to(self.root / 'elsewhere.safetensors')
    self.refused(str(path), 'a link that leaves the folder')

  def test_a_link_within_the_folder_is_followed(self):
    path = self.folder / SHARDS[1]
    path.rename(self.folder / 'other')
    path.symlink_to('other')
    open_lib.find(self.folder).check()

  def test_a_link_to_itself_is_refused(self):
    path = self.folder / SHARDS[1]
    path.unlink()
    path.symlink_to(path.name)
    self.refused(str(path))

  def test_the_links_of_a_download_cache_are_followed(self):
    hub = self.root / 'models--a--b'
    snapshot = hub / 'snapshots' / 'abc123'
    snapshot.mkdir(parents=True)
    (hub / 'blobs').mkdir()
    for number, path in enumerate(sorted(self.folder.iterdir())):
      path.rename(hub / 'blobs' / f'{number:040x}')
      (snapshot / path.name).symlink_to(f'../../blobs/{number:040x}')
    found = open_lib.find(snapshot)
    found.check()
    self.assertEqual(found.tensors.keys(), self.made.keys())
    # Also if the snapshot itself is reached by a link.
    (self.root / 'link').symlink_to(snapshot)
    open_lib.find(self.root / 'link').check()

  def test_a_cache_link_to_anywhere_else_is_refused(self):
    hub = self.root / 'models--a--b'
    snapshot = hub / 'snapshots' / 'abc123'
    snapshot.parent.mkdir(parents=True)
    self.folder.rename(snapshot)
    self.folder = snapshot
    path = snapshot / SHARDS[0]
    for target in ('../../secret', '../../blobs/deep/er', '../other'):
      there = snapshot / target
      there.parent.mkdir(parents=True, exist_ok=True)
      path.rename(there)
      path.symlink_to(target)
      self.refused(str(path), 'a link that leaves the folder')
      path.unlink()
      there.rename(path)

  def test_a_missing_file_is_named(self):
    (self.folder / SHARDS[1]).unlink()
    self.refused(str(self.folder / SHARDS[1]), 'is missing')

  def test_a_folder_in_place_of_a_file_is_refused(self):
    (self.folder / SHARDS[1]).unlink()
    (self.folder / SHARDS[1]).mkdir()
    self.refused(SHARDS[1])

  def test_a_pipe_in_place_of_a_file_does_not_hang(self):
    (self.folder / SHARDS[1]).unlink()
    os.mkfifo(self.folder / SHARDS[1])
    self.refused(SHARDS[1])

  def test_a_tensor_in_two_files_is_refused(self):
    name = next(k for k, v in self.listed().items() if v == SHARDS[0])
    path = self.folder / SHARDS[2]
    both = published.read_file(path) | {name: self.made[name]}
    published.write_file(path, both)
    self.refused(repr(name), SHARDS[0], SHARDS[2])

  def test_a_tensor_that_is_listed_but_absent_is_named(self):
    listed = self.listed()
    published.write_index(self.folder, listed | {'model.x': SHARDS[0]})
    self.refused("lacks tensor 'model.x'", SHARDS[0])

  def test_a_tensor_in_another_file_than_listed_is_named(self):
    listed = self.listed()
    name = next(k for k, v in listed.items() if v == SHARDS[0])
    published.write_index(self.folder, listed | {name: SHARDS[1]})
    self.refused(repr(name), SHARDS[0], f'looks for in {SHARDS[1]}')

  def test_a_tensor_that_the_index_lacks_is_named(self):
    listed = self.listed()
    name = list(listed)[5]
    del listed[name]
    published.write_index(self.folder, listed)
    self.refused(repr(name), 'lacks')

  @parameterized.parameters(
    (b'', 'no valid JSON'),
    (b'\xff\xfe', 'no valid JSON'),
    (b'[' * 100_000, 'no valid JSON'),
    (b'[]', 'no weight_map'),
    (b'{}', 'no weight_map'),
    (b'{"weight_map": []}', 'no weight_map'),
    (b'{"weight_map": {}}', 'no weight_map'),
    (b'{"weight_map": {"a": 1}}', 'no weight_map'),
    (b'{"weight_map": {"a": null}}', 'no weight_map'),
    (b'{"weight_map": {"a": ["x.safetensors"]}}', 'no weight_map'),
    (b'{"weight_map": {"a": "x", "a": "y"}}', "lists 'a' twice"),
    (b'{"weight_map": {}, "weight_map": {}}', "lists 'weight_map' twice"),
  )
  def test_what_is_no_index_is_refused(self, content, message):
    (self.folder / published.INDEX).write_bytes(content)
    self.refused(str(self.folder / published.INDEX), message)

  def test_any_changed_byte_of_an_index_is_refused_or_harmless(self):
    path = self.folder / published.INDEX
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for at in rng.integers(0, len(whole), 100):
      broken = bytearray(whole)
      broken[at] = rng.integers(256)
      path.write_bytes(broken)
      try:
        open_lib.find(self.folder).check()
      except StorageError as error:
        self.assertLen(str(error).splitlines(), 1)

  def test_a_huge_index_is_not_even_read(self):
    path = self.folder / published.INDEX
    os.truncate(path, 200_000_001)  # Sparse.
    tracemalloc.start()
    self.addCleanup(tracemalloc.stop)
    self.refused('200,000,001 bytes are more than a safetensors index may have')
    _, peak = tracemalloc.get_traced_memory()
    self.assertLess(peak, 10_000_000)

  @parameterized.parameters(0, -1, 'x' * 10_000, [1], 10**400)
  def test_a_total_that_lies_is_said_and_harmless(self, total):
    published.write_index(self.folder, self.listed(), {'total_size': total})
    with self.assertLogs('absl', level='INFO') as logs:
      open_lib.find(self.folder).check()
    self.assertIn('total_size', ' '.join(logs.output))
    self.assertLess(len(' '.join(logs.output)), 1000)

  def test_a_total_that_is_right_is_passed_over(self):
    with self.assertNoLogs(level='INFO'):
      open_lib.find(self.folder).check()

  def test_files_that_the_index_does_not_name_are_left_alone(self):
    (self.folder / 'pytorch_model.bin').write_bytes(b'\x80\x04evil')
    (self.folder / 'modeling_deepseek.py').write_text('raise SystemExit')
    (self.folder / 'other.safetensors').write_bytes(b'')
    open_lib.find(self.folder).check()

  def test_a_hostile_header_is_named(self):
    published.write_raw(self.folder / SHARDS[1], b'{"../x": 1}')
    self.refused(SHARDS[1], "tensor '../x'")


class OtherFormatTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  @parameterized.parameters(*weights.REFUSED)
  def test_a_file_that_may_run_code_is_refused_by_its_type(self, suffix):
    path = self.folder / f'model{suffix}'
    for content in (None, b'\x80\x04cos\nsystem\n'):
      if content:
        path.write_bytes(content)
      with self.assertRaisesRegex(StorageError, f'{suffix} file.*safetensors'):
        open_lib.find(path)

  @parameterized.parameters(*weights.REFUSED)
  def test_a_folder_of_such_files_points_to_safetensors(self, suffix):
    (self.folder / f'pytorch_model{suffix}').write_bytes(b'\x80')
    with self.assertRaisesRegex(StorageError, f'{suffix} file.*safetensors'):
      open_lib.find(self.folder)
    made = published.tensors(published.SMALL, 'BF16')
    fields = published.fields(published.SMALL, made)
    (self.folder / 'config.json').write_text(json.dumps(fields))
    with self.assertRaisesRegex(
      StorageError, f'only pytorch_model{suffix}.*get the safetensors'
    ):
      open_lib.find(self.folder)

  def test_a_config_alone_is_refused(self):
    made = published.tensors(published.SMALL, 'BF16')
    fields = published.fields(published.SMALL, made)
    (self.folder / 'config.json').write_text(json.dumps(fields))
    with self.assertRaisesRegex(StorageError, 'has neither .* nor model.safe'):
      open_lib.find(self.folder)

  def test_a_file_given_in_place_of_its_folder_says_so(self):
    path = self.folder / 'model.safetensors'
    published.write_file(path, {'a': np.zeros(1, np.float32)})
    with self.assertRaisesRegex(StorageError, 'give the folder that holds it'):
      open_lib.find(path)

  def test_a_folder_may_be_called_like_a_file(self):
    made = published.tensors(published.SMALL, 'BF16')
    fields = published.fields(published.SMALL, made)
    for suffix in ('.pt', '.ckpt', '.bin'):
      folder = self.folder / f'run{suffix}'
      published.write_folder(folder, fields, made)
      open_lib.find(folder).check()


class TensorTest(FolderCase):
  def test_a_missing_tensor_is_named(self):
    name = 'model.layers.1.mlp.experts.3.up_proj.weight'
    del self.made[name]
    self.rewrite()
    self.refused(str(self.folder), repr(name))

  def test_many_missing_tensors_are_counted(self):
    self.made = {k: v for k, v in self.made.items() if 'experts.' not in k}
    self.rewrite()
    self.refused("lacks tensor 'model.layers.1.mlp.experts.0.gate_proj.weight'")

  def test_an_unexpected_tensor_is_named_with_its_file(self):
    self.made['model.layers.0.self_attn.q_proj.bias'] = np.zeros(3, np.float32)
    self.rewrite()
    self.refused(
      str(self.folder / 'model.safetensors'),
      "'model.layers.0.self_attn.q_proj.bias'",
      'has no use',
    )

  @parameterized.parameters(
    ('lm_head.weight', lambda a: a[:-1]),
    ('lm_head.weight', lambda a: a.T.copy()),
    ('model.norm.weight', lambda a: a[None]),
    ('model.layers.0.self_attn.o_proj.weight', lambda a: a.ravel()),
    ('model.layers.1.mlp.gate.e_score_correction_bias', lambda a: a[:3]),
  )
  def test_a_wrong_shape_is_named_with_both(self, name, change):
    expected = list(self.made[name].shape)
    self.made[name] = change(self.made[name])
    self.rewrite()
    self.refused(
      str(self.folder / 'model.safetensors'),
      repr(name),
      f'has shape {list(self.made[name].shape)}',
      f'asks for {expected}',
    )

  @parameterized.parameters(
    ('model.norm.weight', np.float16, 'F16'),
    ('model.layers.0.mlp.up_proj.weight', np.float16, 'F16'),
    ('model.layers.1.mlp.gate.e_score_correction_bias', np.int64, 'I64'),
    ('lm_head.weight', E4M3, 'F8_E4M3'),
    ('model.layers.1.mlp.gate.weight', E4M3, 'F8_E4M3'),
    ('model.layers.3.eh_proj.weight', E4M3, 'F8_E4M3'),
  )
  def test_a_wrong_dtype_is_named(self, name, dtype, word):
    self.made[name] = self.made[name].astype(np.float32).astype(dtype)
    self.rewrite()
    self.refused(str(self.folder), repr(name), f'has dtype {word}', 'is wanted')

  def test_float32_and_bfloat16_may_be_mixed(self):
    for number, name in enumerate(self.made):
      if number % 2:
        self.made[name] = self.made[name].astype(np.float32)
    self.rewrite()
    open_lib.find(self.folder).check()

  def test_a_derived_buffer_is_ignored_with_one_line(self):
    for layer in range(3):
      name = f'model.layers.{layer}.self_attn.rotary_emb.inv_freq'
      self.made[name] = np.zeros(4, np.float32)
    self.rewrite()
    with self.assertLogs(level='WARNING') as logs:
      open_lib.find(self.folder).check()
    self.assertLen(logs.output, 1)
    self.assertIn('3 rotary_emb.inv_freq buffers', logs.output[0])

  def test_a_huge_model_is_found_missing_at_once(self):
    self.rewrite(num_hidden_layers=2**31 - 1)
    self.refused('lacks tensor')
    self.rewrite(n_routed_experts=2**30, n_group=1, topk_group=1)
    self.refused("'model.layers.1.mlp.gate.weight' has shape [4, 24]")


class MtpTest(FolderCase):
  def without_mtp(self):
    start = f'model.layers.{self.model.num_layers}.'
    return {k: v for k, v in self.made.items() if not k.startswith(start)}

  def test_declared_and_present(self):
    self.assertEqual(open_lib.find(self.folder).model.mtp_depth, 1)

  def test_neither_declared_nor_present(self):
    self.rewrite(self.without_mtp(), num_nextn_predict_layers=0)
    found = open_lib.find(self.folder)
    found.check()
    self.assertEqual(found.model.mtp_depth, 0)

  def test_declared_but_absent_is_a_model_without_and_one_line(self):
    self.rewrite(self.without_mtp())
    with self.assertLogs(level='WARNING') as logs:
      found = open_lib.find(self.folder)
    found.check()
    self.assertLen(logs.output, 1)
    self.assertIn('names an MTP layer', logs.output[0])
    self.assertEqual(found.model.mtp_depth, 0)

  def test_present_but_not_declared_is_refused_with_the_ways_out(self):
    self.rewrite(num_nextn_predict_layers=0)
    self.refused("'model.layers.3.", 'num_nextn_predict_layers', '--mtp=drop')

  def test_an_absent_field_declares_none(self):
    fields = published.fields(self.model, self.made)
    del fields['num_nextn_predict_layers']
    published.write_folder(self.folder, fields, self.made, 3)
    self.refused('num_nextn_predict_layers')

  def test_dropped_it_is_left_alone_whatever_the_config_says(self):
    for declared in (0, 1, 2):
      self.rewrite(num_nextn_predict_layers=declared)
      found = open_lib.find(self.folder, drop_mtp=True)
      found.check()
      self.assertEqual(found.model.mtp_depth, 0)

  def test_two_declared_and_one_present_is_refused(self):
    self.rewrite(num_nextn_predict_layers=2)
    self.refused("lacks tensor 'model.layers.4.")

  def test_half_an_mtp_layer_is_refused(self):
    del self.made['model.layers.3.eh_proj.weight']
    self.rewrite()
    self.refused("lacks tensor 'model.layers.3.eh_proj.weight'")


class ScaleTest(FolderCase):
  model, stored = published.MODEL, 'F8_E4M3'
  NAME = 'model.layers.0.self_attn.kv_a_proj_with_mqa.weight'

  def test_codes_and_scales_are_found(self):
    self.assertEqual(self.made[f'{self.NAME}_scale_inv'].shape, (2, 2))
    open_lib.find(self.folder).check()

  def test_missing_scales_are_named(self):
    del self.made[f'{self.NAME}_scale_inv']
    self.rewrite()
    self.refused('model.safetensors', f"'{self.NAME}_scale_inv' are missing")

  @parameterized.parameters(
    lambda s: s[:1],
    lambda s: s[:, :1],
    lambda s: s.ravel(),
    lambda s: np.ones((1, 1), np.float32),
    lambda s: np.ones((), np.float32),
    lambda s: s.astype(ml_dtypes.bfloat16),
    lambda s: s.astype(np.float16),
  )
  def test_scales_of_another_shape_or_dtype_are_named(self, change):
    name = f'{self.NAME}_scale_inv'
    self.made[name] = change(self.made[name])
    self.rewrite()
    self.refused('model.safetensors', repr(name), 'F32 [2, 2] is wanted')

  def test_scales_of_what_is_not_fp8_are_unexpected(self):
    self.made[self.NAME] = self.made[self.NAME].astype(np.float32)
    self.rewrite()
    self.refused(f"'{self.NAME}_scale_inv', for which")

  def test_scales_without_codes_are_refused(self):
    del self.made[self.NAME]
    self.rewrite()
    self.refused(f"lacks tensor '{self.NAME}'")


def fuse(config, made: published.Tensors) -> published.Tensors:
  """Experts of a layer as one tensor, [E, 2F, D] and [E, D, F]."""
  fused = {k: v for k, v in made.items() if '.experts.' not in k}
  layers = range(config.num_dense_layers, config.num_layers + config.mtp_depth)
  for layer in layers:
    at = f'model.layers.{layer}.mlp.experts'
    for suffix in ('', '_scale_inv'):
      if f'{at}.0.gate_proj.weight{suffix}' not in made:
        continue
      gate, up, down = (
        [
          made[f'{at}.{e}.{word}_proj.weight{suffix}']
          for e in range(config.num_experts)
        ]
        for word in ('gate', 'up', 'down')
      )
      fused[f'{at}.gate_up_proj{suffix}'] = np.concatenate(
        [np.stack(gate), np.stack(up)], axis=1
      )
      fused[f'{at}.down_proj{suffix}'] = np.stack(down)
  return fused


class FusedTest(FolderCase):
  DIVISIBLE = dataclasses.replace(published.MODEL, expert_dim=256)

  @parameterized.parameters(
    (published.SMALL, 'BF16'),
    (published.SMALL, 'F32'),
    (published.V2, 'BF16'),
    (DIVISIBLE, 'F8_E4M3'),
  )
  def test_fused_experts_are_the_single_ones(self, model, stored):
    self.model, self.made = model, published.tensors(model, stored)
    self.rewrite(fuse(model, self.made))
    found = open_lib.find(self.folder)
    found.check()
    self.assertEqual(found.tensors.keys(), self.made.keys())
    with Files() as files:
      for name, tensor in found.tensors.items():
        self.assertEqual(tensor.shape, self.made[name].shape)
        read = b''.join(map(bytes, files.blocks(tensor)))
        self.assertEqual(read, self.made[name].tobytes(), msg=name)

  def test_fp8_whose_gate_and_up_share_a_block_is_refused(self):
    # 2 x 228 rows are 4 blocks, of which one holds rows of gate and of up.
    model = dataclasses.replace(published.MODEL, expert_dim=228)
    self.model, self.made = model, published.tensors(model, 'F8_E4M3')
    self.rewrite(fuse(model, self.made))
    self.refused(
      "'model.layers.1.mlp.experts.gate_up_proj'", '228 rows of gate'
    )

  def test_fused_and_single_at_once_is_refused(self):
    name = 'model.layers.1.mlp.experts.2.up_proj.weight'
    made = fuse(self.model, self.made) | {name: self.made[name]}
    self.rewrite(made)
    self.refused(repr(name), 'model.safetensors')

  @parameterized.parameters(
    ('gate_up_proj', lambda a: a[0], 'not [experts, out, in]'),
    ('gate_up_proj', lambda a: a[:, :-1], 'which gate and up can not share'),
    ('gate_up_proj', lambda a: a[:, :-2], 'experts.0.gate_proj.weight'),
    ('gate_up_proj', lambda a: a[:-1], 'experts.3.gate_proj.weight'),
    ('down_proj', lambda a: a.swapaxes(1, 2).copy(), 'experts.0.down_proj'),
    ('down_proj', lambda a: np.stack([*a, a[0]]), 'experts.4.down_proj.weight'),
  )
  def test_fused_experts_of_a_wrong_shape_are_refused(self, word, change, say):
    made = fuse(self.model, self.made)
    name = f'model.layers.1.mlp.experts.{word}'
    made[name] = change(made[name])
    self.rewrite(made)
    self.refused(say)

  def test_experts_without_number_are_refused_at_once(self):
    header = {
      f'model.layers.{layer}.mlp.experts.gate_up_proj': published.entry(
        'BF16', (10**9, 0, 0), (0, 0)
      )
      for layer in range(100)
    }
    for path in self.folder.glob('model*'):
      path.unlink()
    path = self.folder / 'model.safetensors'
    published.write_raw(path, json.dumps(header).encode())
    self.refused('has 1000000000 experts')
    for about in header.values():
      about['shape'][0] = 100_000
    published.write_raw(path, json.dumps(header).encode())
    self.refused('would have too many tensors')


class TwoSetsTest(FolderCase):
  """An index of shards and a single file beside it."""

  def write_single(self, made):
    published.write_file(self.folder / 'model.safetensors', made)

  def test_equal_sets_are_taken_with_a_line_that_names_both_and_when(self):
    self.write_single(self.made)
    os.utime(self.folder / published.INDEX, (0, 0))
    with self.assertLogs('absl', 'WARNING') as logs:
      opened = open_lib.open_checkpoint(self.folder)
    self.assertLen(opened.found.tensors, len(self.made))
    (line,) = logs.output
    self.assertRegex(line, 'index.json of 1970.*model.safetensors of 2')

  def test_a_set_of_other_values_shapes_or_dtypes_is_refused(self):
    name = 'model.layers.1.self_attn.o_proj.weight'
    array = self.made[name]
    other = np.array(array)
    other[3, 2] += 1
    for spoilt in (other, array[:2], array.astype(np.float32)):
      self.write_single({**self.made, name: spoilt})
      with self.assertRaisesRegex(StorageError, f'two sets .*{name}'):
        open_lib.open_checkpoint(self.folder)

  def test_a_single_file_of_other_tensors_matters_not(self):
    self.write_single({'other': np.ones(3, np.float32)})
    open_lib.find(self.folder).verify()

  def test_a_single_file_that_the_index_names_is_no_other_set(self):
    self.rewrite()
    listed = dict.fromkeys(self.made, 'model.safetensors')
    published.write_index(self.folder, listed)
    with self.assertNoLogs('absl', 'WARNING'):
      open_lib.find(self.folder).verify()


class NoFileTest(FolderCase):
  """Pipes, folders and links to themselves in the place of files."""

  @parameterized.product(
    name=('config.json', published.INDEX, SHARDS[1], 'model.safetensors'),
    kind=('pipe', 'folder', 'loop'),
  )
  def test_what_is_no_file_is_refused_at_once(self, name, kind):
    if name == 'model.safetensors':
      self.rewrite()
    path = self.folder / name
    path.unlink()
    if kind == 'pipe':
      os.mkfifo(path)
    elif kind == 'folder':
      path.mkdir()
    else:
      path.symlink_to(name)
    self.refused(str(self.folder))


class CompareTest(parameterized.TestCase):
  def test_each_kind_of_difference_is_listed(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    made = published.tensors(published.SMALL, 'BF16')
    del made['model.norm.weight']
    made['x'] = np.zeros(1, np.float32)
    made['lm_head.weight'] = made['lm_head.weight'][:3]
    published.write_file(folder / 'model.safetensors', made)
    found = weights.compare(
      weights.find_tensors(folder), names.slots(published.SMALL)
    )
    self.assertEqual(found.missing, ('model.norm.weight',))
    self.assertEqual([tensor.name for tensor in found.unexpected], ['x'])
    self.assertLen(found.wrong, 1)
    self.assertIn("'lm_head.weight' has shape [3, 24]", found.wrong[0])


if __name__ == '__main__':
  absltest.main()
