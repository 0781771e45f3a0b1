"""Converts a folder of weights to another format, tensor by tensor.

Between safetensors never more than a block is in memory; from a training state,
one leaf. Every shard is written under a temporary name and carries the
conversion's fingerprint, so that the same command resumes with the shards that
are missing. The file that makes a target complete is written last.
"""

from collections.abc import Callable, Sequence
import concurrent.futures
import dataclasses
import hashlib
import json
import pathlib
import re
import shutil

from seekax.configuration.config import to_dict
from seekax.files import check_size, JsonObject, read_bounded, write_atomically
from seekax.storage import checkpoint, huggingface, weights
from seekax.storage import workdir as workdir_lib
from seekax.storage.background import Background
from seekax.storage.exported_tokenizer import complete_tokenizer, control_ids
from seekax.storage.manifest import file_hash, StorageError
from seekax.storage.names import Slot, slots
from seekax.storage.open import find, Found
from seekax.storage.published_config import carry_fields, published_config
from seekax.storage.rewrite import open_base, open_reader, Output, parts
from seekax.storage.safetensors_file import commit, Files, write
from seekax.storage.safetensors_header import read_header

_TARGET_DTYPES = {'float32': 'F32', 'bfloat16': 'BF16', 'float8': 'F8_E4M3'}
FINGERPRINT = 'seekax_conversion'
# Small files that belong to the weights; none of them is code.
_CARRIED = (
  workdir_lib.TOKENIZER,
  *workdir_lib.TOKENIZER_COMPANIONS,
  'tokenizer.model',
  'tiktoken.model',
)
# Ending of a file's name while it is being written.
_TEMPORARY = re.compile(r'\.tmp(-\d+)?$')
# Files that are written once every shard is there.
_FINISHING = (
  *_CARRIED,
  weights.INDEX,
  workdir_lib.WEIGHTS_MANIFEST,
  workdir_lib.PUBLISHED_CONFIG,
  workdir_lib.RUN,
  huggingface.CONFIG,
)


@dataclasses.dataclass(frozen=True)
class Options:
  """The user's choices.

  Attributes:
    format: seekax (a workdir) or huggingface.
    dtype: keep, float32, bfloat16 or float8.
    drop_mtp: whether to leave out the MTP modules.
    shard_bytes: maximum size of a file.
    averaged: whether to take the exponential moving average of a run's weights.
  """

  format: str = 'seekax'
  dtype: str = 'keep'
  drop_mtp: bool = False
  shard_bytes: int = 5_000_000_000
  averaged: bool = False


# Called with (files done, number of files, name of the file, its bytes).
Progress = Callable[[int, int, str, int], None]


def convert(
  source: str,
  target: str,
  options: Options,
  progress: Progress = lambda *unused: None,
) -> bool:
  """Converts a model; the same call resumes after an interruption.

  Args:
    source: a workdir or a folder of published weights.
    target: a folder; created if missing.
    options: what to write.
    progress: called after every file.

  Returns:
    False if the target was complete already.

  Raises:
    StorageError: source or target can't be used. Errors in headers and configs
      are found before anything is written; errors that only checksums show,
      before the target looks complete, and its files are then deleted.
  """
  found = find(source, options.drop_mtp, options.averaged)
  for name in _CARRIED:
    path = found.folder / name
    weights.refuse_leaving(path)
    if path.is_file():
      check_size(path, path.stat().st_size, 'a tokenizer', StorageError)
  found.check()
  conversion = _Conversion(found, pathlib.Path(target), options)
  if conversion.is_done():
    return False
  conversion.check_target()
  workdir_lib.prepare(conversion.target, 'target')
  with workdir_lib.lock(conversion.target, 'target'):
    conversion.run(progress)
  return True


