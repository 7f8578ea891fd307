"""The checker of types under which the tests run the core: as PEP 484 says, an int is a float."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
