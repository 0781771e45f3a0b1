"""A DeepSeek-V3 folder under transformers, timed on request.

  peer.py FOLDER

Runs in the oracle's environment. Every line on stdin is a JSON object with
'do', the name of a command below, and its arguments; the answer is one line of
JSON on stdout. Everything is float32 on the CPU, at --threads threads, with
transformers' own attention. `use` sets the implementation of the experts; until
then it is the default one. Without another package or a GPU there are
'grouped_mm', 'batched_mm' and 'eager'.
"""

import argparse
import json
import os
import pathlib
import sys
import time
from typing import Any

import torch
import transformers


class Peer:
  """The model, its optimizer, the commands."""

  def __init__(self, folder: pathlib.Path):
    self.model = transformers.AutoModelForCausalLM.from_pretrained(
      folder, dtype='float32'
    )
    # There may be no end: the benchmark counts tokens.
    self.model.generation_config.eos_token_id = None
    self.optimizer = None

  def about(self) -> dict[str, Any]:
    """Versions and what is used by default."""
    config = self.model.config
    return {
      'versions': {
        'torch': torch.__version__,
        'transformers': transformers.__version__,
      },
      'threads': torch.get_num_threads(),
      'experts': config._experts_implementation,
      'attention': config._attn_implementation,
      'parameters': sum(p.numel() for p in self.model.parameters()),
    }

  def use(self, experts: str) -> dict[str, Any]:
    """Chooses the implementation of the experts."""
    self.model.set_experts_implementation(experts)
    return {}

  def start_training(
    self,
    learning_rate: float,
    betas: list[float],
    eps: float,
    weight_decay: float,
    clip_norm: float,
  ) -> dict[str, Any]:
    """A fresh AdamW, in torch's fused form; norm gains aren't decayed."""
    named = list(self.model.named_parameters())
    gains = [p for name, p in named if 'norm' in name]
    matrices = [p for name, p in named if 'norm' not in name]
    self.optimizer = torch.optim.AdamW(
      [
        {'params': matrices, 'weight_decay': weight_decay},
        {'params': gains, 'weight_decay': 0.0},
      ],
      lr=learning_rate,
      betas=tuple(betas),
      eps=eps,
      fused=True,
    )
    self.clip_norm = clip_norm
    self.model.train()
    return {}

  def train_step(self, tokens: list[list[int]]) -> dict[str, Any]:
    """One step: seconds, and the mean loss before it.

    Args:
      tokens: one more per row than are read; each predicts the next.
    """
    tokens_BL = torch.tensor(tokens)
    began = time.perf_counter()
    logits_BLV = self.model(tokens_BL[:, :-1], use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(
      logits_BLV.flatten(0, 1), tokens_BL[:, 1:].flatten()
    )
    loss.backward()
    torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
    self.optimizer.step()
    self.optimizer.zero_grad(set_to_none=True)
    loss = loss.item()
    return {'seconds': time.perf_counter() - began, 'loss': loss}

  @torch.inference_mode()
  def prefill(self, tokens: list[list[int]]) -> dict[str, Any]:
    """Reads prompts into a cache: seconds, the last positions' logits."""
    self.model.eval()
    tokens_BL = torch.tensor(tokens)
    began = time.perf_counter()
    read = self.model(tokens_BL, use_cache=True, logits_to_keep=1)
    seconds = time.perf_counter() - began
    return {'seconds': seconds, 'logits': read.logits[:, -1].tolist()}

  @torch.inference_mode()
  def decode(self, tokens: list[list[int]], count: int) -> dict[str, Any]:
    """Greedy tokens after prompts: seconds of `count` steps, the tokens.

    A bare loop on the cache, which is less work per token than generate().
    The prompt and the token that follows it are not timed.
    """
    self.model.eval()
    read = self.model(torch.tensor(tokens), use_cache=True, logits_to_keep=1)
    token_B1 = read.logits[:, -1:].argmax(-1)
    produced = [token_B1]
    began = time.perf_counter()
    for _ in range(count):
      read = self.model(
        token_B1,
        past_key_values=read.past_key_values,
        use_cache=True,
        logits_to_keep=1,
      )
      token_B1 = read.logits[:, -1:].argmax(-1)
      produced.append(token_B1)
    seconds = time.perf_counter() - began
    return {'seconds': seconds, 'tokens': torch.cat(produced, 1).tolist()}

  @torch.inference_mode()
  def cache_values(self, length: int) -> dict[str, Any]:
    """Numbers that the cache holds per token, counted on its tensors."""
    self.model.eval()
    tokens_BL = torch.zeros((1, length), dtype=torch.long)
    cache = self.model(tokens_BL, use_cache=True).past_key_values
    values = sum(x.keys.numel() + x.values.numel() for x in cache.layers)
    return {'values': values / length}

  def peak(self) -> dict[str, Any]:
    """The largest resident set so far, in bytes."""
    status = pathlib.Path('/proc/self/status').read_text()
    return {'bytes': int(status.split('VmHWM:')[1].split()[0]) * 1024}


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('folder', type=pathlib.Path)
  parser.add_argument('--threads', type=int, default=2)
  args = parser.parse_args()
  torch.set_num_threads(args.threads)
  transformers.utils.logging.disable_progress_bar()
  # Whatever else prints goes to stderr.
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)
  peer = Peer(args.folder)
  for line in sys.stdin:
    command = json.loads(line)
    answer = getattr(peer, command.pop('do'))(**command)
    print(json.dumps(answer), file=answers, flush=True)


if __name__ == '__main__':
  main()
