"""Causal attention with unequal query/key and value widths.

Backends, chosen by `ops/backends.py`:

* `chunked` (portable): `ops/chunked_attention.py`; a sequence of at most one
  block is computed in one piece.
* `cudnn`, `tokamax`: fused kernels for NVIDIA GPUs (`ops/cudnn_attention.py`,
  `ops/tokamax_backends.py`).
* `plain`: all logits at once; a reference.

Letters: B batch, L query positions, M key positions, H query heads, N
key/value heads, K query/key width, U value width, C latent width, R rope width.
"""

from flax import struct
import jax
import jax.numpy as jnp

from seekax.ops import (
  backends,
  cudnn_attention,
  devices,
  pallas_latent_attention,
  tokamax_backends,
)
from seekax.ops.chunked_attention import chunked_attention, Chunking, MASKED
from seekax.ops.rematerialisation import keep

# Number of queries in a block. Up to KEPT_LENGTH positions the attention
# weights are kept for the backward pass; for longer sequences it recomputes
# them.
QUERY_BLOCK = 128
KEPT_LENGTH = 512


@struct.dataclass
class Part:
  """Where the queries are in their sequence, if they are only a part of it.

  Attributes:
    first: position of the first query, int32.
    segments_BM: document numbers of the whole sequence, or None.
  """

  first: jax.Array
  segments_BM: jax.Array | None = None


def causal_attention(
  q_BLHK: jax.Array,
  k_BLNK: jax.Array,
  v_BLNU: jax.Array,
  scale: float,
  segments_BL: jax.Array | None = None,
  backend: str = backends.AUTO,
  keep_weights: bool = True,
  part: Part | None = None,
) -> jax.Array:
  """Softmax attention over the positions at or before each query.

  Args:
    q_BLHK: queries.
    k_BLNK: keys; N divides H, each key head serves H/N query heads.
    v_BLNU: values, of any width.
    scale: factor on the logits.
    segments_BL: document numbers; a query sees its own document only.
      None: every earlier position.
    backend: name of a backend, or auto.
    keep_weights: whether `chunked` may keep a short sequence's softmax for the
      backward pass instead of computing it again.
    part: where the queries are in a longer sequence, whose keys are all here.
      None: queries and keys have the same positions.

  Returns:
    [B, L, H, U] in v's dtype; logits and softmax are float32.

  Raises:
    ConfigError: the backend can't run here, or doesn't take document numbers.
  """
  choice = backends.choose_attention(
    backend,
    devices.present(),
    q_BLHK.dtype,
    qk_width=q_BLHK.shape[-1],
    value_width=v_BLNU.shape[-1],
    segments=segments_BL is not None,
    part=part is not None,
  )
  if choice.name == 'cudnn':
    return cudnn_attention.causal_attention(q_BLHK, k_BLNK, v_BLNU, scale)
  if choice.name == 'tokamax':
    return tokamax_backends.causal_attention(
      q_BLHK, k_BLNK, v_BLNU, scale, segments_BL
    )
  length = q_BLHK.shape[1]
  first, segments_BM = None, segments_BL
  if part:
    first, segments_BM = part.first, part.segments_BM
  segments = None if segments_BL is None else (segments_BL, segments_BM)
  if choice.name == 'chunked' and length > QUERY_BLOCK:
    kept = keep_weights and length <= KEPT_LENGTH
    return _chunked(q_BLHK, k_BLNK, v_BLNU, scale, segments, first, kept)
  places_L = jnp.arange(length) if first is None else first + jnp.arange(length)
  visible = places_L[:, None] >= jnp.arange(k_BLNK.shape[1])[None, :]
  if segments_BL is not None and segments_BM is not None:
    same = segments_BL[:, :, None] == segments_BM[:, None, :]
    visible = visible[None] & same
  return _attend(q_BLHK, k_BLNK, v_BLNU, visible, scale)


