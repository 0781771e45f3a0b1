"""Attention modules: MLA, full and absorbed; GQA, MHA and MQA.

Letters: B batch, L positions, M cache positions, D model width, H heads,
N key/value heads, K no-position query/key width, R rope width, U value width,
P query latent, C key/value latent.
"""

from collections.abc import Callable, Sequence
import functools

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp

from seekax.configuration.compute import ComputeConfig, DEFAULT
from seekax.configuration.model import ModelConfig
from seekax.model.layers import matrix, RmsNorm
from seekax.ops import attention as ops
from seekax.ops import rotary
from seekax.ops.linear import contract, linear, PLAIN, Products
from seekax.ops.precision import HIGH, Policy
from seekax.ops.rematerialisation import keep
from seekax.parallel import rules

# For any config: DeepSeek's code and transformers ignore `rms_norm_eps` here.
LATENT_NORM_EPS = 1e-6


@struct.dataclass
class LatentCache:
  """What MLA caches of each position: C + R values per layer.

  Attributes:
    latent: [B, M, C], latents after their norm.
    k_rope: [B, M, R], rotated keys, shared by all heads.
  """

  latent: jax.Array
  k_rope: jax.Array


@struct.dataclass
class KeyValueCache:
  """What GQA, MHA and MQA cache of each position.

  Attributes:
    key: [B, M, N, K + R], rotated keys.
    value: [B, M, N, U], values.
  """

  key: jax.Array
  value: jax.Array


def lay_out(x_BLX: jax.Array, *names: str) -> jax.Array:
  """On a mesh, splits x by batch, positions and these names; else returns x.

  Without this the compiler may split the last axis over the devices that share
  the masters, and sum logits over them.
  """
  return rules.constrain(x_BLX, 'batch', 'length', *names, None)


def write_at(cache: jax.Array, new: jax.Array, at_B: jax.Array) -> jax.Array:
  """Writes each request's new entry at that request's position."""
  return cache.at[jnp.arange(cache.shape[0]), at_B].set(
    new.astype(cache.dtype), mode='drop'
  )


def mla_full(
  q_nope_BLHK: jax.Array,
  q_rope_BLHR: jax.Array,
  latent_BMC: jax.Array,
  k_rope_BMR: jax.Array,
  kv_up_CHX: jax.Array,
  segments_BL: jax.Array | None,
  config: ModelConfig,
  compute: ComputeConfig = DEFAULT,
  products: Products = PLAIN,
  part: ops.Part | None = None,
) -> jax.Array:
  """MLA with expanded keys and values, for training and prefill.

  Args:
    q_nope_BLHK: queries without position.
    q_rope_BLHR: rotated queries.
    latent_BMC: latents after their norm.
    k_rope_BMR: rotated keys, one for all heads.
    kv_up_CHX: up-projection, X = K + U, keys first.
    segments_BL: document numbers, or None.
    config: gives widths and scale.
    compute: names the backend, and says whether its output is recomputed.
    products: how the up-projection is multiplied.
    part: where the queries are in the sequence, if they are only a part of it.

  Returns:
    [B, L, H, U].

  References:
    DeepSeek-V3, equations 2, 4, 5, 9 and 10.
  """
  # Equations 2 and 5: the keys without position, and the values.
  kv_BMHX = linear(latent_BMC, kv_up_CHX, products)
  if part is None:
    kv_BMHX = lay_out(kv_BMHX, 'heads')
  k_nope_BMHK, v_BMHU = jnp.split(kv_BMHX, [config.nope_head_dim], axis=-1)
  # Equation 4: each head's key, and the rotated one that all heads share.
  k_rope_BMHR = jnp.broadcast_to(
    k_rope_BMR[:, :, None], k_nope_BMHK.shape[:3] + k_rope_BMR.shape[-1:]
  )
  k_BMHX = jnp.concatenate([k_nope_BMHK, k_rope_BMHR], axis=-1)
  # Equation 9.
  q_BLHX = jnp.concatenate([q_nope_BLHK, q_rope_BLHR], axis=-1)
  # Equation 10.
  return ops.causal_attention(
    q_BLHX,
    k_BMHX,
    v_BMHU,
    rotary.softmax_scale(config),
    segments_BL,
    compute.attention_backend,
    compute.remat == 'none',
    part,
  )


