"""`seekax score`: log-likelihood of a text or of token ids, and logits."""

from collections.abc import Sequence
import json
import math
import sys
from typing import TYPE_CHECKING

from absl import flags
import numpy as np

from seekax.cli import flags as flags_lib
from seekax.configuration.errors import InputError
from seekax.configuration.train import PRECISIONS
from seekax.files import read_bounded

if TYPE_CHECKING:
  from seekax.inference import scoring

# Maximum number of windows at once; more are no faster on any device.
_MAX_BATCH = 2**16


def run(argv: Sequence[str]) -> int:
  """Runs the command; returns its exit code."""
  values = flags.FlagValues()
  define = {'flag_values': values}
  flags_lib.define_path(
    values, 'checkpoint', 'a workdir or a Hugging Face folder'
  )
  flags.DEFINE_bool(
    'ema', False, "a run's averaged weights (optim.ema_decay)", **define
  )
  flags_lib.define_path(values, 'text', 'UTF-8 file to score')
  flags_lib.define_path(values, 'tokens', '.npy file of ids [B, L]')
  flags_lib.define_path(
    values, 'logits_out', '.npy for float32 logits [B, L, V]'
  )
  flags_lib.define_path(
    values, 'mtp_logits_out', '.npy for MTP logits [J, B, L, V]'
  )
  flags.DEFINE_integer(
    'batch_size',
    8,
    'windows at once, for --text',
    lower_bound=1,
    upper_bound=_MAX_BATCH,
    **define,
  )
  flags.DEFINE_enum(
    'precision', 'float32', PRECISIONS, 'compute dtype', **define
  )
  flags_lib.define_compilation_cache(values)
  flags_lib.parse(
    values,
    argv,
    'score',
    'Scores a text (--text) or token ids (--tokens); the last line of stdout '
    'is a JSON object.',
  )
  flags_lib.require(values, 'checkpoint')
  if bool(values.text) == bool(values.tokens):
    raise InputError('give either --text= or --tokens=')
  if values.text and (values.logits_out or values.mtp_logits_out):
    raise InputError('--logits_out and --mtp_logits_out go with --tokens')
  text, tokens_BL = '', np.zeros((0, 0), np.int32)
  if values.text:
    text = _read_text(values.text)
  else:
    tokens_BL = _read_tokens(values.tokens)
  # Imported late, so that everything above answers in a fraction of a second.
  from seekax.machine import compilation_cache
  from seekax.storage import open as open_lib

  compilation_cache.switch_on(values.compilation_cache, flags_lib.say)
  found = open_lib.find(values.checkpoint, averaged=values.ema)
  opened = open_lib.open_checkpoint(found, values.precision)
  if values.text:
    result = _score_text(values, opened, text)
  else:
    result = _score_tokens(values, opened, tokens_BL)
  if not math.isfinite(result['log_likelihood']):
    print(
      f'seekax: the log-likelihood by {values.checkpoint} is '
      f'{result["log_likelihood"]}: its weights are broken, or overflow in '
      f'--precision={values.precision}',
      file=sys.stderr,
    )
    return flags_lib.NOT_FINITE
  print(json.dumps(result))
  return 0


def _read_text(name: str) -> str:
  """Reads a text without its byte order mark, as training does."""
  content = read_bounded(name, 'a text')
  try:
    # Decoded from bytes: text mode would turn CRLF into LF and miscount bytes.
    text = content.decode('utf-8').removeprefix('\ufeff')
  except UnicodeDecodeError as error:
    raise InputError(
      f'--text={name} is not UTF-8 (byte {error.start}); convert it first'
    ) from error
  if not text:
    raise InputError(f'--text={name} is empty')
  return text


def _read_tokens(name: str) -> np.ndarray:
  from seekax.storage.token_file import read_token_ids

  return read_token_ids(name, '--tokens')


def _score_text(values: flags.FlagValues, opened, text: str) -> 'scoring.Score':
  from seekax.inference import scoring

  [score] = scoring.score_texts(
    _model(opened.config),
    opened.weights,
    opened.tokenizer(),
    [text],
    values.batch_size,
  )
  return score


def _model(config):
  """The model of a run, computed with the run's settings."""
  from seekax.model.transformer import Transformer

  return Transformer(config.model, compute=config.compute)


def _score_tokens(
  values: flags.FlagValues, opened, tokens_BL: np.ndarray
) -> 'scoring.TokenScore':
  import jax.numpy as jnp

  from seekax.inference import scoring
  from seekax.machine import compiling

  model = opened.config.model
  low, high = int(tokens_BL.min()), int(tokens_BL.max())
  if low < 0 or high >= model.vocab_size:
    raise InputError(
      f'--tokens={values.tokens} holds ids from {low} to {high}; the '
      f'vocabulary has 0 to {model.vocab_size - 1}'
    )
  if tokens_BL.shape[1] > model.context_length:
    raise InputError(
      f'--tokens={values.tokens} has {tokens_BL.shape[1]} positions; the '
      f'context has {model.context_length}'
    )
  if values.mtp_logits_out and not model.mtp_depth:
    raise InputError('--mtp_logits_out: this model has no MTP module')
  all_logits = compiling.jit(scoring.all_logits, static_argnums=0)
  logits_BLV, mtp_JBLV = all_logits(
    _model(opened.config),
    opened.weights,
    jnp.asarray(tokens_BL.astype(np.int32)),
  )
  logits_BLV = np.asarray(logits_BLV)
  for name, array in (
    (values.logits_out, logits_BLV),
    (values.mtp_logits_out, mtp_JBLV),
  ):
    if name:
      _write(name, np.asarray(array))
  return {
    'tokens': tokens_BL[:, 1:].size,
    'log_likelihood': _log_likelihood(logits_BLV, tokens_BL),
  }


def _log_likelihood(logits_BLV: np.ndarray, tokens_BL: np.ndarray) -> float:
  total = 0.0
  for logits_LV, tokens_L in zip(logits_BLV, tokens_BL, strict=True):
    scores_LV = logits_LV[:-1].astype(np.float64)
    top_L = scores_LV.max(axis=1)
    log_z_L = top_L + np.log(np.exp(scores_LV - top_L[:, None]).sum(axis=1))
    chosen_L = scores_LV[np.arange(len(log_z_L)), tokens_L[1:]]
    total += float((chosen_L - log_z_L).sum())
  return total


def _write(name: str, array: np.ndarray) -> None:
  try:
    with open(name, 'wb') as file:
      np.save(file, array, allow_pickle=False)
  except OSError as error:
    raise InputError(f'{name} can not be written: {error.strerror}') from error
