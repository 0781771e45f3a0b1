"""First light."""

from ml_collections import ConfigDict

from seekax import config as seekax_config


def get_config(arg: str = '') -> ConfigDict:
  """The run; arg 'tiny' shrinks it."""
  config = seekax_config.run_of(seekax_config.tiny())
  model = config.model
  model.vocab_size = 2048
  model.embed_dim = 256
  model.num_layers = 5
  model.num_dense_layers = 1
  model.context_length = 256
  model.num_heads = 4
  model.query_latent_dim = 128
  model.kv_latent_dim = 64
  model.nope_head_dim = 32
  model.rope_head_dim = 32
  model.value_head_dim = 32
  model.mlp_dim = 704
  model.expert_dim = 128
  model.num_experts = 32
  model.experts_per_token = 4
  model.num_expert_groups = 4
  model.num_kept_groups = 2
  model.mtp_depth = 1
  model.rope_scaling = 'none'
  data = config.data
  data.heldout_fraction = 0.08
  data.sequence_length = 256
  data.batch_size = 8
  optim = config.optim
  optim.learning_rate = 2e-3
  optim.final_learning_rate = 1e-4
  optim.warmup_steps = 50
  optim.constant_steps = 0
  train = config.train
  train.steps = 400
  train.precision = 'float32'
  train.bias_update_rate = 0.01
  train.log_every = 10
  train.checkpoint_every = 200
  eval_ = config.eval
  eval_.every = 200
  eval_.max_bytes = 65536
  eval_.sample_every = 200
  return seekax_config.variant(config, arg)
