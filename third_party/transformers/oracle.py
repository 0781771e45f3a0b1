"""Asks Hugging Face transformers what its own models answer.

  oracle.py build --out=DIR [--case=NAME ...]
  oracle.py answer --model=FOLDER --out=FILE.safetensors [--tokens=FILE.npy]
    [--mtp] [--prompts=FILE.npy] [--text=PROMPT] [--greedy=N] [--dtype=float32]
  oracle.py record --from=DIR

Run it in an environment of its own, see README.md beside it. The same versions
write the same bytes. Safetensors files say what they hold as JSON under the
metadata key 'about'.
"""

import argparse
import json
import pathlib

import answers
import cases
import loading
import mtp
import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
import torch
import transformers

FIXTURES = (
  pathlib.Path(__file__).resolve().parents[2] / 'tests/fixtures/transformers'
)
BATCH, LENGTH = 2, 96
# Together past the original length of YaRN.
PROMPT_LENGTH, NEW_TOKENS = 24, 64
ROUTED_TOKENS, RECORDED_ROUTED_TOKENS = 100_000, 20_000
TRAINING_STEPS = 20
# Float32 further from float64 than this says that two experts tie.
MOST_DRIFT = 5e-6
# Of greedy continuations, whose tokens else depend on rounding.
LEAST_MARGIN = 1e-4
# Of routing; what is nearer may be routed either way.
NEAR_TIE = 1e-6


def save(path: pathlib.Path, tensors: dict, about: dict) -> None:
  """One metadata key: the order of several is random in the file."""
  about = json.dumps(about, sort_keys=True)
  # safetensors writes a slice's memory as it lies.
  tensors = {key: np.ascontiguousarray(x) for key, x in tensors.items()}
  save_file(tensors, path, metadata={'about': about})


def load(path: pathlib.Path) -> tuple[dict, dict]:
  """(tensors, about) of a file that save wrote."""
  with safe_open(path, 'numpy') as file:
    about = json.loads(file.metadata()['about'])
  return load_file(path), about


# --- build --------------------------------------------------------------------


def build(args: argparse.Namespace) -> None:
  """Writes models and answers, one folder a case."""
  for name in args.case or cases.CASES:
    build_case(name, cases.CASES[name], args.out / name)


def build_case(name: str, case: cases.Case, folder: pathlib.Path) -> None:
  """Writes model/, expected, router, gradients and training of one case."""
  folder.mkdir(parents=True, exist_ok=True)
  draw = np.random.default_rng(case.seed)
  model = cases.random_model(case, draw)
  model.save_pretrained(folder / 'model', max_shard_size=case.shard_size)
  tokens, prompts = (
    draw.integers(cases.VOCABULARY, size=(BATCH, length), dtype=np.int32)
    for length in (LENGTH, PROMPT_LENGTH)
  )
  drift = answers.drift(model, tokens)
  further = {}
  if case.has_mtp:
    mtp.add_layer(folder / 'model', case, draw)
    further, further_drift = ask_mtp(folder / 'model', tokens)
    drift = max(drift, further_drift)
  greedy = answers.greedy(model, prompts, NEW_TOKENS)
  margin = answers.greedy_margin(model, prompts, greedy)
  print(f'{name}: {drift:.1e} from float64, greedy by {margin:.1e}', flush=True)
  if drift > MOST_DRIFT or margin < LEAST_MARGIN:
    raise SystemExit(f'{name}: too near a tie; take another seed')
  expected = {
    'tokens': tokens,
    'logits': answers.logits(model, tokens),
    'prompts': prompts,
    'greedy': greedy,
  } | further
  about = {
    'seed': case.seed,
    'drift': drift,
    'greedy_margin': margin,
    'torch': torch.__version__,
    'transformers': transformers.__version__,
  }
  save(folder / 'expected.safetensors', expected, about)
  if case.routes:
    build_router(model, case, folder)
  if case.trains:
    build_training(model, tokens, draw, folder)


def ask_mtp(folder: pathlib.Path, tokens: np.ndarray) -> tuple[dict, float]:
  """({'mtp_logits'} of a folder's MTP layer, how far they are from float64)."""
  model, _ = loading.load_model(folder, 'float32')
  layer = mtp.load(model)
  drift = mtp.drift(model, layer, tokens)
  return {'mtp_logits': mtp.logits(model, layer, tokens)}, drift


def build_router(model, case: cases.Case, folder: pathlib.Path) -> None:
  """Choices of every expert layer on random vectors: [layers, tokens, chosen].

  The vectors are drawn again from the seed, see answers.router_inputs.
  """
  width = case.config.hidden_size
  inputs = answers.router_inputs(case.seed, ROUTED_TOKENS, width)
  routers = answers.routers(model)
  choices = np.stack([answers.choices(router, inputs) for router in routers])
  margins = np.stack(
    [answers.routing_margins(r, inputs, case.config) for r in routers]
  )
  near = (margins < NEAR_TIE).sum(axis=1).tolist()
  sets = [len(np.unique(choice, axis=0)) for choice in choices]
  print(f'  router: {sets} sets of experts, {near} near-ties', flush=True)
  save(
    folder / 'router.safetensors',
    {'choices': choices, 'margins': margins},
    {'seed': case.seed, 'near_tie': NEAR_TIE, 'near_ties': near},
  )


