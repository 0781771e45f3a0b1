"""Laws of weights that are no numbers: found wherever they are read."""

import pathlib
from unittest import mock

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

import published
from seekax.cli import main
from seekax.storage import convert as convert_lib
from seekax.storage import finite
from seekax.storage import open as open_lib
from seekax.storage.manifest import StorageError

BAD = {
  'F32': (np.nan, -np.nan, np.inf, -np.inf),
  'BF16': (np.nan, -np.nan, np.inf, -np.inf),
}
DTYPES = published.DTYPES


def raw(values: np.ndarray) -> memoryview:
  return memoryview(values.reshape(-1).view(np.uint8))


class FirstBadTest(parameterized.TestCase):
  @parameterized.parameters('F32', 'BF16')
  def test_every_number_passes_and_nothing_else_does(self, dtype):
    # All sixteen bits above; what is below them changes no verdict.
    high = np.arange(1 << 16, dtype=np.uint32)
    values = {
      'F32': (high << 16).view(np.float32),
      'BF16': high.astype(np.uint16).view(DTYPES['BF16']),
    }[dtype]
    for at in range(0, 1 << 16, 64):
      part = values[at : at + 64].copy()
      with np.errstate(invalid='ignore'):  # A signalling NaN is cast.
        bad = ~np.isfinite(part.astype(np.float64))
      expected = int(bad.argmax()) if bad.any() else -1
      self.assertEqual(finite.first_bad(raw(part), dtype, 'w'), expected)

  def test_of_fp8_the_two_codes_of_nan_are_found(self):
    for code in range(256):
      part = np.array([0, 1, code], np.uint8)
      expected = 2 if code in (0x7F, 0xFF) else -1
      self.assertEqual(finite.first_bad(raw(part), 'F8_E4M3', 'w'), expected)

  @parameterized.parameters(0.0, -0.0, -1.0, -1e-40, *BAD['F32'])
  def test_a_scale_is_above_zero(self, scale):
    part = np.array([1e-40, 1.0, 3e38, scale], np.float32)
    self.assertEqual(finite.first_bad(raw(part), 'F32', 'w_scale_inv'), 3)
    self.assertEqual(finite.first_bad(raw(part[:3]), 'F32', 'w_scale_inv'), -1)


class EveryLoadTest(parameterized.TestCase):
  """One value is spoilt; everything that reads weights names its tensor."""

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def write(self, stored: str, name: str, value, at: int = -1):
    made = published.tensors(published.SMALL, stored)
    made = {k: np.array(v) for k, v in made.items()}
    array = made[name]
    if array.dtype == ml_dtypes.float8_e4m3fn:
      array.view(np.uint8).reshape(-1)[at] = value
    else:
      array.reshape(-1)[at] = value
    fields = published.fields(published.SMALL, made)
    published.write_folder(self.folder / 'in', fields, made)
    return self.folder / 'in'

  @parameterized.parameters(
    ('F32', 'model.embed_tokens.weight', np.nan),
    ('BF16', 'lm_head.weight', -np.inf),
    ('BF16', 'model.layers.1.mlp.gate.e_score_correction_bias', np.inf),
    ('F8_E4M3', 'model.layers.1.mlp.experts.2.up_proj.weight', 0x7F),
    ('F8_E4M3', 'model.layers.0.self_attn.o_proj.weight', 0xFF),
    ('F8_E4M3', 'model.layers.0.mlp.up_proj.weight_scale_inv', 0.0),
    ('F8_E4M3', 'model.layers.0.mlp.up_proj.weight_scale_inv', -1.0),
  )
  def test_load_verify_and_convert_name_the_tensor(self, stored, name, value):
    source = self.write(stored, name, value)
    for expand_fp8 in (False, True):
      with self.assertRaisesRegex(StorageError, f"{name}'.* no weight"):
        open_lib.open_checkpoint(source, expand_fp8=expand_fp8)
    for number, options in enumerate(
      (
        convert_lib.Options(),
        convert_lib.Options(format='huggingface'),
        convert_lib.Options(dtype='float32'),
      )
    ):
      target = self.folder / f'out{number}'
      with self.assertRaisesRegex(StorageError, f"{name}'.* no weight"):
        convert_lib.convert(str(source), str(target), options)
      self.assertFalse((target / 'run.json').exists())
      self.assertFalse((target / 'config.json').exists())
    with mock.patch('sys.stderr') as stderr:
      self.assertEqual(main.main(['inspect', '--verify', str(source)]), 3)
    self.assertIn(name, str(stderr.write.mock_calls))

  def test_the_position_is_that_of_the_published_tensor(self):
    source = self.write('BF16', 'lm_head.weight', np.nan, at=5 * 24 + 7)
    with self.assertRaisesRegex(StorageError, r'value nan at \[5, 7\]'):
      open_lib.open_checkpoint(source)


class TreeTest(parameterized.TestCase):
  @parameterized.parameters(jnp.float32, jnp.bfloat16)
  def test_the_leaf_and_the_position_are_named(self, dtype):
    good = jnp.ones((700, 900), dtype)
    tree = {'params': {'a': good, 'b': good.at[600, 3].set(jnp.nan)}}
    finite.check_tree({'params': {'a': good, 'n': np.ones(3, np.int32)}}, 'x')
    with self.assertRaisesRegex(
      StorageError, r'x: weights/params/b holds nan at \[600, 3\]'
    ):
      finite.check_tree(tree, 'x', 'weights')

  def test_on_a_device_it_is_looked_at_there(self):
    for value in (0.0, np.nan, np.inf, -np.inf):
      for dtype in (jnp.float32, jnp.bfloat16):
        array = jnp.ones((3, 5), dtype).at[2, 4].set(value)
        self.assertEqual(bool(finite._all_finite(array)), np.isfinite(value))

  def test_a_scalar_is_looked_at_too(self):
    with self.assertRaisesRegex(StorageError, r'holds -inf at \[\]'):
      finite.check_tree(jax.numpy.float32(-np.inf), 'x', 'step')


if __name__ == '__main__':
  absltest.main()