def in_parts(
  attend: Callable[..., jax.Array],
  queries: Sequence[jax.Array],
  sources: Sequence[jax.Array],
  names: Sequence[rules.Names],
  segments_BL: jax.Array | None,
) -> jax.Array:
  """Attention on a mesh that splits sequences: each device has its queries.

  The sources of keys and values are gathered, and their gradients summed. For
  MLA these are the latents and the rotated key that all heads share.

  Args:
    attend: maps (*queries, *sources, segments_BL, part) to [B, L, H, U].
    queries: arrays [B, L, H, ...].
    sources: arrays that keys and values are computed from.
    names: names of the axes of each source.
    segments_BL: document numbers, or None.

  Returns:
    [B, L, H, U].
  """
  positions_L = jnp.arange(queries[0].shape[1])
  split = rules.axes('batch', 'length'), rules.axes('batch', None)
  of_segments = None if segments_BL is None else split

  def own(queries, sources, segments, positions_L):
    segments_BL, segments_BM = segments or (None, None)
    part = ops.Part(positions_L[0], segments_BM)
    return attend(*queries, *sources, segments_BL, part=part)

  of_query = rules.axes('batch', 'length', 'heads', None)
  run = rules.per_shard(
    own,
    ([of_query] * len(queries), list(names), of_segments, rules.axes('length')),
    of_query,
  )
  segments = None if segments_BL is None else (segments_BL, segments_BL)
  return run(list(queries), list(sources), segments, positions_L)


def mla_absorbed(
  q_nope_BHK: jax.Array,
  q_rope_BHR: jax.Array,
  cache: LatentCache,
  kv_up_CHX: jax.Array,
  lengths_B: jax.Array,
  config: ModelConfig,
  compute: ComputeConfig = DEFAULT,
) -> jax.Array:
  """MLA on the latent cache, without expanding keys and values, for decoding.

  Args:
    q_nope_BHK: the new token's queries without position.
    q_rope_BHR: its rotated queries.
    cache: latents and rotated keys, with the new token's.
    kv_up_CHX: up-projection, X = K + U, keys first.
    lengths_B: number of valid cache positions of each request.
    config: gives widths and scale.
    compute: names the backend.

  Returns:
    [B, H, U], equal to mla_full's last position.

  References:
    DeepSeek-V2, section 2.1.2: W^UK is absorbed into the query, W^UV into the
    output.
  """
  w_uk_CHK, w_uv_CHU = jnp.split(kv_up_CHX, [config.nope_head_dim], axis=-1)
  q_latent_BHC = jnp.einsum('BHK,CHK->BHC', q_nope_BHK, w_uk_CHK)
  out_BHC = ops.latent_attention(
    q_latent_BHC,
    q_rope_BHR,
    cache.latent,
    cache.k_rope,
    lengths_B,
    rotary.softmax_scale(config),
    compute.latent_attention_backend,
  )
  return jnp.einsum('BHC,CHU->BHU', out_BHC, w_uv_CHU)


