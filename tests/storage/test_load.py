"""Laws of loading: the tree is the plain mapping of every tensor."""

import dataclasses
import functools
import json
import math
import os
import pathlib
import subprocess
import sys
from typing import Any
from unittest import mock

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import published
from reference import cases
from reference import fp8 as oracle
from seekax.inference import scoring
from seekax.inference.engine import generate
from seekax.model.parameters import abstract_weights
from seekax.model.transformer import Transformer
from seekax.ops.quantize import BlockScaled
from seekax.storage import names
from seekax.storage import open as open_lib
from seekax.storage.load import load
from seekax.storage.safetensors_file import Files

ROOT = pathlib.Path(__file__).parents[2]
BF16 = ml_dtypes.bfloat16


_all_logits = jax.jit(scoring.all_logits, static_argnums=0)


@functools.cache
def shapes(config):
  return abstract_weights(config).tree


def plain(config, made: published.Tensors, dtype: str) -> dict[str, Any]:
  """The tree by the plain mapping: every tensor put where it belongs."""
  values = published.expanded(made)
  tree = jax.tree.map(
    lambda leaf: np.full(leaf.shape, np.nan, np.float32), shapes(config)
  )
  for slot in names.slots(config):
    if not slot.is_copy:
      part = names.leaf(tree, slot.path)[slot.index]
      part[...] = slot.to_ours(values[slot.name])

  def cast(path, leaf):
    keys = {entry.key for entry in path}
    if keys & {'router', 'scale', 'router_bias'}:
      return leaf
    return leaf.astype(jnp.dtype(dtype))

  return jax.tree_util.tree_map_with_path(cast, tree)


def unlike(found, expected) -> list[str]:
  """Paths of leaves that differ in dtype, shape or any bit."""
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  pairs = zip(
    jax.tree_util.tree_leaves_with_path(found),
    jax.tree.leaves(expected),
    strict=True,
  )
  return [
    jax.tree_util.keystr(path)
    for (path, one), other in pairs
    if one.dtype != other.dtype
    or one.shape != other.shape
    or np.asarray(one).tobytes() != np.asarray(other).tobytes()
  ]


def expand_all(tree):
  """The values of what is FP8, by the oracle."""

  def one(weight):
    if not isinstance(weight, BlockScaled):
      return weight
    shape = weight.codes.shape
    lead = len(shape) - weight.inputs - weight.outputs
    width = math.prod(shape[lead : lead + weight.inputs])
    codes = np.asarray(weight.codes).reshape(*shape[:lead], width, -1)
    out = np.empty(codes.shape, np.float32)
    for at in np.ndindex(*shape[:lead]):
      out[at] = oracle.dequantize(codes[at], np.asarray(weight.scales[at]))
    return out.reshape(shape).astype(jnp.dtype(weight.dtype))

  return jax.tree.map(one, tree, is_leaf=lambda x: isinstance(x, BlockScaled))


