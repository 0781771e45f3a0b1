"""Laws of conversion: nothing is lost, nothing is mixed, nothing is half."""

from collections.abc import Callable
import dataclasses
import errno
import json
import math
import os
import pathlib
import shutil
import signal
import subprocess
import sys
from typing import Any
from unittest import mock

from absl.testing import absltest, parameterized
import jax
import ml_dtypes
import numpy as np
import pytest

import published
from seekax.configuration.config import Config, to_dict
from seekax.configuration.data import DataConfig
from seekax.configuration.errors import InputError
from seekax.data import tokenizer_training
from seekax.storage import (
  checkpoint,
  fp8,
  names,
  rewrite,
  weight_checks,
  weights,
)
from seekax.storage import convert as convert_lib
from seekax.storage import open as open_lib
from seekax.storage import workdir as workdir_lib
from seekax.storage.convert import Options
from seekax.storage.manifest import StorageError

BF16, E4M3 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn
# Small enough that `published.SMALL` becomes several files.
SHARD = 6000


def content(folder: pathlib.Path) -> dict[str, bytes]:
  """Every file below a folder."""
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in sorted(folder.rglob('*'))
    if path.is_file()
  }


class ConvertCase(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    # A test can't see whether bytes are on the disk; waiting takes half of
    # the time.
    self.enter_context(mock.patch.object(os, 'fsync'))
    self.root = pathlib.Path(self.create_tempdir().full_path)
    self.source, self.target = self.root / 'source', self.root / 'target'

  def write(self, model=published.SMALL, stored='BF16', shards=2, **fields):
    """A published folder; returns its tensors."""
    made = published.tensors(model, stored)
    fields = published.fields(model, made, **fields)
    published.write_folder(self.source, fields, made, shards)
    return made

  def convert(self, source=None, target=None, progress=None, **options) -> bool:
    options = {'shard_bytes': SHARD, **options}
    return convert_lib.convert(
      str(source or self.source),
      str(target or self.target),
      Options(**options),
      progress or (lambda *unused: None),
    )

  def assert_same(self, found: published.Tensors, made: published.Tensors):
    self.assertEqual(published.differences(found, made), [])


class IdentityTest(ConvertCase):
  @parameterized.parameters(
    (published.SMALL, 'F32'),
    (published.SMALL, 'BF16'),
    (published.MODEL, 'F8_E4M3'),
    (published.MODEL, 'mixed'),
    (published.V2, 'mixed'),
    (published.LLAMA, 'BF16'),
  )
  def test_import_and_export_give_back_every_bit(self, model, stored):
    made = self.write(model, stored)
    size = 200_000 if model is published.MODEL else SHARD
    middle = self.root / 'workdir'
    self.convert(target=middle, shard_bytes=size)
    self.assert_same(published.read_folder(middle / 'weights'), made)
    self.convert(middle, format='huggingface', shard_bytes=size)
    self.assert_same(published.read_folder(self.target), made)
    fields = json.loads((self.source / 'config.json').read_text())
    found = json.loads((self.target / 'config.json').read_text())
    if stored == 'F32':
      fields['torch_dtype'] = 'float32'
    elif stored == 'mixed':
      fields['torch_dtype'] = found['torch_dtype']
    self.assertEqual(found, fields)

  def test_from_folder_to_folder_too(self):
    made = self.write(stored='mixed')
    self.convert(format='huggingface')
    self.assert_same(published.read_folder(self.target), made)

  def test_fused_experts_become_single_ones(self):
    made = self.write()
    at = 'model.layers.{}.mlp.experts'
    fused = {k: v for k, v in made.items() if '.experts.' not in k}
    for layer in (1, 2, 3):
      prefix = at.format(layer)
      gate, up, down = (
        np.stack([made[f'{prefix}.{e}.{w}_proj.weight'] for e in range(4)])
        for w in ('gate', 'up', 'down')
      )
      fused[f'{prefix}.gate_up_proj'] = np.concatenate([gate, up], axis=1)
      fused[f'{prefix}.down_proj'] = down
    shutil.rmtree(self.source)
    published.write_folder(
      self.source, published.fields(published.SMALL, made), fused
    )
    self.convert(format='huggingface')
    self.assert_same(published.read_folder(self.target), made)

  def test_a_workdir_of_weights_opens_like_its_source(self):
    self.write(stored='F8_E4M3', model=published.MODEL)
    self.convert(shard_bytes=200_000)
    opened = [
      open_lib.open_checkpoint(path) for path in (self.source, self.target)
    ]
    self.assertEqual(
      checkpoint.state_hash(opened[0].weights.params),
      checkpoint.state_hash(opened[1].weights.params),
    )
    self.assertEqual(opened[0].config, opened[1].config)
    self.assertEqual(opened[1].step, 0)

  def test_the_manifest_proves_every_file_of_weights(self):
    self.write()
    self.convert()
    lines = (self.target / 'weights.sha256').read_text().splitlines()
    listed = {line.split('  ')[1] for line in lines}
    there = {
      str(path.relative_to(self.target))
      for path in (self.target / 'weights').iterdir()
    }
    self.assertEqual(listed, there)
    open_lib.find(self.target).verify()
    path = sorted((self.target / 'weights').glob('*.safetensors'))[1]
    broken = bytearray(path.read_bytes())
    broken[-1] ^= 1
    path.write_bytes(broken)
    with self.assertRaisesRegex(StorageError, f'{path.name} does not match'):
      open_lib.open_checkpoint(self.target)

  def test_what_the_config_said_besides_is_carried_but_no_code(self):
    self.write(
      bos_token_id=7,
      eos_token_id=[1, 2],
      aux_loss_alpha=0.001,
      auto_map={'AutoModel': 'modeling.Model'},
      transformers_version='4.33.1',
    )
    (self.source / 'modeling.py').write_text('raise SystemExit')
    (self.source / 'generation_config.json').write_text('{"top_p": 0.9}')
    middle = self.root / 'workdir'
    with self.assertLogs(level='WARNING') as logs:
      self.convert(target=middle)
    self.assertIn('auto_map is ignored', ' '.join(logs.output))
    self.convert(middle, format='huggingface')
    found = json.loads((self.target / 'config.json').read_text())
    self.assertEqual(found['bos_token_id'], 7)
    self.assertEqual(found['eos_token_id'], [1, 2])
    self.assertEqual(found['aux_loss_alpha'], 0.001)
    self.assertNotIn('auto_map', found)
    self.assertNotIn('transformers_version', found)
    for folder in (middle, self.target):
      self.assertFalse(list(folder.rglob('*.py')))
      self.assertEqual(
        (folder / 'generation_config.json').read_text(), '{"top_p": 0.9}'
      )


class DtypeTest(ConvertCase):
  def expected(self, made: published.Tensors, dtype: str) -> published.Tensors:
    """Every weight by plain NumPy."""
    result = {}
    for slot in names.slots(published.MODEL):
      name = slot.name
      scales = made.get(f'{name}_scale_inv')
      values = published.expanded({name: made[name]} | (
        {} if scales is None else {f'{name}_scale_inv': scales}
      ))[name]  # fmt: skip
      if slot.is_bias or dtype == 'float32':
        result[name] = values
      elif dtype == 'bfloat16' or not slot.in_fp8:
        result[name] = values.astype(BF16)
      elif scales is not None:
        result |= {name: made[name], f'{name}_scale_inv': scales}
      else:
        result[name], result[f'{name}_scale_inv'] = fp8.quantize(values)
    return result

  @parameterized.product(
    stored=('mixed', 'F8_E4M3'), dtype=('float32', 'bfloat16', 'float8')
  )
  def test_every_value_is_converted_once(self, stored, dtype):
    made = self.write(published.MODEL, stored)
    expected = self.expected(made, dtype)
    self.convert(dtype=dtype, format='huggingface', shard_bytes=10**6)
    self.assert_same(published.read_folder(self.target), expected)
    config = json.loads((self.target / 'config.json').read_text())
    self.assertEqual('quantization_config' in config, dtype == 'float8')
    self.assertEqual(
      config['torch_dtype'], 'float32' if dtype == 'float32' else 'bfloat16'
    )
    open_lib.find(self.target).check()

  def test_small_blocks_give_the_same(self):
    made = self.write(published.MODEL, 'mixed')
    # 128 rows at once, where the largest tensors have 300.
    self.enter_context(mock.patch.object(rewrite, 'BLOCK_BYTES', 1))
    for dtype in ('float32', 'float8'):
      target = self.root / dtype
      self.convert(target=target, dtype=dtype, format='huggingface')
      expected = self.expected(made, dtype)
      self.assert_same(published.read_folder(target), expected)

  def test_powers_of_two_stay_powers_of_two(self):
    made = self.write(published.MODEL, 'BF16')
    fields = published.fields(published.MODEL, made)
    fields['quantization_config'] = {'quant_method': 'fp8'} | {
      'scale_fmt': 'ue8m0'
    }
    (self.source / 'config.json').write_text(json.dumps(fields))
    middle = self.root / 'workdir'
    self.convert(target=middle)
    self.convert(
      middle, format='huggingface', dtype='float8', shard_bytes=10**6
    )
    found = published.read_folder(self.target)
    scales = [v for k, v in found.items() if k.endswith('_scale_inv')]
    self.assertNotEmpty(scales)
    for scale in scales:
      self.assertTrue((np.frexp(scale)[0] == 0.5).all())
    config = json.loads((self.target / 'config.json').read_text())
    self.assertEqual(config['quantization_config']['scale_fmt'], 'ue8m0')

  @parameterized.parameters(np.nan, np.inf)
  def test_what_is_no_number_can_not_become_fp8(self, value):
    made = self.write()
    name = 'model.layers.0.self_attn.o_proj.weight'
    made[name][3, 4] = value
    published.write_folder(
      self.source, published.fields(published.SMALL, made), made, 2
    )
    with self.assertRaisesRegex(StorageError, name):
      self.convert(dtype='float8')
    self.assertFalse(list(self.target.rglob('*.tmp')))
    self.assertFalse((self.target / 'run.json').exists())


class MtpTest(ConvertCase):
  @parameterized.parameters('seekax', 'huggingface')
  def test_dropped_it_is_gone_from_weights_and_config(self, form):
    made = self.write()
    self.convert(format=form, drop_mtp=True)
    found = open_lib.find(self.target)
    found.check()
    self.assertEqual(found.model.mtp_depth, 0)
    expected = {k: v for k, v in made.items() if '.layers.3.' not in k}
    folder = self.target / ('weights' if form == 'seekax' else '')
    self.assert_same(published.read_folder(folder), expected)

  def test_dropped_and_not_declared_is_no_contradiction(self):
    self.write(num_nextn_predict_layers=0)
    with self.assertRaisesRegex(StorageError, '--mtp=drop'):
      self.convert()
    self.convert(drop_mtp=True)
    open_lib.find(self.target).check()

  def test_tables_of_its_own_are_refused(self):
    made = self.write(shards=1)
    name = 'model.layers.3.embed_tokens.weight'
    made[name] = made[name].copy()
    made[name][-1, -1] += 1
    published.write_folder(
      self.source, published.fields(published.SMALL, made), made
    )
    with self.assertRaisesRegex(StorageError, f"'{name}' differs from"):
      self.convert()
    self.assertFalse((self.target / 'run.json').exists())
    shutil.rmtree(self.target, ignore_errors=True)
    self.convert(drop_mtp=True)


class ShardTest(ConvertCase):
  @parameterized.parameters(1, 3000, 6000, 20_000, 10**9)
  def test_files_are_as_large_as_asked_and_the_index_knows_them(self, limit):
    made = self.write()
    self.convert(format='huggingface', shard_bytes=limit)
    files = sorted(self.target.glob('*.safetensors'))
    for path in files:
      tensors = published.read_file(path)
      size = sum(array.nbytes for array in tensors.values())
      self.assertTrue(size <= limit or len(tensors) == 1)
    if limit == 10**9:
      self.assertEqual([path.name for path in files], ['model.safetensors'])
      self.assertFalse((self.target / published.INDEX).exists())
      return
    count = len(files)
    self.assertEqual(
      [path.name for path in files],
      [f'model-{n + 1:05d}-of-{count:06d}.safetensors' for n in range(count)],
    )
    index = json.loads((self.target / published.INDEX).read_text())
    total = sum(array.nbytes for array in made.values())
    self.assertEqual(index['metadata']['total_size'], total)
    self.assertEqual(index['weight_map'].keys(), made.keys())
    for path in files:
      for name in published.read_file(path):
        self.assertEqual(index['weight_map'][name], path.name)

  def test_codes_and_their_scales_lie_together(self):
    self.write(published.MODEL, 'F8_E4M3')
    self.convert(format='huggingface', shard_bytes=50_000)
    listed = json.loads((self.target / published.INDEX).read_text())
    listed = listed['weight_map']
    for name in listed:
      if name.endswith('_scale_inv'):
        self.assertEqual(listed[name], listed[name[: -len('_scale_inv')]])

  def test_progress_names_every_file_in_order(self):
    self.write()
    seen = []
    self.convert(progress=lambda *words: seen.append(words))
    files = sorted((self.target / 'weights').glob('*.safetensors'))
    self.assertEqual(
      seen,
      [
        (n + 1, len(files), path.name, path.stat().st_size)
        for n, path in enumerate(files)
      ],
    )


class Stop(BaseException):
  """Neither an error nor an exit: nothing catches it."""


class StoppingAt:
  """Stops the n-th of all writes, renames and copied files."""

  CALLS = ((os, 'write'), (os, 'replace'))
  CALLS += ((shutil, 'copyfile'), (os, 'fsync'))

  def __init__(self, number: int, stop: Callable[[], None]):
    self.left, self.stop = number, stop
    self.patches = [
      mock.patch.object(module, name, self.counting(getattr(module, name)))
      for module, name in self.CALLS
    ]

  def counting(self, call):
    def counted(*args, **kwargs):
      self.left -= 1
      if self.left == 0:
        self.stop()
      return call(*args, **kwargs)

    return counted

  def __enter__(self):
    for patch in self.patches:
      patch.start()
    return self

  def __exit__(self, *unused):
    for patch in self.patches:
      patch.stop()


# A child is killed without warning at its n-th write, rename or copy, for every
# n up to the last; after each, the same conversion is done to its end. Prints
# the last n.
_KILLED = """
import os, pathlib, shutil, sys
sys.path.insert(0, sys.argv[1])
from storage.test_convert import StoppingAt, content
from seekax.storage import convert as convert_lib

source, target, form = sys.argv[2:]
folder = pathlib.Path(target)
final = {'seekax': 'run.json', 'huggingface': 'config.json'}[form]
options = convert_lib.Options(format=form, shard_bytes=20_000)
convert_lib.convert(source, target, options)
expected, number = content(folder), 0
while True:
  number += 1
  shutil.rmtree(target)
  child = os.fork()
  if not child:
    with StoppingAt(number, lambda: os._exit(9)):
      convert_lib.convert(source, target, options)
    os._exit(0)
  code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
  if code == 0:
    break
  assert code == 9, code
  assert not (folder / final).exists(), number
  try:
    assert convert_lib.convert(source, target, options)
  except ValueError as error:
    sys.exit(f'after {number}: {error}')
  found = content(folder)
  assert found == expected, (number, found.keys() ^ expected.keys())
print(number)
"""


class InterruptedTest(ConvertCase):
  @parameterized.parameters('seekax', 'huggingface')
  def test_stopped_anywhere_the_same_command_goes_on(self, form):
    self.write()
    self.add_tokenizer()
    self.convert(format=form, shard_bytes=20_000)
    expected = content(self.target)
    number, stopped = 0, True
    while stopped:
      number += 7
      shutil.rmtree(self.target)
      stopped = False
      try:
        with StoppingAt(number, self.stop):
          self.convert(format=form, shard_bytes=20_000)
      except Stop:
        stopped = True
        final = 'run.json' if form == 'seekax' else 'config.json'
        self.assertFalse((self.target / final).exists(), msg=number)
        self.assertTrue(self.convert(format=form, shard_bytes=20_000))
      self.assertEqual(content(self.target), expected, msg=number)
    self.assertGreater(number, 40)

  def stop(self):
    raise Stop

  def add_tokenizer(self):
    (self.source / 'tokenizer_config.json').write_text('{}')
    (self.source / 'generation_config.json').write_text('{}')

  @parameterized.parameters('seekax', 'huggingface')
  @pytest.mark.slow
  def test_killed_anywhere_the_same_command_goes_on(self, form):
    self.write()
    self.add_tokenizer()
    tests = pathlib.Path(__file__).parents[1]
    run = subprocess.run(
      [sys.executable, '-c', _KILLED, str(tests), str(self.source)]
      + [str(self.target), form],
      capture_output=True,
      text=True,
      check=False,
      env={**os.environ, 'PYTHONWARNINGS': 'ignore'},
    )
    self.assertEqual(run.returncode, 0, msg=run.stderr[-2000:])
    self.assertGreater(int(run.stdout), 30)

  def test_files_that_are_done_are_not_written_again(self):
    self.write()
    seen = []

    def stop(number, count, *unused):
      seen.append((number, count))
      if number == 3:
        raise Stop

    with self.assertRaises(Stop):
      self.convert(progress=stop)
    done = sorted((self.target / 'weights').glob('*.safetensors'))
    times = [path.stat().st_mtime_ns for path in done]
    again = []
    self.convert(progress=lambda number, *unused: again.append(number))
    self.assertEqual(times, [path.stat().st_mtime_ns for path in done])
    self.assertEqual(again, list(range(len(done) + 1, seen[0][1] + 1)))

  def test_a_complete_target_is_left_as_it_is(self):
    self.write()
    self.assertTrue(self.convert())
    before = content(self.target)
    self.assertFalse(self.convert())
    self.assertEqual(content(self.target), before)

  def test_a_source_that_changed_meanwhile_is_not_mixed(self):
    made = self.write()

    def stop(*unused):
      raise Stop

    with self.assertRaises(Stop):
      self.convert(progress=stop)
    before = content(self.target)
    for name in made:
      made[name] = made[name] + made[name]
    published.write_folder(
      self.source, published.fields(published.SMALL, made), made, 2
    )
    with self.assertRaisesRegex(StorageError, 'of something else; choose an'):
      self.convert()
    self.assertEqual(content(self.target), before)

  @parameterized.parameters(
    {'dtype': 'float32'}, {'drop_mtp': True}, {'shard_bytes': 7000}
  )
  def test_other_options_are_not_mixed(self, **options):
    self.write()
    self.convert()
    before = content(self.target)
    with self.assertRaisesRegex(StorageError, 'of something else'):
      self.convert(**options)
    self.assertEqual(content(self.target), before)

  def test_a_disk_that_is_full_is_said_and_the_same_command_goes_on(self):
    made = self.write()
    real, calls = os.write, []

    def full(descriptor, block):
      calls.append(1)
      if len(calls) == 20:
        raise OSError(errno.ENOSPC, 'No space left on device')
      return real(descriptor, block)

    with (
      mock.patch.object(os, 'write', full),
      self.assertRaisesRegex(
        StorageError, 'No space left on device; make room'
      ),
    ):
      self.convert()
    self.assertFalse(list(self.target.rglob('*.tmp')))
    self.convert()
    self.assert_same(published.read_folder(self.target / 'weights'), made)

  def test_a_target_in_use_is_refused(self):
    self.write()
    self.target.mkdir()
    with (
      workdir_lib.lock(self.target),
      self.assertRaisesRegex(StorageError, 'in use'),
    ):
      self.convert()


class RefusedTest(ConvertCase):
  """Whatever is wrong, nothing is written."""

  def refused(self, *words: str, **options):
    before = content(self.root)
    with self.assertRaises(InputError) as caught:
      self.convert(**options)
    self.assertEqual(content(self.root), before)
    message = str(caught.exception)
    self.assertLen(message.splitlines(), 1)
    for word in words:
      self.assertIn(word, message)

  @parameterized.parameters('notes.txt', 'model.safetensors', 'run.json', 'a/b')
  def test_a_target_with_files_of_others_is_refused(self, name):
    self.write()
    path = self.target / name
    path.parent.mkdir(parents=True)
    path.write_text('mine')
    for form in ('seekax', 'huggingface'):
      self.refused(str(self.target), format=form)

  def test_a_target_with_another_models_weights_is_refused(self):
    self.write()
    shutil.copytree(self.source, self.target)
    self.refused('of something else', format='huggingface')

  def test_a_target_that_is_a_file_is_refused(self):
    self.write()
    self.target.write_text('mine')
    self.refused(str(self.target))
    self.refused(target=self.target / 'sub')

  def test_target_and_source_may_not_lie_in_each_other(self):
    self.write()
    link = self.root / 'link'
    link.symlink_to(self.source)
    for target in (
      self.source,
      self.source / 'sub',
      self.source / 'sub' / 'sub',
      self.root,
      link,
      link / 'sub',
      self.source / '..' / 'source',
    ):
      self.refused('lie in each other', target=target)

  def test_a_disk_without_room_is_refused_before(self):
    self.write()
    usage = shutil.disk_usage(self.root)._replace(free=1000)
    with mock.patch.object(shutil, 'disk_usage', return_value=usage):
      self.refused('GB, the disk has')

  @parameterized.parameters('missing', 'empty', 'pickle')
  def test_what_is_no_source_is_refused(self, kind):
    if kind != 'missing':
      self.source.mkdir()
    if kind == 'pickle':
      (self.source / 'pytorch_model.bin').write_bytes(b'\x80')
    self.refused(str(self.source))

  @parameterized.parameters(
    'config', 'rope', 'index', 'header', 'short', 'lacks', 'shape', 'extra'
  )
  def test_a_bad_source_is_refused(self, kind):
    made = self.write()
    fields = published.fields(published.SMALL, made)
    shard = self.source / 'model-00002-of-00002.safetensors'
    match kind:
      case 'config':
        (self.source / 'config.json').write_text('{')
      case 'rope':
        fields['rope_scaling']['type'] = 'linear'
        (self.source / 'config.json').write_text(json.dumps(fields))
      case 'index':
        published.write_index(self.source, dict.fromkeys(made, '../x'))
      case 'header':
        published.write_raw(shard, b'{"a": 1}')
      case 'short':
        os.truncate(shard, shard.stat().st_size - 1)
      case 'lacks':
        del made['model.norm.weight']
      case 'shape':
        made['model.norm.weight'] = made['model.norm.weight'][1:]
      case 'extra':
        made['x'] = made['model.norm.weight']
    if kind in ('lacks', 'shape', 'extra'):
      published.write_folder(self.source, fields, made, 2)
    self.refused(str(self.source))

  def test_a_workdir_with_a_flipped_bit_is_refused(self):
    self.write()
    middle = self.root / 'workdir'
    self.convert(target=middle, shard_bytes=10**9)
    path = middle / 'weights' / 'model.safetensors'
    broken = bytearray(path.read_bytes())
    broken[len(broken) // 2] ^= 1
    path.write_bytes(broken)
    for _ in range(2):  # It is no better the second time.
      with self.assertRaisesRegex(StorageError, 'does not match its SHA-256'):
        self.convert(middle, format='huggingface')
      self.assertFalse((self.target / 'config.json').exists())

  def test_a_tokenizer_larger_than_the_embedding_is_refused(self):
    self.write()
    tokenizer_training.train(['x y z'], 258).save(
      self.source / 'tokenizer.json'
    )
    self.refused('tokenizer.json', 'ids up to 257', 'only 29 rows')

  def test_a_broken_tokenizer_is_refused(self):
    self.write()
    (self.source / 'tokenizer.json').write_text('{"model": 1}')
    self.refused('tokenizer.json')

  def test_a_run_that_never_saved_is_refused(self):
    run = Run(self.root, published.SMALL)
    self.refused('no finished checkpoint', source=run.workdir)


class Run:
  """A training run of one step, made by hand."""

  def __init__(self, root: pathlib.Path, model, started_from: str = ''):
    self.workdir = root / 'run'
    self.workdir.mkdir()
    self.started_from = started_from
    self.config = Config(model=model, data=DataConfig(sequence_length=32))
    self.write(self.config)

  def write(self, config):
    run: dict[str, Any] = {'config': to_dict(config)}
    run['started_from'] = self.started_from
    workdir_lib.write_run(self.workdir, run)

  def save(self, tree, step=1):
    parts = {'weights': tree, 'optimizer': {'step': np.array([step])}}
    checkpoint.save(self.workdir / 'checkpoints', step, parts, {})


class TrainedTest(ConvertCase):
  """Training states: float32, all layers of a weight in one array."""

  trees = {}  # Made once; every test gets a copy.

  def trained(self, model=published.SMALL, stored='F8_E4M3'):
    """A run that started from published weights and changed nothing yet."""
    made = self.write(model, stored)
    run = Run(self.root, model, str(self.source))
    if (model, stored) not in self.trees:
      opened = open_lib.open_checkpoint(self.source, expand_fp8=True)
      self.trees[model, stored] = opened.weights.tree
    return made, run, jax.tree.map(np.array, self.trees[model, stored])

  def test_a_state_is_written_by_published_names(self):
    made, run, tree = self.trained(stored='BF16')
    run.save(tree)
    self.convert(run.workdir, format='huggingface')
    self.assert_same(
      published.read_folder(self.target), published.expanded(made)
    )
    found = open_lib.find(self.target)
    found.check()
    self.assertEqual(found.model, run.config.model)

  @pytest.mark.slow
  def test_the_newest_proven_step_is_written(self):
    _, run, tree = self.trained(stored='BF16')
    for step in (1, 2, 3):
      tree['params']['final_norm']['scale'][:] = step
      run.save(tree, step)
    (run.workdir / 'checkpoints' / '3.sha256').unlink()
    self.convert(run.workdir, format='huggingface')
    found = published.read_folder(self.target)
    self.assertEqual(set(found['model.norm.weight'].tolist()), {2.0})

  def test_a_state_without_mtp_is_written_without(self):
    made, run, tree = self.trained(stored='BF16')
    run.save(tree)
    self.convert(run.workdir, format='huggingface', drop_mtp=True)
    expected = published.expanded(made)
    expected = {k: v for k, v in expected.items() if '.layers.3.' not in k}
    self.assert_same(published.read_folder(self.target), expected)

  @parameterized.parameters('folder', 'workdir')
  def test_fp8_that_training_left_alone_keeps_its_bytes(self, origin):
    made, run, tree = self.trained(published.MODEL)
    if origin == 'workdir':
      middle = self.root / 'weights_first'
      self.convert(target=middle, shard_bytes=10**6)
      run.started_from = str(middle)
      run.write(run.config)
    changed = tree['params']['expert_layers']['experts']['up'][1, 3]
    changed[:] += np.float32(0.01)
    bias = tree['router_bias']['layers']
    bias += 1
    run.save(tree)
    self.convert(
      run.workdir, format='huggingface', dtype='float8', shard_bytes=10**6
    )
    found = published.read_folder(self.target)
    name = 'model.layers.2.mlp.experts.3.up_proj.weight'
    biases = [
      f'model.layers.{layer}.mlp.gate.e_score_correction_bias'
      for layer in (1, 2)
    ]
    self.assertEqual(
      published.differences(found, made),
      sorted([name, f'{name}_scale_inv', *biases]),
    )
    codes, scales = fp8.quantize(changed.T)
    self.assertEqual(found[name].tobytes(), codes.tobytes())
    self.assertEqual(found[f'{name}_scale_inv'].tobytes(), scales.tobytes())

  @pytest.mark.slow
  def test_one_changed_value_is_seen(self):
    made, run, tree = self.trained(published.MODEL)
    out = tree['params']['dense_layers']['attention']['out']
    out[0, -1, -1, -1] *= np.float32(1 + 2**-23)
    run.save(tree)
    self.convert(
      run.workdir, format='huggingface', dtype='float8', shard_bytes=10**6
    )
    name = 'model.layers.0.self_attn.o_proj.weight'
    self.assertContainsSubset(
      published.differences(published.read_folder(self.target), made),
      {name, f'{name}_scale_inv'},
    )

  def test_without_its_origin_everything_is_quantised_anew(self):
    _, run, tree = self.trained(published.MODEL)
    run.save(tree)
    shutil.rmtree(self.source)
    with self.assertLogs(level='WARNING') as logs:
      self.convert(
        run.workdir, format='huggingface', dtype='float8', shard_bytes=10**6
      )
    self.assertIn('quantised anew', ' '.join(logs.output))
    found = published.read_folder(self.target)
    kv_down = tree['params']['dense_layers']['attention']['kv_down'][0]
    codes, scales = fp8.quantize(np.ascontiguousarray(kv_down.T))
    name = 'model.layers.0.self_attn.kv_a_proj_with_mqa.weight'
    self.assertEqual(found[name].tobytes(), codes.tobytes())
    self.assertEqual(found[f'{name}_scale_inv'].tobytes(), scales.tobytes())

  def test_a_model_without_published_form_is_refused(self):
    _, run, tree = self.trained(stored='BF16')
    run.save(tree)
    model = dataclasses.replace(run.config.model, num_shared_experts=0)
    run.write(dataclasses.replace(run.config, model=model))
    with self.assertRaisesRegex(StorageError, 'num_shared_experts=0'):
      self.convert(run.workdir, format='huggingface')
    self.assertFalse(self.target.exists())
    self.convert(run.workdir, format='seekax')  # It has one of ours.

  @pytest.mark.slow
  def test_a_damaged_state_is_refused(self):
    _, run, tree = self.trained(stored='BF16')
    run.save(tree)
    data = [p for p in (run.workdir / 'checkpoints/1').rglob('d/*')]
    broken = bytearray(data[0].read_bytes())
    broken[-1] ^= 1
    data[0].write_bytes(broken)
    with self.assertRaisesRegex(StorageError, data[0].name):
      self.convert(run.workdir, format='huggingface')
    self.assertFalse((self.target / 'config.json').exists())

  @pytest.mark.slow
  def test_stopped_it_goes_on_like_any_other(self):
    _, run, tree = self.trained(stored='BF16')
    run.save(tree)
    self.convert(run.workdir, format='huggingface')
    expected = content(self.target)
    shutil.rmtree(self.target)

    def stop(number, *unused):
      if number == 2:
        raise Stop

    with self.assertRaises(Stop):
      self.convert(run.workdir, format='huggingface', progress=stop)
    self.convert(run.workdir, format='huggingface')
    self.assertEqual(content(self.target), expected)


class SignalTest(ConvertCase):
  """Through the command line, in a process that signals itself."""

  CODE = (
    'import os, sys, time\n'
    'from seekax.cli import convert, main\n'
    'number = int(sys.argv.pop(1))\n'
    'class Progress(convert._Progress):\n'
    '  def file(self, *words):\n'
    '    super().file(*words)\n'
    '    os.kill(os.getpid(), number)\n'
    '    time.sleep(0.5)\n'
    'convert._Progress = Progress\n'
    'sys.exit(main.main())\n'
  )

  @parameterized.parameters(
    (signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)
  )
  def test_after_a_signal_the_same_command_goes_on(self, number, code):
    made = self.write()
    args = ['convert', f'--source={self.source}', f'--target={self.target}']
    args += ['--shard_size=20KB']
    run = subprocess.run(
      [sys.executable, '-c', self.CODE, str(int(number)), *args],
      capture_output=True,
      text=True,
      check=False,
    )
    self.assertEqual(run.returncode, code, msg=run.stderr)
    self.assertNotIn('Traceback', run.stderr)
    if number != signal.SIGKILL:
      self.assertIn('the same command goes on', run.stderr)
    self.assertFalse((self.target / 'run.json').exists())
    shards = list((self.target / 'weights').glob('*.safetensors'))
    self.assertNotEmpty(shards)
    self.assertLess(len(shards), math.ceil(self.size(made) / 20_000))
    self.convert(shard_bytes=20_000)
    self.assert_same(published.read_folder(self.target / 'weights'), made)
    self.assertFalse(list(self.target.rglob('*.tmp')))

  def size(self, made) -> int:
    return sum(array.nbytes for array in made.values())


class CheckCopiesTest(ConvertCase):
  @parameterized.parameters('embed_tokens', 'shared_head.head')
  def test_every_value_of_a_copy_counts(self, word):
    made = self.write(shards=1)
    name = f'model.layers.3.{word}.weight'
    slots = list(names.slots(published.SMALL))
    for row, column in ((0, 0), (14, 3), (28, 23)):
      spoiled = made | {name: made[name].copy()}
      spoiled[name][row, column] += 1
      published.write_file(self.source / 'model.safetensors', spoiled)
      with self.assertRaisesRegex(StorageError, f"'{name}' differs"):
        weight_checks.check_copies(weights.find_tensors(self.source), slots)

  def test_a_copy_of_another_dtype_may_have_the_same_values(self):
    made = self.write(shards=1)
    name = 'model.layers.3.embed_tokens.weight'
    made[name] = made[name].astype(np.float32)
    published.write_file(self.source / 'model.safetensors', made)
    weight_checks.check_copies(
      weights.find_tensors(self.source), names.slots(published.SMALL)
    )


if __name__ == '__main__':
  absltest.main()
