"""Causal attention whose memory grows with L, not with L squared.

Queries are processed block by block; a block's logits are computed, used and
dropped, and computed again in the backward pass from the row's log-sum-exp
(FlashAttention, arXiv 2205.14135, algorithms 1 and 4, with whole rows of keys
at a time). Blocks are grouped in stripes; a stripe is one scan, whose blocks
multiply the keys up to the stripe's end, so that most of what is above the
diagonal is never computed. Queries that are a part of a sequence form one
stripe and multiply all of its keys, because only the running program knows
where they begin.

Arrays are head-major, and the query heads of one key head are one matrix of
rows, so that every product is one batch of plain matrices.

Letters: B batch, L query positions, M key positions, N key/value heads, G query
heads per key/value head, K query/key width, U value width, Q queries of one
block, R rows of a block (R = G*Q), S blocks of one stripe.
"""

from collections.abc import Iterator
import dataclasses
import functools

import jax
import jax.numpy as jnp

from seekax.ops.reductions import reduce_rows
from seekax.ops.rematerialisation import keep

# Finite, so that a row without any visible key gives a mean and not NaN.
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)


@dataclasses.dataclass(frozen=True)
class Chunking:
  """How a sequence is cut.

  Attributes:
    block: number of queries whose logits are in memory at once.
    stripes: number of scans; 1 / stripes of the logits above the diagonal are
      computed.
    keep: whether the softmax's numerators are kept for the backward pass, which
      then computes no logits again.
  """

  block: int = 128
  stripes: int = 8
  keep: bool = False


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def chunked_attention(
  q_BNGLK: jax.Array,
  k_BNMK: jax.Array,
  v_BNMU: jax.Array,
  segments: tuple[jax.Array, jax.Array] | None,
  first: jax.Array | None,
  scale: float,
  chunking: Chunking,
) -> jax.Array:
  """Softmax attention over the positions at or before each query.

  Args:
    q_BNGLK: queries; L is a multiple of the block.
    k_BNMK: keys.
    v_BNMU: values, of any width. Values that a query doesn't see are multiplied
      by 0, not skipped: NaN or infinity in them would reach the result.
    segments: document numbers of queries [B, L] and keys [B, M]; a query sees
      its own document only. None: every earlier position.
    first: position of the first query, a scalar; None: 0, and L is M.
    scale: factor on the logits.
    chunking: how the sequence is cut.

  Returns:
    [B, N, G, L, U] in v's dtype; logits and softmax are float32.
  """
  return _forward(q_BNGLK, k_BNMK, v_BNMU, segments, first, scale, chunking)[0]


def _forward(q, k, v, segments, first, scale, chunking):
  """Returns (output, residuals for the backward pass)."""
  outputs, saved = [], []
  segments_BL, segments_BM = segments or (None, None)
  for stripe in _stripes(q.shape[3], k.shape[2], first, chunking):
    keys = stripe.keys(k, v, segments_BM)

    def block(_, part, keys=keys):
      k_BNMK, v_BNMU, segments_BM = keys
      q_BNGQK, segments_BQ, at = part
      logits = _logits(q_BNGQK, k_BNMK, segments_BQ, segments_BM, at, scale)
      top = reduce_rows(jnp.max, logits)
      weights = jnp.exp(logits - top)
      total = reduce_rows(jnp.sum, weights)
      weights = weights.astype(v_BNMU.dtype)
      out = _float32_einsum('BNRM,BNMU->BNRU', weights, v_BNMU)
      out = (out / total).astype(v_BNMU.dtype).reshape(*q_BNGQK.shape[:-1], -1)
      if chunking.keep:
        return None, (out, (weights, total))
      return None, (out, top + jnp.log(total))

    parts = stripe.split(q, 3), stripe.split(segments_BL, 1), stripe.places()
    _, (out, own) = _scan(block, None, parts)
    outputs.append(_join(out))
    saved.append(own)
  out = keep(jnp.concatenate(outputs, axis=3), 'attention_output')
  if not chunking.keep:
    saved = [keep(log_sum, 'attention_log_sum') for log_sum in saved]
  return out, (q, k, v, segments, first, out, saved)