class LatentAttention(nn.Module):
  """Multi-head latent attention (MLA).

  References:
    DeepSeek-V3, section 2.1.1, equations 1 to 11.
  """

  config: ModelConfig
  policy: Policy = HIGH
  compute: ComputeConfig = DEFAULT

  def setup(self):
    c = self.config
    q_in, q_axis = c.embed_dim, 'embed'
    if c.query_latent_dim:
      q_in, q_axis = c.query_latent_dim, 'latent'
      self.query_down = matrix(
        self, 'query_down', (c.embed_dim, q_in), ('embed', 'latent'), c
      )
      self.query_norm = RmsNorm(q_in, 'latent', LATENT_NORM_EPS)
    per_head = ('heads', 'head_width')
    q_shape = (q_in, c.num_heads, c.qk_head_dim)
    self.query_up = matrix(self, 'query_up', q_shape, (q_axis, *per_head), c)
    kv_shape = (c.embed_dim, c.kv_latent_dim + c.rope_head_dim)
    self.kv_down = matrix(self, 'kv_down', kv_shape, ('embed', 'latent'), c)
    self.kv_norm = RmsNorm(c.kv_latent_dim, 'latent', LATENT_NORM_EPS)
    up_shape = (
      c.kv_latent_dim,
      c.num_heads,
      c.nope_head_dim + c.value_head_dim,
    )
    self.kv_up = matrix(self, 'kv_up', up_shape, ('latent', *per_head), c)
    out_shape = (c.num_heads, c.value_head_dim, c.embed_dim)
    self.out = matrix(self, 'out', out_shape, (*per_head, 'embed'), c)

  def __call__(self, x_BLD, positions_BL, segments_BL):
    """Runs whole sequences; also returns what the cache keeps of them."""
    latent_BLC, k_rope_BLR = self._latents(x_BLD, positions_BL)
    queries = self._queries(x_BLD, positions_BL)
    sources = latent_BLC, k_rope_BLR, self.kv_up
    attend = functools.partial(
      mla_full,
      config=self.config,
      compute=self.compute,
      products=self.policy.linear,
    )
    if rules.num_parts('length') > 1:
      whole = rules.axes('batch', None, None)
      names = whole, whole, rules.axes(None, 'heads', None)
      out_BLHU = in_parts(attend, queries, sources, names, segments_BL)
    else:
      out_BLHU = attend(*queries, *sources, segments_BL)
    # Equation 11.
    y_BLD = contract(out_BLHU, self.out, 2, self.policy.after_attention)
    return y_BLD, LatentCache(latent_BLC, k_rope_BLR)

  def decode(self, x_BD, lengths_B, cache):
    """Runs one new token per request, at position lengths_B."""
    x_BLD, positions_BL = x_BD[:, None], lengths_B[:, None]
    latent_BLC, k_rope_BLR = self._latents(x_BLD, positions_BL)
    q_nope_BLHK, q_rope_BLHR = self._queries(x_BLD, positions_BL)
    cache = LatentCache(
      write_at(cache.latent, latent_BLC[:, 0], lengths_B),
      write_at(cache.k_rope, k_rope_BLR[:, 0], lengths_B),
    )
    out_BHU = mla_absorbed(
      q_nope_BLHK[:, 0],
      q_rope_BLHR[:, 0],
      cache,
      self.kv_up,
      lengths_B + 1,
      self.config,
      self.compute,
    )
    return contract(out_BHU, self.out, 2), cache

  def _latents(self, x_BLD, positions_BL):
    """What the cache keeps: the latent after its norm, the rotated key."""
    # Equations 1 and 3 in one product.
    down_BLX = linear(x_BLD, self.kv_down, self.policy.linear)
    down_BLX = lay_out(keep(down_BLX, 'kv_latent'))
    latent_BLC, k_rope_BLR = jnp.split(
      down_BLX, [self.config.kv_latent_dim], axis=-1
    )
    # Norms of both latents: section 4.2, not in the equations.
    latent_BLC = self.kv_norm(latent_BLC)
    return latent_BLC, rotary.rotate(k_rope_BLR, positions_BL, self.config)

  def _queries(self, x_BLD, positions_BL):
    """Queries without position, [B, L, H, K], and rotated, [B, L, H, R]."""
    c, products = self.config, self.policy.linear
    latent_BLP = x_BLD
    if c.query_latent_dim:
      # Equation 6.
      latent_BLP = linear(x_BLD, self.query_down, products)
      latent_BLP = self.query_norm(keep(latent_BLP, 'query_latent'))
      latent_BLP = lay_out(latent_BLP)
    # Equations 7 and 8 in one product.
    q_BLHX = lay_out(linear(latent_BLP, self.query_up, products), 'heads')
    q_nope_BLHK, q_rope_BLHR = jnp.split(q_BLHX, [c.nope_head_dim], axis=-1)
    return q_nope_BLHK, rotary.rotate(q_rope_BLHR, positions_BL, c)


