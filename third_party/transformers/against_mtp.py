"""The MTP layer against transformers' MtpModel, and its way through export."""

from collections.abc import Iterator
import pathlib

import against_models
import asking
import numpy as np
from table import Row

from seekax.storage.open import open_checkpoint

CASE = 'v3_mtp'


def compare(oracle: asking.Oracle, work: pathlib.Path) -> Iterator[Row]:
  """Logits of main model and MTP layer, and exports with and without it."""
  source, expected = oracle.model(CASE), oracle.expected(CASE)
  tokens, wanted = expected.tensors['tokens'], expected.tensors['mtp_logits']
  opened = open_checkpoint(source)
  ours, further = against_models.logits(opened, tokens)
  distance = asking.distance(ours, expected.logits)
  yield Row('logits', CASE, distance, against_models.LOGITS)
  yield Row(
    'MTP logits',
    CASE,
    asking.distance(further[0, :, :-1], wanted),
    against_models.LOGITS,
    'where there is a next token',
  )
  yield Row(
    'MTP logits that should be NaN and are not',
    CASE,
    int((~np.isnan(further[0, :, -1])).sum()),
    0,
    'at the last position',
  )
  layer = f'model.layers.{opened.config.model.num_layers}.'
  stored = asking.stored(source)

  kept = against_models.export(source, work / 'mtp_keep', dtype='float32')
  answer = oracle.answer('mtp_keep', kept, '--mtp', tokens=tokens)
  yield against_models.exported_row(
    f'{CASE} --mtp=keep',
    asking.differing(stored, asking.stored(kept)),
    answer.names(allowed=layer),
    np.concatenate([answer.logits, answer.tensors['mtp_logits']], axis=1),
    np.concatenate([expected.logits, wanted], axis=1),
  )

  dropped = against_models.export(
    source, work / 'mtp_drop', dtype='float32', drop_mtp=True
  )
  main = {n: t for n, t in stored.items() if not n.startswith(layer)}
  answer = oracle.answer('mtp_drop', dropped, tokens=tokens)
  yield against_models.exported_row(
    f'{CASE} --mtp=drop',
    asking.differing(main, asking.stored(dropped)),
    answer.names() + answer.warnings(),
    answer.logits,
    expected.logits,
  )
