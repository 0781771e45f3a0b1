"""The section of `h200.py` about FP8 products: checked, then timed."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import math

import gpu_table
from gpu_table import Case, normal, Section, tera
import jax
import jax.numpy as jnp
import numpy as np

from seekax.ops import pallas_block_fp8
from seekax.ops.block_fp8 import ACTIVATION_FLOOR, rounded, Tiling
from seekax.ops.pallas_block_fp8 import Cut

# The largest difference as a share of the result's norm. Operands are the same,
# but the two add up in another order.
BOUND = 1e-3
_ALONG, _DOWN = (
  Tiling(1, 128, floor=ACTIVATION_FLOOR),
  Tiling(128, 1, floor=ACTIVATION_FLOOR),
)
_WEIGHT = Tiling(128, 128)
# For the forward product, the input's gradient and the weight's gradient: the
# operands (x, w, dy by number), their tiles, the axes that are summed over.
_PRODUCTS = {
  'forward': ((0, 1), (_ALONG, _WEIGHT), (1, 0)),
  'rows': ((2, 1), (_ALONG, _WEIGHT), (1, 1)),
  'weights': ((0, 2), (_DOWN, _DOWN), (0, 0)),
}


@dataclasses.dataclass(frozen=True)
class Size:
  """Linear maps as (name, rows, width, columns), and cuts to compare."""

  maps: Sequence[tuple[str, int, int, int]] = (
    ('V3', 16384, 7168, 4096),
    ('V3', 4096, 7168, 18432),
    ('V2-Lite', 16384, 2048, 10944),
  )
  cuts: Sequence[Cut] = (
    Cut(128, 128, 8, 4, 8),
    Cut(128, 128, 4, 4, 8),
    Cut(128, 128, 8, 3, 8),
    Cut(64, 128, 4, 4, 8),
    Cut(128, 64, 4, 4, 8),
    Cut(128, 256, 8, 3, 8),
    Cut(128, 128, 8, 4, 1),
  )
  dtype: str = 'bfloat16'


def smallest() -> Size:
  return Size(maps=(('smoke', 16, 16, 16),), cuts=())


class Fp8:
  """The section at one size; the smoke form runs what runs on a CPU."""

  def __init__(self, size: Size, smoke: bool, repeats: int):
    self.size, self.smoke, self.repeats = size, smoke, repeats

  def sections(self) -> list[Section]:
    forms = {'bfloat16': _dense}
    forms['pallas'] = functools.partial(
      pallas_block_fp8.product, interpret=self.smoke
    )
    if not self.smoke:
      forms['emulated'] = _emulated
    cases = []
    for name, *shape in self.size.maps:
      words = f'{shape[0]}x{shape[1]} by {shape[1]}x{shape[2]}'
      for form, function in forms.items():
        run = functools.partial(self._measure, shape, function)
        cases.append(Case((name, words, form), run))
      for cut in self.size.cuts:
        label = (
          f'pallas, {cut.rows}x{cut.columns}, {cut.warps} warps, '
          f'{cut.stages} stages, groups of {cut.group}; codes given'
        )
        run = functools.partial(self._kernel, shape, cut)
        cases.append(Case((name, words, label), run))
    return [
      Section(
        'fp8',
        'FP8 products',
        'TFLOP/s of one linear map: forward, the gradient of its input, the '
        'gradient of its weights, from bfloat16 operands: rounding to FP8 is '
        'part of the time, but where codes are given. The error is the most '
        'that a result is from the float32 product of the same codes, as a '
        'share of its norm.',
        ('shape of', 'rows by weights', 'implementation'),
        (*_PRODUCTS, 'error'),
        cases,
        clear=not self.smoke,
      )
    ]

  def _inputs(self, rows: int, width: int, columns: int):
    dtype = self.size.dtype
    return (
      normal(0, (rows, width), dtype),
      normal(1, (width, columns), dtype) / math.sqrt(width),
      normal(2, (rows, columns), dtype),
    )

  def _measure(self, shape: Sequence[int], function: Callable):
    args = self._inputs(*shape)
    spent, worst = {}, 0.0
    for name, (chosen, tilings, summed) in _PRODUCTS.items():
      a, b = (args[i] for i in chosen)
      run = jax.jit(
        lambda a, b, tilings=tilings, summed=summed: function(
          a, tilings[0], b, tilings[1], summed
        )
      )
      if function is not _dense:
        expected = jax.jit(_emulated, static_argnums=(1, 3, 4))(
          a, tilings[0], b, tilings[1], summed
        )
        difference = jnp.linalg.norm(run(a, b) - expected)
        worst = max(worst, float(difference / jnp.linalg.norm(expected)))
      spent[name] = gpu_table.seconds(run, (a, b), self.repeats)
    if not worst < BOUND:
      raise AssertionError(f'{worst:.3g} of the norm apart')
    cells = {k: tera(2.0 * math.prod(shape), v) for k, v in spent.items()}
    return {**cells, 'error': '' if function is _dense else f'{worst:.1e}'}

  def _kernel(self, shape: Sequence[int], cut: Cut):
    args = self._inputs(*shape)
    cells = {}
    for name, (chosen, tilings, summed) in _PRODUCTS.items():
      edges = cut.rows, cut.columns
      operands = [
        array
        for i, tiling, axis, edge in zip(
          chosen, tilings, summed, edges, strict=True
        )
        for array in jax.jit(
          pallas_block_fp8.operand, static_argnums=(1, 2, 3)
        )(args[i], tiling, axis, edge)
      ]
      run = jax.jit(
        lambda *x: pallas_block_fp8.multiply(x, interpret=False, cut=cut)
      )
      spent = gpu_table.seconds(run, operands, self.repeats)
      cells[name] = tera(2.0 * math.prod(shape), spent)
    return cells


def _dense(a, a_tiling, b, b_tiling, summed):
  """The same product in bfloat16, float32 out."""
  del a_tiling, b_tiling
  return jax.lax.dot_general(
    a,
    b,
    (((summed[0],), (summed[1],)), ((), ())),
    preferred_element_type=np.float32,
  )


def _emulated(a, a_tiling, b, b_tiling, summed):
  return jax.lax.dot_general(
    rounded(a, a_tiling),
    rounded(b, b_tiling),
    (((summed[0],), (summed[1],)), ((), ())),
    precision=jax.lax.Precision.HIGHEST,
  )
