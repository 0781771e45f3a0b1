"""Gradients of a step whose layers are divided into pipeline stages.

The expert layers (in a model without experts, the dense ones) are divided among
the stages. The first stage also has V3's first, dense layers, and the last one
the final norm and the MTP modules; both have fewer of the other layers, so that
the slowest stage has as little work as possible. All stages share embedding and
head, each with a part of the vocabulary. Masters, gradients, loads and
checkpoints have the same shapes as without a pipeline.

Letters: S stages, N layers, M micro-batches, B batch, L positions, E experts,
J prediction depths.
"""

from collections.abc import Sequence
import dataclasses

import jax
import jax.numpy as jnp

from seekax.arrays import PyTree
from seekax.configuration.config import Config
from seekax.data.pipeline import Batch
from seekax.model import stack
from seekax.model.block import Block
from seekax.model.experts import Load, no_load
from seekax.model.layers import RmsNorm
from seekax.model.mtp import MtpModule
from seekax.model.parameters import cast_params
from seekax.model.transformer import (
  bias_shapes,
  LAYERS,
  MTP,
  shift_left,
  Transformer,
)
from seekax.model.weights import Weights
from seekax.ops import precision
from seekax.parallel import dealing, pipeline, pipeline_parts, ranks, rules
from seekax.parallel.mesh import current_sizes
from seekax.training import placement
from seekax.training.losses import balance_objective, LossSums, target_sums
from seekax.training.stages import Stages

# Entries of the tree of parameters that all stages share.
_OUTER = 'embedding', 'head'


def pipelined_gradients(
  masters: Weights,
  batch: Sequence[Batch],
  config: Config,
  mtp_weight: jax.typing.ArrayLike,
) -> tuple[PyTree, LossSums]:
  """Returns the gradient and sums of `losses.loss_sums` for all micro-batches.

  Args:
    masters: float32 weights.
    batch: micro-batches of equal shape.
    config: the run's config.
    mtp_weight: lambda of this step.

  Returns:
    (float32 gradients, laid out as masters; LossSums).
  """
  model, policy = config.model, precision.for_training(config)
  dtype = jnp.dtype(config.train.compute_dtype)
  weights = cast_params(masters.params, dtype, policy)
  outer = {key: weights.pop(key) for key in _OUTER}
  of_outer = placement.names_of(outer, model)
  stages = Stages(weights, model, current_sizes()[pipeline.AXIS])
  staged = stages.weights(weights)
  outer = placement.as_weights(outer, model)
  micro_batches = jax.tree.map(
    lambda *parts: rules.constrain(jnp.stack(parts), None, 'batch', 'length'),
    *batch,
  )

  def of_rank(outer, staged, biases, micro_batches, mtp_weight):
    result = pipeline.gradients(
      _model(config, policy, stages.counts, mtp_weight),
      outer,
      staged,
      biases,
      micro_batches,
      lambda *partial: ranks.as_partial(partial, (of_outer, stages.names)),
    )
    return (result.outer, result.staged), (result.left, result.passed)

  whole = rules.axes()
  run = ranks.apart(
    of_rank,
    (of_outer, stages.names, whole, rules.axes(None, 'batch', 'length'), whole),
    (of_outer, stages.names),
  )
  biases = _biases(masters.router_bias, model, stages.counts)
  (partial, partial_staged), (left, passed) = run(
    outer, staged, biases, micro_batches, mtp_weight
  )
  gradients = ranks.summed(partial, of_outer)
  gradients |= stages.gradients(
    ranks.summed(partial_staged, stages.names, stages.specs)
  )
  return gradients, _joined(left, passed, stages.counts)


def _biases(router_bias, model, counts) -> dict[str, jax.Array]:
  """Selection biases of each stage's routers, [S, ...]; zeros without any."""
  biases = {
    key: router_bias.get(key, jnp.zeros(shape))
    for key, shape in bias_shapes(model, every_router=True).items()
  }
  if LAYERS in biases:
    biases[LAYERS] = dealing.dealt(biases[LAYERS], counts)
  if MTP in biases:
    shape = biases[MTP].shape
    biases[MTP] = jnp.broadcast_to(biases[MTP], (len(counts), *shape))
  return biases


def _model(config: Config, policy, counts, mtp_weight) -> pipeline_parts.Model:
  model = Transformer(config.model, policy, config.compute)
  last = len(counts) - 1

  def embed(weights, tokens_BL):
    return model.apply({'params': weights}, tokens_BL, method='embed')

  def enter(weights, batch):
    return embed(weights, batch.tokens_BL)

  def beside(weights, batch):
    depths = range(config.model.mtp_depth)
    return [embed(weights, shift_left(batch.targets_BL, k)) for k in depths]

  def leave(weights, out, batch):
    hidden_BLD, further = out
    return target_sums(
      weights['head'], hidden_BLD, further, {}, batch, config, mtp_weight
    )

  stages = [
    _StageFunction(config, policy, max(counts), count, s == 0, s == last)
    for s, count in enumerate(counts)
  ]
  return pipeline_parts.Model(enter, beside, stages, leave)


