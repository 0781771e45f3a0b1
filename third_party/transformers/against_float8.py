"""FP8 weights of ours, which transformers expands when it loads them."""

from collections.abc import Iterator
import pathlib

import against_models
import asking
from table import Row

from seekax.storage.convert import convert, Options
from seekax.storage.open import open_checkpoint

CASE = 'v3_blocks'


def compare(oracle: asking.Oracle, work: pathlib.Path) -> Iterator[Row]:
  """Logits from codes and scales, and their way through a workdir."""
  source, folder = oracle.model(CASE), work / 'float8'
  convert(str(source), str(folder), Options('huggingface', 'float8'))
  tensors = asking.stored(folder)
  kinds = [dtype for dtype, _, _ in tensors.values()]
  tokens = oracle.expected(CASE).tensors['tokens']
  exact, _ = against_models.logits(open_checkpoint(source), tokens)
  ours, _ = against_models.logits(open_checkpoint(folder), tokens)
  answer = oracle.answer('float8', folder, tokens=tokens)
  yield Row(
    'logits of FP8 weights',
    CASE,
    asking.distance(ours, answer.logits),
    against_models.LOGITS,
    f'{kinds.count("F8_E4M3")} of {len(kinds) - kinds.count("F8_E4M3")} '
    'weights are FP8',
  )
  said = answer.names() + answer.warnings()
  yield Row(
    'FP8: names that transformers misses or has no use for',
    CASE,
    len(said),
    0,
    ', '.join(said[:1]),
  )
  again = against_models.export(folder, work / 'float8_again')
  changed = asking.differing(tensors, asking.stored(again))
  yield Row(
    'FP8: imported and exported, tensors that differ',
    CASE,
    len(changed),
    0,
    ', '.join(changed[:1]) or f'codes, scales and the rest: {len(tensors)}',
  )
  yield Row(
    'FP8 from float32, mean KL in nats',
    CASE,
    asking.divergence(ours, exact),
    note=f'largest difference {asking.distance(ours, exact):.0e}',
  )