def build_training(
  model, tokens: np.ndarray, draw: np.random.Generator, folder: pathlib.Path
) -> None:
  """Gradients on `tokens`, and the losses of AdamW from the same weights."""
  gradients = answers.gradients(model, tokens)
  save(folder / 'gradients.safetensors', gradients, {})
  # Frequent and rare tokens, so that there is something to learn.
  shape = (TRAINING_STEPS, BATCH, LENGTH)
  batches = (cases.VOCABULARY * draw.random(shape) ** 2).astype(np.int32)
  losses, norms = answers.adamw_losses(model, batches)
  print(f'  losses {losses[0]:.3f} to {losses[-1]:.3f}', flush=True)
  about = {
    'learning_rate': answers.LEARNING_RATE,
    'betas': answers.BETAS,
    'eps': answers.EPS,
    'weight_decay': answers.WEIGHT_DECAY,
    'clip_norm': answers.CLIP_NORM,
  }
  save(
    folder / 'training.safetensors',
    {'batches': batches, 'losses': losses, 'gradient_norms': norms},
    about,
  )


# --- answer -------------------------------------------------------------------


def answer(args: argparse.Namespace) -> None:
  """Loads a folder, answers, and says beside it how loading went."""
  if not (args.tokens or args.prompts) and args.text is None:
    raise SystemExit('give --tokens, --prompts or --text')
  if args.mtp and not args.tokens:
    raise SystemExit('--mtp goes with --tokens')
  heard = []
  with loading.hearing(heard):
    model, about = loading.load_model(args.model, args.dtype)
    tokenizer = (
      None if args.text is None else loading.load_tokenizer(args.model)
    )
  about['warnings'] = heard
  tensors = {}
  if args.tokens:
    tokens = read_tokens(args.tokens)
    tensors['logits'] = answers.logits(model, tokens)
  if args.mtp:
    tensors['mtp_logits'] = mtp.logits(model, mtp.load(model), tokens)
  if args.prompts:
    prompts = read_tokens(args.prompts)
    tensors['greedy'] = answers.greedy(model, prompts, args.greedy)
    about['greedy_margin'] = answers.greedy_margin(
      model, prompts, tensors['greedy']
    )
  if tokenizer:
    about['text'] = continue_text(model, tokenizer, args.text, args.greedy)
  save(args.out, tensors, about)
  text = json.dumps(about, indent=2, sort_keys=True, ensure_ascii=False)
  args.out.with_suffix('.json').write_text(text + '\n', encoding='utf-8')


def read_tokens(path: pathlib.Path) -> np.ndarray:
  """Integers [batch, length] of an .npy file."""
  return np.load(path).astype(np.int32)


def continue_text(model, tokenizer, prompt: str, count: int) -> dict:
  """Continues a prompt, begin-of-sequence token first, to the text's end."""
  ids = tokenizer.encode(prompt, add_special_tokens=False)
  ids = [tokenizer.bos_token_id, *ids]
  prompts = np.array([ids], np.int32)
  whole = answers.greedy(model, prompts, count)
  margin = answers.greedy_margin(model, prompts, whole)
  new = whole[0].tolist()
  if tokenizer.eos_token_id in new:
    new = new[: new.index(tokenizer.eos_token_id)]
  return {
    'prompt': prompt,
    'prompt_ids': ids,
    'continuation': tokenizer.decode(new, clean_up_tokenization_spaces=False),
    'continuation_ids': new,
    'margin': margin,
  }


# --- record -------------------------------------------------------------------


def record(args: argparse.Namespace) -> None:
  """Writes the tests' fixtures from a build of all cases."""
  FIXTURES.mkdir(parents=True, exist_ok=True)
  for name, case in cases.CASES.items():
    if not case.recorded:
      continue
    folder = args.build / name
    tensors, about = load(folder / 'expected.safetensors')
    for path in sorted((folder / 'model').glob('*.safetensors')):
      tensors |= load_file(path)
    text = (folder / 'model' / 'config.json').read_text(encoding='utf-8')
    about['config'] = json.loads(text)
    if case.routes:
      routing, about['router'] = load(folder / 'router.safetensors')
      tensors['choices'] = routing['choices'][:, :RECORDED_ROUTED_TOKENS]
    if case.trains:
      training, about['training'] = load(folder / 'training.safetensors')
      tensors |= training
      gradients, _ = load(folder / 'gradients.safetensors')
      save(FIXTURES / f'{name}_gradients.safetensors', gradients, {})
    save(FIXTURES / f'{name}.safetensors', tensors, about)
  for path in sorted(FIXTURES.iterdir()):
    print(f'{path.name}: {path.stat().st_size} bytes')


# --- command line -------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
  """The three commands and their flags."""
  top = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  commands = top.add_subparsers(required=True)

  command = commands.add_parser('build', help='random models and answers')
  command.set_defaults(run=build)
  command.add_argument('--out', type=pathlib.Path, required=True)
  command.add_argument('--case', action='append', choices=sorted(cases.CASES))

  command = commands.add_parser('answer', help='what a stored model answers')
  command.set_defaults(run=answer)
  command.add_argument('--model', type=pathlib.Path, required=True)
  command.add_argument(
    '--out', type=pathlib.Path, required=True, help='.json is written beside it'
  )
  command.add_argument('--tokens', type=pathlib.Path, help='asks for logits')
  command.add_argument(
    '--mtp', action='store_true', help="asks for the MTP layer's logits too"
  )
  command.add_argument('--prompts', type=pathlib.Path, help='of equal lengths')
  command.add_argument('--text', help="for the folder's tokenizer")
  command.add_argument('--greedy', type=int, default=64, help='new tokens')
  command.add_argument('--dtype', default='float32', help="'auto': as stored")

  command = commands.add_parser('record', help='fixtures of a whole build')
  command.set_defaults(run=record)
  command.add_argument('--from', dest='build', type=pathlib.Path, required=True)
  return top


def main() -> None:
  transformers.utils.logging.disable_progress_bar()
  torch.set_num_threads(1)
  torch.use_deterministic_algorithms(True)
  args = parser().parse_args()
  args.run(args)


if __name__ == '__main__':
  main()
