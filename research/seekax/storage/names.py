"""Published tensor names, and the place of each tensor in our tree.

One table serves both directions: `slots(config)` lists every tensor that a
published checkpoint of this model has, in the order of the layers. Published
matrices are [out, in]; ours are [in, out] with a separate axis of heads, so a
matrix is transposed and reshaped.
"""

from collections.abc import Iterator
import dataclasses
import math

import jax
import numpy as np

from seekax.arrays import PyTree
from seekax.configuration.model import ModelConfig
from seekax.model.transformer import LAYERS, MTP

PARAMS, BIAS = 'params', 'router_bias'
Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Slot:
  """A published tensor and its place.

  Attributes:
    name: published name.
    shape: published shape, (out, in) for a matrix.
    path: path of the leaf in {'params', 'router_bias'}.
    index: position in the leaf's leading axes: layer, expert.
    inner: our shape at that position.
    inputs: number of inner axes that are the matrix's input; 0: the tensor is
      stored as it is, a vector or the embedding.
    in_fp8: whether published FP8 checkpoints hold it as codes and scales.
    is_copy: whether it is another tensor's copy; it is not read into the tree.
  """

  name: str
  shape: tuple[int, ...]
  path: Path
  index: tuple[int, ...]
  inner: tuple[int, ...]
  inputs: int
  in_fp8: bool = False
  is_copy: bool = False

  @property
  def is_bias(self) -> bool:
    """Whether this is the selection bias, which is always float32."""
    return self.path[0] == BIAS

  def to_published(self, ours: np.ndarray) -> np.ndarray:
    """The slot's part of our leaf, as a view in the published shape."""
    return ours.reshape(self.shape[::-1]).T if self.inputs else ours

  def to_ours(self, published: np.ndarray) -> np.ndarray:
    """The inverse of to_published."""
    return published.T.reshape(self.inner) if self.inputs else published


def slots(config: ModelConfig) -> Iterator[Slot]:
  """Yields every tensor of a model's published checkpoint.

  References:
    DeepSeek-V3's released index: 46,183 weights (and 45,808 scales).
  """
  width, vocab = config.embed_dim, config.vocab_size
  table = (PARAMS, 'embedding', 'table')
  head = (PARAMS, 'head')
  root = 'model'
  yield _plain(f'{root}.embed_tokens.weight', table, (), (vocab, width))
  for layer in range(config.num_layers):
    yield from _layer(config, layer)
  yield _scale(f'{root}.norm', (PARAMS, 'final_norm'), (), width)
  yield _matrix('lm_head', head, (), (width,), (vocab,))
  for depth in range(config.mtp_depth):
    prefix = f'{root}.layers.{config.num_layers + depth}'
    module = (PARAMS, f'mtp_{depth}')
    yield dataclasses.replace(
      _plain(f'{prefix}.embed_tokens.weight', table, (), (vocab, width)),
      is_copy=True,
    )
    yield _scale(f'{prefix}.enorm', (*module, 'embed_norm'), (), width)
    yield _scale(f'{prefix}.hnorm', (*module, 'hidden_norm'), (), width)
    yield _matrix(
      f'{prefix}.eh_proj', (*module, 'project'), (), (2 * width,), (width,)
    )
    yield from _block(
      config,
      prefix,
      (*module, 'block'),
      (),
      (BIAS, MTP) if config.uses_experts else (),
      (depth,),
    )
    yield _scale(
      f'{prefix}.shared_head.norm', (*module, 'final_norm'), (), width
    )
    yield dataclasses.replace(
      _matrix(f'{prefix}.shared_head.head', head, (), (width,), (vocab,)),
      is_copy=True,
    )


def count(config: ModelConfig) -> int:
  """The number of `slots`, without listing them."""
  latent = 7 if config.query_latent_dim else 5
  # The 2 are norms.
  shared = 2 + (latent if config.attention == 'mla' else 4)
  plain = shared + 3
  experts = shared + 1 + 3 * config.num_experts
  experts += int(config.uses_router_bias) + 3 * bool(config.num_shared_experts)
  last = experts if config.uses_experts else plain
  return (
    3
    + config.num_plain_layers * plain
    + config.num_expert_layers * experts
    + config.mtp_depth * (last + 6)
  )


def _layer(config: ModelConfig, layer: int) -> Iterator[Slot]:
  prefix, dense = f'model.layers.{layer}', config.num_plain_layers
  if layer < dense:
    path, index, bias = (PARAMS, 'dense_layers'), (layer,), ()
  else:
    path, index = (PARAMS, 'expert_layers'), (layer - dense,)
    bias = (BIAS, LAYERS)
  return _block(config, prefix, path, index, bias, index)


def _block(
  config: ModelConfig,
  prefix: str,
  path: Path,
  index: tuple[int, ...],
  bias: Path,
  bias_index: tuple[int, ...],
) -> Iterator[Slot]:
  """One layer; `bias` is the leaf of its router bias, () without experts."""
  width = config.embed_dim
  attention = _latent if config.attention == 'mla' else _grouped
  yield _scale(
    f'{prefix}.input_layernorm', (*path, 'attention_norm'), index, width
  )
  yield from attention(
    config, f'{prefix}.self_attn', (*path, 'attention'), index
  )
  yield _scale(
    f'{prefix}.post_attention_layernorm', (*path, 'ffn_norm'), index, width
  )
  if not bias:
    yield from _swiglu(
      f'{prefix}.mlp', (*path, 'mlp'), index, width, config.mlp_dim
    )
    return
  prefix, path = f'{prefix}.mlp', (*path, 'experts')
  yield _matrix(
    f'{prefix}.gate',
    (*path, 'router', 'kernel'),
    index,
    (width,),
    (config.num_experts,),
  )
  if config.uses_router_bias:
    yield _plain(
      f'{prefix}.gate.e_score_correction_bias',
      bias,
      bias_index,
      (config.num_experts,),
    )
  for expert in range(config.num_experts):
    yield from _swiglu(
      f'{prefix}.experts.{expert}',
      path,
      (*index, expert),
      width,
      config.expert_dim,
    )
  if config.num_shared_experts:
    yield from _swiglu(
      f'{prefix}.shared_experts',
      (*path, 'shared'),
      index,
      width,
      config.shared_dim,
    )


