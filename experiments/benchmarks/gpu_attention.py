"""The sections of `h200.py` about attention and loss: checked, then timed."""

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
  attention,
  cross_entropy,
  cudnn_attention,
  pallas_latent_attention,
  tokamax_backends,
)

Function = Callable[..., jax.Array]


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

  heads: Sequence[Heads] = (
    Heads('V3', 1, 4096, 128, 192, 128),
    Heads('V2-Lite', 4, 4096, 16, 192, 128),
    Heads('small', 8, 1024, 8, 128, 128),
  )
  # (requests, positions of the longest request); V3's 128 heads, 512 + 64 wide.
  caches: Sequence[tuple[int, int]] = ((1, 32768), (8, 4096), (128, 4096))
  cache_heads: int = 128
  latent: int = 512
  rope: int = 64
  # (tokens, width, vocabulary)
  losses: Sequence[tuple[int, int, int]] = (
    (4096, 7168, 129280),
    (4096, 2048, 102400),
  )
  # Tilings of our decoding kernel: (heads, positions, parts).
  decode_tilings: Sequence[tuple[int, int, int]] = (
    (64, 32, 1),
    (64, 32, 4),
    (64, 32, 16),
    (64, 32, 64),
    (32, 64, 16),
    (16, 64, 8),
  )
  dtype: str = 'bfloat16'


def smallest() -> Size:
  """The smoke form's shapes; they are alike, so that little is compiled."""
  return Size(
    heads=(Heads('smoke', 1, 16, 2, 16, 16),),
    caches=((2, 16),),
    cache_heads=16,
    latent=16,
    rope=16,
    losses=((16, 16, 16),),
    decode_tilings=(),
  )