def _backward(scale, chunking, saved, dout_BNGLU):
  q, k, v, segments, first, out, per_stripe = saved
  segments_BL, segments_BM = segments or (None, None)
  delta_BNGL = jnp.sum(
    dout_BNGLU.astype(jnp.float32) * out.astype(jnp.float32), axis=-1
  )
  dk = jnp.zeros(k.shape, jnp.float32)
  dv = jnp.zeros(v.shape, jnp.float32)
  dqs = []
  stripes = _stripes(q.shape[3], k.shape[2], first, chunking)
  for stripe, own in zip(stripes, per_stripe, strict=True):
    keys = stripe.keys(k, v, segments_BM)

    def block(carry, part, keys=keys):
      k_BNMK, v_BNMU, segments_BM = keys
      q_BNGQK, dout_BNGQU, delta_BNGQ, own, segments_BQ, at = part
      q_BNRK, dout_BNRU = _rows(q_BNGQK), _rows(dout_BNGQU)
      delta_BNR1 = _rows(delta_BNGQ[..., None])
      if chunking.keep:
        # Dividing rows of dout by the softmax's sums replaces dividing weights.
        weights, total_BNR1 = own
        dout_BNRU = (dout_BNRU / total_BNR1).astype(q.dtype)
        delta_BNR1 /= total_BNR1
      else:
        logits = _logits(q_BNGQK, k_BNMK, segments_BQ, segments_BM, at, scale)
        weights = jnp.exp(logits - own)
      dv_BNMU = _float32_einsum(
        'BNRM,BNRU->BNMU', weights.astype(v.dtype), dout_BNRU
      )
      dweights = _float32_einsum('BNRU,BNMU->BNRM', dout_BNRU, v_BNMU)
      dlogits = weights * (dweights - delta_BNR1) * scale
      dlogits = dlogits.astype(q.dtype)
      dq = jnp.einsum('BNRM,BNMK->BNRK', dlogits, k_BNMK)
      dk_BNMK = _float32_einsum('BNRM,BNRK->BNMK', dlogits, q_BNRK)
      carry = carry[0] + dk_BNMK, carry[1] + dv_BNMU
      return carry, dq.reshape(q_BNGQK.shape)

    parts = (
      stripe.split(q, 3),
      stripe.split(dout_BNGLU, 3),
      stripe.split(delta_BNGL, 3),
      own,
      stripe.split(segments_BL, 1),
      stripe.places(),
    )
    start = dk[:, :, : stripe.keys_end], dv[:, :, : stripe.keys_end]
    (dk_part, dv_part), dq = _scan(block, start, parts)
    dk = dk.at[:, :, : stripe.keys_end].set(dk_part)
    dv = dv.at[:, :, : stripe.keys_end].set(dv_part)
    dqs.append(_join(dq))
  dq = jnp.concatenate(dqs, axis=3)
  return dq, dk.astype(k.dtype), dv.astype(v.dtype), None, None


chunked_attention.defvjp(_forward, _backward)


def _logits(q_BNGQK, k_BNMK, segments_BQ, segments_BM, at, scale):
  """float32 [B, N, R, M]; the block's queries start at position `at`."""
  shape = q_BNGQK.shape[:-1]
  logits = _float32_einsum('BNRK,BNMK->BNRM', _rows(q_BNGQK), k_BNMK)
  rows_Q = at + jnp.arange(shape[3])
  visible = rows_Q[:, None] >= jnp.arange(k_BNMK.shape[2])[None, :]
  if segments_BQ is not None:
    same = segments_BQ[:, :, None] == segments_BM[:, None, :]
    visible = (visible & same)[:, None, None]
  logits = logits.reshape(*shape, -1)
  return _rows(jnp.where(visible, logits * scale, MASKED))


def _rows(x_BNGQK):
  """[B, N, G * Q, ...]."""
  return x_BNGQK.reshape(*x_BNGQK.shape[:2], -1, x_BNGQK.shape[-1])


def _float32_einsum(letters, *operands):
  return jnp.einsum(letters, *operands, preferred_element_type=jnp.float32)


def _scan(block, carry, parts):
  """jax.lax.scan, but a single block is called directly."""
  if jax.tree.leaves(parts)[0].shape[0] > 1:
    return jax.lax.scan(block, carry, parts)
  carry, out = block(carry, jax.tree.map(lambda x: x[0], parts))
  return carry, jax.tree.map(lambda x: x[None], out)


@dataclasses.dataclass(frozen=True)
class _Stripe:
  """Blocks of consecutive queries [start, end), and the keys before keys_end.

  `first` is the position of the first query of all.
  """

  start: int
  end: int
  keys_end: int
  block: int
  first: jax.Array | int

  def keys(self, k, v, segments):
    """Keys, values and document numbers up to the stripe's end."""
    if segments is not None:
      segments = segments[:, : self.keys_end]
    return k[:, :, : self.keys_end], v[:, :, : self.keys_end], segments

  def split(self, x: jax.Array | None, axis: int) -> jax.Array | None:
    """[..., L, ...] to this stripe's blocks [S, ..., Q, ...]."""
    if x is None:
      return None
    part = jax.lax.slice_in_dim(x, self.start, self.end, axis=axis)
    shape = (*part.shape[:axis], -1, self.block, *part.shape[axis + 1 :])
    return jnp.moveaxis(part.reshape(shape), axis, 0)

  def places(self) -> jax.Array:
    """Position of each block's first query, [S]."""
    return self.first + jnp.arange(self.start, self.end, self.block)


def _join(x: jax.Array) -> jax.Array:
  """[S, B, N, G, Q, ...] back to [B, N, G, S * Q, ...]."""
  x = jnp.moveaxis(x, 0, 3)
  return x.reshape(*x.shape[:3], -1, *x.shape[5:])


def _stripes(
  length: int, keys: int, first: jax.Array | None, chunking: Chunking
) -> Iterator[_Stripe]:
  if first is not None:
    yield _Stripe(0, length, keys, chunking.block, first)
    return
  blocks = length // chunking.block
  count = min(chunking.stripes, blocks)
  edges = [blocks * i // count * chunking.block for i in range(count + 1)]
  for start, end in zip(edges[:-1], edges[1:], strict=True):
    yield _Stripe(start, end, end, chunking.block, 0)
