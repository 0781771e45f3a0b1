"""From a validated config to a running loop: data, run.json, the printout."""

from collections.abc import Callable, Mapping, Sequence
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess

import jax
import numpy as np
import rich.console
import rich.table

from seekax.configuration.config import Config, to_dict
from seekax.configuration.errors import ConfigError
from seekax.data import sources
from seekax.files import JsonObject
from seekax.machine import compilation_cache, processes
from seekax.model.parameters import abstract_weights
from seekax.ops import backends
from seekax.parallel import mesh as mesh_lib
from seekax.planning.parameters import count_parameters
from seekax.runs import corpus as corpus_lib
from seekax.runs import origin as origin_lib
from seekax.runs import pretraining
from seekax.storage import checkpoint
from seekax.storage import workdir as workdir_lib
from seekax.storage.manifest import StorageError
from seekax.storage.open import Found
from seekax.storage.room import check_room
from seekax.training.schedules import Schedule

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain')
_PACKAGES += ('tokenizers', 'numpy', 'ml-collections')
# Keys of run.json's `data` that show how other data differ from the run's.
_TELLING = ('train_documents', 'heldout_documents', 'train_bytes')
_TELLING += ('heldout_bytes', 'tokenizer_sha256')


def start(
  config: Config,
  overrides: JsonObject,
  workdir: pathlib.Path,
  should_stop: Callable[[], bool] = lambda: False,
  about: Mapping[str, str] | None = None,
  restore_step: int | None = None,
  verbose: bool = False,
) -> bool:
  """Prepares the data, writes run.json, prints what will run, and runs it.

  Args:
    config: the run, validated.
    overrides: what the command line changed.
    workdir: prepared and locked.
    should_stop: asked after every step.
    about: what the user typed and where, for run.json: `command`,
      `config_file`, `folder`.
    restore_step: the checkpoint to go on from, if it isn't the newest one.
    verbose: prints the whole config and every parameter.

  Returns:
    Whether the last step was reached.

  Raises:
    InputError: the data, the mesh or the workdir can't be used.
    NonFiniteError: see loop.run.
  """
  check_room(config.model, value_bytes=4)
  mesh = mesh_lib.mesh_of(config)
  console = rich.console.Console(
    stderr=True, highlight=False, quiet=not processes.is_first()
  )

  def say(line: str) -> None:
    console.print(line, soft_wrap=True, markup=False)

  if mesh.size < jax.device_count():
    say(
      f'one of {jax.device_count()} devices is used; '
      '--config.parallel.mesh=data:-1 takes all of them'
    )
  choices = backends.for_training(
    config.model,
    config.compute,
    config.train.compute_dtype,
    config.data.isolate_documents,
    fp8=config.fp8 if config.train.precision == 'fp8' else None,
  )
  compilation_cache.switch_on(config.train.compilation_cache, say)
  beginning = origin_lib.find_beginning(config, workdir, restore_step)
  goes_on = beginning.step is not None
  tokenizer = origin_lib.find_tokenizer(config, workdir, beginning.origin)
  corpus = corpus_lib.load(
    config, tokenizer, jax.process_index(), jax.process_count()
  )
  run = describe(config, overrides, corpus)
  if beginning.step is not None:
    _refuse_other_data(workdir, run['data'], beginning.step)
  _check_prompts(config, corpus)
  run['started_from'] = _started_from(workdir, beginning.origin)
  run['backends'] = {c.subject: f'{c.name}: {c.reason}' for c in choices}
  if processes.is_first():
    # First of all files: by it a workdir is known as one of ours.
    workdir_lib.write_run(workdir, {**(about or {}), **run})
    if not goes_on:
      origin_lib.keep_tokenizer(workdir, beginning.origin, corpus.tokenizer)
  processes.wait_for_all('the run is described')
  if verbose:
    _print_all(console, config, run['backends'])
  for line in _summary(config, overrides, about or {}, corpus, choices):
    say(line)
  return pretraining.train(config, workdir, corpus, beginning, should_stop)


def _refuse_other_data(
  workdir: pathlib.Path, data: JsonObject, step: int
) -> None:
  folder = workdir / workdir_lib.CHECKPOINTS
  saved = checkpoint.read_progress(folder, step)
  if saved.get('fingerprint') != data['fingerprint']:
    checkpoint.verify(folder, step)  # A changed file is another matter.
    old = workdir_lib.read_run(workdir).get('data', {})
    changed = [
      f'{key} {str(old[key])[:12]} there, {str(data[key])[:12]} here'
      for key in _TELLING
      if old.get(key, data[key]) != data[key]
    ]
    raise StorageError(
      f'{workdir} was trained on other data than data.source is now: '
      + ('; '.join(changed) or 'as many documents and bytes, but not the same')
      + '; restore them or choose another --workdir'
    )


def _started_from(workdir: pathlib.Path, origin: Found | None) -> str:
  """The folder that the weights came from, '' for random ones.

  A run that goes on, and one in a convert target, keep what is noted there.
  """
  if origin is not None and origin.folder.resolve() != workdir.resolve():
    return str(origin.folder.resolve())
  if not (workdir / workdir_lib.RUN).is_file():
    return ''
  return workdir_lib.read_run(workdir).get('started_from', '')