class Attention:
  """The sections at one size; the smoke form runs what runs on a CPU."""

  def __init__(self, size: Size, smoke: bool, repeats: int):
    self.size, self.smoke, self.repeats = size, smoke, repeats

  def sections(self) -> list[Section]:
    return [self.attention(), self.decode(), self.loss()]

  def _seconds(self, function: Function, *args) -> float:
    return gpu_table.seconds(function, args, self.repeats)

  def attention(self) -> Section:
    chunked = functools.partial(attention.causal_attention, backend='chunked')
    forms = {'chunked': chunked}
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
      clear=not self.smoke,
    )

  def _attention(self, heads: Heads, form: Function):
    scale = heads.qk_width**-0.5

    def inputs(batch, length, count):
      widths = heads.qk_width, heads.qk_width, heads.value_width
      return [
        normal(seed, (batch, length, count, width), self.size.dtype)
        for seed, width in enumerate(widths)
      ]

    run = functools.partial(form, scale=scale)
    few = inputs(1, min(heads.length, 1024), min(heads.heads, 2))
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
    args = inputs(heads.batch, heads.length, heads.heads)
    shape = heads.batch, heads.length, heads.heads, heads.value_width
    dout = normal(3, shape, self.size.dtype)
    operations = heads.batch * heads.heads * float(heads.length) ** 2
    operations *= heads.qk_width + heads.value_width
    both = functools.partial(_with_gradients, run)
    spent = self._seconds(both, dout, *args)
    return {
      'forward': tera(operations, self._seconds(jax.jit(run), *args)),
      'with gradients': tera(3 * operations, spent),
      'with gradients, ms': milliseconds(spent),
    }

  def decode(self) -> Section:
    kernel = functools.partial(
      pallas_latent_attention.latent_attention, interpret=self.smoke
    )
    forms = {'pallas': kernel, 'plain': _plain_decode}
    for heads, positions, parts in self.size.decode_tilings:
      tiling = pallas_latent_attention.Tiling(heads, positions, parts, 8, 2)
      name = f'pallas, {heads} heads, {positions} positions, {parts} parts'
      forms[name] = functools.partial(kernel, tiling=tiling)
    cases = [
      Case(
        (str(requests), str(longest), lengths, name),
        functools.partial(self._decode, requests, longest, lengths, form),
      )
      for requests, longest in self.size.caches
      for lengths in (('full', 'mixed') if requests > 2 else ('full',))
      for name, form in forms.items()
    ]
    return Section(
      'decode',
      'Absorbed decoding',
      f'{self.size.cache_heads} heads over latents of {self.size.latent} + '
      f'{self.size.rope}; '
      'GB/s of the cache that has to be read once: all of it, or, with mixed '
      'lengths (1 to the longest, evenly), about half.',
      ('requests', 'longest', 'lengths', 'implementation'),
      ('us', 'GB/s'),
      cases,
      clear=not self.smoke,
    )

  def _decode(self, requests: int, longest: int, lengths: str, form: Function):
    size = self.size
    shapes = (
      (requests, size.cache_heads, size.latent),
      (requests, size.cache_heads, size.rope),
      (requests, longest, size.latent),
      (requests, longest, size.rope),
    )
    args = [normal(i, shape, size.dtype) for i, shape in enumerate(shapes)]
    lengths_B = np.full(requests, longest, np.int32)
    if lengths == 'mixed':
      lengths_B = np.linspace(1, longest, requests).astype(np.int32)
    scale = (size.latent + size.rope) ** -0.5
    run = jax.jit(functools.partial(form, scale=scale))
    few = slice(0, 2)
    exact = [x[few].astype(jnp.float32) for x in args]
    with jax.default_matmul_precision('highest'):
      expected = jax.jit(_plain_decode, static_argnums=5)(
        *exact, lengths_B[few], scale
      )
    out = run(*args, lengths_B)
    gpu_table.check_close('latents', out[few], expected, BOUND)
    spent = self._seconds(run, *args, jnp.asarray(lengths_B))
    read = float(lengths_B.sum()) * (size.latent + size.rope)
    read *= jnp.dtype(size.dtype).itemsize
    return {'us': f'{spent * 1e6:.1f}', 'GB/s': f'{read / spent / 1e9:.0f}'}

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
      clear=not self.smoke,
    )

  def _loss(self, tokens: int, width: int, vocabulary: int, form: Function):
    hidden = normal(0, (tokens, width), self.size.dtype)
    head = normal(1, (width, vocabulary), self.size.dtype) / math.sqrt(width)
    args = (
      hidden,
      head,
      jax.random.randint(jax.random.key(2), (tokens,), 0, vocabulary),
      jnp.ones((tokens,), jnp.float32),
    )
    run = jax.jit(jax.value_and_grad(form, (0, 1)))
    few = hidden[:64], head, args[2][:64], args[3][:64]
    with jax.default_matmul_precision('highest'):
      expected = jax.jit(_plain_loss)(few[0].astype(jnp.float32), *few[1:])
    gpu_table.check_close('loss', run(*few)[0], expected, BOUND)
    analysis = run.lower(*args).compile().memory_analysis()
    assert analysis is not None
    spent = self._seconds(run, *args)
    return {
      'ms': milliseconds(spent),
      'TFLOP/s': tera(6.0 * tokens * width * vocabulary, spent),
      'temporaries, MB': f'{analysis.temp_size_in_bytes / 1e6:.0f}',
    }


_plain_decode = functools.partial(attention.latent_attention, backend='plain')


@functools.partial(jax.jit, static_argnums=0)
def _with_gradients(form, dout, *args):
  out, pullback = jax.vjp(form, *args)
  return out, *pullback(dout)


def _plain_attention(q_BLHK, k_BLHK, v_BLHU, scale):
  """Attention that holds one array of all logits, and one mask."""
  logits_BHLM = jnp.einsum(
    'BLHK,BMHK->BHLM', q_BLHK, k_BLHK, preferred_element_type=jnp.float32
  )
  visible_LM = jnp.tril(jnp.ones(logits_BHLM.shape[-2:], bool))
  logits_BHLM = jnp.where(visible_LM, logits_BHLM * scale, -jnp.inf)
  weights_BHLM = jax.nn.softmax(logits_BHLM, axis=-1).astype(v_BLHU.dtype)
  return jnp.einsum('BHLM,BMHU->BLHU', weights_BHLM, v_BLHU)


def _plain_loss(hidden_TD, head_DV, targets_T, weights_T):
  """Cross-entropy that holds one array of all logits."""
  logits_TV = jnp.einsum(
    'TD,DV->TV', hidden_TD, head_DV, preferred_element_type=jnp.float32
  )
  log_p_TV = jax.nn.log_softmax(logits_TV)
  chosen_T = jnp.take_along_axis(log_p_TV, targets_T[:, None], axis=1)[:, 0]
  return -jnp.sum(chosen_T * weights_T)
