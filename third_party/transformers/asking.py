"""Parity's way to the oracle: a child with a Python of its own, and files."""

import dataclasses
import json
import pathlib
import re
import subprocess
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file

SCRIPT = pathlib.Path(__file__).with_name('oracle.py')
# What transformers says of tensors, if it says anything.
_ABOUT_KEYS = ('missing_keys', 'unexpected_keys', 'mismatched_keys')
_WARNS_OF_KEYS = re.compile(
  r'missing|unexpected|mismatch|newly initialized|not initialized|not used',
  re.IGNORECASE,
)

Tensors = dict[str, np.ndarray]


class Unable(Exception):
  """Parity can't run; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Answer:
  """What the oracle answered about a folder.

  Attributes:
    tensors: 'logits' and so on.
    about: how loading went.
  """

  tensors: Tensors
  about: dict[str, Any]

  @property
  def logits(self) -> np.ndarray:
    return self.tensors['logits']

  def names(self, allowed: str | tuple[()] = ()) -> list[str]:
    """Tensors that loading found missing, unexpected or misshapen.

    Args:
      allowed: unexpected names that begin like this are left out.
    """
    return [
      str(name)
      for key in _ABOUT_KEYS
      for name in self.about[key]
      if not (key == 'unexpected_keys' and str(name).startswith(allowed))
    ]

  def warnings(self) -> list[str]:
    """What transformers warned of concerning tensors."""
    return [x for x in self.about['warnings'] if _WARNS_OF_KEYS.search(x)]


class Oracle:
  """Runs oracle.py and keeps its files in a folder."""

  def __init__(self, python: pathlib.Path, folder: pathlib.Path):
    self.python, self.folder = python, folder
    self.built = folder / 'built'
    self.answers = folder / 'answers'

  def run(self, *args: str) -> None:
    """One command.

    Raises:
      Unable: it failed; the message has its last line.
    """
    command = [str(self.python), str(SCRIPT), *args]
    try:
      done = subprocess.run(
        command, capture_output=True, text=True, check=False
      )
    except OSError as error:
      raise Unable(f'--oracle={self.python}: {error.strerror}') from error
    if done.returncode:
      last = (done.stderr.strip().splitlines() or ['no word'])[-1]
      raise Unable(f'oracle.py {" ".join(args)}: {last}')

  def expected(self, case: str) -> Answer:
    """What transformers' own model answered when it was built."""
    return read(self.built / case / 'expected.safetensors')

  def model(self, case: str) -> pathlib.Path:
    """The folder that transformers wrote."""
    return self.built / case / 'model'

  def answer(
    self, name: str, model: pathlib.Path, *args: str, tokens=None
  ) -> Answer:
    """Has a folder loaded and asked.

    Args:
      name: of the answer's file.
      model: the folder.
      *args: further flags.
      tokens: asks for their logits.
    """
    self.answers.mkdir(parents=True, exist_ok=True)
    if tokens is not None:
      path = self.answers / f'{name}.npy'
      np.save(path, tokens)
      args = (*args, f'--tokens={path}')
    out = self.answers / f'{name}.safetensors'
    self.run('answer', f'--model={model}', f'--out={out}', *args)
    return read(out)


def read(path: pathlib.Path) -> Answer:
  """A file that the oracle wrote."""
  with safe_open(path, 'numpy') as file:
    about = json.loads(file.metadata()['about'])
  return Answer(load_file(path), about)


def stored(folder: pathlib.Path) -> dict[str, tuple]:
  """(dtype, shape, bytes) of all tensors of a folder, read by hand."""
  tensors = {}
  for path in sorted(folder.glob('*.safetensors')):
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], 'little')
    header = json.loads(data[8:start])
    header.pop('__metadata__', None)
    for name, entry in header.items():
      first, last = entry['data_offsets']
      content = data[start + first : start + last]
      tensors[name] = entry['dtype'], tuple(entry['shape']), content
  return tensors


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
  """Names whose tensors aren't the same, or that only one of the two has."""
  names = sorted(one.keys() | other.keys())
  return [name for name in names if one.get(name) != other.get(name)]


def distance(actual: np.ndarray, expected: np.ndarray) -> float:
  """Largest difference, relative to the largest expected value."""
  if actual.shape != expected.shape:
    return float('nan')
  expected = np.float64(expected)
  return float(np.abs(actual - expected).max() / np.abs(expected).max())


def divergence(actual: np.ndarray, expected: np.ndarray) -> float:
  """Mean of KL(expected | actual) over positions, in nats."""
  log_p, log_q = _log_softmax(expected), _log_softmax(actual)
  return float((np.exp(log_p) * (log_p - log_q)).sum(-1).mean())


def _log_softmax(logits: np.ndarray) -> np.ndarray:
  logits = np.float64(logits)
  logits = logits - logits.max(-1, keepdims=True)
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))
