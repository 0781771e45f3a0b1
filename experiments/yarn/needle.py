"""A needle in a haystack, over depth and length, for a trained model.

Claim: after both stages of context extension DeepSeek-V3 finds a sentence
wherever it stands in up to 128K tokens.
Paper: DeepSeek-V3 (arXiv 2412.19437), section 4.3, figure 8: 15 lengths by 15
depths, asked after supervised fine-tuning, judged from 1 to 10; no numbers.
Command: python experiments/yarn/needle.py --checkpoint=runs/long
Cost: as many forward passes as lengths x depths x tries.

The checkpoint is the workdir of a run or a folder of published weights. The hay
is Python's library, the needle a comment with a key of four digits; the prompt
ends with the comment's words, and a token of the key counts if it is the
likeliest one after those before it. There is no verdict: the paper gives no
number, and here a base model is asked. The script writes needle_<step>.csv and
.png into the checkpoint's folder, or into --outdir; lengths that the CSV file
holds aren't measured again.
"""

from collections.abc import Callable, Sequence
import functools
import pathlib
import sys
from typing import Any

from absl import app, flags
import numpy as np

# Scripts are run by path; the modules that they share lie one folder up.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
import haystack

import script
from seekax.configuration import presets
from seekax.configuration.model import ModelConfig
from seekax.data import sources
from seekax.model.parameters import init_weights
from seekax.model.weights import Weights
from seekax.storage import open as open_lib

_CHECKPOINT = flags.DEFINE_string('checkpoint', '', 'a workdir or a folder')
_LENGTHS = flags.DEFINE_list(
  'lengths', [], 'tokens of the prompts; four up to the context by default'
)
_TRIES = flags.DEFINE_integer('tries', 4, 'prompts per depth and length')

_WORDS, _END = '# The pass key is ', ' .\n'
_DIGITS = 4

Encode = Callable[[str], Any]


def hay(encode: Encode, bos: int, length: int) -> np.ndarray:
  """The bos token and Python's library, cut to `length` tokens.

  Raises:
    app.UsageError: the library has fewer tokens.
  """
  tokens, count = [np.array([bos])], 1
  for document in sources.read_documents(sources.STDLIB):
    if count >= length:
      break
    tokens.append(np.asarray(encode(document.text)))
    count += len(tokens[-1])
  if count < length:
    raise app.UsageError(f'--lengths: the hay has {count} tokens')
  return np.concatenate(tokens)[:length]


def prompts(
  encode: Encode, hay_L: np.ndarray, depth: float, tries: int
) -> tuple[list[np.ndarray], int]:
  """Rows as long as the hay, each with its own key; how long a key is.

  Digits are encoded one by one: a key is the same tokens in both places.
  """
  rng = np.random.default_rng(len(hay_L))
  words, end = np.asarray(encode(_WORDS)), np.asarray(encode(_END))
  rows, count = [], 0
  for _ in range(tries):
    digits = rng.integers(10, size=_DIGITS)
    key = np.concatenate([encode(str(digit)) for digit in digits])
    asked, count = np.concatenate([words, key]), len(key)
    needle = np.concatenate([asked, end])
    rows.append(haystack.hide(hay_L, needle, asked, depth))
  return rows, count


def measure(
  model: ModelConfig,
  weights: Weights,
  encode: Encode,
  hay_L: np.ndarray,
  tries: int,
) -> script.Numbers:
  """The share of the keys' tokens that is found, for every depth."""
  numbers = {}
  for depth in haystack.DEPTHS:
    rows, count = prompts(encode, hay_L, depth, tries)
    # One after the other: a long row may fill the memory.
    found = [haystack.share_found(model, weights, [row], count) for row in rows]
    numbers[f'{depth:g}'] = float(np.mean(found))
  words = ', '.join(f'depth {k} {x:.2f}' for k, x in numbers.items())
  print(f'{len(hay_L)} tokens: {words}', flush=True)
  return numbers


def draw(found: script.Measured, title: str, path: pathlib.Path) -> None:
  """The share found, depth by length."""
  lengths = sorted(found, key=int)
  shares = np.array([list(found[length].values()) for length in lengths]).T
  figure = script.new_figure(7, 4)
  axes = figure.subplots()
  image = haystack.draw_grid(axes, shares, lengths)
  axes.set_xlabel('tokens of the prompt')
  axes.set_ylabel('depth of the needle')
  axes.set_title(f'{title}: {100 * shares.mean():.0f} % found', loc='left')
  figure.colorbar(image, ax=axes, label='tokens of the key found')
  figure.savefig(path, dpi=120)


def run(
  stem: pathlib.Path,
  title: str,
  model: ModelConfig,
  weights: Weights,
  encode: Encode,
  bos: int,
  lengths: Sequence[int],
) -> None:
  """Measures the lengths that <stem>.csv lacks, and draws <stem>.png."""
  hay_L = hay(encode, bos, max(lengths))
  found = script.measure_missing(
    {
      str(length): functools.partial(
        measure, model, weights, encode, hay_L[:length], _TRIES.value
      )
      for length in lengths
    },
    script.file_of(stem, '.csv'),
  )
  draw(found, title, script.file_of(stem, '.png'))


def _smoke(stem: pathlib.Path) -> None:
  """Runs one dense layer of random weights, with bytes as tokens."""
  model = presets.shrink(presets.llama3_8b())
  weights = init_weights(model, 0)

  def encode(text):
    return np.frombuffer(text.encode('ascii', 'ignore'), np.uint8)

  run(stem, 'random weights', model, weights, encode, 0, [64, 128])


def _full(stem: pathlib.Path) -> None:
  """Runs the checkpoint."""
  if not _CHECKPOINT.value:
    raise app.UsageError('--checkpoint is missing')
  opened = open_lib.open_checkpoint(_CHECKPOINT.value)
  model, tokenizer = opened.config.model, opened.tokenizer()
  quarters = [model.context_length * k // 4 for k in range(1, 5)]
  run(
    script.file_of(stem, f'_{opened.step}'),
    f'{pathlib.Path(_CHECKPOINT.value).name}, step {opened.step}',
    model,
    opened.weights,
    tokenizer.encode,
    tokenizer.bos_id,
    [int(x) for x in _LENGTHS.value] or quarters,
  )


def main(argv: Sequence[str]) -> None:
  script.run_as_asked(
    argv,
    lambda stem, form: form(stem),
    _full,
    _smoke,
    folder=_CHECKPOINT.value,
  )


if __name__ == '__main__':
  app.run(main)
