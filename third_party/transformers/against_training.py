"""Gradients and AdamW against torch's on transformers' model."""

from collections.abc import Iterator
import pathlib

import asking
import jax
import numpy as np
import recipe
from table import Row

from seekax.storage import names
from seekax.storage.open import open_checkpoint
from seekax.training import step
from seekax.training.schedules import Schedule

CASE = 'v3'
# Of a tensor's norm; of a loss in nats per token; of a gradient's norm.
GRADIENT, LOSS, NORM = 1e-4, 1e-4, 1e-3


def compare(oracle: asking.Oracle, work: pathlib.Path) -> Iterator[Row]:
  """One gradient by published names, then the losses of every step."""
  del work
  opened, folder = open_checkpoint(oracle.model(CASE)), oracle.built / CASE
  training = asking.read(folder / 'training.safetensors')
  wanted = training.tensors['losses']
  config = recipe.config_of(opened.config.model, training.about, len(wanted))

  state = recipe.start(config, opened.weights)
  rates = Schedule(config).rates(0)  # A constant.
  tokens = oracle.expected(CASE).tensors['tokens']
  result = step.accumulate(config, state, recipe.batch_of(tokens), rates)
  ours = jax.tree.map(lambda g: g / result.sums.tokens, result.gradients)
  # Selection biases have no gradient; any tree of their shapes will do.
  tree = {names.PARAMS: ours, names.BIAS: opened.weights.router_bias}
  yield _gradients(
    dict(names.to_published(opened.config.model, tree)),
    asking.read(folder / 'gradients.safetensors').tensors,
  )

  losses, norms = [], []
  for rows in training.tensors['batches']:
    state, metrics = step.train_step(
      config, state, [recipe.batch_of(rows)], rates
    )
    losses.append(float(metrics.loss))
    norms.append(float(metrics.gradient_norm))
  yield Row(
    'losses of AdamW, largest difference',
    CASE,
    float(np.abs(losses - wanted).max()),
    LOSS,
    f'{len(wanted)} steps, {wanted[0]:.3f} to {wanted[-1]:.3f}',
  )
  ratio = np.array(norms) / training.tensors['gradient_norms']
  yield Row(
    "gradients' norms under AdamW, largest relative difference",
    CASE,
    float(np.abs(ratio - 1).max()),
    NORM,
  )


def _gradients(ours: asking.Tensors, expected: asking.Tensors) -> Row:
  """The worst of the published tensors."""
  distances = {
    name: float(np.linalg.norm(ours[name] - wanted))
    # An expert that no token chose has no gradient.
    / (float(np.linalg.norm(wanted)) or 1.0)
    for name, wanted in expected.items()
  }
  worst = max(distances, key=distances.get)
  return Row(
    'gradients, largest distance of a tensor over its norm',
    CASE,
    distances[worst],
    GRADIENT,
    f'{len(distances)} tensors, worst {worst}',
  )
