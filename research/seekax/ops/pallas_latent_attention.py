"""Absorbed MLA decoding as a GPU kernel: one pass over the latent cache.

A program takes a block of heads of one request through a part of its cache,
block by block, with a running softmax (arXiv 2205.14135); a block of latents is
read once and serves as keys and values of all these heads. Blocks past a
request's length are not read. Where requests and head blocks are too few to
keep a GPU busy, each request's cache is split in parts of equal length, whose
results are combined by their log-sum-exps.

The kernel is written in Pallas and compiled by Triton; see
`pallas_grouped_kernels`. Forward only: decoding has no gradient.

Letters: B batch, H heads, M cache positions, C latent width, R rope width,
J parts of a cache.
"""

import dataclasses
import functools

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
import jax.numpy as jnp

from seekax.ops.chunked_attention import MASKED

# Multiprocessors of an H100 or H200; each fits one program of this size.
PROGRAMS_AT_ONCE = 132
# For parts of a cache shorter than this, combining costs more than it gains.
SHORTEST_PART = 256


@dataclasses.dataclass(frozen=True)
class Tiling:
  """How the work is cut.

  Attributes:
    heads: heads per program; a power of two, 16 or more.
    positions: cache positions at once; a power of two, 16 or more.
    parts: number of parts of each request's cache (J).
    warps: warps (of 32 threads) per program.
    stages: cache blocks in flight, with the one that is being used.
  """

  heads: int
  positions: int
  parts: int
  warps: int
  stages: int


