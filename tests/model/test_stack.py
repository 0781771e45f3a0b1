"""Laws of rematerialisation: what a layer keeps, and that it lowers memory."""

import collections
import contextlib
import io
import re
from typing import Any

from absl.testing import absltest, parameterized
import jax
from jax import ad_checkpoint
import jax.numpy as jnp
import numpy as np
import pytest

from reference import cases
from seekax.configuration.compute import ComputeConfig
from seekax.configuration.model import ModelConfig
from seekax.machine import compiling
from seekax.model import parameters
from seekax.model.stack import block_class
from seekax.model.transformer import Transformer
from seekax.ops.rematerialisation import NAMES

# More than one block of queries, and not a whole number of them.
BATCH, LONG, SHORT = 2, 160, 12


def _layer(
  config: ModelConfig, use_experts: bool, length: int, remat: str = 'none'
):
  """A function of a layer's parameters and input, and the two."""
  compute = ComputeConfig(remat=remat)
  block = block_class(compute)(config, use_experts, compute=compute)
  positions_BL = np.tile(np.arange(length), (BATCH, 1))
  bias_E = jnp.zeros((config.num_experts,)) if use_experts else None
  rng = np.random.default_rng(0)

  def run(params, x_BLD):
    result: Any = block.apply(
      {'params': params}, x_BLD, bias_E, positions_BL, None
    )
    x_BLD, (load, _) = result
    return x_BLD, load.balance if use_experts else jnp.zeros(())

  def draw(leaf):
    return jnp.asarray(0.3 * rng.standard_normal(leaf.shape), jnp.float32)

  stack = 'expert_layers' if use_experts else 'dense_layers'
  shapes = parameters.abstract_weights(config).params[stack]
  params = jax.tree.map(lambda leaf: draw(leaf)[0], shapes)
  x = jax.ShapeDtypeStruct((BATCH, length, config.embed_dim), jnp.float32)
  return run, params, draw(x)


def _kept(
  config: ModelConfig, use_experts: bool, length: int, remat: str
) -> dict[str, list[tuple[int, ...]]]:
  """Shapes of what a layer keeps beside its arguments, by what it is."""
  printed = io.StringIO()
  with contextlib.redirect_stdout(printed):
    ad_checkpoint.print_saved_residuals(
      *_layer(config, use_experts, length, remat)
    )
  found = collections.defaultdict(list)
  for line in printed.getvalue().splitlines():
    (found_in_line,) = re.findall(r'^\w+\[([\d,]*)\]\S* (.*)', line)
    shape, what = found_in_line
    if what.startswith(('from the argument', 'from a constant')):
      continue
    ((named, output),) = re.findall(r"^named '(\w+)'|^output of (\w+)", what)
    shape = tuple(int(x) for x in shape.split(',') if x)
    found[named or output].append(shape)
  return {name: sorted(shapes) for name, shapes in found.items()}


