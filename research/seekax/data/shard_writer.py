"""Writes text as a folder of tokens, in parallel, and resumes per shard.

The reader hands documents out in one fixed order, so that what the shards hold
depends neither on the number of processes nor on interruptions.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
import concurrent.futures
from concurrent.futures import process as process_pool
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import multiprocessing
import os
import pathlib
import threading

from seekax.data import chat, formats, reading_rules, sources, tokenizer_files
from seekax.data import shards as shards_lib
from seekax.data.reading_rules import DataError, DEFAULT_RULES, Document, Rules
from seekax.data.shards import Plan, Shard
from seekax.data.sources import TOKENS_MANIFEST, TOKENS_PLAN
from seekax.data.tokenizer import Tokenizer
from seekax.files import write_atomically

# A shard also ends at this size, so that long documents don't fill the memory.
_SHARD_BYTES = 64 << 20

# Keys of the plan that must be the same for a call to resume.
_DECISIVE = ('source_sha256', 'tokenizer_sha256', 'shard_documents')
_DECISIVE += ('text_field', 'chat_template_sha256')

_tokenizer: Tokenizer  # A global of each worker process, set when it starts.


@dataclasses.dataclass(frozen=True)
class Progress:
  """What is written so far.

  Attributes:
    shards: number of shards.
    documents: number of documents in them.
    bytes: number of bytes of text in them.
    fresh_bytes: the part of these bytes that this call wrote.
  """

  shards: int
  documents: int
  bytes: int
  fresh_bytes: int


def tokenize(
  source: str,
  tokenizer_path: str,
  target: str,
  workers: int,
  shard_documents: int,
  report: Callable[[Progress], None] = lambda progress: None,
  rules: Rules = DEFAULT_RULES,
) -> bool:
  """Writes a folder that `shards.TokenFolder` reads.

  Args:
    source: as `data.source`, but without weights.
    tokenizer_path: a tokenizer.json, or a folder that has one.
    target: a folder: new, empty, or begun by the same call.
    workers: number of processes.
    shard_documents: maximum number of documents in a shard.
    report: called after every shard.
    rules: how files are read; conversations are rendered by the tokenizer's
      own chat template, if it has one.

  Returns:
    False if the folder was complete already.

  Raises:
    DataError: the source or the tokenizer can't be used, the target holds
      something else, or a process was killed; the same call then resumes.
  """
  parsed = _parse(source)
  tokenizer = _load_tokenizer(tokenizer_path)
  rules = dataclasses.replace(rules, tokenizer=tokenizer_path)
  rules, template = chat.rules_with_template(rules, tokenizer, tokenizer_path)
  folder = pathlib.Path(target)
  plan: Plan = {
    'source': [os.path.basename(os.path.abspath(p)) for p in parsed.paths],
    'source_sha256': fingerprint(parsed, rules),
    'tokenizer_sha256': shards_lib.sha256_of(tokenizer),
    'bos': tokenizer.bos,
    'eos': tokenizer.eos,
    'shard_documents': shard_documents,
    # Older folders lack these keys, so they stand only where they matter.
    **({'text_field': rules.text_field} if rules.text_field != 'text' else {}),
    **({'chat_template_sha256': template} if template else {}),
  }
  if _is_complete(folder, plan):
    _remove_traces(folder)
    return False
  folder.mkdir(parents=True, exist_ok=True)
  with _locked(folder):
    _begin(folder, plan, tokenizer)
    passed = sources.PassedOver()
    documents = sources.stream(parsed, rules, passed)
    batches = _batches(documents, shard_documents)
    written = _write_shards(folder, batches, tokenizer, workers, report)
    if not written:
      raise sources.no_text(f'--source={source}', passed)
    shards_lib.write_manifest(folder, plan, tokenizer, written)
    _remove_traces(folder)
  return True


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Generator[None]:
  handle = os.open(folder, os.O_RDONLY)
  try:
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    yield
  except BlockingIOError as error:
    raise DataError(
      f'--target={folder} is being written by another process; wait for it'
    ) from error
  finally:
    os.close(handle)


def _parse(source: str) -> sources.Source:
  parsed = sources.parse(source)
  if parsed[0].has_weight:
    raise DataError(
      f'--source={source} has weights; tokenize each source into a folder of '
      'its own and give the weights to data.source'
    )
  for path in parsed[0].paths:
    if sources.is_tokens(path):
      raise DataError(f'--source={path} is a folder of tokens already')
  return parsed[0]


def _load_tokenizer(path: str) -> Tokenizer:
  if os.path.isdir(path):
    return tokenizer_files.load_folder(pathlib.Path(path))
  return tokenizer_files.load(path)


def fingerprint(source: sources.Source, rules: Rules = DEFAULT_RULES) -> str:
  """SHA-256 over the names and contents of a source's files."""
  total = hashlib.sha256()
  for path, prefix in zip(source.paths, source.prefixes, strict=True):
    for file, name in sources.find_files(path, rules):
      if not file.is_file():
        continue  # The reader skips it too.
      try:
        formats.check_length(file, rules)
        entry = [prefix + name, shards_lib.file_sha256(file)]
      except reading_rules.NotTextError:
        continue
      except OSError as error:
        raise DataError(f'cannot read {file} ({error.strerror})') from error
      total.update(json.dumps(entry).encode())
  return total.hexdigest()


