"""The rotary embedding that a published config.json describes."""

from seekax.files import JsonObject, quoted
from seekax.storage.published_fields import Fields

# Kinds of rotary scaling in the published code of each family.
_ROPE_KINDS = {
  'llama': ('default', 'llama3'),
  'deepseek': ('default', 'yarn'),
}
_ROPE_KEYS = {
  'default': set(),
  'yarn': {
    'factor',
    'original_max_position_embeddings',
    'beta_fast',
    'beta_slow',
    'mscale',
    'mscale_all_dim',
  },
  'llama3': {
    'factor',
    'original_max_position_embeddings',
    'low_freq_factor',
    'high_freq_factor',
  },
}
_ROPE_NEUTRAL = {
  'type': None,
  'rope_type': None,
  'rope_theta': None,
  'attention_factor': (None,),
  'partial_rotary_factor': (None, 1, 1.0),
  'truncate': (True,),
  'finetuned': (None, False, True),
}


def rotary_fields(fields: Fields) -> JsonObject:
  """The rotary fields, from either spelling."""
  rope = _rope_fields(fields)
  kind = _rope_kind(fields, rope)
  theta = rope if 'rope_theta' in rope.published else fields
  found = dict(
    rope_theta=theta.number('rope_theta', 10000.0),
    rope_scaling={'default': 'none'}.get(kind, kind),
  )
  fields.same('rope_theta', found['rope_theta'])
  if kind == 'default':
    return found
  found['rope_factor'] = rope.number('factor')
  found['rope_original_length'] = rope.count(
    'original_max_position_embeddings',
    fields.published.get('max_position_embeddings'),
  )
  if kind == 'llama3':
    for name in ('low_freq_factor', 'high_freq_factor'):
      found[f'llama3_{name}'] = rope.number(name)
    return found
  return found | dict(
    yarn_beta_fast=rope.number('beta_fast', 32.0),
    yarn_beta_slow=rope.number('beta_slow', 1.0),
    yarn_mscale=rope.number('mscale', 1.0),
    yarn_mscale_all_dim=rope.number('mscale_all_dim', 0.0),
  )


def rotary_note(published: JsonObject) -> str:
  """Says where implementations differ on a config's YaRN; '' if they don't.

  DeepSeek's hub code and seekax scale the rotated parts by the ratio of the two
  factors, and the softmax by the second; other implementations differ where one
  is missing or the two are unequal. All releases have two equal factors.
  """
  rope: JsonObject = {}
  for name in ('rope_scaling', 'rope_parameters'):
    fields = published.get(name)
    rope |= fields if isinstance(fields, dict) else {}
  found = [rope.get(name) for name in ('mscale', 'mscale_all_dim')]
  if rope.get('rope_type', rope.get('type')) != 'yarn' or (
    found[0] is not None and found[0] == found[1]
  ):
    return ''
  first, second = (
    'absent' if value is None else quoted(value) for value in found
  )
  return (
    f'yarn with mscale {first} and mscale_all_dim {second}: scaled as '
    "DeepSeek's hub code does; the logits of transformers differ by up to 0.7"
  )


def _rope_fields(fields: Fields) -> Fields:
  """The fields of rope_scaling and rope_parameters, which must agree."""
  older = fields.published.get('rope_scaling')
  newer = fields.published.get('rope_parameters')
  for name, value in (('rope_scaling', older), ('rope_parameters', newer)):
    if value is not None and not isinstance(value, dict):
      fields.refuse(name, 'a JSON object or null is wanted')
  older, newer = Fields(older or {}, fields.where), newer or {}
  for name, value in newer.items():
    older.same(name, value)
  return Fields({**older.published, **newer}, fields.where)


def _rope_kind(fields: Fields, rope: Fields) -> str:
  """Returns `default`, or a kind of scaling all of whose fields are known."""
  name = 'rope_type' if 'rope_type' in rope.published else 'type'
  kind = rope.published.get(name)
  kind = 'default' if kind is None else kind
  llama = fields.published['model_type'] == 'llama'
  known = _ROPE_KINDS['llama' if llama else 'deepseek']
  if kind not in known:
    rope.refuse(name, f'known: {", ".join(known)}')
  rope.same('type', kind)
  for name, value in rope.published.items():
    neutral = _ROPE_NEUTRAL.get(name, (None,))
    if name in _ROPE_KEYS[kind] or neutral is None:
      continue
    if value not in neutral:
      rope.refuse(name, f'unknown to rope_type {kind!r}')
  return kind
