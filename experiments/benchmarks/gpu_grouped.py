"""The sections of `h200.py` about grouped products: checked, then timed."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import math

import gpu_table
from gpu_table import BOUND, Case, milliseconds, normal, Section, tera
import jax
import jax.numpy as jnp
import numpy as np

from seekax.ops import (
  grouped_matmul,
  pallas_grouped_kernels,
  pallas_grouped_matmul,
  tokamax_backends,
)
from seekax.ops.pallas_tiles import Tiling

Function = Callable[..., jax.Array]


@dataclasses.dataclass(frozen=True)
class Layer:
  """An expert layer: its slots, its experts, its widths."""

  name: str
  slots: int
  experts: int
  width: int
  hidden: int


@dataclasses.dataclass(frozen=True)
class Size:
  """The shapes of a run: those of V3, V2-Lite and a small model."""

  layers: Sequence[Layer] = (
    Layer('V3', 4096 * 8, 256, 7168, 2048),
    Layer('V2-Lite', 4 * 4096 * 6, 64, 2048, 1408),
    Layer('small', 4 * 4096 * 4, 32, 1024, 512),
  )
  loads: Sequence[str] = ('even', 'uneven')
  # Tilings of our grouped product: ((rows, columns, depth), warps, stages).
  tilings: Sequence[tuple[tuple[int, int, int], int, int]] = (
    ((64, 128, 64), 4, 3),
    ((64, 256, 64), 8, 3),
    ((128, 128, 32), 8, 4),
    ((128, 128, 64), 4, 3),
    ((128, 128, 64), 8, 3),
    ((128, 128, 64), 8, 4),
    ((128, 128, 128), 8, 2),
    ((128, 256, 64), 8, 3),
    ((256, 128, 64), 8, 3),
  )
  dtype: str = 'bfloat16'


def smallest() -> Size:
  """The smoke form's shapes; they are alike, so that little is compiled."""
  return Size(
    layers=(Layer('smoke', 16, 2, 16, 16),),
    loads=('even',),
    tilings=(),
  )


def _jit_vjp(function: Function, index: int) -> Function:
  """A function from (cotangent, *args) to the gradient of one argument."""

  def gradient(cotangent, *args):
    def of_one(x):
      return function(*args[:index], x, *args[index + 1 :])

    return jax.vjp(of_one, args[index])[1](cotangent)[0]

  return jax.jit(gradient)


