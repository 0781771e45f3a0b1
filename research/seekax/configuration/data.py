"""The group `data`: where the text comes from and how it becomes batches."""

import dataclasses

from seekax.configuration.fields import check_positive, key, require


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Where the text comes from and how it becomes batches."""

  source: str = key(
    'stdlib',
    "'stdlib' (Python's own library); a text, .jsonl, .jsonl.gz or .parquet "
    "file; a folder; 'a,b' (one source); '0.7*a,0.3*b' (shares of tokens)",
  )
  tokenizer: str = key(
    '',
    "a tokenizer.json; '': that of the weights the run starts from, or a new "
    'one, trained on the source',
  )
  text_field: str = key('text', 'field of JSON lines, column of parquet')
  include: str = key(
    '', "files of folders to read, as '*.md,docs/*'; '': all of them"
  )
  exclude: str = key('', "files of folders to leave out, as '*.md,docs/*'")
  max_document_bytes: int = key(
    256 << 20, 'longest text file, JSON line or row that is read, in bytes'
  )
  heldout_fraction: float = key(0.04, 'share of documents held out')
  sequence_length: int = key(4096, 'tokens per sequence (S)')
  batch_size: int = key(15360, 'sequences per optimizer step, all devices')
  num_shards: int = key(
    8,
    'logical data shards, at most: the largest divisor of batch_size up to '
    'this; fixed for the life of a run',
  )
  isolate_documents: bool = key(
    False, 'mask attention across documents and restart positions'
  )
  seed: int = key(0, 'seed of the order of the documents')
  fim_rate: float = key(
    0.0, 'share of documents trained as fill-in-the-middle (V3: 0.1)'
  )
  split_punctuation_rate: float = key(
    0.0,
    'share of tokens of punctuation with line ends that are split (V3: some)',
  )
  skip_corrupt: bool = key(
    False, 'skip unreadable records of token shards, and count them'
  )

  def __post_init__(self):
    for name in ('fim_rate', 'split_punctuation_rate'):
      value = getattr(self, name)
      require(0 <= value <= 1, f'data.{name}={value} is not in [0, 1]')
    check_positive(
      'data',
      self,
      ('sequence_length', 'batch_size', 'num_shards', 'max_document_bytes'),
    )
    require(bool(self.text_field), "data.text_field is ''; give a name")
    require(
      0 < self.heldout_fraction < 1,
      f'data.heldout_fraction={self.heldout_fraction} is not between 0 and 1',
    )
    # Each shard gives equally many rows. Whoever reads the config finds the
    # number that is used.
    most = min(self.num_shards, self.batch_size)
    divisors = (n for n in range(most, 0, -1) if self.batch_size % n == 0)
    object.__setattr__(self, 'num_shards', next(divisors))
