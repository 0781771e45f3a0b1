"""Logits, greedy text, export and routing against transformers' own models."""

from collections.abc import Iterator
import concurrent.futures
import dataclasses
import pathlib

import asking
import jax
import jax.numpy as jnp
import numpy as np
from table import Row

from seekax.inference import engine, scoring
from seekax.machine import compiling
from seekax.model import router
from seekax.model.transformer import Transformer
from seekax.storage.convert import convert, Options
from seekax.storage.open import open_checkpoint, Opened

CASES = (
  'v3',
  'v3_no_query_latent',
  'v3_no_groups',
  'v3_shared',
  'moonlight',
  'v2_lite',
  'v2',
  'llama',
)
ROUTED = ('v3', 'v3_no_groups', 'v2_lite', 'v2')
LOGITS = 1e-5
# Cuts every exported model into a few files.
SHARD_BYTES = 100_000


_all_logits = compiling.jit(scoring.all_logits, static_argnums=0)


def logits(opened: Opened, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(main [B, L, V], MTP [J, B, L, V]) logits of ours."""
  model = Transformer(opened.config.model)
  main, further = _all_logits(model, opened.weights, jnp.asarray(tokens))
  return np.asarray(main), np.asarray(further)


def export(
  source: pathlib.Path, target: pathlib.Path, **options
) -> pathlib.Path:
  """Published folder to workdir to published folder."""
  workdir = target.with_name(f'{target.name}_workdir')
  convert(str(source), str(workdir), Options())
  convert(str(workdir), str(target), Options('huggingface', **options))
  return target


@dataclasses.dataclass(frozen=True)
class _Asked:
  """What transformers says of a case.

  Attributes:
    exported: of the folder that we wrote.
    bfloat16: of its own folder, in that precision.
  """

  exported: asking.Answer
  bfloat16: asking.Answer


def compare(oracle: asking.Oracle, work: pathlib.Path) -> Iterator[Row]:
  """Every case: logits, greedy text, export, bfloat16."""
  # The oracle's processes run beside our compilations.
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    asked = {case: pool.submit(_ask, case, oracle, work) for case in CASES}
    for case in CASES:
      expected = oracle.expected(case)
      opened = open_checkpoint(oracle.model(case))
      ours, _ = logits(opened, expected.tensors['tokens'])
      distance = asking.distance(ours, expected.logits)
      yield Row('logits', case, distance, LOGITS)
      yield _greedy(case, opened, expected)
      answers = asked[case].result()
      yield exported_row(
        case,
        asking.differing(
          asking.stored(oracle.model(case)), asking.stored(work / case)
        ),
        answers.exported.names() + answers.exported.warnings(),
        answers.exported.logits,
        expected.logits,
      )
      yield _bfloat16(case, oracle, ours, expected, answers.bfloat16.logits)


def _ask(case: str, oracle: asking.Oracle, work: pathlib.Path) -> _Asked:
  """Exports a case, and has it read."""
  source = oracle.model(case)
  tokens = oracle.expected(case).tensors['tokens']
  folder = export(source, work / case, dtype='float32', shard_bytes=SHARD_BYTES)
  return _Asked(
    oracle.answer(case, folder, tokens=tokens),
    oracle.answer(
      f'{case}_bfloat16', source, '--dtype=bfloat16', tokens=tokens
    ),
  )


def _greedy(case: str, opened: Opened, expected: asking.Answer) -> Row:
  """Prompts read by full attention, the rest on the latent cache."""
  wanted = expected.tensors['greedy']
  found = [
    list(
      engine.generate(
        Transformer(opened.config.model),
        opened.weights,
        prompt,
        wanted.shape[1],
      )
    )
    for prompt in expected.tensors['prompts']
  ]
  margin = expected.about['greedy_margin']
  return Row(
    'greedy tokens that differ',
    case,
    int((np.array(found) != wanted).sum()),
    0,
    f'of {wanted.size}, won by {margin:.0e} or more',
  )


def exported_row(
  model: str,
  tensors: list[str],
  said: list[str],
  actual: np.ndarray,
  expected: np.ndarray,
) -> Row:
  """Everything about an exported folder that must be exactly the same.

  Args:
    model: which.
    tensors: those that differ.
    said: names and warnings of transformers when it loaded the folder.
    actual: its logits.
    expected: those that they must be, bit by bit.
  """
  values = int((actual != expected).sum())
  note = ''
  if tensors or said or values:
    first = [*tensors, *said, 'logits'][0]
    note = f'{len(tensors)}, {len(said)} and {values}, first {first}'
  return Row(
    'exported: tensors, names, logits that differ',
    model,
    len(tensors) + len(said) + values,
    0,
    note,
  )


def _bfloat16(
  case: str,
  oracle: asking.Oracle,
  ours: np.ndarray,
  expected: asking.Answer,
  others: np.ndarray,
) -> Row:
  """How far each one's bfloat16 is from its own float32."""
  opened = open_checkpoint(oracle.model(case), 'bfloat16')
  rounded, _ = logits(opened, expected.tensors['tokens'])
  theirs = expected.logits
  return Row(
    'bfloat16 from float32, mean KL in nats',
    case,
    asking.divergence(rounded, ours),
    note=f'transformers {asking.divergence(others, theirs):.1e}; largest '
    f'difference {asking.distance(rounded, ours):.0e}, transformers '
    f'{asking.distance(others, theirs):.0e}',
  )


def route(oracle: asking.Oracle, work: pathlib.Path) -> Iterator[Row]:
  """Choices of experts for random vectors, as sets."""
  del work
  for case in ROUTED:
    opened = open_checkpoint(oracle.model(case))
    routing = asking.read(oracle.built / case / 'router.safetensors')
    near_tie = routing.about['near_tie']
    for layer, (wanted, margins) in enumerate(
      zip(routing.tensors['choices'], routing.tensors['margins'], strict=True)
    ):
      found = _choices(opened, layer, routing.about['seed'], len(wanted))
      differs = (found != wanted).any(axis=1)
      near = margins < near_tie
      yield Row(
        'choices of experts that differ, no near-tie',
        f'{case}, router {layer}',
        int((differs & ~near).sum()),
        0,
        f'of {len(wanted):,}; {int(near.sum())} near-ties, '
        f'{int((differs & near).sum())} of them differ',
      )


def _choices(opened: Opened, layer: int, seed: int, count: int) -> np.ndarray:
  """The experts that our router chooses, in ascending order."""
  model = opened.config.model
  draw = np.random.default_rng(seed)
  inputs_TD = draw.standard_normal((count, model.embed_dim), dtype=np.float32)
  kernel_NDE = opened.weights.params['expert_layers']['experts']['router'][
    'kernel'
  ]
  bias_E = np.zeros(model.num_experts, np.float32)
  if model.uses_router_bias:
    bias_E = opened.weights.router_bias['layers'][layer]
  variables = {'params': {'kernel': kernel_NDE[layer]}}
  routing = jax.jit(router.Router(model).apply)(variables, inputs_TD, bias_E)
  return np.sort(routing.experts_TA, axis=1)
