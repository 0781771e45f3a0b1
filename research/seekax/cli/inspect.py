"""`seekax inspect`: shows a model or a run without loading it."""

from collections import Counter
from collections.abc import Sequence
import json
import pathlib

from absl import flags

from seekax.cli import flags as flags_lib
from seekax.configuration.errors import InputError
from seekax.files import JsonObject, one_line, reason, write_atomically
from seekax.planning.parameters import count_parameters
from seekax.storage import hub
from seekax.storage import workdir as workdir_lib
from seekax.storage.manifest import verify_manifest

# Number of names that are printed; the JSON has all.
_SHOWN = 5


def run(argv: Sequence[str]) -> int:
  """Runs the command; returns its exit code."""
  argv = _with_named_path(argv)
  values = flags.FlagValues()
  define = {'flag_values': values}
  flags.DEFINE_string(
    'path',
    '',
    'a workdir or a Hugging Face folder, also without --path=',
    **define,
  )
  flags.DEFINE_string('workdir', '', 'the same', **define)
  flags.DEFINE_bool(
    'verify',
    False,
    "check every SHA-256 of a workdir, and every tensor's name, shape and "
    'dtype against the config',
    **define,
  )
  flags.DEFINE_bool(
    'hash', False, "print the newest state's SHA-256 alone", **define
  )
  flags.DEFINE_string(
    'json', '', 'path of a JSON file for what is printed', **define
  )
  flags_lib.parse(
    values,
    argv,
    'inspect',
    'Looks at a model or a run: seekax inspect <workdir or folder>.',
  )
  if not values.path:
    values.path = values.workdir
  flags_lib.require(values, 'path')
  folder = hub.local(values.path)
  if values.hash:
    print(_state_hash(folder))
    return 0
  found = _look(folder, values.verify)
  for name, value in found.items():
    print(f'{name}: {_short(value)}')
  if values.json:
    _write_json(pathlib.Path(values.json), found)
  return 0


def _with_named_path(argv: Sequence[str]) -> list[str]:
  """Lets the path stand alone, as in `seekax inspect --hash runs/demo`."""
  words = []
  for word in argv:
    is_value = bool(words) and words[-1] in ('--json', '--workdir', '--path')
    bare = not word.startswith('-') and not is_value
    words.append(f'--path={word}' if bare else word)
  return words


def _look(folder: pathlib.Path, verify: bool) -> JsonObject:
  """Collects the facts about a folder.

  Raises:
    InputError: it isn't a model, or, with `verify`, something in it is wrong.
  """
  from seekax.storage import open as open_lib
  from seekax.storage import published_rope, weight_checks, weights

  if not folder.is_dir():
    if folder.exists():
      weights.refuse_other_formats(folder)
    raise InputError(f'{folder} does not exist')
  is_run = (folder / workdir_lib.RUN).is_file()
  has_weights = workdir_lib.has_weights(folder)
  if is_run and (workdir_lib.has_checkpoint(folder) or not has_weights):
    return _run(folder, verify)
  model = open_lib.find(folder)
  found = _architecture(model.model, _architecture_name(model))
  note = published_rope.rotary_note(model.published)
  if note:
    found['rotary'] = note
  found |= _tensors(model)
  found['tokenizer'] = _tokenizer(model)
  found |= _differences(model)
  if verify:
    model.check()
    model.verify()
    weight_checks.check_numbers(model.tensors)
    found['verified'] = True
  return found


def _run(folder: pathlib.Path, verify: bool) -> JsonObject:
  """Collects the facts about a training run."""
  from seekax.storage import checkpoint

  config = workdir_lib.read_config(folder)
  found = _architecture(config.model, 'seekax')
  found['tokenizer'] = (folder / workdir_lib.TOKENIZER).is_file()
  steps = folder / workdir_lib.CHECKPOINTS
  found['checkpoints'] = checkpoint.proven_steps(steps)
  found['unproven_checkpoints'] = checkpoint.unproven_steps(steps)
  if verify:
    for step in found['checkpoints']:
      checkpoint.verify(steps, step)
      _check_numbers(config, steps, step)
    if workdir_lib.has_weights(folder):
      verify_manifest(
        folder / workdir_lib.WEIGHTS, folder / workdir_lib.WEIGHTS_MANIFEST
      )
    found['verified'] = found['checkpoints']
  return found


