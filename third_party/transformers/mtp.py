"""The multi-token prediction layer, which transformers only drafts with.

A published folder holds it after the last layer of the main model, which leaves
it unread; transformers' MtpModel reads it for speculative decoding.
"""

import copy
import pathlib

import answers
import cases
import numpy as np
from safetensors.numpy import load_file, save_file
import torch
from transformers.modeling_layers import MtpModel

FILE = 'model.safetensors'


def add_layer(
  folder: pathlib.Path, case: cases.Case, draw: np.random.Generator
) -> None:
  """Adds a random MTP layer to the single file of a main model.

  Its block is the first layer of a model that has no dense ones, so that the
  names are transformers' own; embedding and head are stored once more, as in
  the released weights.
  """
  config = copy.deepcopy(case.config)
  config.num_hidden_layers, config.first_k_dense_replace = 1, 0
  model = case.kind._from_config(config).eval()
  cases.perturb(model, draw)
  block = answers.published(model)
  tensors, width = load_file(folder / FILE), config.hidden_size
  prefix = f'model.layers.{case.config.num_hidden_layers}.'
  tensors |= {
    prefix + name.removeprefix('model.layers.0.'): value
    for name, value in block.items()
    if name.startswith('model.layers.0.')
  }
  for name in ('enorm', 'hnorm', 'shared_head.norm'):
    gain = 1 + 0.3 * draw.standard_normal(width)
    tensors[f'{prefix}{name}.weight'] = np.float32(gain)
  weight = draw.standard_normal((width, 2 * width)) / np.sqrt(2 * width)
  tensors[f'{prefix}eh_proj.weight'] = np.float32(weight)
  for copied, name in (
    ('model.embed_tokens.weight', 'embed_tokens'),
    ('lm_head.weight', 'shared_head.head'),
  ):
    tensors[f'{prefix}{name}.weight'] = tensors[copied]
  save_file(tensors, folder / FILE, metadata={'format': 'pt'})


def load(model: torch.nn.Module) -> MtpModel:
  """The MTP layer beside a main model that was loaded from a folder."""
  layer = rf'model\.layers\.{model.config.num_hidden_layers}\..*'
  # The class knows the released depth alone: layer 61.
  model._keys_to_ignore_on_load_unexpected = [layer]
  return MtpModel.from_pretrained(model).eval()


def logits(
  model: torch.nn.Module, layer: MtpModel, tokens: np.ndarray
) -> np.ndarray:
  """float32 [batch, length - 1, vocabulary]; position i predicts token i + 2.

  The last position has no next token to embed.
  """
  return _logits(model, layer, tokens).float().numpy()


def drift(model: torch.nn.Module, layer: MtpModel, tokens: np.ndarray) -> float:
  """How far float32 logits are from float64, relative to the largest."""
  single = _logits(model, layer, tokens)
  # Copied together, since they share embedding and head.
  model, layer = copy.deepcopy((model, layer))
  double = _logits(model.double(), layer.double(), tokens)
  return ((single - double).abs().max() / double.abs().max()).item()


@torch.no_grad()
def _logits(model, layer, tokens: np.ndarray) -> torch.Tensor:
  inputs = torch.from_numpy(tokens).long()
  # After the final norm.
  hidden = model.model(inputs, use_cache=False).last_hidden_state[:, :-1]
  positions = torch.arange(hidden.shape[1])[None].expand(len(inputs), -1)
  further = layer.forward_layer(
    0, hidden, positions, None, input_ids=inputs[:, 1:]
  )
  return layer._project_to_logits(further)