class _Conversion:
  """One conversion: its plan and its steps."""

  def __init__(self, found: Found, target: pathlib.Path, options: Options):
    self.found, self.target, self.options = found, target, options
    self.seekax = options.format == 'seekax'
    self.power_of_two = _power_of_two(found)
    self.outputs = [self._output(slot) for slot in slots(found.model)]
    if found.step is not None:
      # Leaf by leaf: a training state keeps all layers of a weight as one.
      self.outputs.sort(key=lambda output: output.slot.path)
    self.shards = _shards(self.outputs, options.shard_bytes)
    self.fingerprint = self._fingerprint()
    self.files = Files()
    # Made here, so that a model without a published form is refused early.
    self.config = self._published_config()

  def _output(self, slot: Slot) -> Output:
    stored = 'F32'
    if self.found.tensors:
      stored = self.found.tensors[slot.name].dtype
    dtype = _TARGET_DTYPES.get(self.options.dtype, stored)
    if self.options.dtype != 'keep':
      if slot.is_bias:
        dtype = 'F32'
      elif dtype == 'F8_E4M3' and not slot.in_fp8:
        dtype = 'BF16'
    return Output(slot, stored, dtype)

  @property
  def folder(self) -> pathlib.Path:
    """The folder for the safetensors."""
    return self.target / workdir_lib.WEIGHTS if self.seekax else self.target

  @property
  def final(self) -> pathlib.Path:
    """The file that makes the target complete."""
    name = workdir_lib.RUN if self.seekax else huggingface.CONFIG
    return self.target / name

  def shard_name(self, number: int) -> str:
    count = len(self.shards)
    if count == 1:
      return weights.SINGLE
    return f'model-{number + 1:05d}-of-{count:06d}.safetensors'

  def _fingerprint(self) -> str:
    """Fingerprint of the source's files and the options."""
    found, stamps = self.found, []
    for path in sorted({tensor.file for tensor in found.tensors.values()}):
      status = path.stat()
      stamps.append([str(path.resolve()), status.st_size, status.st_mtime_ns])
    if found.step is not None:
      manifest = checkpoint.manifest_path(
        found.folder / workdir_lib.CHECKPOINTS, found.step
      )
      proof = read_bounded(manifest, 'a manifest of SHA-256', StorageError)
      stamps.append([found.step, hashlib.sha256(proof).hexdigest()])
    for name in (*_CARRIED, huggingface.CONFIG):
      if (found.folder / name).is_file():
        stamps.append([name, file_hash(found.folder / name)])
    text = json.dumps([stamps, dataclasses.astuple(self.options)])
    return hashlib.sha256(text.encode()).hexdigest()

  def is_done(self) -> bool:
    """Whether the target is this conversion, and complete."""
    return self.final.is_file() and all(
      self._has_shard(number) for number in range(len(self.shards))
    )

  def _has_shard(self, number: int) -> bool:
    return self._is_ours(self.folder / self.shard_name(number))

  def _is_ours(self, path: pathlib.Path) -> bool:
    """Whether this conversion wrote a file; only complete files have names."""
    if not path.is_file():
      return False
    try:
      return read_header(path)[1].get(FINGERPRINT) == self.fingerprint
    except StorageError:
      return False

  def check_target(self) -> None:
    """Raises StorageError for a target that can't be written.

    Raises:
      StorageError: it holds something else, is the source, or has no room.
    """
    target, source = self.target.resolve(), self.found.folder.resolve()
    if target == source or source in target.parents or target in source.parents:
      raise StorageError(
        f'--target={self.target} and --source={self.found.folder} lie in each '
        'other; choose another folder'
      )
    if self.target.exists() and not self.target.is_dir():
      raise StorageError(f'--target={self.target} is a file; choose a folder')
    done = [self._has_shard(number) for number in range(len(self.shards))]
    # Files that finish a target exist only once its shards are complete.
    finishing = _FINISHING if all(done) and not self.final.exists() else ()
    for folder in {self.target, self.folder}:
      for path in folder.iterdir() if folder.is_dir() else ():
        self._refuse_foreign(path, finishing)
    needed = sum(
      output.num_bytes
      for shard, there in zip(self.shards, done, strict=True)
      for output in shard
      if not there
    )
    existing = self.target
    while not existing.exists():
      existing = existing.absolute().parent
    free = shutil.disk_usage(existing).free
    if needed > free:
      raise StorageError(
        f'--target={self.target} needs {needed / 1e9:.2f} GB, the disk has '
        f'{free / 1e9:.2f} GB left; make room or choose another disk'
      )

  def _refuse_foreign(
    self, path: pathlib.Path, finishing: Sequence[str]
  ) -> None:
    """Refuses a target that holds a file which this conversion didn't write."""
    name = _TEMPORARY.sub('', path.name)
    if path == self.folder or name.startswith('.probe-'):
      return
    if name == workdir_lib.LOCK and not path.stat().st_size:
      return
    if name in map(self.shard_name, range(len(self.shards))):
      if name != path.name or self._is_ours(path):
        return
    elif name in finishing:
      return
    raise StorageError(
      f'--target={self.target} holds {path.name} of something else; choose an '
      'empty folder'
    )

  def _published_config(self) -> JsonObject:
    """The target's config.json; {} for a workdir."""
    if self.seekax:
      return {}
    is_fp8 = any(output.dtype == 'F8_E4M3' for output in self.outputs)
    plain = (o for o in self.outputs if not o.slot.in_fp8)
    main = next(output for output in plain if not output.slot.is_bias)
    dtype = {'F32': 'float32'}.get(main.dtype, 'bfloat16')
    made = published_config(self.found.model, dtype, is_fp8, self.power_of_two)
    return carry_fields(made, self.found.published) | (control_ids(self.found))

  def run(self, progress: Progress) -> None:
    """Writes the target's missing files."""
    self.folder.mkdir(parents=True, exist_ok=True)
    for folder in {self.target, self.folder}:
      for path in folder.iterdir():
        if _TEMPORARY.search(path.name):  # Left by a killed process.
          path.unlink()
    # The source's checksums are verified in the background.
    verified = Background(self.found.verify)
    if self.found.step is not None:
      verified.result()  # Opening a pipe, for example, would block orbax.
    try:
      with self.files:
        hashes = self._write_shards(progress, verified)
      verified.result()
    except StorageError:
      if verified.failed():
        for number in range(len(self.shards)):
          (self.folder / self.shard_name(number)).unlink(missing_ok=True)
      raise
    self._finish(hashes)

  def _write_shards(
    self, progress: Progress, verified: 'Background'
  ) -> dict[str, str]:
    """Writes the missing files; returns the SHA-256 of files that need one."""
    reader, base, hashes = open_reader(self.found, self.files), None, {}
    if self.options.dtype == 'float8':
      base = open_base(self.found, self.files)
    # A file is flushed to the disk while the next one is written.
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
      durable: concurrent.futures.Future | None = None
      for number, shard in enumerate(self.shards):
        path = self.folder / self.shard_name(number)
        if self._has_shard(number):
          hashes[path.name] = file_hash(path) if self.seekax else ''
          continue
        hashes[path.name] = write(
          path,
          [entry for output in shard for entry in output.entries],
          parts(shard, reader, base, self.power_of_two),
          {'format': 'pt', FINGERPRINT: self.fingerprint},
          self.files,
          hashed=self.seekax,
        )
        if durable is not None:
          durable.result()
        if verified.failed():
          break
        durable = pool.submit(self._commit, number, progress)
      if durable is not None:
        durable.result()
    return hashes

  def _commit(self, number: int, progress: Progress) -> None:
    path = self.folder / self.shard_name(number)
    commit(path)
    progress(number + 1, len(self.shards), path.name, path.stat().st_size)

  def _finish(self, hashes: dict[str, str]) -> None:
    if len(self.shards) > 1:
      text = json.dumps(self._index(), indent=2) + '\n'
      write_atomically(self.folder / weights.INDEX, text)
    for name in _CARRIED:
      if (self.found.folder / name).is_file():
        shutil.copyfile(self.found.folder / name, self.target / name)
    if not self.seekax:
      complete_tokenizer(self.found, self.target)
      (self.target / workdir_lib.LOCK).unlink(missing_ok=True)
      write_atomically(self.final, json.dumps(self.config, indent=2) + '\n')
      return
    if len(self.shards) > 1:
      hashes[weights.INDEX] = file_hash(self.folder / weights.INDEX)
    write_atomically(
      self.target / workdir_lib.WEIGHTS_MANIFEST,
      ''.join(
        f'{digest}  {workdir_lib.WEIGHTS}/{name}\n'
        for name, digest in hashes.items()
      ),
    )
    if self.found.published:
      write_atomically(
        self.target / workdir_lib.PUBLISHED_CONFIG,
        json.dumps(self.found.published, indent=2) + '\n',
      )
    workdir_lib.write_run(
      self.target,
      {
        'config': to_dict(self.found.config),
        'overrides': {},
        'started_from': str(self.found.folder.resolve()),
        'conversion': dataclasses.asdict(self.options),
      },
    )

  def _index(self) -> JsonObject:
    listed = {
      entry.name: self.shard_name(number)
      for number, shard in enumerate(self.shards)
      for output in shard
      for entry in output.entries
    }
    total = sum(output.num_bytes for output in self.outputs)
    return {'metadata': {'total_size': total}, 'weight_map': listed}


def _power_of_two(found: Found) -> bool:
  if not found.published:
    return False
  return huggingface.quantization(found.published, str(found.folder))[1]


def _shards(outputs: Sequence[Output], limit: int) -> list[list[Output]]:
  """Groups tensors in order, so that no file grows larger than the limit."""
  shards: list[list[Output]] = [[]]
  size = 0
  for output in outputs:
    if shards[-1] and size + output.num_bytes > limit:
      shards.append([])
      size = 0
    shards[-1].append(output)
    size += output.num_bytes
  return shards
