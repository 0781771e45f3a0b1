"""The ladder of implementations, on machines made up."""

import dataclasses
import functools

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp

from seekax.configuration import presets
from seekax.configuration.compute import ComputeConfig
from seekax.configuration.errors import ConfigError
from seekax.configuration.fp8 import Fp8Config
from seekax.ops import (
  backends,
  cudnn_attention,
  devices,
  versions,
)
from seekax.ops.backends import Device

_TOKAMAX = (0, 0, 17)
_CPU = Device()
_BARE_CPU_WITH_TOKAMAX = Device(tokamax=_TOKAMAX)
_TPU = Device('tpu', tokamax=_TOKAMAX)
_ROCM = Device('rocm')
_VOLTA = Device('cuda', (7, 0), cudnn=91000)
_AMPERE = Device('cuda', (8, 0), _TOKAMAX, True, 91002)
_HOPPER = Device('cuda', (9, 0), _TOKAMAX, True, 91002)
_HOPPER_BARE = Device('cuda', (9, 0), cudnn=91002)
_HOPPER_OLD_CUDNN = Device('cuda', (9, 0), _TOKAMAX, False, 90300)
_HOPPER_OLD_TOKAMAX = Device('cuda', (9, 0), (0, 0, 12), True, 91002)
_HOPPER_NOTHING = Device('cuda', (9, 0))
_HOPPER_NEW_TOKAMAX = Device('cuda', (9, 0), (0, 0, 18), True, 91002)
_BLACKWELL = Device('cuda', (10, 0), _TOKAMAX, True, 91200)


def _grouped(requested, device, dtype='bfloat16', **more):
  return backends.choose_grouped_matmul(requested, device, dtype, **more)


def _attention(requested, device, dtype='bfloat16', widths=(192, 128), **more):
  more.setdefault('segments', False)
  return backends.choose_attention(
    requested,
    device,
    dtype,
    qk_width=widths[0],
    value_width=widths[1],
    **more,
  )


class LadderTest(parameterized.TestCase):
  @parameterized.parameters(
    (_CPU, 'float32', 'blocked'),
    (_BARE_CPU_WITH_TOKAMAX, 'bfloat16', 'blocked'),
    (_TPU, 'bfloat16', 'blocked'),
    (_ROCM, 'bfloat16', 'blocked'),
    (_VOLTA, 'bfloat16', 'blocked'),
    (_AMPERE, 'bfloat16', 'pallas'),
    (_HOPPER, 'bfloat16', 'pallas'),
    (_HOPPER, 'float32', 'pallas'),
    (_HOPPER, 'float16', 'blocked'),
    (_BLACKWELL, 'bfloat16', 'pallas'),
  )
  def test_auto_takes_the_first_grouped_matmul_that_can(
    self, device, dtype, expected
  ):
    self.assertEqual(_grouped('auto', device, dtype).name, expected)

  @parameterized.parameters(
    (_CPU, {}, 'chunked'),
    (_TPU, {}, 'chunked'),
    (_VOLTA, {}, 'chunked'),
    # Unequal widths want Hopper and cuDNN 9.10.
    (_AMPERE, {}, 'chunked'),
    (_AMPERE, {'widths': (128, 128)}, 'cudnn'),
    (_AMPERE, {'widths': (192, 192)}, 'chunked'),
    (_HOPPER, {}, 'cudnn'),
    (_HOPPER_BARE, {}, 'cudnn'),
    (_HOPPER, {'widths': (20, 12)}, 'tokamax'),
    (_HOPPER, {'dtype': 'float32'}, 'chunked'),
    (_HOPPER_OLD_CUDNN, {}, 'tokamax'),
    (_HOPPER_OLD_CUDNN, {'widths': (128, 128)}, 'cudnn'),
    (_HOPPER_NOTHING, {}, 'chunked'),
    (_BLACKWELL, {}, 'cudnn'),
    (_BLACKWELL, {'widths': (192, 192)}, 'tokamax'),
    # Documents apart: never cuDNN.
    (_HOPPER, {'segments': True}, 'tokamax'),
    (_HOPPER_BARE, {'segments': True}, 'chunked'),
    (_HOPPER_OLD_TOKAMAX, {'segments': True}, 'chunked'),
  )
  def test_auto_takes_the_first_attention_that_can(
    self, device, need, expected
  ):
    self.assertEqual(_attention('auto', device, **need).name, expected)

  @parameterized.parameters(
    (_CPU, 1, 'plain'),
    (_HOPPER, 1, 'pallas'),
    (_HOPPER, 8, 'plain'),
  )
  def test_auto_decodes_one_request_with_the_kernel(
    self, device, requests, expected
  ):
    choice = backends.choose_latent_attention(
      'auto', device, 'bfloat16', requests=requests
    )
    self.assertEqual(choice.name, expected)

  @parameterized.parameters(
    (_CPU, {}, 'emulated'),
    (_AMPERE, {}, 'emulated'),
    (_HOPPER, {}, 'pallas'),
    (_BLACKWELL, {}, 'pallas'),
    (_HOPPER, {'tile_size': 64}, 'emulated'),
    (_HOPPER, {'gradient_format': 'e5m2'}, 'emulated'),
    (_HOPPER, {'accumulation': 'tensor_core'}, 'emulated'),
    (_HOPPER, {'products': 'emulated'}, 'emulated'),
  )
  def test_fp8_products(self, device, recipe, expected):
    choice = backends.choose_fp8_product(Fp8Config(**recipe), device)
    self.assertEqual(choice.name, expected)

  def test_auto_says_what_it_passed_by(self):
    reason = _attention('auto', _HOPPER_BARE, segments=True).reason
    self.assertIn('cudnn: would let documents see each other', reason)
    self.assertIn('tokamax: tokamax is not installed', reason)
    self.assertIn('compute capability 9.0', reason)
    self.assertEqual(_grouped('auto', _CPU).reason, 'the portable one, on cpu')

  @parameterized.parameters(
    ('blocked', _CPU),
    ('ragged', _CPU),
    ('dense', _HOPPER),
    ('pallas', _AMPERE),
    ('mosaic', _HOPPER_NEW_TOKAMAX),
    ('triton', _BLACKWELL),
  )
  def test_what_can_run_is_taken_when_asked_for(self, name, device):
    choice = _grouped(name, device)
    self.assertEqual((choice.name, choice.reason), (name, 'asked for'))

  def test_kernels_run_step_by_step_anywhere(self):
    self.assertEqual(_grouped('pallas', _CPU, interpret=True).name, 'pallas')


