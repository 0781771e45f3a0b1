"""Formats counts, times, sizes and prices for people."""


def counted(number: int, noun: str) -> str:
  """For example 1 step, 2 steps."""
  return f'{number:,} {noun}{"s" * (number != 1)}'


def time_unit(seconds: float) -> tuple[str, float]:
  """The most readable unit for a time, and the seconds in it."""
  units = (
    ('seconds', 1.0, 90.0),
    ('minutes', 60.0, 90.0),
    ('hours', 3600.0, 36.0),
  )
  for name, length, most in units:
    if seconds < most * length:
      return name, length
  return 'days', 86400.0


def duration(seconds: float) -> str:
  """A time in its most readable unit; a dash for 0."""
  if not seconds:
    return '–'
  unit, length = time_unit(seconds)
  amount = seconds / length
  return f'{amount:.{1 if amount < 10 else 0}f} {unit}'


def byte_size(number: float) -> str:
  """A size in the largest binary unit that it fills."""
  for power, unit in ((30, 'GiB'), (20, 'MiB'), (10, 'KiB')):
    if number >= 2**power:
      return f'{number / 2**power:.3g} {unit}'
  return f'{number} bytes'


def dollars(amount: float) -> str:
  """A price with two decimals, or two significant digits below a dollar."""
  if amount >= 1:
    return f'${amount:,.2f}'
  return f'${amount:.2g}'
