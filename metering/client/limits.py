"""How much at once, and how long to wait."""

from typing import Final

CHUNK: Final = 500
"""How many events push_many() sends at once, and how many signals are read at once."""
BLOCK_S: Final = 1.0
"""How long Redis is asked to wait for the next signal; as late an iterator may notice that it was closed."""
FIRST_WAIT_S: Final = 0.05
LONGEST_WAIT_S: Final = 1.0
ROLE_CHECK_S: Final = 2.0
"""How often a connection in use asks for its server's role: for so long a gate may be one that a demoted server held."""
