"""The Python front door: load a model, use it, train one.

    import seekax

    model = seekax.load('runs/demo')
    print(model.generate('def main(', max_new_tokens=32))
    config = seekax.config('demo:tiny', {'train.steps': 3})
    seekax.train(config, 'runs/mine')

What the user got wrong is an `InputError`, raised at the call.
"""

from collections.abc import Mapping, Sequence
import functools
import os
import pathlib
from typing import overload, Unpack

import jax
import numpy as np

from seekax.configuration import named
from seekax.configuration.config import Config, from_dict
from seekax.configuration.errors import ConfigError, InputError
from seekax.configuration.model import ModelConfig
from seekax.data import chat as chat_lib
from seekax.data import sources
from seekax.data.tokenizer import Tokenizer
from seekax.files import JsonObject
from seekax.inference import generator, limits, sampling, scoring
from seekax.machine import compilation_cache
from seekax.model.stack import taken_apart
from seekax.model.transformer import Transformer
from seekax.model.weights import Weights
from seekax.runs import resume
from seekax.storage import open as open_lib
from seekax.storage import workdir as workdir_lib

# Windows of text that are scored at once.
_SCORED_AT_ONCE = 8


class Options(sampling.Options, total=False):
  """The keywords of `Model.chat`, which are those of `Model.generate`."""

  max_new_tokens: int
  seed: int
  stop: str | Sequence[str]


class Model:
  """A model in memory: `load` makes one, and so may who has just trained it.

  Attributes:
    config: the architecture.
    weights: parameters and router biases, as `logits` takes them.
  """

  def __init__(
    self,
    config: Config,
    weights: Weights,
    tokenizer: Tokenizer | None = None,
    found: open_lib.Found | None = None,
  ):
    """Takes weights that are in memory.

    Args:
      config: the run's, of which `model` and `compute` are read.
      weights: for example a training state's.
      tokenizer: for text; None where `found` has one, or only ids are used.
      found: the folder that the weights came from; None for none.
    """
    self.config: ModelConfig = config.model
    self.weights = weights
    self._tokenizer, self._found = tokenizer, found
    self._compute = config.compute
    self._transformer = Transformer(self.config, compute=self._compute)
    self._logits = jax.jit(scoring.logits, static_argnums=0)

  @property
  def tokenizer(self) -> Tokenizer:
    """The tokenizer that was given, or the one beside the weights.

    Raises:
      InputError: there is none, or it can't be used.
    """
    if self._tokenizer is not None:
      return self._tokenizer
    if self._found is None:
      raise InputError('this model has no tokenizer; give Model one for text')
    return self._found.tokenizer()

  @overload
  def generate(
    self,
    prompt: str,
    *,
    max_new_tokens: int = ...,
    temperature: float = ...,
    top_k: int = ...,
    top_p: float = ...,
    min_p: float = ...,
    seed: int = ...,
    stop: str | Sequence[str] = ...,
  ) -> str: ...

  @overload
  def generate(
    self,
    prompt: Sequence[str],
    *,
    max_new_tokens: int = ...,
    temperature: float = ...,
    top_k: int = ...,
    top_p: float = ...,
    min_p: float = ...,
    seed: int = ...,
    stop: str | Sequence[str] = ...,
  ) -> list[str]: ...

  def generate(
    self,
    prompt: str | Sequence[str],
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 0,
    stop: str | Sequence[str] = (),
  ) -> str | list[str]:
    """Continues a text, or several as one batch.

    A text of a batch is the same as alone: rows don't see each other, and each
    is drawn with `seed`.

    Args:
      prompt: text to continue, or a sequence of texts. BOS comes before it;
        what it says never becomes a control token.
      max_new_tokens: most tokens to add. A text also ends with the model's own
        end, and where the context is full.
      temperature: 0 takes the likeliest token.
      top_k: draw from so many likeliest tokens; 0: all.
      top_p: draw from the likeliest tokens of this probability; 1: all.
      min_p: least probability over the likeliest token's; 0: any.
      seed: of the draws.
      stop: strings that end the text; none of them is part of it.

    Returns:
      The continuation alone, or one for every prompt.

    Raises:
      InputError: a value can't be, or a prompt doesn't fit the context.
    """
    texts = [prompt] if isinstance(prompt, str) else list(prompt)
    prompts = [generator.prompt_ids(self.tokenizer, text) for text in texts]
    found = self._continued(
      prompts,
      max_new_tokens,
      stop,
      seed,
      temperature=temperature,
      top_k=top_k,
      top_p=top_p,
      min_p=min_p,
    )
    return found[0] if isinstance(prompt, str) else found

  def chat(
    self, messages: Sequence[Mapping[str, str]], **options: Unpack[Options]
  ) -> str:
    """Answers a conversation, by the chat template beside the weights.

    Args:
      messages: mappings of `role` (system, user or assistant) and `content`,
        the latest last.
      **options: as of `generate`.

    Returns:
      The answer.

    Raises:
      InputError: there is no template, it refuses the messages, or a value
        can't be.
    """
    folder = self._found.folder if self._found else None
    template = chat_lib.find_template(folder) if folder else ''
    if not template:
      raise InputError(
        f'{folder or "this model"} has no chat template; use generate'
      )
    prompt = chat_lib.encode_chat(self.tokenizer, template, list(messages))
    return self._continued([prompt], **options)[0]

  @overload
  def score(self, text: str) -> scoring.Score: ...

  @overload
  def score(self, text: Sequence[str]) -> list[scoring.Score]: ...

  def score(
    self, text: str | Sequence[str]
  ) -> scoring.Score | list[scoring.Score]:
    """How likely a text is, or each of several.

    Args:
      text: a text, or a sequence of texts. Windows of the context's length
        advance by half of it over a long one.

    Returns:
      {'tokens', 'log_likelihood' (nats), 'bytes', 'bits_per_byte'} of each.

    Raises:
      InputError: a text is empty or not valid Unicode.
    """
    texts = [text] if isinstance(text, str) else list(text)
    found = scoring.score_texts(
      self._transformer, self.weights, self.tokenizer, texts, _SCORED_AT_ONCE
    )
    return found[0] if isinstance(text, str) else found

  def logits(
    self, tokens: jax.typing.ArrayLike, weights: Weights | None = None
  ) -> jax.Array:
    """Logits of the main model; pure, so that `jax.jit` and `jax.grad` go in.

    Args:
      tokens: int [B, L]; nothing is put before them.
      weights: other weights than the model's, to differentiate by.

    Returns:
      float32 [B, L, V]; entry [b, i] predicts token i + 1.

    Raises:
      InputError: tokens have another shape or type, or ids that the vocabulary
        hasn't.
    """
    if not isinstance(tokens, jax.Array):
      tokens = np.asarray(tokens)
    if tokens.ndim != 2 or not np.issubdtype(tokens.dtype, np.integer):
      raise InputError(
        f'tokens are {tokens.dtype}{list(tokens.shape)}; logits wants integers '
        '[B, L]'
      )
    if isinstance(tokens, np.ndarray) and tokens.size:
      low, high = int(tokens.min()), int(tokens.max())
      if low < 0 or high >= self.config.vocab_size:
        raise InputError(
          f'tokens hold ids from {low} to {high}; the vocabulary has 0 to '
          f'{self.config.vocab_size - 1}'
        )
    if not 0 < tokens.shape[1] <= self.config.context_length:
      raise InputError(
        f'tokens have {tokens.shape[1]} positions; the context has '
        f'{self.config.context_length}'
      )
    used = self.weights if weights is None else weights
    return self._logits(self._transformer, used, tokens)

  @functools.cached_property
  def _served(self) -> Weights:
    """The weights as generation reads them fastest."""
    return taken_apart(self._compute, self.weights)

  def _continued(
    self,
    prompts: Sequence[np.ndarray],
    max_new_tokens: int = 128,
    stop: str | Sequence[str] = (),
    seed: int = 0,
    **options: Unpack[sampling.Options],
  ) -> list[str]:
    limits.check_new_tokens(max_new_tokens)
    limits.check_sampling(seed=seed, **options)
    if not prompts:
      return []
    return generator.texts(
      self._transformer,
      self._served,
      self.tokenizer,
      prompts,
      max_new_tokens,
      sampling.settings(len(prompts), **options),
      [seed] * len(prompts),
      self._found.end_ids() if self._found else [self.tokenizer.eos_id],
      [stop] if isinstance(stop, str) else stop,
    )


