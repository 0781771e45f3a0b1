"""Sections of `h200.py` about single operations, checked and timed."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import math

import gpu_table
from gpu_table import Case, milliseconds, Section, tera
import jax
import jax.numpy as jnp
import numpy as np

from seekax.ops import (
  attention,
  cross_entropy,
  cudnn_attention,
  grouped_matmul,
  pallas_grouped_matmul,
  pallas_latent_attention,
  tokamax_backends,
)

# Of the largest entry, of bfloat16 results beside float32.
BOUND = 2e-2

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
class Heads:
  """Attention over sequences."""

  name: str
  batch: int
  length: int
  heads: int
  qk_width: int
  value_width: int


@dataclasses.dataclass(frozen=True)
class Size:
  """The shapes of a run: those of V3, V2-Lite and a small model."""

  layers: Sequence[Layer] = (
    Layer('V3', 4096 * 8, 256, 7168, 2048),
    Layer('V2-Lite', 4 * 4096 * 6, 64, 2048, 1408),
    Layer('small', 4 * 4096 * 4, 32, 1024, 512),
  )
  heads: Sequence[Heads] = (
    Heads('V3', 1, 4096, 128, 192, 128),
    Heads('V2-Lite', 4, 4096, 16, 192, 128),
    Heads('small', 8, 1024, 8, 128, 128),
  )
  # (requests, cache positions of the longest); V3's 128 heads, 512 + 64 wide.
  caches: Sequence[tuple[int, int]] = ((1, 32768), (8, 4096), (128, 4096))
  cache_heads: int = 128
  latent: int = 512
  rope: int = 64
  # (tokens, width, vocabulary)
  losses: Sequence[tuple[int, int, int]] = (
    (4096, 7168, 129280),
    (4096, 2048, 102400),
  )
  loads: Sequence[str] = ('even', 'uneven')
  dtype: str = 'bfloat16'


def smallest() -> Size:
  """For the smoke form, which mostly waits for the compiler."""
  return Size(
    layers=(Layer('smoke', 24, 3, 16, 16),),
    heads=(Heads('smoke', 1, 8, 2, 16, 16),),
    caches=((2, 32),),
    cache_heads=4,
    latent=16,
    rope=16,
    losses=((16, 8, 32),),
    loads=('even',),
  )


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _normal(seed: int, shape: tuple[int, ...], dtype: str) -> jax.Array:
  return jax.random.normal(jax.random.key(seed), shape, dtype)


def _jit_vjp(function: Function, index: int) -> Function:
  """(cotangent, *args) to the gradient of one argument, nothing else."""

  def gradient(cotangent, *args):
    def of_one(x):
      return function(*args[:index], x, *args[index + 1 :])

    return jax.vjp(of_one, args[index])[1](cotangent)[0]

  return jax.jit(gradient)


class Kernels:
  """The sections at one size; the smoke form runs what runs on a CPU."""

  def __init__(self, size: Size, smoke: bool, repeats: int):
    self.size, self.smoke, self.repeats = size, smoke, repeats

  def sections(self) -> list[Section]:
    return [
      self.grouped(),
      self.swiglu(),
      self.attention(),
      self.decode(),
      self.loss(),
    ]

  def _seconds(self, function: Function, *args) -> float:
    return gpu_table.seconds(function, args, self.repeats)

  # --- grouped products -------------------------------------------------------

  def _products(self) -> dict[str, Function]:
    """Every (rows, weights, sizes) to results."""
    found = {
      'pallas': functools.partial(
        pallas_grouped_matmul.grouped_matmul, interpret=self.smoke
      )
    }
    for name in ('mosaic', 'triton') if not self.smoke else ():
      found[name] = functools.partial(
        tokamax_backends.grouped_matmul, implementation=name, complete=True
      )
    for name in ('blocked', 'ragged') if not self.smoke else ():
      found[name] = functools.partial(
        grouped_matmul.grouped_matmul, backend=name
      )
    return found

  def _sizes(self, layer: Layer, loads: str) -> np.ndarray:
    """Rows of each expert; 'even' draws them as a balanced router would."""
    rng = np.random.default_rng(0)
    share_E = np.full(layer.experts, 1 / layer.experts)
    if loads == 'uneven':
      share_E = (share_E * 3 + np.eye(layer.experts)[1]) / 4
    return rng.multinomial(layer.slots, share_E).astype(np.int32)

  def _layer_inputs(self, layer: Layer, loads: str):
    dtype = self.size.dtype
    into = layer.experts, layer.width, layer.hidden
    return (
      _normal(0, (layer.slots, layer.width), dtype),
      _normal(1, into, dtype) / math.sqrt(layer.width),
      self._sizes(layer, loads),
      _normal(2, (layer.slots, layer.hidden), dtype),
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
    """The first, the last and the busiest expert, in float32."""
    ends = np.cumsum(sizes)
    busy = np.flatnonzero(sizes)
    for expert in {busy[0], busy[-1], int(np.argmax(sizes))}:
      own = slice(ends[expert] - sizes[expert], ends[expert])
      x, w, dy = (
        a.astype(jnp.float32) for a in (rows[own], weights[expert], dout[own])
      )
      exact = functools.partial(jnp.matmul, precision='highest')
      for what, actual, expected in (
        ('results', out[own], exact(x, w)),
        ("rows' gradient", drows[own], exact(dy, w.T)),
        ("weights' gradient", dweights[expert], exact(x.T, dy)),
      ):
        gpu_table.check_close(
          f'{what} of expert {expert}', actual, expected, BOUND
        )

  def _one_matrix(self, layer: Layer):
    dtype = self.size.dtype
    rows = _normal(0, (layer.slots, layer.width), dtype)
    weights = _normal(1, (layer.width, layer.hidden), dtype)
    dout = _normal(2, (layer.slots, layer.hidden), dtype)
    operations = 2.0 * layer.slots * layer.width * layer.hidden
    spent = {
      'forward': self._seconds(jax.jit(jnp.matmul), rows, weights),
      'rows': self._seconds(jax.jit(lambda d, w: d @ w.T), dout, weights),
      'weights': self._seconds(jax.jit(lambda x, d: x.T @ d), rows, dout),
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
    )

  def _swiglu(self, layer: Layer, form: Function):
    rows, gate, sizes, _ = self._layer_inputs(layer, 'even')
    up = _normal(3, gate.shape, self.size.dtype) / math.sqrt(layer.width)
    down_shape = layer.experts, layer.hidden, layer.width
    down = _normal(4, down_shape, self.size.dtype) / math.sqrt(layer.hidden)
    scale = jax.nn.sigmoid(_normal(5, (layer.slots,), 'float32'))
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
    """The busiest expert, in float32."""
    expert = int(np.argmax(sizes))
    end = int(np.cumsum(sizes)[expert])
    own = slice(end - int(sizes[expert]), end)
    exact = functools.partial(jnp.matmul, precision='highest')
    x, gate, up, down = (
      a.astype(jnp.float32)
      for a in (args[0][own], *(w[expert] for w in args[1:4]))
    )
    hidden = jax.nn.silu(exact(x, gate)) * exact(x, up) * args[4][own][:, None]
    gpu_table.check_close('results', out[own], exact(hidden, down), BOUND)

  # --- attention --------------------------------------------------------------

  def attention(self) -> Section:
    forms = {'chunked': attention.causal_attention}
    if not self.smoke:
      forms = {
        'cudnn': cudnn_attention.causal_attention,
        'tokamax, mosaic': tokamax_backends.causal_attention,
        'tokamax, triton': functools.partial(
          tokamax_backends.causal_attention, implementation='triton'
        ),
        **forms,
        'plain': _plain_attention,
      }
    cases = []
    for heads in self.size.heads:
      shape = (
        f'{heads.batch}x{heads.length}, {heads.heads} heads '
        f'{heads.qk_width}/{heads.value_width}'
      )
      cases += [
        Case(
          (heads.name, shape, name),
          functools.partial(self._attention, heads, form),
        )
        for name, form in forms.items()
      ]
    return Section(
      'attention',
      'Attention over whole sequences',
      'Causal, TFLOP/s with the triangle counted as half of the square, and '
      'gradients as twice the forward pass.',
      ('shape of', 'sequences', 'implementation'),
      ('forward', 'with gradients', 'with gradients, ms'),
      cases,
    )

  def _attention(self, heads: Heads, form: Function):
    scale = heads.qk_width**-0.5

    def inputs(batch, length, count, dtype):
      widths = heads.qk_width, heads.qk_width, heads.value_width
      return [
        _normal(seed, (batch, length, count, width), dtype)
        for seed, width in enumerate(widths)
      ]

    run = functools.partial(form, scale=scale)
    few = inputs(1, min(heads.length, 1024), min(heads.heads, 2), 'float32')
    few = [x.astype(self.size.dtype) for x in few]
    exact = [x.astype(jnp.float32) for x in few]
    dout = jnp.ones_like(exact[2])
    plain = functools.partial(_plain_attention, scale=scale)
    with jax.default_matmul_precision('highest'):
      expected = _with_gradients(plain, dout, *exact)
    actual = _with_gradients(run, dout.astype(self.size.dtype), *few)
    for name, a, e in zip(
      ('out', 'q', 'k', 'v'), actual, expected, strict=True
    ):
      gpu_table.check_close(name, a, e, BOUND)
    args = inputs(heads.batch, heads.length, heads.heads, self.size.dtype)

    @jax.jit
    def both(q, k, v):
      out, pullback = jax.vjp(run, q, k, v)
      return pullback(out)

    operations = heads.batch * heads.heads * float(heads.length) ** 2
    operations *= heads.qk_width + heads.value_width
    spent = self._seconds(both, *args)
    return {
      'forward': tera(operations, self._seconds(jax.jit(run), *args)),
      'with gradients': tera(3 * operations, spent),
      'with gradients, ms': milliseconds(spent),
    }

  def decode(self) -> Section:
    forms = {
      'pallas': functools.partial(
        pallas_latent_attention.latent_attention, interpret=self.smoke
      ),
      'plain': attention.latent_attention,
    }
    cases = [
      Case(
        (str(requests), str(longest), lengths, name),
        functools.partial(self._decode, requests, longest, lengths, form),
      )
      for requests, longest in self.size.caches
      for lengths in (('full', 'mixed') if requests > 2 else ('full',))
      for name, form in forms.items()
    ]
    heads = self.size.cache_heads
    return Section(
      'decode',
      'Absorbed decoding',
      f'{heads} heads over latents of {self.size.latent} + {self.size.rope}; '
      'GB/s of the cache that has to be read once: all of it, or, with mixed '
      'lengths (1 to the longest, evenly), about half.',
      ('requests', 'longest', 'lengths', 'implementation'),
      ('us', 'GB/s'),
      cases,
    )

  def _decode(self, requests: int, longest: int, lengths: str, form: Function):
    size = self.size
    shapes = (
      (requests, size.cache_heads, size.latent),
      (requests, size.cache_heads, size.rope),
      (requests, longest, size.latent),
      (requests, longest, size.rope),
    )
    args = [_normal(i, shape, size.dtype) for i, shape in enumerate(shapes)]
    lengths_B = np.full(requests, longest, np.int32)
    if lengths == 'mixed':
      lengths_B = np.linspace(1, longest, requests).astype(np.int32)
    scale = (size.latent + size.rope) ** -0.5
    run = jax.jit(functools.partial(form, scale=scale))
    few = slice(0, 2)
    exact = [x[few].astype(jnp.float32) for x in args]
    with jax.default_matmul_precision('highest'):
      expected = attention.latent_attention(*exact, lengths_B[few], scale)
    out = run(*args, lengths_B)
    gpu_table.check_close('latents', out[few], expected, BOUND)
    spent = self._seconds(run, *args, jnp.asarray(lengths_B))
    read = float(lengths_B.sum()) * (size.latent + size.rope)
    read *= jnp.dtype(size.dtype).itemsize
    return {'us': f'{spent * 1e6:.1f}', 'GB/s': f'{read / spent / 1e9:.0f}'}

  # --- loss -------------------------------------------------------------------

  def loss(self) -> Section:
    forms = {'chunks': cross_entropy.cross_entropy_sum}
    if not self.smoke:
      forms['plain'] = _plain_loss
    cases = [
      Case(
        (f'{tokens} tokens x {width}', str(vocabulary), name),
        functools.partial(self._loss, tokens, width, vocabulary, form),
      )
      for tokens, width, vocabulary in self.size.losses
      for name, form in forms.items()
    ]
    return Section(
      'loss',
      'Cross-entropy with its gradients',
      "TFLOP/s count three products. Temporaries are the compiler's count.",
      ('hidden states', 'vocabulary', 'implementation'),
      ('ms', 'TFLOP/s', 'temporaries, MB'),
      cases,
    )

  def _loss(self, tokens: int, width: int, vocabulary: int, form: Function):
    hidden = _normal(0, (tokens, width), self.size.dtype)
    head = _normal(1, (width, vocabulary), self.size.dtype) / math.sqrt(width)
    args = (
      hidden,
      head,
      jax.random.randint(jax.random.key(2), (tokens,), 0, vocabulary),
      jnp.ones((tokens,), jnp.float32),
    )
    run = jax.jit(jax.value_and_grad(form, (0, 1)))
    few = hidden[:64], head, args[2][:64], args[3][:64]
    with jax.default_matmul_precision('highest'):
      expected = _plain_loss(few[0].astype(jnp.float32), *few[1:])
    gpu_table.check_close('loss', form(*few), expected, BOUND)
    analysis = run.lower(*args).compile().memory_analysis()
    spent = self._seconds(run, *args)
    return {
      'ms': milliseconds(spent),
      'TFLOP/s': tera(6.0 * tokens * width * vocabulary, spent),
      'temporaries, MB': f'{analysis.temp_size_in_bytes / 1e6:.0f}',
    }


@functools.partial(jax.jit, static_argnums=0)
def _with_gradients(form, dout, *args):
  out, pullback = jax.vjp(form, *args)
  return out, *pullback(dout)


def _three_products(product, rows_SD, gate, up, down, scale_S, sizes_E):
  """SwiGLU of grouped products, as one writes it without a fused kernel."""
  gate_SF = product(rows_SD, gate, sizes_E).astype(jnp.float32)
  up_SF = product(rows_SD, up, sizes_E).astype(jnp.float32)
  hidden_SF = jax.nn.silu(gate_SF) * up_SF * scale_S[:, None]
  return product(hidden_SF.astype(rows_SD.dtype), down, sizes_E)


def _plain_attention(q_BLHK, k_BLHK, v_BLHU, scale):
  """One array of all logits, one mask."""
  logits_BHLM = jnp.einsum(
    'BLHK,BMHK->BHLM', q_BLHK, k_BLHK, preferred_element_type=jnp.float32
  )
  visible_LM = jnp.tril(jnp.ones(logits_BHLM.shape[-2:], bool))
  logits_BHLM = jnp.where(visible_LM, logits_BHLM * scale, -jnp.inf)
  weights_BHLM = jax.nn.softmax(logits_BHLM, axis=-1).astype(v_BLHU.dtype)
  return jnp.einsum('BHLM,BMHU->BLHU', weights_BHLM, v_BLHU)


def _plain_loss(hidden_TD, head_DV, targets_T, weights_T):
  """One array of all logits."""
  logits_TV = jnp.einsum(
    'TD,DV->TV', hidden_TD, head_DV, preferred_element_type=jnp.float32
  )
  log_p_TV = jax.nn.log_softmax(logits_TV)
  chosen_T = jnp.take_along_axis(log_p_TV, targets_T[:, None], axis=1)[:, 0]
  return -jnp.sum(chosen_T * weights_T)
