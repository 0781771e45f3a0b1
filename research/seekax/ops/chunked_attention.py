"""Causal attention whose memory grows with L, not with L squared.

Queries are taken block by block; a block's logits are made, used and dropped,
and made again in the backward pass from the row's log-sum-exp (FlashAttention,
arXiv 2205.14135, algorithms 1 and 4, with whole rows of keys at a time). Blocks
lie in stripes; a stripe is one scan, whose blocks meet the keys up to the
stripe's end, so that most of what lies above the diagonal is never computed.

Letters: B batch, L query positions, M key positions, N key/value heads, G query
heads per key/value head, K query/key width, U value width, Q queries of one
block, S blocks of one stripe.
"""

from collections.abc import Iterator
import dataclasses
import functools

import jax
import jax.numpy as jnp

# Finite, so that a row without any visible key gives a mean and not NaN.
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)


@dataclasses.dataclass(frozen=True)
class Chunking:
  """How a sequence is cut.

  Attributes:
    block: queries whose logits are in memory at once.
    stripes: scans; of the keys above the diagonal, 1 / stripes is computed.
  """

  block: int = 128
  stripes: int = 8


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def chunked_attention(
  q_BLNGK: jax.Array,
  k_BLNK: jax.Array,
  v_BLNU: jax.Array,
  segments_BL: jax.Array,
  scale: float,
  chunking: Chunking,
) -> jax.Array:
  """Softmax attention over the positions at or before each query.

  Args:
    q_BLNGK: queries; L is a multiple of the block.
    k_BLNK: keys.
    v_BLNU: values, of any width.
    segments_BL: document numbers; a query sees its own document only.
    scale: factor on the logits.
    chunking: how the sequence is cut.

  Returns:
    [B, L, N, G, U] in v's dtype; logits and softmax are float32.
  """
  return _forward(q_BLNGK, k_BLNK, v_BLNU, segments_BL, scale, chunking)[0]


def _forward(q, k, v, segments, scale, chunking):
  """(output, what the backward pass needs)."""
  outputs, sums = [], []
  for stripe in _stripes(q.shape[1], chunking):
    k_BMNK, v_BMNU = k[:, : stripe.end], v[:, : stripe.end]

    def block(_, part, stripe=stripe, k_BMNK=k_BMNK, v_BMNU=v_BMNU):
      q_BQNGK, segments_BQ, first = part
      logits = _logits(
        q_BQNGK, k_BMNK, segments_BQ, segments[:, : stripe.end], first, scale
      )
      top = jnp.max(logits, axis=-1, keepdims=True)
      weights = jnp.exp(logits - top)
      total = jnp.sum(weights, axis=-1, keepdims=True)
      weights = (weights / total).astype(v_BMNU.dtype)
      out = jnp.einsum('BNGQM,BMNU->BQNGU', weights, v_BMNU)
      return None, (out, (top + jnp.log(total))[..., 0])

    parts = stripe.split(q), stripe.split(segments), stripe.firsts()
    _, (out, log_sum) = jax.lax.scan(block, None, parts)
    outputs.append(_join(out))
    sums.append(log_sum)
  out = jnp.concatenate(outputs, axis=1)
  return out, (q, k, v, segments, out, sums)


def _backward(scale, chunking, saved, dout_BLNGU):
  q, k, v, segments, out, sums = saved
  delta_BLNG = jnp.sum(
    dout_BLNGU.astype(jnp.float32) * out.astype(jnp.float32), axis=-1
  )
  dk = jnp.zeros(k.shape, jnp.float32)
  dv = jnp.zeros(v.shape, jnp.float32)
  dqs = []
  for stripe, log_sum in zip(_stripes(q.shape[1], chunking), sums, strict=True):
    k_BMNK, v_BMNU = k[:, : stripe.end], v[:, : stripe.end]

    def block(carry, part, stripe=stripe, k_BMNK=k_BMNK, v_BMNU=v_BMNU):
      q_BQNGK, dout_BQNGU, delta_BQNG, log_sum_BNGQ, segments_BQ, first = part
      logits = _logits(
        q_BQNGK, k_BMNK, segments_BQ, segments[:, : stripe.end], first, scale
      )
      weights = jnp.exp(logits - log_sum_BNGQ[..., None])
      dv_BMNU = _float32_einsum(
        'BNGQM,BQNGU->BMNU', weights.astype(v.dtype), dout_BQNGU
      )
      dweights = _float32_einsum('BQNGU,BMNU->BNGQM', dout_BQNGU, v_BMNU)
      delta = jnp.moveaxis(delta_BQNG, 1, -1)[..., None]
      dlogits = (weights * (dweights - delta) * scale).astype(q.dtype)
      dq = jnp.einsum('BNGQM,BMNK->BQNGK', dlogits, k_BMNK)
      dk_BMNK = _float32_einsum('BNGQM,BQNGK->BMNK', dlogits, q_BQNGK)
      return (carry[0] + dk_BMNK, carry[1] + dv_BMNU), dq

    parts = (
      stripe.split(q),
      stripe.split(dout_BLNGU),
      stripe.split(delta_BLNG),
      log_sum,
      stripe.split(segments),
      stripe.firsts(),
    )
    start = dk[:, : stripe.end], dv[:, : stripe.end]
    (dk_part, dv_part), dq = jax.lax.scan(block, start, parts)
    dk = dk.at[:, : stripe.end].set(dk_part)
    dv = dv.at[:, : stripe.end].set(dv_part)
    dqs.append(_join(dq))
  dq = jnp.concatenate(dqs, axis=1)
  return dq, dk.astype(k.dtype), dv.astype(v.dtype), None


chunked_attention.defvjp(_forward, _backward)


def _logits(q_BQNGK, k_BMNK, segments_BQ, segments_BM, first, scale):
  """float32 [B, N, G, Q, M]; the block's queries start at position `first`."""
  logits = _float32_einsum('BQNGK,BMNK->BNGQM', q_BQNGK, k_BMNK)
  rows_Q = first + jnp.arange(q_BQNGK.shape[1])
  visible = rows_Q[:, None] >= jnp.arange(k_BMNK.shape[1])[None, :]
  same = segments_BQ[:, :, None] == segments_BM[:, None, :]
  return jnp.where((visible & same)[:, None, None], logits * scale, MASKED)


def _float32_einsum(letters, *operands):
  return jnp.einsum(letters, *operands, preferred_element_type=jnp.float32)


@dataclasses.dataclass(frozen=True)
class _Stripe:
  """Blocks of consecutive queries: positions [start, end)."""

  start: int
  end: int
  block: int

  def split(self, x: jax.Array) -> jax.Array:
    """[B, L, ...] to this stripe's blocks [S, B, Q, ...]."""
    part = x[:, self.start : self.end]
    shape = (part.shape[0], -1, self.block, *part.shape[2:])
    return jnp.moveaxis(part.reshape(shape), 1, 0)

  def firsts(self) -> jax.Array:
    """Position of each block's first query, [S]."""
    return jnp.arange(self.start, self.end, self.block)


def _join(x: jax.Array) -> jax.Array:
  """[S, B, Q, ...] back to [B, S * Q, ...]."""
  x = jnp.moveaxis(x, 0, 1)
  return x.reshape(x.shape[0], -1, *x.shape[3:])


def _stripes(length: int, chunking: Chunking) -> Iterator[_Stripe]:
  blocks = length // chunking.block
  count = min(chunking.stripes, blocks)
  edges = [blocks * i // count * chunking.block for i in range(count + 1)]
  for start, end in zip(edges[:-1], edges[1:], strict=True):
    yield _Stripe(start, end, chunking.block)