class RefusedTest(parameterized.TestCase):
  def _says(self, words, choose, *args, **more):
    with self.assertRaises(ConfigError) as caught:
      choose(*args, **more)
    text = str(caught.exception)
    for word in words:
      self.assertIn(word, text)
    self.assertNotIn('\n', text)
    self.assertRegex(text, r'^(compute|fp8)\.[a-z_]+=')

  @parameterized.parameters(
    ('pallas', _CPU, 'bfloat16', ('NVIDIA GPU', 'cpu')),
    ('pallas', _VOLTA, 'bfloat16', ('8.0', '7.0')),
    ('pallas', _HOPPER, 'float16', ('float16',)),
    ('mosaic', _CPU, 'bfloat16', ('NVIDIA GPU',)),
    ('mosaic', _AMPERE, 'bfloat16', ('9.0', '8.0')),
    ('mosaic', _BLACKWELL, 'bfloat16', ('gradient of the weights', 'pallas')),
    ('mosaic', _HOPPER_BARE, 'bfloat16', ('pip install', 'tokamax>=0.0.17')),
    ('mosaic', _HOPPER_OLD_TOKAMAX, 'bfloat16', ('0.0.12', '0.0.17')),
    ('mosaic', _HOPPER, 'float32', ('bfloat16', 'float32')),
    ('mosaic', _HOPPER, 'bfloat16', ('0.0.17', '3 % of its norm', 'pallas')),
    ('triton', _HOPPER_OLD_CUDNN, 'bfloat16', ('jax-triton',)),
    ('triton', _ROCM, 'bfloat16', ('rocm',)),
    ('palas', _HOPPER, 'bfloat16', ("did you mean 'pallas'",)),
  )
  def test_grouped_matmul(self, name, device, dtype, words):
    self._says(words, _grouped, name, device, dtype)

  @parameterized.parameters(
    (_CPU, {}, ('NVIDIA GPU', 'cpu')),
    (_AMPERE, {}, ('9.0', '8.0')),
    (_HOPPER, {'gradient_format': 'e5m2'}, ('e4m3', 'e5m2', 'emulated')),
  )
  def test_fp8_kernel(self, device, recipe, words):
    recipe = Fp8Config(products='pallas', **recipe)
    choose = functools.partial(backends.choose_fp8_product, recipe)
    self._says(words, choose, device)

  @parameterized.parameters('pallas', 'mosaic', 'triton', 'ragged', 'dense')
  def test_grouped_matmul_in_fp8(self, name):
    words = 'multiplies no FP8', 'take blocked'
    self._says(words, _grouped, name, _HOPPER, plain=False)
    self.assertEqual(_grouped('auto', _HOPPER, plain=False).name, 'blocked')
    self.assertEqual(_grouped('blocked', _CPU, plain=False).name, 'blocked')

  @parameterized.parameters(
    ('cudnn', _CPU, {}, ('NVIDIA GPU',)),
    ('cudnn', _HOPPER, {'segments': True}, ('documents', 'chunked')),
    ('cudnn', _AMPERE, {}, ('192', '128', 'Hopper')),
    ('cudnn', _HOPPER_OLD_CUDNN, {}, ('9.10', '9.3.0')),
    ('cudnn', _HOPPER_NOTHING, {}, ('cuDNN 9', 'none')),
    ('cudnn', _HOPPER, {'dtype': 'float32'}, ('float32',)),
    ('cudnn', _HOPPER, {'widths': (320, 320)}, ('320', '256')),
    ('cudnn', _BLACKWELL, {'widths': (192, 192)}, ('backward', 'Blackwell')),
    ('tokamax', _CPU, {}, ('NVIDIA GPU',)),
    ('tokamax', _AMPERE, {}, ('9.0',)),
    ('tokamax', _HOPPER_BARE, {}, ('pip install',)),
    ('flash', _HOPPER, {}, ('flash',)),
  )
  def test_attention(self, name, device, need, words):
    self._says(words, _attention, name, device, **need)