class TreeTest(parameterized.TestCase):
  def load(self, config, made, dtype, shards=2, **more):
    folder = pathlib.Path(self.create_tempdir().full_path)
    fields = published.fields(config, made)
    published.write_folder(folder, fields, made, shards)
    found = open_lib.find(folder)
    found.check()
    self.assertEqual(found.model, config)
    return load(config, found.tensors, dtype, **more)

  @parameterized.parameters(
    (published.SMALL, 'F32', 'bfloat16'),
    (published.SMALL, 'BF16', 'float32'),
    (published.V2, 'F32', 'float32'),
    (published.LLAMA, 'BF16', 'bfloat16'),
  )
  def test_the_tree_is_the_plain_mapping(self, config, stored, dtype):
    made = published.tensors(config, stored)
    tree = self.load(config, made, dtype)
    self.assertEmpty(unlike(tree, plain(config, made, dtype)))

  @parameterized.parameters('float32', 'bfloat16')
  def test_fp8_expanded_is_the_plain_mapping(self, dtype):
    made = published.tensors(published.MODEL, 'F8_E4M3')
    tree = self.load(published.MODEL, made, dtype, expand_fp8=True)
    self.assertEmpty(unlike(tree, plain(published.MODEL, made, dtype)))

  @parameterized.parameters('float32', 'bfloat16')
  def test_fp8_stays_fp8_and_means_the_same(self, dtype):
    made = published.tensors(published.MODEL, 'F8_E4M3')
    tree = self.load(published.MODEL, made, dtype)
    leaves = jax.tree_util.tree_leaves_with_path(
      tree, is_leaf=lambda x: isinstance(x, BlockScaled)
    )
    for path, leaf in leaves:
      name = jax.tree_util.keystr(path)
      is_fp8 = not any(
        word in name for word in ('scale', 'table', 'head', 'router', 'project')
      )
      self.assertEqual(isinstance(leaf, BlockScaled), is_fp8, msg=name)
      if is_fp8:
        self.assertEqual((leaf.codes.dtype, leaf.dtype), (np.uint8, dtype))
        self.assertEqual(leaf.scales.dtype, np.float32)
    expected = plain(published.MODEL, made, dtype)
    self.assertEmpty(unlike(expand_all(tree), expected))

  def test_a_leaf_of_mixed_dtypes_is_expanded(self):
    made = published.tensors(published.MODEL, 'mixed')
    tree = self.load(published.MODEL, made, 'float32')
    expected = plain(published.MODEL, made, 'float32')
    self.assertEmpty(unlike(expand_all(tree), expected))
    experts = tree['params']['expert_layers']['experts']
    self.assertNotIsInstance(experts['gate'], BlockScaled)

  @parameterized.parameters((5, True), (130, False))
  def test_small_blocks_give_the_same(self, rows, expand_fp8):
    # As if every tensor were far larger than what is read at once.
    made = published.tensors(published.MODEL, 'F8_E4M3')
    self.enter_context(
      mock.patch('seekax.storage.load.BLOCK_BYTES', rows * 640)
    )
    tree = self.load(published.MODEL, made, 'float32', expand_fp8=expand_fp8)
    expected = plain(published.MODEL, made, 'float32')
    self.assertEmpty(unlike(expand_all(tree), expected))

  def test_every_byte_is_read_once_and_copies_not_at_all(self):
    made = published.tensors(published.MODEL, 'F8_E4M3')
    with Files() as files:
      self.load(published.MODEL, made, 'float32', files=files)
    copies = [s.name for s in names.slots(published.MODEL) if s.is_copy]
    own = sum(v.nbytes for k, v in made.items() if k not in copies)
    self.assertEqual(files.bytes_read, own)

  def test_fused_experts_load_the_same(self):
    config = published.SMALL
    made = published.tensors(config, 'BF16')
    fused = {k: v for k, v in made.items() if '.experts.' not in k}
    for layer in (1, 2, 3):
      at = f'model.layers.{layer}.mlp.experts'
      gate, up, down = (
        np.stack([made[f'{at}.{e}.{word}_proj.weight'] for e in range(4)])
        for word in ('gate', 'up', 'down')
      )
      fused[f'{at}.gate_up_proj'] = np.concatenate([gate, up], axis=1)
      fused[f'{at}.down_proj'] = down
    tree = self.load(config, fused, 'float32')
    self.assertEmpty(unlike(tree, plain(config, made, 'float32')))


class ModelTest(parameterized.TestCase):
  """A model of published weights computes."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = pathlib.Path(absltest.FLAGS.test_tmpdir) / cls.__name__
    # One layer of each kind is quick to compile.
    cls.config = dataclasses.replace(published.MODEL, num_layers=2)
    cls.made = published.tensors(cls.config, 'F8_E4M3')
    published.write_folder(
      cls.folder, published.fields(cls.config, cls.made), cls.made
    )
    cls.fp8 = open_lib.open_checkpoint(cls.folder)
    cls.expanded = open_lib.open_checkpoint(cls.folder, expand_fp8=True)
    rng = np.random.default_rng(0)
    cls.tokens = rng.integers(0, cls.config.vocab_size, (2, 12), np.int32)

  def logits(self, opened, tokens=None):
    return _all_logits(
      Transformer(opened.config.model),
      opened.weights,
      self.tokens if tokens is None else tokens,
    )

  def test_logits_of_fp8_are_those_of_its_values_bit_for_bit(self):
    self.assertIsInstance(
      self.fp8.weights.params['dense_layers']['mlp']['up'], BlockScaled
    )
    for found, expected in zip(
      self.logits(self.fp8), self.logits(self.expanded), strict=True
    ):
      self.assertEqual(found.dtype, jnp.float32)
      np.testing.assert_array_equal(found, expected)

  def test_logits_are_those_of_the_oracle(self):
    length = self.tokens.shape[1]
    rows = dataclasses.replace(
      cases.batch(self.config),
      tokens_BL=self.tokens,
      targets_BL=np.roll(self.tokens, -1, axis=1),
      positions_BL=np.tile(np.arange(length), (2, 1)),
    )
    tree = plain(self.config, self.made, 'float32')
    expected = cases.run_oracle(
      self.config, tree['params'], tree['router_bias'], rows, None
    )
    logits_BLV, mtp_JBLV = self.logits(self.fp8)
    for row, sequence in enumerate(expected):
      self.assertLess(
        cases.difference(logits_BLV[row], sequence.logits_LV), 1e-4
      )
      # The last position has no next token to embed.
      self.assertLess(
        cases.difference(mtp_JBLV[0, row, :-1], sequence.mtp_logits[0][:-1]),
        1e-4,
      )

  @pytest.mark.slow
  def test_fp8_generates_the_likeliest_tokens(self):
    prompt = self.tokens[0, :8]
    model = Transformer(self.config)
    text = list(generate(model, self.fp8.weights, prompt, 4))
    rows = np.stack([np.concatenate([prompt, text]), self.tokens[1]])
    logits_BLV, _ = self.logits(self.fp8, rows.astype(np.int32))
    likeliest = np.argmax(logits_BLV[0, 7:11], axis=-1)
    self.assertEqual(text, likeliest.tolist())

  @pytest.mark.slow
  def test_fp8_is_scored_by_its_logits(self):
    totals = scoring.log_likelihoods(
      Transformer(self.config), self.fp8.weights, list(self.tokens), 2
    )
    logits_BLV, _ = self.logits(self.expanded)
    scores_BLV = np.asarray(jax.nn.log_softmax(logits_BLV), np.float64)
    for row, total in enumerate(totals):
      chosen = scores_BLV[row, np.arange(11), self.tokens[row, 1:]]
      np.testing.assert_allclose(total, chosen.sum(), rtol=1e-5)


# Run where four devices are pretended. Prints, for every way to split and to
# read, the bytes read and the paths of leaves that differ from one device's.
_SHARDED = """
import json, pathlib, sys
import jax
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
from seekax.model.parameters import abstract_weights
from seekax.storage import open as open_lib
from seekax.storage.load import load
from seekax.storage.safetensors_file import Files