class GroupedAttention(nn.Module):
  """GQA; with H key/value heads it is MHA, with 1 it is MQA."""

  config: ModelConfig
  policy: Policy = HIGH
  compute: ComputeConfig = DEFAULT

  def setup(self):
    c = self.config
    axes = ('embed', 'heads', 'head_width')
    q_shape = (c.embed_dim, c.num_heads, c.qk_head_dim)
    k_shape = (c.embed_dim, c.kv_heads, c.qk_head_dim)
    v_shape = (c.embed_dim, c.kv_heads, c.value_head_dim)
    out_shape = (c.num_heads, c.value_head_dim, c.embed_dim)
    self.query = matrix(self, 'query', q_shape, axes, c)
    self.key = matrix(self, 'key', k_shape, axes, c)
    self.value = matrix(self, 'value', v_shape, axes, c)
    self.out = matrix(self, 'out', out_shape, axes[1:] + axes[:1], c)

  def _project(self, x_BLD, positions_BL):
    c, products = self.config, self.policy.linear

    def with_rope(x_BLHX):
      nope, rope = jnp.split(x_BLHX, [c.nope_head_dim], axis=-1)
      return jnp.concatenate(
        [nope, rotary.rotate(rope, positions_BL, c)], axis=-1
      )

    q_BLHX = lay_out(with_rope(linear(x_BLD, self.query, products)), 'heads')
    k_BLNX = lay_out(with_rope(linear(x_BLD, self.key, products)), 'heads')
    v_BLNU = lay_out(linear(x_BLD, self.value, products), 'heads')
    return keep(q_BLHX, 'query'), keep(k_BLNX, 'key'), keep(v_BLNU, 'value')

  def __call__(self, x_BLD, positions_BL, segments_BL):
    """Runs whole sequences; also returns what the cache keeps of them."""
    q, k, v = self._project(x_BLD, positions_BL)
    c, compute = self.config, self.compute

    def attend(q, k, v, segments_BL, part=None):
      return ops.causal_attention(
        q,
        k,
        v,
        rotary.softmax_scale(c),
        segments_BL,
        compute.attention_backend,
        compute.remat == 'none',
        part,
      )

    if rules.num_parts('length') > 1:
      names = [rules.axes('batch', None, 'heads', None)] * 2
      out_BLHU = in_parts(attend, (q,), (k, v), names, segments_BL)
    else:
      out_BLHU = attend(q, k, v, segments_BL)
    y_BLD = contract(out_BLHU, self.out, 2, self.policy.after_attention)
    return y_BLD, KeyValueCache(k, v)

  def decode(self, x_BD, lengths_B, cache):
    """Runs one new token per request, at position lengths_B."""
    q, k, v = self._project(x_BD[:, None], lengths_B[:, None])
    cache = KeyValueCache(
      write_at(cache.key, k[:, 0], lengths_B),
      write_at(cache.value, v[:, 0], lengths_B),
    )
    scale = rotary.softmax_scale(self.config)
    out_BHU = ops.cached_attention(
      q[:, 0], cache.key, cache.value, lengths_B + 1, scale
    )
    return contract(out_BHU, self.out, 2), cache


def attention_module(
  config: ModelConfig,
  policy: Policy = HIGH,
  compute: ComputeConfig = DEFAULT,
) -> nn.Module:
  """Returns the attention module that the config names."""
  kind = LatentAttention if config.attention == 'mla' else GroupedAttention
  return kind(config, policy, compute)