class PresentTest(absltest.TestCase):
  def test_this_machine_takes_the_portable_ones(self):
    device = devices.present()
    self.assertEqual(device.platform, jax.default_backend())
    if device.platform == 'cpu':
      self.assertEqual(_grouped('auto', device).name, 'blocked')
      self.assertEqual(_attention('auto', device).name, 'chunked')

  def test_a_training_run_knows_its_choices(self):
    dense = presets.llama3_tiny()
    mixture = presets.tiny()
    for model, subjects in (
      (dense, [backends.ATTENTION]),
      (mixture, [backends.ATTENTION, backends.GROUPED_MATMUL]),
    ):
      choices = backends.for_training(model, ComputeConfig(), 'float32', True)
      self.assertEqual([choice.subject for choice in choices], subjects)
    compute = ComputeConfig(grouped_matmul='mosaic')
    if jax.default_backend() == 'cpu':
      with self.assertRaisesRegex(ConfigError, 'needs an NVIDIA GPU'):
        backends.for_training(mixture, compute, 'float32', False)

  def test_choices_are_made_for_the_device_compiled_for(self):
    before = devices.present()
    with devices.compiling_for(_HOPPER):
      self.assertEqual(devices.present(), _HOPPER)
      choices = backends.for_training(
        presets.tiny(), ComputeConfig(), 'bfloat16', True
      )
    self.assertEqual(devices.present(), before)
    self.assertEqual([x.name for x in choices], ['tokamax', 'pallas'])

  def test_a_device_that_is_not_there_cannot_be_asked(self):
    device = dataclasses.replace(_HOPPER, attached=False)
    choice = _attention('auto', device)
    self.assertEqual(choice.name, 'chunked')
    self.assertIn('a GPU that is present', choice.reason)
    self.assertEqual(_grouped('auto', device).name, 'pallas')
    for name in ('cudnn', 'tokamax'):
      with self.assertRaisesRegex(ConfigError, 'a GPU that is present'):
        _attention(name, device)

  def test_versions_are_read_without_loading(self):
    self.assertIsInstance(versions.tokamax(), tuple)
    self.assertIsInstance(versions.has_triton(), bool)


class CudnnTest(absltest.TestCase):
  def test_jax_still_has_the_function_for_unequal_widths(self):
    """On a CPU it gets as far as asking for cuDNN."""
    q = jnp.ones((1, 8, 2, 24), jnp.bfloat16)
    v = jnp.ones((1, 8, 2, 16), jnp.bfloat16)
    if versions.cudnn():
      self.skipTest('there is a cuDNN')
    with self.assertRaisesRegex(RuntimeError, 'cuDNN is not detected'):
      cudnn_attention.causal_attention(q, q, v, 1.0)
    with self.assertRaisesRegex(RuntimeError, 'cuDNN is not detected'):
      cudnn_attention.causal_attention(q, q, q, 1.0)


if __name__ == '__main__':
  absltest.main()
