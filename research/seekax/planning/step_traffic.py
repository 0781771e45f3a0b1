"""What all devices together send in a step, by purpose and by kind of link."""

from seekax.planning import memory, schedules, traffic
from seekax.planning.hardware import BFLOAT16, FLOAT32
from seekax.planning.step_time import Run


def per_token(run: Run) -> dict[str, traffic.Bytes]:
  """Bytes per trained token that all devices send, forward and backward.

  Returns:
    Bytes of dispatch and combine (tokens to experts and back), tensor, context,
    pipeline, fsdp_weights and fsdp_gradients (for every micro-batch), and data
    (gradients scattered and weights gathered once per step). A purpose that
    sends nothing is left out.
  """
  found = _of_tokens(run) | _of_parameters(run)
  return {
    name: sent for name, sent in found.items() if sent.network + sent.link
  }


def exchange_of_program(run: Run) -> traffic.Bytes:
  """Bytes per token of dispatch and combine in this program's exchange.

  They include padding and what is sent again; FP8 only if layout.dispatch_dtype
  says so. Nothing for layouts that the program doesn't support.
  """
  model, layout, domain = run.model, run.layout, run.device.domain_size
  if not model.uses_experts or layout.whole_experts:
    return traffic.Bytes()
  tokens = round(run.chunk_tokens)
  itemsize = FLOAT32 if run.precision == 'float32' else BFLOAT16
  sent = traffic.Bytes()
  for axis, size in traffic.sent_by_program(
    model, layout, tokens, itemsize, again=layout.remat == 'full'
  ).items():
    sent += traffic.over(axis, layout, size / tokens, domain)
  layers = model.num_expert_layers + model.mtp_depth
  return sent * (layers * layout.tensor)


def _of_tokens(run: Run) -> dict[str, traffic.Bytes]:
  model, layout, domain = run.model, run.layout, run.device.domain_size
  layers = model.num_layers + model.mtp_depth
  # Forward, backward, and forward again where all is recomputed.
  passes = 3.0 if layout.remat == 'full' else 2.0
  sent = {}
  if model.uses_experts and layout.experts_over > 1:
    fp8 = run.fp8 and layout.fp8_dispatch
    dispatch, combine = traffic.exchange_per_token(model, layout, fp8, domain)
    times = passes * (model.num_expert_layers + model.mtp_depth)
    times *= traffic.senders_per_token(layout)
    sent['dispatch'] = dispatch * times
    sent['combine'] = combine * times
  one = traffic.tensor_per_token(model, layout)
  sent['tensor'] = one * (passes * layers * layout.tensor)
  if run.positions < run.sequence_length:
    one = traffic.context_per_token(
      model, run.sequence_length, run.positions, layout, domain
    )
    sent['context'] = one * (passes * layers * layout.tensor)
  one = traffic.pipeline_per_token(model, layout, domain)
  sent['pipeline'] = one * (2.0 * (layout.pipeline - 1))
  return sent


def _of_parameters(run: Run) -> dict[str, traffic.Bytes]:
  layout, domain = run.layout, run.device.domain_size
  stage = memory.stage_parameters(run.model, layout, largest=False)
  held = schedules.stages_per_rank(layout.schedule)
  share = layout.devices / run.step_tokens
  weights, both = traffic.fsdp_per_micro_batch(
    stage.total, layout, domain, run.gradient
  )
  gradients = both + weights * -1.0
  once = traffic.data_parallel_per_step(
    held * stage.plain, held * stage.experts, layout, domain, run.gradient
  )
  return {
    'fsdp_weights': weights * (2 * run.micro_batches * share),
    'fsdp_gradients': gradients * (run.micro_batches * share),
    'data': once * share,
  }
