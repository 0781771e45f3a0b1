"""The journal of a run: rows of metrics, evaluations, samples."""

import dataclasses
import math
import time

import jax
import numpy as np

from seekax.configuration.config import Config
from seekax.data.pipeline import Position, Records
from seekax.inference import engine, scoring
from seekax.model.parameters import cast_weights
from seekax.model.stack import taken_apart
from seekax.model.transformer import Transformer
from seekax.model.weights import Weights
from seekax.planning import flops, hardware, price
from seekax.runs.corpus import Corpus
from seekax.runs.metrics import MetricsWriter, peak_memory_bytes
from seekax.runs.prefetch import Prefetcher
from seekax.training import balance
from seekax.training.schedules import Schedule
from seekax.training.state import TrainState
from seekax.training.step import Metrics


class NonFiniteError(RuntimeError):
  """The loss or the gradient is no number any more."""


@dataclasses.dataclass
class Progress:
  """What a checkpoint holds beside the state, as JSON.

  Attributes:
    data: position in the data after the last batch trained on.
    fingerprint: hash of everything that decides the data.
    train_seconds: time in steps, summed over all starts of the run, without
      compilation, evaluation and saving.
    compile_seconds: time that the last start spent on compiling.
    ema_updates: number of updates of the averaged weights.
    mesh: the mesh that the state lay on; '' in checkpoints without this field.
  """

  data: Position
  fingerprint: str
  train_seconds: float = 0.0
  compile_seconds: float = 0.0
  ema_updates: int = 0
  mesh: str = ''


