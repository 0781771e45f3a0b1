"""Loads what somebody else stored, and listens to what transformers says."""

import contextlib
import logging
import pathlib
import warnings

import transformers


@contextlib.contextmanager
def hearing(heard: list[str]):
  """Collects what transformers logs or warns of."""
  handler = logging.Handler(logging.WARNING)
  handler.emit = lambda record: heard.append(record.getMessage())
  logger = logging.getLogger('transformers')
  logger.addHandler(handler)
  with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter('always')
    yield
  logger.removeHandler(handler)
  heard.extend(str(warning.message) for warning in warned)


def load_model(folder: pathlib.Path, dtype: str) -> tuple:
  """The model of a folder and what became of its tensors.

  Args:
    folder: config.json and safetensors.
    dtype: of the weights; 'auto' as stored.

  Returns:
    (model, {'missing_keys', 'unexpected_keys', 'mismatched_keys', ...}).
  """
  model, info = transformers.AutoModelForCausalLM.from_pretrained(
    folder,
    dtype=dtype,
    attn_implementation='eager',
    experts_implementation='eager',
    # Told like missing ones instead of raised.
    ignore_mismatched_sizes=True,
    output_loading_info=True,
  )
  if dtype == 'float32':
    model = model.float()  # Beside FP8 ones, weights stay as they are stored.
  about = {key: sorted(value) for key, value in info.items()}
  about['class'] = type(model).__name__
  about['dtype'] = str(model.dtype)
  about['parameters'] = sum(p.numel() for p in model.parameters())
  return model.eval(), about


def load_tokenizer(folder: pathlib.Path):
  """The folder's tokenizer, which must have a begin-of-sequence token."""
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  if tokenizer.bos_token_id is None:
    raise SystemExit(f'the tokenizer of {folder} names no bos_token')
  return tokenizer
