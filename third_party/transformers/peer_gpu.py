"""A DeepSeek-V3 of random weights under transformers on a GPU, timed.

  peer_gpu.py FOLDER

The counterpart of `peer.py` for a GPU: the same commands. FOLDER holds a
config.json; weights are drawn on the device. Weights, gradients and AdamW's
moments are bfloat16: that is less memory traffic than a step with float32
masters has.
"""

import argparse
import json
import os
import pathlib
import sys
from typing import Any

import peer
import torch
import transformers


class GpuPeer(peer.Peer):
  """The model on the GPU, its optimizer, the commands."""

  def __init__(self, folder: pathlib.Path):
    torch.set_default_device('cuda')
    config = transformers.AutoConfig.from_pretrained(folder)
    self.model = transformers.AutoModelForCausalLM.from_config(
      config, dtype=torch.bfloat16
    )
    self.optimizer = None

  def about(self) -> dict[str, Any]:
    """Versions, the GPU, and what is used by default."""
    return super().about() | {'gpu': torch.cuda.get_device_name()}

  def use_attention(self, attention: str) -> dict[str, Any]:
    """Chooses the implementation of attention."""
    self.model.set_attn_implementation(attention)
    return {}

  def peak(self) -> dict[str, Any]:
    """The most device memory so far, in bytes."""
    return {'bytes': torch.cuda.max_memory_allocated()}


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('folder', type=pathlib.Path)
  args = parser.parse_args()
  transformers.utils.logging.disable_progress_bar()
  # Whatever else prints goes to stderr.
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)
  child = GpuPeer(args.folder)
  for line in sys.stdin:
    command = json.loads(line)
    answer = getattr(child, command.pop('do'))(**command)
    print(json.dumps(answer), file=answers, flush=True)


if __name__ == '__main__':
  main()
