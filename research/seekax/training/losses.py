"""The training loss: main + lambda * MTP + alpha * sequence-wise balance.

With `train.z_loss_weight` the z-loss is added in the objective to the
cross-entropy of every target, main or MTP; the reported sums leave it out.

Letters: B batch, L positions, D model width, V vocabulary.
"""

from collections.abc import Sequence
import dataclasses
import functools

from flax import struct
import jax
import jax.numpy as jnp

from seekax.arrays import PyTree
from seekax.configuration.config import Config
from seekax.configuration.model import ModelConfig
from seekax.data.pipeline import Batch
from seekax.model.experts import Load
from seekax.model.parameters import cast_params
from seekax.model.transformer import (
  bias_shapes,
  LAYERS,
  MTP,
  shift_left,
  Transformer,
)
from seekax.model.weights import Weights
from seekax.ops import cross_entropy, precision
from seekax.parallel import rules
from seekax.training import placement


@struct.dataclass
class LossSums:
  """Sums over a (micro-)batch, to be divided by the global token count.

  Attributes:
    main: sum over main targets, in nats.
    mtp: sum over each depth's valid targets, in nats [J].
    balance: sum over sequences and routers of the sequence-wise loss.
    squared_log_z: sum over main targets of the softmax's squared
      log-normaliser; 0 unless train.z_loss_weight is on.
    tokens: number of main targets.
    sequences: number of sequences.
    rounds: int32, rounds of the exchanges of tokens, summed over routers and
      ranks of the batch.
    exchanges: int32, number of exchanges, summed likewise.
    load: {'layers': int32 [N, E], 'mtp': int32 [J, E]}; {} without experts.
  """

  main: jax.Array
  mtp: jax.Array
  balance: jax.Array
  squared_log_z: jax.Array
  tokens: jax.Array
  sequences: jax.Array
  rounds: jax.Array
  exchanges: jax.Array
  load: dict[str, jax.Array]


def zero_sums(model: ModelConfig) -> LossSums:
  """The sums before the first micro-batch."""
  number, count = jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32)
  shapes = bias_shapes(model, every_router=True)
  return LossSums(
    main=number,
    mtp=jnp.zeros((model.mtp_depth,), jnp.float32),
    balance=number,
    squared_log_z=number,
    tokens=number,
    sequences=count,
    rounds=count,
    exchanges=count,
    load={key: jnp.zeros(s, jnp.int32) for key, s in shapes.items()},
  )


def main_weights(batch: Batch, isolate_documents: bool) -> jax.Array:
  """1 for each target that counts: all, or those of the input's document."""
  if not isolate_documents:
    return jnp.ones(batch.targets_BL.shape, jnp.float32)
  same_BL = batch.target_segments_BL == batch.segments_BL
  return same_BL.astype(jnp.float32)


def mtp_weights(batch: Batch, depth: int) -> jax.Array:
  """1 where token i + depth + 1 exists in the document of token i.

  Args:
    batch: the batch.
    depth: 1 for the first MTP module.

  Returns:
    float32 [B, L].
  """
  length = batch.targets_BL.shape[1]
  exists_L = jnp.arange(length) < length - depth
  target_segments_BL = shift_left(batch.target_segments_BL, depth)
  same_BL = target_segments_BL == batch.segments_BL
  return (exists_L[None, :] & same_BL).astype(jnp.float32)


def loss_sums(
  masters: Weights,
  batch: Batch,
  config: Config,
  mtp_weight: jax.typing.ArrayLike | None = None,
) -> tuple[jax.Array, LossSums]:
  """`target_sums` of a model with these masters, cast to the compute dtype.

  Args:
    masters: float32 weights.
    batch: a whole batch or a micro-batch.
    config: the run's config.
    mtp_weight: lambda of this step; the config's first one if None.

  Returns:
    (float32 scalar, LossSums).
  """
  params = compute_weights(masters.params, config)
  weights = dataclasses.replace(masters, params=params)
  return sums_of_weights(weights, batch, config, mtp_weight)


def compute_weights(params: PyTree, config: Config) -> PyTree:
  """Casts float32 masters for the passes of a step."""
  dtype = jnp.dtype(config.train.compute_dtype)
  policy = precision.for_training(config)
  return placement.as_weights(cast_params(params, dtype, policy), config.model)


