"""What a model answers: logits, continuations, choices, gradients, losses."""

import copy
import pathlib
import tempfile

import numpy as np
from safetensors.numpy import load_file
import torch

LEARNING_RATE, BETAS, EPS = 1e-3, (0.9, 0.95), 1e-8
WEIGHT_DECAY, CLIP_NORM = 0.1, 1.0


def logits(model: torch.nn.Module, tokens: np.ndarray) -> np.ndarray:
  """float32 [batch, length, vocabulary]."""
  with torch.no_grad():
    inputs = torch.from_numpy(tokens).long()
    return model(inputs, use_cache=False).logits.float().numpy()


def drift(model: torch.nn.Module, tokens: np.ndarray) -> float:
  """How far float32 logits are from float64, relative to the largest.

  More than rounding says that two experts tie.
  """
  inputs = torch.from_numpy(tokens).long()
  with torch.no_grad():
    double = copy.deepcopy(model).double()(inputs, use_cache=False).logits
    single = model(inputs, use_cache=False).logits
  return ((single - double).abs().max() / double.abs().max()).item()


def greedy(
  model: torch.nn.Module, prompts: np.ndarray, count: int
) -> np.ndarray:
  """Continues equally long prompts by generate(), past any end of text.

  Returns:
    int32 [batch, count].
  """
  inputs = torch.from_numpy(prompts).long()
  model.generation_config.eos_token_id = None
  whole = model.generate(
    inputs,
    attention_mask=torch.ones_like(inputs),
    do_sample=False,
    max_new_tokens=count,
  )
  return whole[:, prompts.shape[1] :].numpy().astype(np.int32)


def greedy_margin(
  model: torch.nn.Module, prompts: np.ndarray, continuation: np.ndarray
) -> float:
  """By how much the closest token won, relative to the logits' scale.

  Negative where a pass without a cache would have chosen otherwise.
  """
  whole = np.concatenate([prompts, continuation[:, :-1]], axis=1)
  scores = logits(model, whole)[:, prompts.shape[1] - 1 :]
  taken = np.take_along_axis(scores, continuation[..., None], axis=-1)
  others = scores.copy()
  np.put_along_axis(others, continuation[..., None], -np.inf, axis=-1)
  margin = (taken - others.max(-1, keepdims=True)).min()
  return float(margin / np.abs(scores).max())


def routers(model: torch.nn.Module) -> list[torch.nn.Module]:
  """The routers of the expert layers, in order."""
  return [
    layer.mlp.gate for layer in model.model.layers if hasattr(layer.mlp, 'gate')
  ]


def router_inputs(seed: int, count: int, width: int) -> np.ndarray:
  """Token vectors; the first ones don't depend on how many follow."""
  draw = np.random.default_rng(seed)
  return draw.standard_normal((count, width), dtype=np.float32)


def choices(router: torch.nn.Module, inputs: np.ndarray) -> np.ndarray:
  """The experts that a router chooses, sorted: uint8 [tokens, chosen]."""
  with torch.no_grad():
    _, _, experts = router(torch.from_numpy(inputs))
  return np.sort(experts.numpy(), axis=1).astype(np.uint8)


def routing_margins(
  router: torch.nn.Module, inputs: np.ndarray, config
) -> np.ndarray:
  """How far each token is from another choice: float64 [tokens].

  The least distance between something taken and something left, among groups
  and then among the experts of the kept ones, relative to the largest
  selection score if that is above 1.
  """
  weight = router.weight.detach().double().numpy()
  scores = inputs.astype(np.float64) @ weight.T
  if config.model_type == 'deepseek_v3':
    scores = 1 / (1 + np.exp(-scores))
    scores = scores + router.e_score_correction_bias.double().numpy()
    best = 2
  else:
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    scores = scores / scores.sum(-1, keepdims=True)
    best = 1
  by_group = scores.reshape(len(scores), config.n_group, -1)
  groups = np.sort(by_group, axis=-1)[..., -best:].sum(-1)
  kept = config.topk_group
  margin = np.full(len(scores), np.inf)
  if kept < config.n_group:
    ordered = np.sort(groups, axis=-1)[:, ::-1]
    margin = ordered[:, kept - 1] - ordered[:, kept]
    left_out = groups < ordered[:, kept - 1 : kept]
    by_group = np.where(left_out[..., None], -np.inf, by_group)
  ordered = np.sort(by_group.reshape(scores.shape), axis=-1)[:, ::-1]
  taken = config.num_experts_per_tok
  margin = np.minimum(margin, ordered[:, taken - 1] - ordered[:, taken])
  return margin / max(1.0, np.abs(scores).max())


def published(model: torch.nn.Module) -> dict[str, np.ndarray]:
  """The weights by the names under which save_pretrained publishes them."""
  with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder, max_shard_size='1GB')
    return load_file(pathlib.Path(folder, 'model.safetensors'))


def gradients(
  model: torch.nn.Module, tokens: np.ndarray
) -> dict[str, np.ndarray]:
  """Of the mean next-token cross-entropy, by published names."""
  model = copy.deepcopy(model).train()
  inputs = torch.from_numpy(tokens).long()
  model(inputs, labels=inputs, use_cache=False).loss.backward()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.copy_(parameter.grad)
  # Published like weights, so that transformers takes the experts apart.
  return {
    name: value
    for name, value in published(model).items()
    if not name.endswith('e_score_correction_bias')
  }


def adamw_losses(
  model: torch.nn.Module, batches: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Losses and gradient norms of AdamW steps, each before its update.

  Norm gains aren't decayed; selection biases are buffers, which nothing moves.

  Returns:
    (float64 [steps], float64 [steps]).
  """
  model = copy.deepcopy(model).train()
  gains = [p for n, p in model.named_parameters() if 'norm' in n]
  matrices = [p for n, p in model.named_parameters() if 'norm' not in n]
  optimizer = torch.optim.AdamW(
    [
      {'params': matrices, 'weight_decay': WEIGHT_DECAY},
      {'params': gains, 'weight_decay': 0.0},
    ],
    lr=LEARNING_RATE,
    betas=BETAS,
    eps=EPS,
  )
  losses, norms = [], []
  for batch in batches:
    inputs = torch.from_numpy(batch).long()
    loss = model(inputs, labels=inputs, use_cache=False).loss
    optimizer.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
    optimizer.step()
    losses.append(loss.item())
    norms.append(norm.item())
  return np.array(losses), np.array(norms)