def load(
  path: str | os.PathLike[str], precision: str = 'float32', ema: bool = False
) -> Model:
  """Loads a model.

  Args:
    path: a workdir of a run, a folder of published weights (config.json and
      safetensors), or hf://owner/name[@revision].
    precision: compute dtype, float32 or bfloat16.
    ema: whether to take a run's averaged weights (optim.ema_decay).

  Raises:
    InputError: nothing usable is there, or it fails its checks.
  """
  compilation_cache.switch_on(compilation_cache.AUTO, lambda line: None)
  found = open_lib.find(os.fspath(path), averaged=ema)
  opened = open_lib.open_checkpoint(found, precision)
  return Model(opened.config, opened.weights, found=found)


def config(name: str, overrides: Mapping[str, object] | None = None) -> Config:
  """A run's configuration, validated.

  Args:
    name: one of seekax's own, e.g. 'demo' or 'v3_671b:tiny', or the path of a
      config file, which is Python and is run.
    overrides: values by key, e.g. {'train.steps': 3}.

  Raises:
    ConfigError: there is no such config or key, or a value can't work.
  """
  groups = named.load_config(name).to_dict()
  for key, value in (overrides or {}).items():
    group, dot, field = key.partition('.')
    if not dot:
      raise ConfigError(f'{key!r} is no key; write group.key: train.steps')
    groups.setdefault(group, {})[field] = value
  return from_dict(groups)


def train(
  config: Config, workdir: str | os.PathLike[str], verbose: bool = False
) -> JsonObject:
  """Trains a model, or goes on with a run that was stopped.

  Progress goes to stderr. `seekax train` does the same, and also stops at a
  signal, with a checkpoint.

  Args:
    config: the run, e.g. of `config`.
    workdir: a folder that is new, empty, or of the same run.
    verbose: prints the whole config and every parameter first.

  Returns:
    What summary.json holds: bits per byte, tokens per second, and more.

  Raises:
    InputError: the data, the mesh or the workdir can't be used.
    RuntimeError: losses that are no numbers ended the run.
  """
  folder = pathlib.Path(workdir).expanduser()
  config = sources.absolute_paths(config, os.getcwd())
  resume.check(config, folder)
  about = {'command': 'seekax.train', 'folder': os.getcwd()}
  resume.run(config, folder, {}, about, verbose=verbose)
  return workdir_lib.read_summary(folder)
