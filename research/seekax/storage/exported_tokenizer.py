"""What an export tells other tools about our tokenizer."""

import json
import pathlib

from seekax.files import JsonObject, write_atomically
from seekax.storage import workdir as workdir_lib
from seekax.storage.open import Found


def control_ids(found: Found) -> JsonObject:
  """BOS and EOS for config.json, if the published one lacks them."""
  if found.published or not (found.folder / workdir_lib.TOKENIZER).is_file():
    return {}
  ends = list(found.end_ids())
  return {
    'bos_token_id': found.tokenizer().bos_id,
    'eos_token_id': ends[0] if len(ends) == 1 else ends,
  }


def complete_tokenizer(found: Found, target: pathlib.Path) -> None:
  """Writes what other tools need beside a tokenizer.json that we trained.

  They put BOS before a text only if the files say so; our own training and
  scoring always do.
  """
  path = target / 'tokenizer_config.json'
  if path.exists() or not (target / workdir_lib.TOKENIZER).is_file():
    return
  tokenizer = found.tokenizer()
  content = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'bos_token': tokenizer.bos,
    'eos_token': tokenizer.eos,
    'add_bos_token': True,
    'add_eos_token': False,
    'model_max_length': found.model.context_length,
    'clean_up_tokenization_spaces': False,
  }
  write_atomically(target / workdir_lib.TOKENIZER, tokenizer.to_json_with_bos())
  write_atomically(path, json.dumps(content, indent=2) + '\n')