class KeptTest(parameterized.TestCase):
  """In V3: D 24, heads 3, widths 6 + 8 and 5, latents 10 and 12 (+ 8)."""

  def test_paper_keeps_of_a_layer_of_experts(self):
    kept = _kept(cases.V3, True, LONG, 'paper')
    rows = BATCH * LONG
    routed = kept['swiglu_gate'][0]
    self.assertEqual((routed[0], routed[2]), (8, 7))
    self.assertEqual(
      kept,
      {
        'query_latent': [(BATCH, LONG, 10)],
        'kv_latent': [(BATCH, LONG, 20)],
        'attention_output': [(BATCH, 3, 1, 256, 5)],
        'attention_log_sum': kept['attention_log_sum'],
        'attention_projected': [(BATCH, LONG, 24)],
        'router_logits': [(rows, 8)],
        'router_choice': [(rows, 3)],
        'balance_count': [(BATCH, 8)],
        'jitted': [(rows * 3,)],  # argsort
        'swiglu_gate': [routed, (rows, 7)],
        'swiglu_up': [routed, (rows, 7)],
      },
    )
    # One number per head and position, by blocks of queries.
    sizes = [np.prod(shape) for shape in kept['attention_log_sum']]
    self.assertEqual(sum(sizes), BATCH * 3 * 256)

  @parameterized.parameters(SHORT, LONG)
  def test_paper_keeps_of_a_dense_layer(self, length):
    kept = _kept(cases.V3, False, length, 'paper')
    own = {'attention_logits' if length == SHORT else 'attention_log_sum'}
    self.assertEqual(
      kept.keys(),
      {'query_latent', 'kv_latent', 'attention_output', 'attention_projected'}
      | {'swiglu_gate', 'swiglu_up'}
      | own,
    )

  def test_paper_keeps_no_heads_and_no_norm(self):
    """But `none` does, which shows that they would be found."""

    def heads(kept):
      # Queries and keys, values before and after the split, in any order.
      widths = {6, 8, 11, 14}
      shapes = [x for own in kept.values() for x in own]
      return [x for x in shapes if 3 in x and x[-1] in widths]

    def of_width(kept):
      shapes = [x for own in kept.values() for x in own]
      return [x for x in shapes if x[-1:] == (24,)]

    plain, paper = (
      _kept(cases.V3, False, LONG, remat) for remat in ('none', 'paper')
    )
    self.assertEmpty(heads(paper))
    self.assertLen(of_width(paper), 1)  # what attention adds
    self.assertNotEmpty(heads(plain))
    self.assertGreater(len(of_width(plain)), 2)

  def test_paper_keeps_queries_keys_and_values_of_gqa(self):
    kept = _kept(cases.LLAMA, False, LONG, 'paper')
    for name, heads in {'query': 4, 'key': 2, 'value': 2}.items():
      self.assertEqual(kept[name], [(BATCH, LONG, heads, 8)])
    self.assertLessEqual(kept.keys(), set(NAMES))

  @parameterized.parameters(cases.V3, cases.LLAMA)
  def test_full_keeps_arguments_alone(self, model):
    self.assertEmpty(_kept(model, model.uses_experts, LONG, 'full'))


class LongTest(parameterized.TestCase):
  """In blocks of queries; the model's tests have short sequences."""

  @parameterized.parameters('paper', 'full')
  def test_gradients_of_a_layer_are_the_same(self, remat):
    self._check(remat, cases.V3)

  @parameterized.product(remat=('paper', 'full'), model=(cases.V2, cases.LLAMA))
  @pytest.mark.slow
  def test_gradients_of_other_layers_are_the_same(self, remat, model):
    self._check(remat, model)

  def _check(self, remat, model):
    @cases.jit
    def gradients(run, *args):
      def weighed(*args):
        x_BLD, balance = run(*args)
        return jnp.sum(jnp.sin(x_BLD)) + balance

      return jax.grad(weighed, (0, 1))(*args)

    expected, actual = (
      gradients(jax.tree_util.Partial(run), *args)
      for run, *args in (
        _layer(model, model.uses_experts, LONG, name)
        for name in ('none', remat)
      )
    )
    for a, b in zip(
      jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
    ):
      self.assertLess(cases.difference(a, b), 1e-5)


class MemoryTest(parameterized.TestCase):
  @pytest.mark.slow
  def test_policies_lower_the_compilers_temporaries_in_a_scan(self):
    self._check(0)

  def test_policies_lower_the_compilers_temporaries(self):
    """Written out too, where the compiler could undo it."""
    self._check(8)

  def _check(self, unroll_layers):
    config = ModelConfig(
      vocab_size=32,
      embed_dim=64,
      num_layers=4,
      context_length=256,
      num_heads=8,
      query_latent_dim=32,
      kv_latent_dim=16,
      nope_head_dim=32,
      rope_head_dim=16,
      value_head_dim=32,
      ffn='dense',
      mlp_dim=64,
      mtp_depth=0,
      rope_scaling='none',
    )
    tokens_BL = np.zeros((2, 256), np.int32)
    positions_BL = np.tile(np.arange(256), (2, 1))

    def temporaries(remat):
      compute = ComputeConfig(remat=remat, unroll_layers=unroll_layers)
      model = Transformer(config, compute=compute)

      def loss(params):
        trunk = model.apply(
          {'params': params}, tokens_BL, positions_BL, None, {}
        )
        return jnp.sum(jnp.square(trunk.hidden_BLD))

      params = parameters.abstract_weights(config).params
      compiled = compiling.jit(jax.grad(loss)).lower(params).compile()
      return cases.temporaries(compiled)

    none, paper, full = map(temporaries, ('none', 'paper', 'full'))
    self.assertLess(paper, 0.7 * none)
    self.assertLess(full, paper)


if __name__ == '__main__':
  absltest.main()
