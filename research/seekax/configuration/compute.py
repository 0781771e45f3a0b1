"""The group `compute`: how a model is computed, not what it computes.

No key here changes the parameters, or a result by more than rounding: a run may
change them whenever it goes on, and a checkpoint's user may choose others.
"""

import dataclasses

from seekax.configuration.fields import check_positive, key, require_choice

ATTENTION_BACKENDS = ('auto', 'chunked', 'cudnn', 'tokamax', 'plain')
LATENT_ATTENTION_BACKENDS = ('auto', 'plain', 'pallas')
GROUPED_MATMULS = (
  'auto',
  'blocked',
  'pallas',
  'mosaic',
  'triton',
  'ragged',
  'dense',
)
REMAT_POLICIES = ('none', 'paper', 'full')
EXCHANGES = ('all_to_all', 'gather', 'ragged')
DISPATCH_DTYPES = ('compute', 'float8')


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
  """Backends, recomputation, loops, and the exchange between devices."""

  attention_backend: str = key(
    'auto',
    'attention in training and prefill: auto, chunked, cudnn, tokamax, plain',
  )
  latent_attention_backend: str = key(
    'auto', 'attention of decoding on the latent cache: auto, plain, pallas'
  )
  grouped_matmul: str = key(
    'auto',
    "experts' products: auto, blocked, pallas, mosaic, triton, ragged, dense",
  )
  remat: str = key(
    'none', 'what the backward pass recomputes: none, paper, full'
  )
  unroll_layers: int = key(
    8, 'longest stack of layers that is unrolled; longer ones are scanned'
  )
  exchange: str = key(
    'all_to_all',
    'how tokens travel to their experts on a mesh: all_to_all; gather; '
    'ragged, on GPUs alone',
  )
  exchange_slack: float = key(
    1.25, 'size of an exchange round, relative to perfectly balanced loads'
  )
  dispatch_dtype: str = key(
    'compute', 'dtype in which tokens travel to experts: compute, float8'
  )

  def __post_init__(self):
    for name, choices in (
      ('attention_backend', ATTENTION_BACKENDS),
      ('latent_attention_backend', LATENT_ATTENTION_BACKENDS),
      ('grouped_matmul', GROUPED_MATMULS),
      ('remat', REMAT_POLICIES),
      ('exchange', EXCHANGES),
      ('dispatch_dtype', DISPATCH_DTYPES),
    ):
      require_choice(f'compute.{name}', getattr(self, name), choices)
    check_positive('compute', self, ('exchange_slack',))


# Every key at its default.
DEFAULT = ComputeConfig()
