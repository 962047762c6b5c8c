"""The type checker of the test run: beartype under jaxtyping's import hook, with ints allowed as floats."""

from beartype import BeartypeConf, beartype

checker = beartype(conf=BeartypeConf(is_pep484_tower=True))