def _latent(config, prefix, path, index) -> Iterator[Slot]:
  """Multi-head latent attention."""
  c, width, heads = config, config.embed_dim, config.num_heads
  query_in, query_name = width, 'q_proj'
  if c.query_latent_dim:
    query_in, query_name = c.query_latent_dim, 'q_b_proj'
    down = (*path, 'query_down')
    yield _linear(f'{prefix}.q_a_proj', down, index, (width,), (query_in,))
    yield _scale(
      f'{prefix}.q_a_layernorm', (*path, 'query_norm'), index, query_in
    )
  yield _linear(
    f'{prefix}.{query_name}',
    (*path, 'query_up'),
    index,
    (query_in,),
    (heads, c.qk_head_dim),
  )
  yield _linear(
    f'{prefix}.kv_a_proj_with_mqa',
    (*path, 'kv_down'),
    index,
    (width,),
    (c.kv_latent_dim + c.rope_head_dim,),
  )
  yield _scale(
    f'{prefix}.kv_a_layernorm', (*path, 'kv_norm'), index, c.kv_latent_dim
  )
  yield _linear(
    f'{prefix}.kv_b_proj',
    (*path, 'kv_up'),
    index,
    (c.kv_latent_dim,),
    (heads, c.nope_head_dim + c.value_head_dim),
  )
  yield _linear(
    f'{prefix}.o_proj',
    (*path, 'out'),
    index,
    (heads, c.value_head_dim),
    (width,),
  )


def _grouped(config, prefix, path, index) -> Iterator[Slot]:
  """GQA, which includes MHA and MQA."""
  width, heads, kv_heads = config.embed_dim, config.num_heads, config.kv_heads
  qk, value = config.qk_head_dim, config.value_head_dim
  for name, ours, outputs in (
    ('q_proj', 'query', (heads, qk)),
    ('k_proj', 'key', (kv_heads, qk)),
    ('v_proj', 'value', (kv_heads, value)),
  ):
    yield _linear(f'{prefix}.{name}', (*path, ours), index, (width,), outputs)
  yield _linear(
    f'{prefix}.o_proj', (*path, 'out'), index, (heads, value), (width,)
  )


def _swiglu(prefix, path, index, width, hidden) -> Iterator[Slot]:
  for name in ('gate', 'up'):
    yield _linear(
      f'{prefix}.{name}_proj', (*path, name), index, (width,), (hidden,)
    )
  yield _linear(
    f'{prefix}.down_proj', (*path, 'down'), index, (hidden,), (width,)
  )


def _plain(name, path, index, shape) -> Slot:
  return Slot(name, shape, path, index, shape, 0)


def _scale(name, path, index, width) -> Slot:
  return _plain(f'{name}.weight', (*path, 'scale'), index, (width,))


def _matrix(name, path, index, inputs, outputs) -> Slot:
  shape = (math.prod(outputs), math.prod(inputs))
  inner = (*inputs, *outputs)
  return Slot(f'{name}.weight', shape, path, index, inner, len(inputs))


def _linear(name, path, index, inputs, outputs) -> Slot:
  """A matrix that FP8 checkpoints store as codes and scales."""
  slot = _matrix(name, path, index, inputs, outputs)
  return dataclasses.replace(slot, in_fp8=True)


def abstract_tree(config: ModelConfig) -> dict[str, PyTree]:
  """Shapes of the float32 weights that `slots` fill, as nested dicts.

  They equal those of `model.parameters.abstract_weights`, which traces the
  model and takes seconds.
  """
  leading: dict[Path, tuple[int, ...]] = {}
  inner: dict[Path, tuple[int, ...]] = {}
  for slot in slots(config):
    if slot.is_copy:
      continue
    so_far = leading.get(slot.path, (0,) * len(slot.index))
    leading[slot.path] = tuple(
      max(count, i + 1) for count, i in zip(so_far, slot.index, strict=True)
    )
    inner[slot.path] = slot.inner
  tree: dict[str, PyTree] = {PARAMS: {}, BIAS: {}}
  for path, lead in leading.items():
    place = tree
    for name in path[:-1]:
      place = place.setdefault(name, {})
    place[path[-1]] = jax.ShapeDtypeStruct((*lead, *inner[path]), np.float32)
  return tree


def leaf(tree: PyTree, path: Path) -> PyTree:
  """The leaf at a path of a nested dict."""
  for name in path:
    tree = tree[name]
  return tree


def to_published(
  config: ModelConfig, tree: dict[str, PyTree]
) -> Iterator[tuple[str, np.ndarray]]:
  """Yields the tensors of a tree with published names and shapes.

  Args:
    config: the model.
    tree: {'params', 'router_bias'}, or anything of this structure and these
      shapes, such as gradients.
  """
  arrays: dict[Path, np.ndarray] = {}
  for slot in slots(config):
    if slot.path not in arrays:
      arrays[slot.path] = np.asarray(jax.device_get(leaf(tree, slot.path)))
    yield slot.name, slot.to_published(arrays[slot.path][slot.index])
