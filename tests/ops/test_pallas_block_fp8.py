"""The FP8 kernel, step by step, against float64 products of the same codes."""

import dataclasses
from unittest import mock

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from reference import cases, cuda
from reference import fp8 as oracle
from seekax.configuration.fp8 import Fp8Config
from seekax.ops import devices, pallas_block_fp8
from seekax.ops.block_fp8 import ACTIVATION_FLOOR, Tiling
from seekax.ops.block_fp8_products import Fp8Products
from seekax.ops.pallas_block_fp8 import Cut

_ALONG = Tiling(1, 128, floor=ACTIVATION_FLOOR)
_DOWN = Tiling(128, 1, floor=ACTIVATION_FLOOR)
_WEIGHT = Tiling(128, 128)
_WHOLE = Tiling(0, 0)


def _rounded(x, tiling: Tiling) -> np.ndarray:
  if x.ndim > 2:
    return np.stack([_rounded(each, tiling) for each in x])
  return oracle.round_tiles(
    x,
    tiling.rows,
    tiling.columns,
    floor=tiling.floor,
    power_of_two=tiling.power_of_two,
  ).astype(np.float64)


def _normal(seed: int, *shape) -> np.ndarray:
  rng = np.random.default_rng(seed)
  # Rows and columns of very different sizes: a wrong scale shows.
  sizes = 2.0 ** rng.integers(-6, 6, (shape[-2], 1))
  return (sizes * rng.standard_normal(shape)).astype(np.float32)


class ProductTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('forward', (70, 300), _ALONG, (300, 200), _WEIGHT, (1, 0)),
    ('input_gradient', (70, 200), _ALONG, (300, 200), _WEIGHT, (1, 1)),
    ('weight_gradient', (300, 70), _DOWN, (300, 200), _DOWN, (0, 0)),
    ('experts', (2, 130, 256), _ALONG, (2, 256, 64), _WEIGHT, (1, 0)),
    ('one_scale', (70, 300), _WHOLE, (300, 200), _WHOLE, (1, 0)),
    ('blocks', (300, 140), _WEIGHT, (300, 20), _DOWN, (0, 0)),
    ('little', (3, 5), _ALONG, (5, 2), _WEIGHT, (1, 0)),
    (
      'powers_of_two',
      (9, 256),
      dataclasses.replace(_ALONG, power_of_two=True),
      (256, 17),
      _WEIGHT,
      (1, 0),
    ),
  )
  def test_is_the_product_of_the_codes(self, a_shape, a, b_shape, b, summed):
    x, y = _normal(0, *a_shape), _normal(1, *b_shape)
    self._check(x, a, y, b, summed, None)

  @parameterized.parameters(
    Cut(32, 16, 4, 2, 1), Cut(16, 64, 4, 2, 3), Cut(64, 32, 4, 2, 8)
  )
  def test_any_cut_gives_every_entry(self, cut):
    x, y = _normal(0, 150, 256), _normal(1, 256, 90)
    self._check(x, _ALONG, y, _WEIGHT, (1, 0), cut)

  def _check(self, x, a, y, b, summed, cut) -> None:
    run = cases.jit(
      lambda x, y: pallas_block_fp8.product(
        x, a, y, b, summed, interpret=True, cut=cut
      )
    )
    actual = np.asarray(run(x, y))
    x, y = _rounded(x, a), _rounded(y, b)
    if summed[0] == 0:
      x = np.swapaxes(x, -1, -2)
    if summed[1] == 1:
      y = np.swapaxes(y, -1, -2)
    bound = 128 * 2.0**-24 * (np.abs(x) @ np.abs(y))
    self.assertEqual((actual.shape, actual.dtype), (bound.shape, np.float32))
    self.assertTrue(np.all(np.abs(actual - x @ y) <= bound))

  def test_lowers_for_cuda_at_the_size_of_v3(self):
    def run(x, w):
      return pallas_block_fp8.product(x, _ALONG, w, _WEIGHT, (1, 0))

    shape = jax.ShapeDtypeStruct
    (text,) = cuda.kernels(
      run, shape((4096, 7168), 'bfloat16'), shape((7168, 18432), 'bfloat16')
    )
    self.assertIn('f8E4M3FN', text)
    self.assertIn('tt.dot', text)


class PolicyTest(absltest.TestCase):
  def test_gradients_by_the_kernel_are_those_of_the_emulation(self):
    x, w, dy = _normal(0, 300, 256), _normal(1, 256, 130), _normal(2, 300, 130)
    products = Fp8Products(Fp8Config(), True, True)
    run = pallas_block_fp8.product
    hopper = devices.Device('cuda', (9, 0))
    found = []
    for device in (hopper, devices.Device()):
      with (
        mock.patch.object(devices, 'present', lambda device=device: device),
        mock.patch.object(
          pallas_block_fp8, 'product', lambda *a: run(*a, interpret=True)
        ),
      ):
        found.append(
          (
            products.forward(x, w),
            products.input_gradient(dy, w, jnp.float32),
            products.weight_gradient(x, dy, jnp.float32),
          )
        )
    for kernel, emulated in zip(*found, strict=True):
      apart = np.linalg.norm(kernel - emulated) / np.linalg.norm(emulated)
      self.assertLess(apart, 1e-6)
      self.assertGreater(apart, 0)  # They add up differently.

  def test_what_the_compiler_splits_is_emulated(self):
    x, w = _normal(0, 40, 256), _normal(1, 256, 130)
    products = Fp8Products(Fp8Config())
    mesh = jax.sharding.AbstractMesh(
      (2,), ('data',), axis_types=(jax.sharding.AxisType.Auto,)
    )
    device = devices.Device('cuda', (9, 0))
    with (
      mock.patch.object(devices, 'present', lambda: device),
      mock.patch.object(pallas_block_fp8, 'product') as kernel,
    ):
      with jax.sharding.use_abstract_mesh(mesh):
        jax.eval_shape(products.forward, x, w)
      kernel.assert_not_called()
      kernel.return_value = jnp.zeros((40, 130))
      products.forward(x, w)
      kernel.assert_called_once()


if __name__ == '__main__':
  absltest.main()