assert jax.device_count() == 4
found = open_lib.find(sys.argv[1])
found.check()
mesh = jax.sharding.Mesh(np.array(jax.devices()), ('x',))
WAYS = {
  'experts': lambda n, s: 1 if 'experts' in n and len(s) == 4 else None,
  'columns': lambda n, s: len(s) - 2 if len(s) > 1 else None,
  'rows': lambda n, s: None if n[-1][-3:] == '_up' else len(s) - 1,
  'heads': lambda n, s: {'query_up': -2, 'kv_up': -2, 'out': -3}.get(n[-1]),
  'whole': lambda n, s: None,
}

def shardings(way):
  def one(path, leaf):
    keys = [entry.key for entry in path]
    axis = WAYS[way](keys, leaf.shape)
    spec = [None] * len(leaf.shape)
    if axis is not None and leaf.shape[axis] % 4 == 0:
      spec[axis] = 'x'
    return NamedSharding(mesh, PartitionSpec(*spec))
  return jax.tree_util.tree_map_with_path(one, abstract_weights(found.model).tree)

def bits(tree):
  return {
    jax.tree_util.keystr(path): np.asarray(leaf).tobytes()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }

report = {}
for expand_fp8 in (False, True):
  expected = bits(load(found.model, found.tensors, 'float32', expand_fp8))
  for way in WAYS if not expand_fp8 else ('experts', 'columns', 'rows'):
    files = Files()
    tree = load(
      found.model, found.tensors, 'float32', expand_fp8, shardings(way), files
    )
    split = [
      leaf for leaf in jax.tree.leaves(tree)
      if not leaf.sharding.is_fully_replicated
    ]
    here = bits(tree)
    report[f'{way} {expand_fp8}'] = {
      'bytes': files.bytes_read,
      'split': len(split),
      'unlike': [name for name in expected if here[name] != expected[name]],
    }
print(json.dumps(report))
"""


class ShardedTest(parameterized.TestCase):
  """Four devices that are pretended, in a process of their own."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = pathlib.Path(absltest.FLAGS.test_tmpdir) / cls.__name__
    made = published.tensors(published.MODEL, 'F8_E4M3')
    published.write_folder(
      cls.folder, published.fields(published.MODEL, made), made, 2
    )
    copies = [s.name for s in names.slots(published.MODEL) if s.is_copy]
    own = {k: v.nbytes for k, v in made.items() if k not in copies}
    cls.total = sum(own.values())
    cls.plain = sum(
      v for k, v in own.items() if k.endswith('_scale_inv')
    ) + sum(v for k, v in own.items() if f'{k}_scale_inv' not in own)
    flags = os.environ.get('XLA_FLAGS', '')
    flags += ' --xla_force_host_platform_device_count=4'
    run = subprocess.run(
      [sys.executable, '-c', _SHARDED, str(cls.folder)],
      env={**os.environ, 'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'},
      capture_output=True,
      text=True,
      check=False,
    )
    assert run.returncode == 0, run.stderr
    cls.report = json.loads(run.stdout)

  def test_split_over_devices_it_is_the_same(self):
    self.assertLen(self.report, 8)
    for way, about in self.report.items():
      self.assertEqual(about['unlike'], [], msg=way)
      self.assertEqual(about['split'] > 0, 'whole' not in way, msg=way)

  @parameterized.parameters('experts False', 'experts True', 'whole False')
  def test_every_byte_is_read_once(self, way):
    self.assertEqual(self.report[way]['bytes'], self.total)

  @parameterized.parameters('rows', 'heads')
  def test_rows_that_are_split_are_read_once(self, way):
    # Scales are whole on every device, and the table is split in columns.
    self.assertLessEqual(
      self.report[f'{way} False']['bytes'], self.total + 3 * self.plain
    )


if __name__ == '__main__':
  absltest.main()