def _check_prompts(config: Config, corpus: corpus_lib.Corpus) -> None:
  for prompt in config.eval.prompts:
    # bos comes first, and there must be room for one more token.
    length = len(corpus.tokenizer.encode(prompt)) + 1
    if length >= config.model.context_length:
      raise ConfigError(
        f'eval.prompts: {prompt[:40]!r} has {length} tokens, '
        f'model.context_length is {config.model.context_length}; shorten it'
      )


def describe(
  config: Config, overrides: JsonObject, corpus: corpus_lib.Corpus
) -> JsonObject:
  """What run.json holds beside the command."""
  versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
  device = jax.devices()[0]
  return {
    'config': to_dict(config),
    'overrides': overrides,
    'commit': _commit(),
    'versions': {'python': platform.python_version(), **versions},
    'platform': {
      'device': device.device_kind,
      'num_devices': jax.device_count(),
      'system': f'{platform.system()} {platform.machine()}',
      'cpus': os.cpu_count(),
    },
    'data': {
      'source': config.data.source,
      'licence': sources.STDLIB_LICENCE
      if config.data.source == 'stdlib'
      else '',
      'train_documents': corpus.train_documents,
      'heldout_documents': len(corpus.heldout),
      'train_bytes': corpus.train_bytes,
      'heldout_bytes': sum(corpus.heldout_bytes),
      'bytes_per_token': corpus.train_bytes / corpus.train_tokens,
      'tokenizer_sha256': sources.sha256(corpus.tokenizer.to_json()),
      'gzip_bits_per_byte': corpus.compression.gzip,
      'xz_bits_per_byte': corpus.compression.xz,
      'fingerprint': corpus.fingerprint,
    },
  }


def _commit() -> str:
  """The commit of the source checkout, '' outside of one."""
  try:
    return subprocess.run(
      ['git', 'rev-parse', 'HEAD'],
      cwd=pathlib.Path(__file__).parent,
      capture_output=True,
      text=True,
      check=True,
    ).stdout.strip()
  except (OSError, subprocess.CalledProcessError):
    return ''


def _print_all(
  console: rich.console.Console, config: Config, chosen: Mapping[str, str]
) -> None:
  """Every key of the config, every backend and every parameter."""
  for group, entries in to_dict(config).items():
    line = ' '.join(f'{key}={value!r}' for key, value in entries.items())
    console.print(f'{group}: {line}', soft_wrap=True, markup=False)
  for subject, name in chosen.items():
    console.print(f'{subject}: {name}', soft_wrap=True, markup=False)
  console.print(parameter_table(config))


def _summary(
  config: Config,
  overrides: JsonObject,
  about: Mapping[str, str],
  corpus: corpus_lib.Corpus,
  choices: Sequence[backends.Choice],
) -> list[str]:
  """What is about to run, in five lines; run.json holds the rest."""
  counts = count_parameters(config.model)
  changed = json.dumps(overrides, ensure_ascii=False) if overrides else 'none'
  model, device = config.model, jax.devices()[0]
  experts = (
    f', {model.num_experts} experts of which {model.experts_per_token} a token'
    if model.uses_experts
    else ''
  )
  mtp = f', MTP {counts.mtp:,} more' if counts.mtp else ''
  return [
    f'config: {about.get("config_file") or "not of a file"}; overrides: '
    + changed,
    f'model: {counts.total:,} parameters, {counts.activated:,} activated{mtp}; '
    f'{model.num_layers} layers, {model.attention}{experts}',
    f'data: {corpus.train_documents:,} documents, {corpus.train_bytes:,} '
    f'bytes, {corpus.train_tokens:,} tokens; held out {len(corpus.heldout):,} '
    f'documents, {sum(corpus.heldout_bytes):,} bytes',
    f'device: {device.device_kind}, mesh {config.parallel.mesh}; '
    + ', '.join(f'{choice.subject} {choice.name}' for choice in choices),
    f'plan: {config.train.steps:,} steps, {Schedule(config).total_tokens:,} '
    f'tokens, {config.train.precision}, {config.optim.name}',
  ]


def parameter_table(config: Config) -> rich.table.Table:
  """Every parameter with its shape and count, and the totals."""
  table = rich.table.Table(box=None, pad_edge=False)
  table.add_column('parameter')
  table.add_column('shape', justify='right')
  table.add_column('count', justify='right')
  weights = abstract_weights(config.model)
  leaves = jax.tree_util.tree_leaves_with_path(weights.tree)
  for path, leaf in leaves:
    name = '/'.join(entry.key for entry in path).removeprefix('params/')
    shape = ' x '.join(map(str, leaf.shape))
    table.add_row(name, shape, f'{int(np.prod(leaf.shape)):,}')
  counts = count_parameters(config.model)
  table.add_section()
  table.add_row('total', '', f'{counts.total:,}')
  table.add_row('activated per token', '', f'{counts.activated:,}')
  table.add_row('MTP modules', '', f'{counts.mtp:,}')
  return table
