"""CITATION.cff names what is installed."""

from importlib import metadata
import re

from absl.testing import absltest

import short_runs


class CitationTest(absltest.TestCase):
  def test_version_and_licence_are_those_of_the_package(self):
    text = (short_runs.ROOT / 'CITATION.cff').read_text()
    found = dict(re.findall(r'^([\w-]+): *"?(.*?)"?$', text, re.MULTILINE))
    package = metadata.metadata('seekax')
    self.assertEqual(found['type'], 'software')
    self.assertEqual(found['version'], package['Version'])
    self.assertEqual(
      found['license'], package['License'] or package['License-Expression']
    )
    self.assertIn('  - name: The seekax maintainers\n', text)


if __name__ == '__main__':
  absltest.main()
