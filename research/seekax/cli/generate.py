"""`seekax generate`: continue a prompt with a trained model."""

from collections.abc import Iterator, Sequence
import pathlib
import sys
import time

from absl import flags
import numpy as np

from seekax.cli import flags as flags_lib
from seekax.configuration.errors import InputError
from seekax.configuration.train import PRECISIONS
from seekax.inference.limits import check_new_tokens, check_sampling


def run(argv: Sequence[str]) -> int:
  """Runs the command; returns its exit code."""
  values = flags.FlagValues()
  _define(values)
  flags_lib.parse(
    values, argv, 'generate', 'Continues a prompt; prints the continuation.'
  )
  flags_lib.require(values, 'checkpoint')
  _check(values)
  # Imported late, so that everything above answers in a fraction of a second.
  from seekax.inference import engine, generator
  from seekax.machine import compilation_cache
  from seekax.model.stack import taken_apart
  from seekax.model.transformer import Transformer
  from seekax.storage import open as open_lib

  compilation_cache.switch_on(values.compilation_cache, flags_lib.say)
  found = open_lib.find(values.checkpoint, averaged=values.ema)
  tokenizer, end_ids = found.tokenizer(), found.end_ids()
  prompt = _prompt(values, tokenizer, found.folder)
  opened = open_lib.open_checkpoint(found, values.precision)
  config = opened.config
  weights = taken_apart(config.compute, opened.weights)
  del opened  # So that the weights are in memory only once.
  room = found.model.context_length - len(prompt)
  if 0 < room < values.max_new_tokens:
    flags_lib.say(
      f'--max_new_tokens={values.max_new_tokens} is more than the context of '
      f'{found.model.context_length} leaves to {len(prompt)} tokens of prompt: '
      f'at most {room} are added'
    )
  tokens = engine.generate(
    Transformer(config.model, compute=config.compute),
    weights,
    prompt,
    values.max_new_tokens,
    temperature=values.temperature,
    top_k=values.top_k,
    top_p=values.top_p,
    min_p=values.min_p,
    seed=values.seed,
    end_ids=end_ids,
  )
  counted = _Counted(tokens)
  if values.echo:
    print(values.prompt, end='', flush=True)
  try:
    for text in generator.until(tokenizer.stream(counted), values.stop):
      print(text, end='', flush=True)
  except engine.NonFiniteError as error:
    print(f'seekax: {values.checkpoint}: {error}', file=sys.stderr)
    return flags_lib.NOT_FINITE
  if sys.stdout.isatty():
    print()
  limit = {
    room: f'; the context of {found.model.context_length} is full',
    values.max_new_tokens: '; --max_new_tokens is reached',
  }
  met = limit.get(counted.count, '') if counted.ended else ''
  flags_lib.say(f'{counted.summary()}{met}')
  return 0


def _define(values: flags.FlagValues) -> None:
  """Defines the command's flags."""
  define = {'flag_values': values}
  flags_lib.define_path(
    values, 'checkpoint', 'a workdir or a Hugging Face folder'
  )
  flags.DEFINE_bool(
    'ema', False, "a run's averaged weights (optim.ema_decay)", **define
  )
  flags.DEFINE_string('prompt', '', 'text to continue', **define)
  flags.DEFINE_bool(
    'chat',
    False,
    "put the prompt as a user's message into the model's chat template",
    **define,
  )
  flags.DEFINE_integer(
    'max_new_tokens', 128, 'maximum number of tokens to add', **define
  )
  flags.DEFINE_float('temperature', 0.0, '0 is greedy', **define)
  flags.DEFINE_integer(
    'top_k', 0, 'number of likeliest tokens to draw from; 0: all', **define
  )
  flags.DEFINE_float(
    'top_p',
    1.0,
    'draw from the likeliest tokens of this total probability',
    **define,
  )
  flags.DEFINE_float(
    'min_p',
    0.0,
    "minimum probability, as a share of the likeliest token's",
    **define,
  )
  flags.DEFINE_multi_string(
    'stop',
    [],
    'a string that ends the text; may be given several times',
    **define,
  )
  flags.DEFINE_integer('seed', 0, 'seed of the random draws', **define)
  flags.DEFINE_bool('echo', False, 'print the prompt first', **define)
  flags.DEFINE_enum(
    'precision', 'float32', PRECISIONS, 'compute dtype', **define
  )
  flags_lib.define_compilation_cache(values)


class _Counted:
  """Passes tokens on, and knows how many there were and how fast they came.

  Attributes:
    count: number of tokens so far.
    ended: whether all of them were taken; a string that stops the text takes
      fewer.
  """

  def __init__(self, tokens: Iterator[int]):
    self._tokens = tokens
    self.count, self.ended = 0, False
    self._second = self._last = 0.0

  def __iter__(self) -> Iterator[int]:
    for token in self._tokens:
      self._last = time.perf_counter()
      self.count += 1
      if self.count == 2:  # Both programs have run: neither is compiled later.
        self._second = self._last
      yield token
    self.ended = True

  def summary(self) -> str:
    """How many, and the rate without the prompt and compilation."""
    said = f'{self.count} token{"s" * (self.count != 1)}'
    if self.count < 3:
      return said
    rate = (self.count - 2) / (self._last - self._second)
    return f'{said}, {rate:.1f} tokens/s'


def _prompt(
  values: flags.FlagValues, tokenizer, folder: pathlib.Path
) -> np.ndarray:
  """Token ids of the prompt; its text never becomes a control token."""
  if not values.chat:
    from seekax.inference import generator

    return generator.prompt_ids(tokenizer, values.prompt)
  from seekax.data import chat

  template = chat.find_template(folder)
  if not template:
    raise InputError(
      f'--chat: {values.checkpoint} has no chat template; leave --chat out'
    )
  message = {'role': 'user', 'content': values.prompt}
  return chat.encode_chat(tokenizer, template, [message])


def _check(values: flags.FlagValues) -> None:
  check_new_tokens(values.max_new_tokens)
  check_sampling(
    values.temperature, values.top_k, values.top_p, values.min_p, values.seed
  )