def _check_numbers(config, steps: pathlib.Path, step: int) -> None:
  """Raises StorageError if a step's weights hold values that aren't finite."""
  from seekax.storage import checkpoint, names
  from seekax.storage.room import check_count

  check_count(config.model, steps.parent / workdir_lib.RUN)
  parts = [checkpoint.WEIGHTS]
  if config.optim.ema_decay:
    parts.append(checkpoint.AVERAGE)
  for part in parts:
    weights = names.abstract_tree(config.model)
    checkpoint.check_numbers(steps, step, part, weights)


def _architecture(model, name: str) -> JsonObject:
  counts = count_parameters(model)
  return {
    'architecture': name,
    'attention': model.attention,
    'ffn': model.ffn,
    'layers': model.num_layers,
    'vocabulary': model.vocab_size,
    'context_length': model.context_length,
    'parameters_total': counts.total,
    'parameters_activated': counts.activated,
    'parameters_mtp': counts.mtp,
  }


def _architecture_name(model) -> str:
  names = model.published.get('architectures')
  if isinstance(names, list) and names and isinstance(names[0], str):
    return names[0]
  return str(model.published.get('model_type', 'seekax'))


def _tensors(model) -> JsonObject:
  """Counts dtypes and files; scales are counted apart from weights."""
  tensors = model.tensors.values()
  return {
    'tensors': len(tensors),
    'dtypes': dict(Counter(tensor.dtype for tensor in tensors)),
    'values': sum(_values(tensor) for tensor in tensors),
    'bytes': sum(tensor.num_bytes for tensor in tensors),
    'shards': len({tensor.file for tensor in tensors}),
  }


def _values(tensor) -> int:
  """Number of a weight's values; scales don't count."""
  from seekax.storage import fp8
  from seekax.storage.safetensors_header import itemsize

  if tensor.name.endswith(fp8.SCALE_SUFFIX):
    return 0
  return tensor.num_bytes // itemsize(tensor.dtype)


def _tokenizer(model) -> str:
  from seekax.data import chat

  if not (model.folder / workdir_lib.TOKENIZER).is_file():
    return 'none'
  try:
    tokenizer, ends = model.tokenizer(), model.end_ids()
    template = bool(chat.find_template(model.folder))
  except InputError as error:
    return f'unusable: {error}'
  return (
    f'{tokenizer.vocab_size} ids, bos {tokenizer.bos!r}, eos '
    f'{tokenizer.eos!r}, ends at {list(ends)}, '
    f'{"a" if template else "no"} chat template'
  )


def _differences(model) -> JsonObject:
  if not model.tensors:
    return {}
  comparison = model.comparison
  return {
    'missing': list(comparison.missing),
    'unexpected': [tensor.name for tensor in comparison.unexpected],
    'wrong': list(comparison.wrong),
  }


def _short(value: object) -> object:
  if isinstance(value, str):
    return one_line(value)  # It may come from an untrusted file.
  if isinstance(value, list) and len(value) > _SHOWN:
    return f'{value[:_SHOWN]} and {len(value) - _SHOWN} more'
  return value


def _write_json(path: pathlib.Path, found: JsonObject) -> None:
  try:
    write_atomically(path, json.dumps(found, indent=2) + '\n')
  except OSError as error:
    raise InputError(f'--json={path}: {reason(error)}') from error


def _state_hash(workdir: pathlib.Path) -> str:
  from seekax.storage import checkpoint
  from seekax.storage import open as open_lib
  from seekax.storage.room import check_room
  from seekax.training import state

  step = open_lib.newest_step(workdir)
  config = workdir_lib.read_config(workdir)
  check_room(config.model, value_bytes=4)
  parts, _ = checkpoint.restore(
    workdir / workdir_lib.CHECKPOINTS,
    step,
    state.to_parts(state.abstract_state(config)),
  )
  return checkpoint.state_hash(parts)
