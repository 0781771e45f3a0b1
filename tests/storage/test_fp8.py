"""Laws of FP8 blocks at rest, against a slow oracle."""

from absl.testing import absltest, parameterized
import ml_dtypes
import numpy as np

from reference import fp8 as oracle
from seekax.storage import fp8

E4M3, BF16 = ml_dtypes.float8_e4m3fn, ml_dtypes.bfloat16
# Whole, ragged in rows (kv_a_proj's 576), in columns, in both, one value.
SHAPES = ((128, 256), (576, 140), (256, 200), (130, 257), (5, 3), (1, 1))
TINY = float(np.finfo(np.float32).tiny)


def draw(shape, seed=0, low=-3, high=3) -> np.ndarray:
  """float32 of very different sizes from block to block and within one."""
  rng = np.random.default_rng(seed)
  sizes = 10.0 ** rng.uniform(low, high, [-(-s // 128) for s in shape])
  sizes = sizes.repeat(128, 0).repeat(128, 1)[: shape[0], : shape[1]]
  return (rng.standard_normal(shape) * sizes).astype(np.float32)


def draw_codes(shape, seed=0) -> tuple[np.ndarray, np.ndarray]:
  rng = np.random.default_rng(seed)
  codes = rng.integers(0, 256, shape, dtype=np.uint8)
  codes[np.isin(codes, oracle.NAN)] = 1
  scales = 10 ** rng.uniform(-6, 2, fp8.scale_shape(shape))
  return codes, scales.astype(np.float32)


class DequantizeTest(parameterized.TestCase):
  @parameterized.parameters(*SHAPES)
  def test_every_value_is_its_code_times_the_scale_of_its_block(self, *shape):
    codes, scales = draw_codes(shape)
    self.assertEqual(scales.shape, (-(-shape[0] // 128), -(-shape[1] // 128)))
    expected = oracle.dequantize(codes, scales)
    found = fp8.dequantize(codes.view(E4M3), scales, np.dtype(np.float32))
    self.assertEqual(found.dtype, np.float32)
    np.testing.assert_array_equal(found, expected)

  def test_bfloat16_is_the_float32_value_rounded_once(self):
    codes, scales = draw_codes((576, 140))
    expected = oracle.dequantize(codes, scales).astype(BF16)
    found = fp8.dequantize(codes.view(E4M3), scales, np.dtype(BF16))
    self.assertEqual(found.dtype, BF16)
    np.testing.assert_array_equal(found.view('u2'), expected.view('u2'))

  def test_every_code_has_its_value(self):
    codes = np.arange(256, dtype=np.uint8).reshape(2, 128)
    found = fp8.dequantize(
      codes.view(E4M3), np.ones((1, 1), np.float32), np.dtype(np.float32)
    ).ravel()
    expected = [oracle.value(code) for code in range(256)]
    np.testing.assert_array_equal(found, np.float32(expected))
    finite = np.isfinite(found)
    self.assertEqual(finite.sum(), 254)
    self.assertEqual(found[finite].max(), 448)
    # Zero has a sign.
    self.assertEqual(np.signbit(found[[0, 128]]).tolist(), [False, True])

  def test_a_view_with_strides_is_read_like_a_copy(self):
    codes, scales = draw_codes((200, 130))
    turned = np.asfortranarray(codes).view(E4M3)
    np.testing.assert_array_equal(
      fp8.dequantize(turned, scales, np.dtype(np.float32)),
      oracle.dequantize(codes, scales),
    )

  def test_a_scale_that_would_overflow_warns_of_nothing(self):
    codes = np.array([[0, 1]], np.uint8).view(E4M3)
    scales = np.array([[1e38]], np.float32)
    found = fp8.dequantize(codes, scales, np.dtype(np.float32))
    self.assertEqual(found[0, 0], 0)


class QuantizeTest(parameterized.TestCase):
  @parameterized.product(shape=SHAPES[1:], power_of_two=(False, True))
  def test_scales_and_codes_are_those_of_the_oracle(self, shape, power_of_two):
    shape = tuple(min(size, 140) for size in shape)
    values = draw(shape)
    codes, scales = fp8.quantize(values, power_of_two)
    expected_codes, expected_scales = oracle.quantize(values, power_of_two)
    self.assertEqual((codes.dtype, scales.dtype), (E4M3, np.float32))
    np.testing.assert_array_equal(scales, expected_scales)
    np.testing.assert_array_equal(codes.view(np.uint8), expected_codes)

  @parameterized.parameters(*SHAPES)
  def test_the_largest_value_of_a_block_becomes_the_largest_code(self, *shape):
    codes, scales = fp8.quantize(draw(shape))
    largest = np.abs(codes.astype(np.float32))
    for i in range(scales.shape[0]):
      for j in range(scales.shape[1]):
        block = np.s_[i * 128 : (i + 1) * 128, j * 128 : (j + 1) * 128]
        self.assertEqual(largest[block].max(), 448)

  def test_ties_go_to_the_even_code(self):
    # Between neighbours, with a scale of exactly 1.
    values = [oracle.value(code) for code in range(0x7F)]
    halves = [(a + b) / 2 for a, b in zip(values, values[1:], strict=False)]
    row = np.float32([448, *halves[:63], *[-x for x in halves[63:]]])
    codes, scales = fp8.quantize(row[None])
    self.assertEqual(scales.item(), 1)
    expected = [c + c % 2 for c in range(0x7E)]
    found = codes.view(np.uint8)[0, 1:] & 0x7F
    self.assertEqual(found.tolist(), expected)

  def test_codes_come_back_as_they_were(self):
    values = np.float32([oracle.value(c) for c in range(256)]).reshape(2, 128)
    values[np.isnan(values)] = 0
    codes, scales = fp8.quantize(values * np.float32(0.03125))
    self.assertEqual(scales.item(), 0.03125)
    again = fp8.dequantize(codes, scales, np.dtype(np.float32))
    np.testing.assert_array_equal(again, values * np.float32(0.03125))

  def test_a_block_of_zeros_has_scale_1(self):
    values = draw((200, 300))
    values[128:, 128:256] = 0
    for power_of_two in (False, True):
      codes, scales = fp8.quantize(values, power_of_two)
      self.assertEqual(scales[1, 1], 1)
      self.assertFalse(codes[128:, 128:256].view(np.uint8).any())

  def test_powers_of_two_are_the_next_ones_up(self):
    values = draw((300, 700), low=-30, high=30)
    _, exact = fp8.quantize(values)
    _, raised = fp8.quantize(values, power_of_two=True)
    self.assertTrue((np.frexp(raised)[0] == 0.5).all())
    self.assertTrue((raised >= exact).all())
    self.assertTrue((raised < 2 * exact).all())

  def test_a_scale_that_is_a_power_of_two_is_not_raised(self):
    values = np.float32([[448 * 0.25, 1]])
    self.assertEqual(fp8.quantize(values, power_of_two=True)[1].item(), 0.25)

  @parameterized.parameters(False, True)
  def test_what_comes_back_is_near(self, power_of_two):
    values = draw((576, 140), low=-20, high=20)
    codes, scales = fp8.quantize(values, power_of_two)
    again = fp8.dequantize(codes, scales, np.dtype(np.float32))
    self.assertTrue(np.isfinite(again).all())
    scale = scales.repeat(128, 0).repeat(128, 1)[:576, :140]
    # Half a step: 2**-4 of the value, or of the smallest normal code.
    allowed = np.maximum(np.abs(values) * 2.0**-4, scale * 2.0**-10)
    self.assertTrue((np.abs(again - values) <= allowed * 1.0001).all())

  @parameterized.product(
    size=(1e-45, 1e-40, TINY, 1e-37, 448 * TINY, 1e38, 3e38),
    power_of_two=(False, True),
  )
  def test_the_smallest_and_largest_numbers_stay_finite(
    self, size, power_of_two
  ):
    values = np.float32([[size, -size / 3, 0]])
    codes, scales = fp8.quantize(values, power_of_two)
    self.assertTrue(np.isfinite(codes.astype(np.float32)).all())
    self.assertTrue(np.isfinite(scales).all() and (scales >= TINY).all())
    again = fp8.dequantize(codes, scales, np.dtype(np.float32))
    self.assertTrue(np.isfinite(again).all())
    allowed = max(size * 2.0**-4, TINY * 2.0**-10)
    self.assertLessEqual(np.abs(again - values).max(), allowed)

  def test_numbers_that_are_none_stay_none(self):
    for bad in (np.nan, np.inf):
      with np.errstate(invalid='ignore'):
        codes, _ = fp8.quantize(np.float32([[1, bad]]))
      self.assertTrue(np.isnan(codes.astype(np.float32)[0, 1]))


if __name__ == '__main__':
  absltest.main()