def _chunked(q_BLHK, k_BLNK, v_BLNU, scale, segments, first, kept):
  """Pads to whole blocks; padded keys come last, so no query sees them."""
  batch, length, heads, width = q_BLHK.shape
  kv_heads = k_BLNK.shape[2]
  padding = -length % QUERY_BLOCK

  def padded(x_BL):
    more = [(0, 0)] * (x_BL.ndim - 2)
    return jnp.pad(x_BL, ((0, 0), (0, -x_BL.shape[1] % QUERY_BLOCK), *more))

  def head_major(x_BLHK):
    return jnp.swapaxes(padded(x_BLHK), 1, 2)

  segments = jax.tree.map(padded, segments)
  q_BHLK = head_major(q_BLHK)
  out_BNGLU = chunked_attention(
    q_BHLK.reshape(batch, kv_heads, heads // kv_heads, -1, width),
    head_major(k_BLNK),
    head_major(v_BLNU),
    segments,
    first,
    scale,
    Chunking(block=QUERY_BLOCK, keep=kept),
  )
  out_BHLU = out_BNGLU.reshape(batch, heads, length + padding, -1)
  return jnp.swapaxes(out_BHLU[:, :, :length], 1, 2)


def cached_attention(
  q_BHK: jax.Array,
  k_BMNK: jax.Array,
  v_BMNU: jax.Array,
  lengths_B: jax.Array,
  scale: float,
) -> jax.Array:
  """Attention of one new query per request to a cache of keys and values.

  Args:
    q_BHK: the new token's queries.
    k_BMNK: cached keys, with the new token's.
    v_BMNU: cached values.
    lengths_B: number of valid cache positions of each request.
    scale: factor on the logits.

  Returns:
    [B, H, U].
  """
  visible = jnp.arange(k_BMNK.shape[1])[None, :] < lengths_B[:, None]
  return _attend(q_BHK[:, None], k_BMNK, v_BMNU, visible[:, None], scale)[:, 0]


def _attend(q_BLHK, k_BMNK, v_BMNU, visible, scale):
  batch, length, heads, width = q_BLHK.shape
  kv_heads = k_BMNK.shape[2]
  q_BLNGK = q_BLHK.reshape(batch, length, kv_heads, heads // kv_heads, width)
  logits = jnp.einsum(
    'BLNGK,BMNK->BNGLM', q_BLNGK, k_BMNK, preferred_element_type=jnp.float32
  )
  visible = visible[:, None, None] if visible.ndim == 3 else visible
  logits = jnp.where(visible, logits * scale, MASKED)
  logits = keep(logits, 'attention_logits')
  weights = jax.nn.softmax(logits, axis=-1).astype(v_BMNU.dtype)
  out = jnp.einsum('BNGLM,BMNU->BLNGU', weights, v_BMNU)
  out = keep(out, 'attention_output')
  return out.reshape(batch, length, heads, v_BMNU.shape[-1])


def latent_attention(
  q_latent_BHC: jax.Array,
  q_rope_BHR: jax.Array,
  latent_BMC: jax.Array,
  k_rope_BMR: jax.Array,
  lengths_B: jax.Array,
  scale: float,
  backend: str = backends.AUTO,
) -> jax.Array:
  """Absorbed MLA: one new query per request against the latent cache.

  Multi-query attention with one key of width C + R and one value of width C,
  the latent itself (DeepSeek-V2, section 2.1.2).

  Args:
    q_latent_BHC: queries without position, projected into the latent space.
    q_rope_BHR: rotated queries.
    latent_BMC: cached latents, after their norm.
    k_rope_BMR: cached rotated keys.
    lengths_B: number of valid cache positions of each request, with the new
      token's.
    scale: factor on the logits.
    backend: plain (three products), pallas (one pass over the cache, for
      NVIDIA GPUs), or auto.

  Returns:
    [B, H, C]: attention-weighted latents.

  Raises:
    ConfigError: the backend can't run here.
  """
  choice = backends.choose_latent_attention(
    backend,
    devices.present(),
    latent_BMC.dtype,
    requests=latent_BMC.shape[0],
  )
  if choice.name == 'pallas':
    return pallas_latent_attention.latent_attention(
      q_latent_BHC, q_rope_BHR, latent_BMC, k_rope_BMR, lengths_B, scale
    )
  logits_BHM = jnp.einsum(
    'BHC,BMC->BHM', q_latent_BHC, latent_BMC, preferred_element_type=jnp.float32
  ) + jnp.einsum(
    'BHR,BMR->BHM', q_rope_BHR, k_rope_BMR, preferred_element_type=jnp.float32
  )
  visible_BM = jnp.arange(latent_BMC.shape[1])[None, :] < lengths_B[:, None]
  logits_BHM = jnp.where(visible_BM[:, None], logits_BHM * scale, MASKED)
  weights_BHM = jax.nn.softmax(logits_BHM, axis=-1).astype(latent_BMC.dtype)
  return jnp.einsum('BHM,BMC->BHC', weights_BHM, latent_BMC)