class Grouped:
  """The sections at one size; the smoke form runs what runs on a CPU."""

  def __init__(self, size: Size, smoke: bool, repeats: int):
    self.size, self.smoke, self.repeats = size, smoke, repeats

  def sections(self) -> list[Section]:
    return [self.grouped(), self.tiles(), self.swiglu()]

  def _seconds(self, function: Function, *args) -> float:
    return gpu_table.seconds(function, args, self.repeats)

  def _products(self) -> dict[str, Function]:
    """Functions of (rows, weights, sizes); the smoke form has one."""
    ours = {
      name: functools.partial(grouped_matmul.grouped_matmul, backend=name)
      for name in ('pallas', 'blocked', 'ragged')
    }
    if self.smoke:
      return {'ragged': ours['ragged']}
    theirs = {
      name: functools.partial(
        tokamax_backends.grouped_matmul, implementation=name, complete=True
      )
      for name in ('mosaic', 'triton')
    }
    return {'pallas': ours.pop('pallas'), **theirs, **ours}

  def _sizes(self, layer: Layer, loads: str) -> np.ndarray:
    """How many rows each expert has; 'even' draws as a balanced router does."""
    rng = np.random.default_rng(0)
    share_E = np.full(layer.experts, 1 / layer.experts)
    if loads == 'uneven':
      share_E = (share_E * 3 + np.eye(layer.experts)[1]) / 4
    return rng.multinomial(layer.slots, share_E).astype(np.int32)

  def _layer_inputs(self, layer: Layer, loads: str):
    dtype = self.size.dtype
    into = layer.experts, layer.width, layer.hidden
    return (
      normal(0, (layer.slots, layer.width), dtype),
      normal(1, into, dtype) / math.sqrt(layer.width),
      self._sizes(layer, loads),
      normal(2, (layer.slots, layer.hidden), dtype),
    )

  def grouped(self) -> Section:
    cases = []
    for layer in self.size.layers:
      shape = f'{layer.slots}x{layer.width} by {layer.experts}x{layer.hidden}'
      labels = layer.name, shape
      one = functools.partial(self._one_matrix, layer)
      cases.append(Case((*labels, '-', 'one dense matrix'), one))
      for loads in self.size.loads:
        for name, product in self._products().items():
          run = functools.partial(self._grouped, layer, loads, product)
          cases.append(Case((*labels, loads, name), run))
    return Section(
      'grouped',
      'Grouped products',
      'TFLOP/s of one product: forward, the gradient of the rows, the gradient '
      'of the weights. "even" loads are drawn as by a balanced router; in '
      '"uneven" ones a quarter of the rows go to one expert.',
      ('shape of', 'rows by experts', 'loads', 'implementation'),
      ('forward', 'rows', 'weights'),
      cases,
      clear=not self.smoke,
    )

  def _grouped(self, layer: Layer, loads: str, product: Function):
    rows, weights, sizes, dout = self._layer_inputs(layer, loads)
    sizes_E = jnp.asarray(sizes)
    forward = jax.jit(product)
    by_rows, by_weights = _jit_vjp(product, 0), _jit_vjp(product, 1)
    self._check_products(
      sizes,
      rows,
      weights,
      dout,
      forward(rows, weights, sizes_E),
      by_rows(dout, rows, weights, sizes_E),
      by_weights(dout, rows, weights, sizes_E),
    )
    operations = 2.0 * layer.slots * layer.width * layer.hidden
    spent = {
      'forward': self._seconds(forward, rows, weights, sizes_E),
      'rows': self._seconds(by_rows, dout, rows, weights, sizes_E),
      'weights': self._seconds(by_weights, dout, rows, weights, sizes_E),
    }
    return {k: tera(operations, v) for k, v in spent.items()}

  def _check_products(self, sizes, rows, weights, dout, out, drows, dweights):
    """Checks the first, the last and the busiest expert against float32."""
    ends = np.cumsum(sizes)
    busy = np.flatnonzero(sizes)
    for expert in {busy[0], busy[-1], int(np.argmax(sizes))}:
      own = slice(ends[expert] - sizes[expert], ends[expert])
      y, dx, dw = _exact_products(rows[own], weights[expert], dout[own])
      for what, actual, expected in (
        ('results', out[own], y),
        ("rows' gradient", drows[own], dx),
        ("weights' gradient", dweights[expert], dw),
      ):
        gpu_table.check_close(
          f'{what} of expert {expert}', actual, expected, BOUND
        )

  def _one_matrix(self, layer: Layer):
    dtype = self.size.dtype
    rows = normal(0, (layer.slots, layer.width), dtype)
    weights = normal(1, (layer.width, layer.hidden), dtype)
    dout = normal(2, (layer.slots, layer.hidden), dtype)
    operations = 2.0 * layer.slots * layer.width * layer.hidden
    spent = {
      'forward': self._seconds(jax.jit(jnp.matmul), rows, weights),
      'rows': self._seconds(jax.jit(lambda d, w: d @ w.T), dout, weights),
      'weights': self._seconds(jax.jit(lambda x, d: x.T @ d), rows, dout),
    }
    return {k: tera(operations, v) for k, v in spent.items()}

  def tiles(self) -> Section:
    tilings = [
      Tiling(*edges, warps=warps, stages=stages)
      for edges, warps, stages in self.size.tilings
    ]
    cases = [
      Case(
        (layer.name, *_tiling_words(tiling)),
        functools.partial(self._tiles, layer, tiling),
      )
      for layer in self.size.layers[:2]
      for tiling in tilings
    ]
    return Section(
      'tiles',
      'Tiles of our grouped product',
      'TFLOP/s, even loads. What product_tiling and gradient_tiling choose '
      'should be among the best of each column.',
      ('shape of', 'tile', 'warps', 'stages'),
      ('forward', 'rows', 'weights'),
      cases,
      clear=not self.smoke,
    )

  def _tiles(self, layer: Layer, tiling: Tiling):
    rows, weights, sizes, dout = self._layer_inputs(layer, 'even')
    sizes_E = jnp.asarray(sizes)
    ways = dict(interpret=self.smoke, tiling=tiling)
    product = functools.partial(pallas_grouped_matmul.grouped_matmul, **ways)
    gradient = functools.partial(
      pallas_grouped_kernels.weight_gradient, dtype=weights.dtype, **ways
    )
    operations = 2.0 * layer.slots * layer.width * layer.hidden
    spent = {
      'forward': self._seconds(jax.jit(product), rows, weights, sizes_E),
      'rows': self._seconds(_jit_vjp(product, 0), dout, rows, weights, sizes_E),
      'weights': self._seconds(jax.jit(gradient), rows, dout, sizes_E),
    }
    return {k: tera(operations, v) for k, v in spent.items()}

  def swiglu(self) -> Section:
    forms = {
      'pallas, fused': functools.partial(
        pallas_grouped_matmul.grouped_swiglu, interpret=self.smoke
      )
    }
    for name, product in self._products().items():
      if name != 'ragged' and not self.smoke:
        forms[f'{name}, three products'] = functools.partial(
          _three_products, product
        )
    cases = [
      Case((layer.name, name), functools.partial(self._swiglu, layer, form))
      for layer in self.size.layers
      for name, form in forms.items()
    ]
    return Section(
      'swiglu',
      'Expert layer',
      'Gate, up, SwiGLU times the routing weight, down, on sorted rows; '
      'even loads. All gradients: rows, routing weights, three '
      'matrices.',
      ('shape of', 'implementation'),
      ('forward, ms', 'with gradients, ms', 'with gradients, TFLOP/s'),
      cases,
      clear=not self.smoke,
    )

  def _swiglu(self, layer: Layer, form: Function):
    rows, gate, sizes, _ = self._layer_inputs(layer, 'even')
    up = normal(3, gate.shape, self.size.dtype) / math.sqrt(layer.width)
    down_shape = layer.experts, layer.hidden, layer.width
    down = normal(4, down_shape, self.size.dtype) / math.sqrt(layer.hidden)
    scale = jax.nn.sigmoid(normal(5, (layer.slots,), 'float32'))
    args = rows, gate, up, down, scale, jnp.asarray(sizes)
    forward = jax.jit(form)
    self._check_swiglu(sizes, args, forward(*args))

    @jax.jit
    def both(dout, *args):
      out, pullback = jax.vjp(lambda *x: form(*x, args[-1]), *args[:-1])
      return out, pullback(dout)

    operations = 9 * 2.0 * layer.slots * layer.width * layer.hidden
    spent = self._seconds(both, rows, *args)
    return {
      'forward, ms': milliseconds(self._seconds(forward, *args)),
      'with gradients, ms': milliseconds(spent),
      'with gradients, TFLOP/s': tera(operations, spent),
    }

  def _check_swiglu(self, sizes, args, out) -> None:
    """Checks the busiest expert against float32."""
    expert = int(np.argmax(sizes))
    end = int(np.cumsum(sizes)[expert])
    own = slice(end - int(sizes[expert]), end)
    expected = _exact_swiglu(
      args[0][own], *(w[expert] for w in args[1:4]), args[4][own]
    )
    gpu_table.check_close('results', out[own], expected, BOUND)