def _is_complete(folder: pathlib.Path, plan: Plan) -> bool:
  """Whether the target is finished; raises if it follows another plan."""
  for name in (TOKENS_MANIFEST, TOKENS_PLAN):
    if not (folder / name).is_file():
      continue
    found = tokenizer_files.read_json(folder / name, max_bytes=1 << 30)
    is_ours = found.keys() >= {'source_sha256', 'tokenizer_sha256'}
    begun = name == TOKENS_MANIFEST or any(folder.glob('part-*.done'))
    if is_ours and not begun:
      return False  # Nothing was written yet; perhaps there was no text.
    # Folders written before there were chat templates have no such key.
    found.setdefault('chat_template_sha256', plan.get('chat_template_sha256'))
    for key in _DECISIVE:
      if found.get(key) != plan.get(key):
        what = key.removesuffix('_sha256')
        raise DataError(
          f'--target={folder} was begun with another {what}; give what it was '
          'begun with or choose another folder'
        )
    return name == TOKENS_MANIFEST
  if folder.exists() and not folder.is_dir():
    raise DataError(f'--target={folder} is not a folder')
  if folder.is_dir() and any(
    not entry.name.startswith('.') for entry in folder.iterdir()
  ):
    raise DataError(
      f'--target={folder} is neither empty nor a begun folder of tokens; '
      'choose another'
    )
  return False


def _begin(folder: pathlib.Path, plan: Plan, tokenizer: Tokenizer) -> None:
  if (folder / TOKENS_PLAN).is_file():
    # Left by workers that were killed, also by those that wrote a `.done`.
    for stale in (*folder.glob('.part-*'), *folder.glob('part-*.done.tmp-*')):
      stale.unlink()
  write_atomically(folder / TOKENS_PLAN, json.dumps(plan, indent=1) + '\n')
  tokenizer.save(folder / shards_lib.TOKENIZER)


def _remove_traces(folder: pathlib.Path) -> None:
  for path in (*folder.glob('part-*.done'), folder / TOKENS_PLAN):
    path.unlink(missing_ok=True)


def _batches(
  documents: Iterable[Document], shard_documents: int
) -> Iterator[list[Document]]:
  batch, num_bytes = [], 0
  for document in documents:
    batch.append(document)
    num_bytes += len(document.text)
    if len(batch) >= shard_documents or num_bytes >= _SHARD_BYTES:
      yield batch
      batch, num_bytes = [], 0
  if batch:
    yield batch


def _write_shards(
  folder: pathlib.Path,
  batches: Iterator[list[Document]],
  tokenizer: Tokenizer,
  workers: int,
  report: Callable[[Progress], None],
) -> list[Shard]:
  """Writes the shards that are missing; returns all, in order."""
  done: dict[int, Shard] = {}
  running: dict[concurrent.futures.Future, int] = {}
  fresh_bytes = 0

  def collect(futures) -> None:
    nonlocal fresh_bytes
    for future in futures:
      shard = future.result()
      done[running.pop(future)] = shard
      fresh_bytes += shard.bytes
    report(
      Progress(
        shards=len(done),
        documents=sum(shard.documents for shard in done.values()),
        bytes=sum(shard.bytes for shard in done.values()),
        fresh_bytes=fresh_bytes,
      )
    )

  pool = concurrent.futures.ProcessPoolExecutor(
    workers,
    # A fork of a process with threads may hang.
    mp_context=multiprocessing.get_context('spawn'),
    initializer=_start_worker,
    initargs=(tokenizer.to_json(), tokenizer.bos, tokenizer.eos),
  )
  try:
    for number, batch in enumerate(batches):
      if shard := _finished(folder, number):
        done[number] = shard
        continue
      # One more batch than workers is ready; more would only fill the memory.
      while len(running) > workers:
        collect(_wait(running))
      running[pool.submit(_write_shard, folder, number, batch)] = number
    while running:
      collect(_wait(running))
  except process_pool.BrokenProcessPool as error:
    raise DataError(
      'a worker process was killed (out of memory?); the same command goes on, '
      'perhaps with fewer --workers'
    ) from error
  finally:
    pool.shutdown(cancel_futures=True)
  return [done[number] for number in sorted(done)]


def _wait(running) -> set[concurrent.futures.Future]:
  return concurrent.futures.wait(
    running, return_when=concurrent.futures.FIRST_COMPLETED
  ).done


def _part(number: int) -> str:
  return f'part-{number:06d}'


def _finished(folder: pathlib.Path, number: int) -> Shard | None:
  """Returns a shard that an earlier call wrote, if its files are all there."""
  entry = tokenizer_files.read_json(folder / f'{_part(number)}.done')
  if not entry:
    return None
  shard = Shard(**entry)
  data, index = shard.paths(folder)
  whole = data.is_file() and data.stat().st_size == shard.size
  return shard if whole and index.is_file() else None


def _start_worker(tokenizer_json: str, bos: str, eos: str) -> None:
  """Gives a worker process its tokenizer; it ends when its parent does."""
  global _tokenizer
  os.environ['TOKENIZERS_PARALLELISM'] = 'false'  # One core per process.
  _tokenizer = Tokenizer(tokenizer_json, bos, eos)
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
  # A killed parent can't tell its workers to stop waiting for work.
  if parent := multiprocessing.parent_process():
    parent.join()
  os._exit(1)


def _write_shard(
  folder: pathlib.Path, number: int, documents: list[Document]
) -> Shard:
  name = _part(number)
  shard = shards_lib.write_shard(folder, name, documents, _tokenizer)
  write_atomically(
    folder / f'{name}.done', json.dumps(dataclasses.asdict(shard))
  )
  return shard
