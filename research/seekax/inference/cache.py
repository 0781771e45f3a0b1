"""The cache of a batch of requests: latents for MLA, keys and values else.

Letters: B batch, M cache positions, N stacked layers.
"""

from flax import struct
import jax
import jax.numpy as jnp

from seekax.arrays import PyTree
from seekax.model.attention import KeyValueCache, LatentCache
from seekax.model.transformer import Transformer


@struct.dataclass
class Cache:
  """What decoding keeps of the positions so far.

  Attributes:
    layers: {'dense': entries, 'experts': entries}: a list with [B, M, ...] per
      layer, or stacked [N, B, M, ...] where the layers are a scan.
    lengths_B: int32, positions in use per request.
  """

  layers: dict[str, PyTree]
  lengths_B: jax.Array


def init_cache(
  model: Transformer, batch_size: int, max_length: int, dtype: jnp.dtype
) -> Cache:
  """An empty cache with room for max_length positions per request."""
  config = model.config

  def entry(*stacked: int):
    def zeros(*widths: int) -> jax.Array:
      return jnp.zeros((*stacked, batch_size, max_length, *widths), dtype)

    if config.attention == 'mla':
      return LatentCache(
        zeros(config.kv_latent_dim), zeros(config.rope_head_dim)
      )
    return KeyValueCache(
      zeros(config.kv_heads, config.qk_head_dim),
      zeros(config.kv_heads, config.value_head_dim),
    )

  def entries(count: int):
    if count <= model.compute.unroll_layers:
      return [entry() for _ in range(count)]
    return entry(count)

  counts = {
    'dense': config.num_plain_layers,
    'experts': config.num_expert_layers,
  }
  layers = {name: entries(count) for name, count in counts.items() if count}
  return Cache(layers, jnp.zeros((batch_size,), jnp.int32))


def fill(
  cache: Cache, entries: dict[str, PyTree], lengths_B: jax.Array
) -> Cache:
  """Puts a prefill's entries at the start of the cache.

  Args:
    cache: empty, with room of M positions.
    entries: the trunk's, of L positions, at most M.
    lengths_B: valid positions of every request; what lies behind is never
      read, since attention masks it and decoding overwrites it.
  """

  def put(room, new):
    return jax.lax.dynamic_update_slice(
      room, new.astype(room.dtype), (0,) * room.ndim
    )

  return Cache(jax.tree.map(put, cache.layers, entries), lengths_B)