_exact = functools.partial(jnp.matmul, precision='highest')


@jax.jit
def _exact_products(x, w, dy):
  """One expert in float32: result, gradients of rows and of weights."""
  x, w, dy = (a.astype(jnp.float32) for a in (x, w, dy))
  return _exact(x, w), _exact(dy, w.T), _exact(x.T, dy)


@jax.jit
def _exact_swiglu(x, gate, up, down, scale):
  x, gate, up, down = (a.astype(jnp.float32) for a in (x, gate, up, down))
  hidden = jax.nn.silu(_exact(x, gate)) * _exact(x, up) * scale[:, None]
  return _exact(hidden, down)


def _tiling_words(tiling: Tiling) -> tuple[str, ...]:
  tile = f'{tiling.rows}x{tiling.columns}, depth {tiling.depth}'
  return tile, str(tiling.warps), str(tiling.stages)


def _three_products(product, rows_SD, gate, up, down, scale_S, sizes_E):
  """SwiGLU made of grouped products, without a fused kernel."""
  gate_SF = product(rows_SD, gate, sizes_E).astype(jnp.float32)
  up_SF = product(rows_SD, up, sizes_E).astype(jnp.float32)
  hidden_SF = jax.nn.silu(gate_SF) * up_SF * scale_S[:, None]
  return product(hidden_SF.astype(rows_SD.dtype), down, sizes_E)