class Journal:
  """Turns metrics into rows, on a clock that skips evaluation and saving."""

  def __init__(
    self,
    config: Config,
    corpus: Corpus,
    writer: MetricsWriter,
    progress: Progress,
    batches: Prefetcher,
  ):
    self._config = config
    self._model = Transformer(config.model, compute=config.compute)
    self._corpus = corpus
    self._writer = writer
    self._progress = progress
    self._schedule, self._batches = Schedule(config), batches
    self._waited = 0.0
    # Durations of the steps since the last row, without the first step's.
    self._recent: list[float] = []
    self._compiling = True
    self._clock = time.perf_counter()
    device = jax.devices()[0]
    self._peak_flops = hardware.peak_flops(device.device_kind)
    self._num_devices = max(jax.sharding.get_abstract_mesh().size, 1)
    self._flops_per_token = flops.training_flops_per_token(
      config.model,
      config.data.sequence_length,
      with_mtp=config.model.mtp_depth > 0,
    )

  def restart_clock(self) -> None:
    """Forgets the time since the last step: evaluation, samples, saving."""
    self._clock = time.perf_counter()

  def step(
    self, step: int, metrics: Metrics, records: Records, first: bool
  ) -> None:
    """Waits for a step, times it, checks it and logs it if it is due.

    Args:
      step: number of the step, counted from 1.
      metrics: what the step reported.
      records: the documents that its batch was made of.
      first: whether its time includes compilation.
    """
    loss = float(metrics.loss)
    norm = float(metrics.gradient_norm)
    now = time.perf_counter()
    seconds, self._clock = now - self._clock, now
    if not metrics.taken:
      in_a_row = int(metrics.nonfinite_in_a_row)
      self._thrown_away(step, loss, norm, in_a_row, records)
    if first:
      # Compilation and one step; the step is taken off when one is timed.
      self._progress.compile_seconds = seconds
    else:
      self._recent.append(seconds)
      self._progress.train_seconds += seconds
      if self._compiling:
        self._compiling = False
        self._progress.compile_seconds -= seconds
        self._progress.train_seconds += seconds
    self._writer.advance(step)
    config = self._config.train
    last = step == config.steps
    if first or last or step % config.log_every == 0:
      self._write_train(step, metrics, loss, norm)
    if step == 1 or last or step % self._config.eval.every == 0:
      self._write_load(step, metrics)

  def _thrown_away(self, step, loss, norm, in_a_row, records) -> None:
    """Says that a step changed nothing; too many without a number end it."""
    kind = 'nonfinite' if in_a_row else 'spike'
    # As strings: JSON knows no infinity.
    row = {'reason': kind, 'loss': str(loss), 'gradient_norm': str(norm)}
    self._writer.write('skipped', step, **row)
    self._writer.keep_skipped(step, **row, records=records.names())
    what = f'step {step}: loss is {loss}, gradient norm {norm}'
    self._writer.say(f'{what}: thrown away ({kind})')
    limit = self._config.train.nonfinite_limit
    if in_a_row >= limit:
      raise NonFiniteError(
        f'{what}, for {in_a_row} steps in a row '
        f'(train.nonfinite_limit={limit}); lower optim.learning_rate or raise '
        'optim.warmup_steps'
      )

  def _write_train(self, step, metrics, loss, norm) -> None:
    config = self._config
    recent, self._recent = self._recent, []
    seconds = float(np.median(recent)) if recent else None
    batch_tokens = self._schedule.batch_tokens(step - 1)
    rate = batch_tokens / seconds if seconds else None
    utilization = flops.model_flops_utilization(
      self._flops_per_token, (rate or 0) / self._num_devices, self._peak_flops
    )
    corpus = self._corpus
    tokens_per_byte = corpus.train_tokens / corpus.train_bytes
    violation = {
      key: np.asarray(value, np.float64).tolist()
      for key, value in metrics.max_violation.items()
    }
    waited = self._batches.waited()
    data_seconds, self._waited = waited - self._waited, waited
    loads = [np.asarray(load) for load in metrics.load.values()]
    load_NE = np.concatenate(loads) if loads else np.zeros((0, 1))
    row = {
      'tokens': self._schedule.tokens_before(step),
      'batch_tokens': batch_tokens,
      'seconds': self._progress.train_seconds,
      'compile_seconds': self._progress.compile_seconds,
      'loss': loss,
      'mtp_loss': float(metrics.mtp_loss),
      'balance_loss': float(metrics.balance_loss),
      'bits_per_byte': loss / math.log(2) * tokens_per_byte,
      'gradient_norm': norm,
      'learning_rate': float(metrics.learning_rate),
      'tokens_per_second': rate,
      'step_seconds': recent,
      # Waited for batches since the last row.
      'data_seconds': data_seconds,
      'max_violation': violation.get('layers', []),
      'max_violation_mtp': violation.get('mtp', []),
      'exchange_rounds': float(metrics.exchange_rounds),
      # One entry per router; those of the MTP modules are last.
      'load_entropy': balance.entropy(load_NE).tolist(),
      'unused_experts': balance.unused_share(load_NE).tolist(),
      'peak_memory_bytes': peak_memory_bytes(),
      'mfu': utilization or None,
      'dollars': self._dollars(),
    }
    if self._batches.skipped():
      row['records_skipped'] = self._batches.skipped()
    if config.train.z_loss_weight:
      row['z_loss'] = float(metrics.z_loss)
    self._writer.write('train', step, **row)
    left = config.train.steps - step
    self._writer.show_train(step, row, left * seconds if seconds else None)

  def _cast(self, state: TrainState) -> Weights:
    """The state's weights in the compute dtype."""
    return cast_weights(state.weights, self._config.train.compute_dtype)

  def _dollars(self) -> float | None:
    rate = self._config.train.price_per_device_hour
    if not rate:
      return None
    hours = self._progress.train_seconds / 3600 * self._num_devices
    return price.dollars(hours, rate)

  def _write_load(self, step: int, metrics: Metrics) -> None:
    load = {
      key: np.asarray(value).tolist() for key, value in metrics.load.items()
    }
    if load:
      self._writer.write('load', step, **load)

  def evaluate(self, step: int, state: TrainState, last: bool) -> None:
    """Bits per byte of held-out documents: all of them at the end."""
    config, corpus = self._config, self._corpus
    chosen = corpus.evaluated(0 if last else config.eval.max_bytes)
    num_bytes = sum(corpus.heldout_bytes[i] for i in chosen)
    model, weights = self._model, self._cast(state)
    texts = [corpus.heldout[i] for i in chosen]
    # Rows as long as those trained on, whatever the model's context allows.
    rows = (config.eval.batch_size, config.data.sequence_length)
    totals = scoring.log_likelihoods(model, weights, texts, *rows)
    accepted = []
    if config.model.mtp_depth:
      accepted = scoring.acceptance(model, weights, texts, *rows)
    bits = scoring.bits_per_byte(sum(totals), num_bytes)
    self._writer.write(
      'eval',
      step,
      tokens=self._schedule.tokens_before(step),
      seconds=self._progress.train_seconds,
      heldout_bits_per_byte=bits,
      heldout_bytes=num_bytes,
      heldout_documents=len(chosen),
      mtp_acceptance=accepted,
      peak_memory_bytes=peak_memory_bytes(),
      dollars=self._dollars(),
    )
    self._writer.say(
      f'held-out text, {len(chosen)} documents: {bits:.4f} bits/byte '
      f'(all of it: gzip {corpus.compression.gzip:.4f}, '
      f'xz {corpus.compression.xz:.4f})'
      + ''.join(
        f"; {share:.1%} of MTP {k}'s drafts are the model's choice"
        for k, share in enumerate(accepted, start=1)
      )
    )

  def sample(self, step: int, state: TrainState) -> None:
    """Continues the fixed prompts."""
    config, tokenizer = self._config, self._corpus.tokenizer
    weights = taken_apart(config.compute, self._cast(state))
    for prompt in config.eval.prompts:
      tokens = engine.generate(
        self._model,
        weights,
        np.append(tokenizer.bos_id, tokenizer.encode(prompt)),
        config.eval.sample_tokens,
        temperature=config.eval.sample_temperature,
        seed=config.train.seed,
        end_ids=(tokenizer.eos_id,),
      )
      text = tokenizer.decode(list(tokens))
      self._writer.write('sample', step, prompt=prompt, text=text)
