"""The house stands: imports run downward only, presets and configs agree."""

import ast
import pathlib
import subprocess
import sys

from absl.testing import absltest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / 'research' / 'seekax'
FLOORS = {
  'configuration': 0,
  'arrays': 0.5,  # Names of types alone.
  'files': 0.5,  # Every room reads files; it needs the errors alone.
  'machine': 1,
  'data': 1,
  'planning': 1,
  'grading': 1,
  'ops': 2,
  'parallel': 3,
  'model': 4,
  'storage': 5,
  'inference': 5,
  'training': 5,
  'report': 6,
  'dryrun': 6,
  'evaluation': 6,
  'serving': 6,
  'posttraining': 7,
  'runs': 8,
  'cli': 9,
  'api': 9,  # The front door's rooms are those below.
  '__main__': 10,
}


def room(parts: tuple[str, ...]) -> str:
  return parts[0].removesuffix('.py')


def imports(path: pathlib.Path) -> list[tuple[str, ...]]:
  """Every seekax module that a file imports, also inside functions."""
  found = []
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom) and node.module:
      assert node.level == 0, f'{path} imports relatively'
      base = tuple(node.module.split('.'))
      if base == ('seekax',):
        found += [(alias.name,) for alias in node.names]
      elif base[0] == 'seekax':
        found.append(base[1:])
    elif isinstance(node, ast.Import):
      names = [alias.name.split('.') for alias in node.names]
      found += [tuple(name[1:]) for name in names if name[0] == 'seekax']
  return found


class ArchitectureTest(absltest.TestCase):
  def test_imports_run_downward_only(self):
    wrong, seen = [], 0
    for path in PACKAGE.rglob('*.py'):
      own = room(path.relative_to(PACKAGE).parts)
      for parts in imports(path) if own != '__init__' else []:
        seen += 1
        other = room(parts)
        if other != own and FLOORS[other] >= FLOORS[own]:
          wrong.append(f'{path.name}: {own} imports {other}')
    self.assertEmpty(wrong)
    self.assertGreater(seen, 50)

  def test_library_reads_no_flags_below_the_command_line(self):
    for path in PACKAGE.rglob('*.py'):
      if room(path.relative_to(PACKAGE).parts) != 'cli':
        self.assertNotIn('absl import flags', path.read_text(), msg=path)

  def test_help_config_and_planning_import_no_jax(self):
    code = (
      'import sys; import seekax.configuration.presets, seekax.planning.parameters,'
      'seekax.planning.flops, seekax.cli.main as m; m.main(["--help"]);'
      'sys.exit("jax" in sys.modules)'
    )
    run = subprocess.run(
      [sys.executable, '-c', code], capture_output=True, check=False
    )
    self.assertEqual(run.returncode, 0, msg=run.stderr)

  def test_every_folder_of_the_layout_is_alive(self):
    for name in ('research', 'experiments', 'configs', 'third_party'):
      files = [p for p in (ROOT / name).rglob('*.py') if p.stat().st_size]
      self.assertNotEmpty(files, msg=name)
    self.assertNotEmpty(list((ROOT / 'colabs').glob('*.ipynb')))


if __name__ == '__main__':
  absltest.main()
