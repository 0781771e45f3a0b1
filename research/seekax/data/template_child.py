"""Chat templates are rendered in a child process, within limits.

`ask` starts it. The functions after `_read_answers` run only there, as a
program that has nothing from this file but them.
"""

import json
import signal
import subprocess
from typing import Any

from seekax.data import child
from seekax.data.child import limit


def ask(request: bytes, seconds: float) -> tuple[list[dict[str, str]], str]:
  """Renders in a child process, which has ended when this returns.

  Returns:
    The answers that it gave, and why there are no more.
  """
  functions = (_environment, _compile, _answer, _serve)
  too_long = f'takes longer than {seconds:g} s'
  try:
    process = child.run(functions, '_serve()', request, seconds)
  except subprocess.TimeoutExpired as error:
    return _read_answers(error.stdout or b''), too_long
  except OSError as error:
    return [], f'cannot be rendered in a process ({error})'
  answers = _read_answers(process.stdout)
  if process.returncode == -signal.SIGXCPU:
    return answers, too_long
  return answers, f'ended its process with code {process.returncode}'


def _read_answers(output: bytes) -> list[dict[str, str]]:
  """Parses one answer per line; the last line may be incomplete."""
  return [json.loads(line) for line in output.split(b'\n')[:-1]]


def _serve():
  import json
  import sys

  request = json.load(sys.stdin.buffer)
  sys.path += request['path']
  limit(request['memory'], request['seconds'])
  template, error = _compile(request)
  for variables in request['variables']:
    answer = error or _answer(template, variables, request)
    sys.stdout.write(json.dumps(answer) + '\n')
    sys.stdout.flush()


def _environment():
  """The environment that Hugging Face's templates expect."""
  import datetime
  import json

  import jinja2.ext
  import jinja2.sandbox

  class Generation(jinja2.ext.Extension):
    """{% generation %} marks the model's words for training; ignored here."""

    tags = {'generation'}

    def parse(self, parser):
      next(parser.stream)
      return parser.parse_statements(('name:endgeneration',), drop_needle=True)

  class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    def unsafe_undefined(self, obj, attribute):
      # The original raises only when the result is used, and prints as ''.
      raise jinja2.sandbox.SecurityError(
        f'{attribute} of a {type(obj).__name__}'
      )

  def tojson(x, ensure_ascii=False, indent=None, separators=None, **options):
    return json.dumps(
      x,
      ensure_ascii=ensure_ascii,
      indent=indent,
      separators=separators,
      sort_keys=options.get('sort_keys', False),
    )

  def raise_exception(message):
    raise jinja2.TemplateError(str(message))

  result = Sandbox(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=[Generation, 'jinja2.ext.loopcontrols'],
  )
  result.filters['tojson'] = tojson
  # Jinja types them by those that it has at first.
  names: dict[str, Any] = result.globals
  names['raise_exception'] = raise_exception
  names['strftime_now'] = lambda f: datetime.datetime.now().strftime(f)
  return result


def _compile(request):
  import jinja2

  try:
    return _environment().from_string(request['template']), None
  except MemoryError:
    return None, {'error': f'needs more than {request["memory"] >> 20} MiB'}
  except jinja2.TemplateSyntaxError as error:
    words = f'has an error in line {error.lineno}: {error.message}'
    return None, {'error': words}
  except Exception as error:
    words = f'fails with {type(error).__name__}: {error}'
    return None, {'error': words}


def _answer(template, variables, request):
  import jinja2
  import jinja2.sandbox

  limit, pieces = request['characters'], []
  try:
    for piece in template.generate(**variables):
      # The limit counts all answers: the parent holds them at once.
      request['characters'] -= len(piece)
      if request['characters'] < 0:
        return {'error': f'writes more than {limit} characters'}
      pieces.append(piece)
    return {'text': ''.join(pieces)}
  except MemoryError:
    return {'error': f'needs more than {request["memory"] >> 20} MiB'}
  except jinja2.TemplateSyntaxError as error:
    return {'error': f'has an error in line {error.lineno}: {error.message}'}
  except jinja2.sandbox.SecurityError as error:
    return {'error': f'asks for what is forbidden: {error}'}
  except Exception as error:
    if type(error) is jinja2.TemplateError:  # Raised by raise_exception.
      return {'error': f'refuses the messages: {error}'}
    return {'error': f'fails with {type(error).__name__}: {error}'}