@dataclasses.dataclass(frozen=True)
class _StageFunction:
  """A stage for `pipeline_parts.Model`; equal stages compare equal.

  Attributes:
    config: the run's config.
    policy: precision of its linear maps.
    room: number of layers that every stage has parameters for.
    count: number of layers that this stage has.
    is_first: whether it also has the dense layers.
    is_last: whether it also has the final norm and the MTP modules.
  """

  config: Config
  policy: precision.Policy
  room: int
  count: int
  is_first: bool
  is_last: bool

  def __call__(
    self,
    weights: PyTree,
    biases: dict[str, jax.Array],
    x_BLD: jax.Array,
    beside: list[jax.Array],
    batch: Batch,
  ) -> tuple[jax.Array, PyTree, jax.Array, dict[str, Load]]:
    """Runs the stage's layers.

    Args:
      weights: weights of a stage.
      biases: selection biases of its routers.
      x_BLD: its input.
      beside: embeddings of the MTP modules' tokens.
      batch: the micro-batch.

    Returns:
      (its output; hidden states of the main model and of every MTP depth, which
      are 0 except on the last stage; the objective's balance loss; loads).
    """
    model, name = self.config.model, stack.pipelined_stack(self.config.model)
    isolate = self.config.data.isolate_documents
    shared = batch.positions_BL, batch.segments_BL if isolate else None

    def run(name, count, bias_NE, x_BLD):
      routed, compute = name == 'expert_layers', self.config.compute
      block = Block(model, routed, self.policy, compute, parent=None)
      own = jax.tree.map(lambda x: x[:count], weights[name])
      return stack.run_unbound(block, own, bias_NE, x_BLD, shared)

    if self.is_first and 'dense_layers' in weights and name != 'dense_layers':
      x_BLD, _ = run('dense_layers', model.num_plain_layers, None, x_BLD)
    loads = {}
    if model.uses_experts:
      loads[LAYERS] = no_load(model, self.room)
      loads[MTP] = no_load(model, model.mtp_depth)
    if self.count:
      bias_NE = biases[LAYERS][: self.count] if loads else None
      x_BLD, load = run(name, self.count, bias_NE, x_BLD)
      if loads:
        loads[LAYERS] = jax.tree.map(
          lambda none, some: none.at[: self.count].set(some),
          loads[LAYERS],
          load,
        )
    out = jax.tree.map(jnp.zeros_like, (x_BLD, beside))
    if self.is_last:
      out, load = self._ending(weights, biases, x_BLD, beside, shared)
      if load is not None:
        loads[MTP] = load
    balance = sum(load.balance.sum() for load in loads.values())
    objective = balance_objective(self.config, jnp.float32(balance), batch)
    return x_BLD, out, objective, loads

  def _ending(self, weights, biases, x_BLD, beside, shared):
    """Returns ((hidden states, those of each MTP depth), load of the MTPs)."""
    model = self.config.model
    norm = RmsNorm(model.embed_dim, 'embed', model.norm_eps, parent=None)
    hidden_BLD = norm.apply({'params': weights['final_norm']}, x_BLD)
    module = MtpModule(model, self.policy, self.config.compute, parent=None)
    further, loads = [], []
    for k, embedded_BLD in enumerate(beside):
      further_BLD, load = module.apply(
        {'params': weights[f'mtp_{k}']},
        further[-1] if further else hidden_BLD,
        embedded_BLD,
        biases[MTP][k] if MTP in biases else None,
        *shared,
      )
      further.append(further_BLD)
      loads.append(load)
    has_load = loads and loads[0] is not None
    return (hidden_BLD, further), stack.join(loads) if has_load else None


def _joined(
  left: LossSums, passed: dict[str, Load], counts: Sequence[int]
) -> LossSums:
  """Joins the sums of what left the pipeline with the loads of its stages."""
  if not passed:
    return left
  layers = dataclasses.replace(
    passed[LAYERS], count_E=dealing.collected(passed[LAYERS].count_E, counts)
  )
  mtp = jax.tree.map(lambda x: x.sum(axis=0), passed[MTP])
  loads = {LAYERS: layers, MTP: mtp}

  def total(field):
    return getattr(layers, field).sum() + getattr(mtp, field).sum()

  return dataclasses.replace(
    left,
    balance=total('balance'),
    rounds=total('rounds'),
    exchanges=total('exchanges'),
    load={
      key: load.count_E for key, load in loads.items() if load.count_E.size
    },
  )