def sums_of_weights(
  weights: Weights,
  batch: Batch,
  config: Config,
  mtp_weight: jax.typing.ArrayLike | None,
) -> tuple[jax.Array, LossSums]:
  """`loss_sums` as a function of `compute_weights`, for differentiation."""
  model = Transformer(
    config.model, precision.for_training(config), config.compute
  )
  isolate = config.data.isolate_documents
  shared = (
    batch.positions_BL,
    batch.segments_BL if isolate else None,
    weights.router_bias,
  )
  variables = {'params': weights.params}
  trunk = model.apply(variables, batch.tokens_BL, *shared)
  further, mtp_load = model.apply(
    variables,
    trunk.hidden_BLD,
    batch.targets_BL,
    *shared,
    method='predict_further',
  )
  loads = {LAYERS: trunk.load, MTP: mtp_load}
  return target_sums(
    weights.params['head'],
    trunk.hidden_BLD,
    further,
    {key: load for key, load in loads.items() if load is not None},
    batch,
    config,
    mtp_weight,
  )


def target_sums(
  head_DV: jax.Array,
  hidden_BLD: jax.Array,
  further: Sequence[jax.Array],
  loads: dict[str, Load],
  batch: Batch,
  config: Config,
  mtp_weight: jax.typing.ArrayLike | None,
) -> tuple[jax.Array, LossSums]:
  """Returns the objective times the number of main targets, and its parts.

  Divided by the targets of the whole batch it is

    main + lambda / J * sum over depths of MTP + alpha * balance.

  Main and MTP include their z-losses. The MTP sums are also divided by the
  number of main targets (DeepSeek-V3, equation 24). The balance loss is the
  mean over sequences, summed over layers and MTP modules. (With isolated
  documents, whose ends have no targets, this mean is weighted by positions over
  targets, slightly above 1, because the whole objective has one divisor, for
  any division into micro-batches.)

  Args:
    head_DV: the head, in the compute dtype.
    hidden_BLD: hidden states after the final norm.
    further: hidden states of each MTP depth.
    loads: loads of the routers that count.
    batch: a whole batch or a micro-batch.
    config: the run's config.
    mtp_weight: lambda of this step; the config's first one if None.

  Returns:
    (float32 scalar, LossSums).
  """
  per_token = rules.axes('batch', 'length')
  sums_of = rules.per_shard(
    functools.partial(_target_losses, config.train.z_loss_weight),
    inputs=(
      rules.axes('batch', 'length', None),
      rules.axes(None, 'vocab'),
      per_token,
      per_token,
    ),
    # pyrefly: ignore[bad-argument-type]: names stand for arrays.
    outputs=cross_entropy.Sums(*(3 * [rules.axes()])),
  )

  def target_losses(hidden_BLD, targets_BL, weights_BL):
    return sums_of(hidden_BLD, head_DV, targets_BL, weights_BL)

  weights_BL = main_weights(batch, config.data.isolate_documents)
  main = target_losses(hidden_BLD, batch.targets_BL, weights_BL)
  mtp = [
    target_losses(
      hidden_BLD, shift_left(batch.targets_BL, k), mtp_weights(batch, k)
    )
    for k, hidden_BLD in enumerate(further, start=1)
  ]
  balance = _total(loads, 'balance', jnp.float32)
  objective = main.objective + balance_objective(config, balance, batch)
  mtp_J = jnp.zeros((0,), jnp.float32)
  if mtp:
    mtp_J = jnp.stack([depth.cross_entropy for depth in mtp])
    mtp_objective_J = jnp.stack([depth.objective for depth in mtp])
    if mtp_weight is None:
      mtp_weight = config.train.mtp_weight
    objective += mtp_weight * mtp_objective_J.mean()
  sums = LossSums(
    main=main.cross_entropy,
    mtp=mtp_J,
    balance=balance,
    squared_log_z=main.squared_log_z,
    tokens=weights_BL.sum(),
    sequences=jnp.asarray(batch.tokens_BL.shape[0], jnp.int32),
    rounds=_total(loads, 'rounds', jnp.int32),
    exchanges=_total(loads, 'exchanges', jnp.int32),
    load={key: load.count_E for key, load in loads.items()},
  )
  return objective, sums


def balance_objective(
  config: Config, balance: jax.Array, batch: Batch
) -> jax.Array:
  """The contribution of a sum of balance losses to the objective."""
  return config.train.balance_weight * (balance * batch.tokens_BL.shape[1])


def _target_losses(z_weight, hidden_BLD, head_DV, targets_BL, weights_BL):
  """Sums over all targets; on a mesh, over those of this device."""
  sums = cross_entropy.loss_sums(
    hidden_BLD.reshape(-1, hidden_BLD.shape[-1]),
    head_DV,
    targets_BL.reshape(-1),
    weights_BL.reshape(-1),
    z_weight,
    rules.mesh_axes('vocab'),
  )
  return cross_entropy.Sums(*(rules.total(x, 'batch', 'length') for x in sums))


def _total(
  loads: dict[str, Load], field: str, dtype: jax.typing.DTypeLike
) -> jax.Array:
  """The sum of a field over all routers."""
  parts = [getattr(load, field).sum(dtype=dtype) for load in loads.values()]
  return sum(parts, jnp.zeros((), dtype))