def choose_tiling(
  batch: int, num_heads: int, positions: int, dtype: jax.typing.DTypeLike
) -> Tiling:
  """Chosen by arithmetic; on an H200 none of six others was 10 % faster.

  Float32 sums of 64 heads x 512 latents take 128 registers a thread with 8
  warps; their queries and two blocks of 32 latents in bfloat16 take 144 KiB of
  Hopper's 227 KiB of shared memory. Compiled for an H100, the kernel spills no
  registers.

  Args:
    batch: number of requests.
    num_heads: H.
    positions: M, number of positions that the cache has room for.
    dtype: dtype of the products.
  """
  wide = jnp.dtype(dtype).itemsize > 2
  heads = min(max(pl.next_power_of_2(num_heads), 16), 16 if wide else 64)
  programs = batch * pl.cdiv(num_heads, heads)
  parts = max(PROGRAMS_AT_ONCE // programs, 1)
  return Tiling(
    heads=heads,
    positions=32,
    parts=min(parts, max(positions // SHORTEST_PART, 1)),
    warps=8 if heads == 64 or wide else 4,
    stages=2,
  )


def latent_attention(
  q_latent_BHC: jax.Array,
  q_rope_BHR: jax.Array,
  latent_BMC: jax.Array,
  k_rope_BMR: jax.Array,
  lengths_B: jax.Array,
  scale: float,
  *,
  interpret: bool = False,
  tiling: Tiling | None = None,
) -> jax.Array:
  """Absorbed MLA: one new query per request against the latent cache.

  Args:
    q_latent_BHC: queries without position, projected into the latent space.
    q_rope_BHR: rotated queries.
    latent_BMC: cached latents, after their norm, float32 or bfloat16.
    k_rope_BMR: cached rotated keys, of the latents' dtype.
    lengths_B: number of valid cache positions of each request, with the new
      token's; later positions aren't read. A request of length 0 gives 0.
    scale: factor on the logits, a Python number.
    interpret: runs the kernel's steps in plain JAX, on any device, slowly.
    tiling: how the work is cut; None chooses.

  Returns:
    [B, H, C] in the latents' dtype; logits, softmax and sums are float32.
  """
  batch, num_heads, width = q_latent_BHC.shape
  positions, dtype = latent_BMC.shape[1], latent_BMC.dtype
  common = jnp.promote_types(q_latent_BHC.dtype, dtype)
  tiling = tiling or choose_tiling(batch, num_heads, positions, common)
  out_BJHC, log_sum_BJH = _partial_attention(
    q_latent_BHC.astype(common),
    q_rope_BHR.astype(common),
    latent_BMC,
    k_rope_BMR,
    jnp.minimum(lengths_B, positions).astype(jnp.int32),
    float(scale),
    dtype if tiling.parts == 1 else jnp.float32,
    interpret,
    tiling,
  )
  if tiling.parts == 1:
    return out_BJHC[:, 0]
  # A part without positions has weight 0, and its output is 0 too.
  weights_BJH = jax.nn.softmax(log_sum_BJH, axis=1)
  # On a GPU an einsum would be a TF32 product.
  return jnp.sum(out_BJHC * weights_BJH[..., None], axis=1).astype(dtype)


def _partial_attention(
  q_latent_BHC,
  q_rope_BHR,
  latent_BMC,
  k_rope_BMR,
  lengths_B,
  scale,
  out_dtype,
  interpret,
  tiling,
):
  """Attention of each part alone, [B, J, H, C], and its log-sum-exp."""
  batch, num_heads, width = q_latent_BHC.shape
  args = q_latent_BHC, q_rope_BHR, latent_BMC, k_rope_BMR, lengths_B
  # Inside shard_map, results vary over an axis if any argument does.
  kinds = (jax.typeof(x).manual_axis_type for x in args)
  varying = frozenset().union(*(kind.varying for kind in kinds))
  kind = jax.sharding.ManualAxisType(varying=varying)
  shape = (batch, tiling.parts, num_heads)
  # Triton's array sizes are powers of two; the excess is masked.
  heads, positions = tiling.heads, latent_BMC.shape[1]
  columns, rope_columns = map(_columns, (width, q_rope_BHR.shape[2]))
  return pl.pallas_call(
    functools.partial(
      _kernel,
      num_heads=num_heads,
      widths=(width, q_rope_BHR.shape[2]),
      scale=scale,
      tiling=tiling,
    ),
    out_shape=[
      jax.ShapeDtypeStruct((*shape, width), out_dtype, manual_axis_type=kind),
      jax.ShapeDtypeStruct(shape, jnp.float32, manual_axis_type=kind),
    ],
    in_specs=[
      pl.BlockSpec((None, heads, columns), lambda i, j, b: (b, i, 0)),
      pl.BlockSpec((None, heads, rope_columns), lambda i, j, b: (b, i, 0)),
      pl.BlockSpec((None, positions, columns), lambda i, j, b: (b, 0, 0)),
      pl.BlockSpec((None, positions, rope_columns), lambda i, j, b: (b, 0, 0)),
      pl.BlockSpec(),
    ],
    out_specs=[
      pl.BlockSpec((None, None, heads, columns), lambda i, j, b: (b, j, i, 0)),
      pl.BlockSpec((None, None, heads), lambda i, j, b: (b, j, i)),
    ],
    # Head blocks vary first: programs that run together read the same latents.
    grid=(pl.cdiv(num_heads, tiling.heads), tiling.parts, batch),
    compiler_params=triton.CompilerParams(
      num_warps=tiling.warps, num_stages=tiling.stages
    ),
    interpret=interpret,
    name='latent_attention',
  )(*args)


def _kernel(
  q_latent_ref,
  q_rope_ref,
  latent_ref,
  k_rope_ref,
  lengths_ref,
  out_ref,
  log_sum_ref,
  *,
  num_heads: int,
  widths: tuple[int, int],
  scale: float,
  tiling: Tiling,
):
  part, request = pl.program_id(1), pl.program_id(2)
  heads_left = num_heads - pl.program_id(0) * tiling.heads
  width, rope_width = widths
  block = tiling.positions
  length = lengths_ref[request]
  # Parts are equal shares of this request's own length, in whole blocks.
  blocks = (length + block - 1) // block
  span = (blocks + tiling.parts - 1) // tiling.parts * block
  start = part * span
  stop = jnp.minimum(start + span, length)
  q_latent = _rows(q_latent_ref, 0, tiling.heads, heads_left, width)
  q_rope = _rows(q_rope_ref, 0, tiling.heads, heads_left, rope_width)

  def step(i, carry):
    total, top, out = carry
    first = start + i * block
    latent = _rows(latent_ref, first, block, stop, width)
    latent = latent.astype(q_latent.dtype)
    k_rope = _rows(k_rope_ref, first, block, stop, rope_width)
    logits = _dot(q_latent, latent, 1)
    logits += _dot(q_rope, k_rope.astype(q_rope.dtype), 1)
    visible = (first + jnp.arange(block) < stop)[None, :]
    logits = jnp.where(visible, logits * scale, MASKED)
    new_top = jnp.maximum(top, jnp.max(logits, axis=1))
    weights = jnp.exp(logits - new_top[:, None])
    kept = jnp.exp(top - new_top)
    total = total * kept + jnp.sum(weights, axis=1)
    out *= kept[:, None]
    out += _dot(weights.astype(latent.dtype), latent, 0)
    return total, new_top, out

  carry = (
    jnp.zeros((tiling.heads,), jnp.float32),
    jnp.full((tiling.heads,), MASKED, jnp.float32),
    jnp.zeros(q_latent.shape, jnp.float32),
  )
  # Zero or negative for a part that starts past the length.
  steps = (stop - start + block - 1) // block
  total, top, out = jax.lax.fori_loop(0, steps, step, carry)
  seen = total > 0
  total = jnp.where(seen, total, 1.0)
  log_sum = jnp.where(seen, top + jnp.log(total), MASKED)
  inside = jnp.arange(tiling.heads) < heads_left
  triton.store(log_sum_ref.at[:], log_sum, mask=inside)
  out = (out / total[:, None]).astype(out_ref.dtype)
  mask = _mask(inside, out.shape[1], width)
  triton.store(out_ref.at[:, :], out, mask=mask)


def _columns(width: int) -> int:
  """The least power of two at or above a width, at least 16."""
  return max(pl.next_power_of_2(width), 16)


def _rows(ref, first, count: int, limit, width: int):
  """Rows [count, width to a power of two]; 0 past the limit and the width."""
  columns = ref.shape[-1]
  inside = (first + jnp.arange(count)) < limit
  window = ref.at[pl.ds(first, count), pl.ds(0, columns)]
  return triton.load(window, mask=_mask(inside, columns, width), other=0.0)


def _mask(inside, columns: int, width: int):
  """Mask of the entries below the width in the rows that are inside."""
  mask = jnp.broadcast_to(inside[:, None], (inside.shape[0], columns))
  if columns == width:
    return mask
  return mask & (jnp.arange(columns) < width)[None, :]


def _dot(a, b, axis: int):
  """Rows of a times an axis of b; the sum is float32."""
  return jax.lax.dot_general(
    a,
    b,
    (((1,), (axis,)), ((), ())),
    precision=jax.lax.Precision.HIGHEST,  # float32 would become TF32.
    preferred_element_type=jnp.float32,
  )
